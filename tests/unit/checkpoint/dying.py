"""Kills this process at the n-th call that changes the disk, whoever makes it, in whatever thread.

Python's audit hook sees every file that is opened for writing, every rename, removal and new folder; writes
and fsyncs, which it does not see, are counted where they are made. A write counts twice: before it,
and after a part of its bytes.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

AUDITED = {
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.rmdir": "rmdir",
    "os.mkdir": "mkdir",
    "os.truncate": "truncate",
    "os.link": "link",
    "os.symlink": "symlink",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Death:
    """Counts calls from ``arm`` on, and dies at one of them."""

    def __init__(self, fatal_call: int | None) -> None:
        """Die at the call of this number, from 1; ``None``: at none."""
        self._fatal_call = fatal_call
        self._is_armed = False
        self._lock = threading.Lock()
        self.calls: list[str] = []
        """Kinds of the calls so far; a write's second half is ``torn``."""
        _install(self)

    def arm(self) -> None:
        """Count from here on."""
        self._is_armed = True

    def at(self, kind: str) -> None:
        """A call of this kind is about to be made."""
        if not self._is_armed:
            return
        with self._lock:
            self.calls.append(kind)
            if len(self.calls) == self._fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)


def _install(death: Death) -> None:
    """Have ``death`` told of every call; for good, so only in a process of its own."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED:
            death.at(AUDITED[event])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            death.at("open")

    class Raw(io.FileIO):
        def write(self, content: Any) -> int:
            death.at("write")
            view = memoryview(content).cast("B")
            if len(view) > 1:
                written = super().write(view[: len(view) // 2])
                death.at("torn")
                return written + super().write(view[written:])
            return super().write(view)

    opened, wrote, synced = io.open, os.write, os.fsync

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if not {"w", "a", "x", "+"} & set(mode):
            return opened(file, mode, buffering, *rest, **options)
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **options)

    def write(descriptor: int, content: bytes) -> int:
        death.at("write")
        return wrote(descriptor, content)

    def fsync(descriptor: int) -> None:
        death.at("fsync")
        synced(descriptor)

    sys.addaudithook(audit)
    # Path.open looks its function up in io.
    io.open = builtins.open = open_file  # type: ignore[assignment]
    os.write, os.fsync = write, fsync  # type: ignore[assignment]


def record_calls(death: Death, path: Path) -> None:
    """Leave the kinds of all calls in a file, uncounted."""
    calls = list(death.calls)
    death._is_armed = False
    path.write_text(" ".join(calls))
