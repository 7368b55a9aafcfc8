"""Folders named by what they are made from: made once, committed whole, checked before use.

1. A lock file makes processes that want the same folder wait for one maker.
2. The maker fills a temporary folder beside the target, fsyncs it, writes COMPLETE last and renames
   it.
3. A folder whose content no longer has the digests that COMPLETE vouches for is named in a warning
   and made again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.data.files import digest_file
from orchestrator.data.prepared import COMPLETE
from orchestrator.errors import NoRoomError

# What the system calls a disk or a quota that is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


def make_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return ``target``, filled by ``build`` unless it is there already and verifies.

    Raises:
        NoRoomError: No room on the disk.
        DataError: What ``build`` raises.
    """
    with _locked(target):
        if target.exists():
            problem = damage(target)
            if problem is None:
                return target
            log.warning("%s: %s; it is made again", target, problem)
            shutil.rmtree(target)
        try:
            _build_and_commit(target, build)
        except OSError as error:
            if is_no_room(error):
                free = shutil.disk_usage(target.parent).free
                raise NoRoomError(
                    f"{target}: {error.strerror or error}: {free} bytes are free."
                    " Free some, or put the runs folder on a larger disk; nothing half-written is left."
                ) from error
            raise
    return target


def is_no_room(error: OSError) -> bool:
    """Whether a disk or a quota is full; numpy does not say so of a write that was cut short."""
    return error.errno in NO_ROOM or (error.errno is None and "requested and" in str(error))


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder that is there for the time of the block, for one process at a time."""
    with _locked(path):
        # Whoever left this behind died: the lock is ours.
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a folder is there and verifies."""
    return folder.exists() and damage(folder) is None


def damage(folder: Path) -> str | None:
    """What is wrong with a committed folder, every byte read; ``None`` when all digests hold."""
    marker = folder / COMPLETE
    if not marker.is_file():
        return f"it has no {COMPLETE} file"
    try:
        expected = json.loads(marker.read_text("utf-8"))
        entries = [(name, int(entry["bytes"]), str(entry["digest"])) for name, entry in expected.items()]
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"its {COMPLETE} file is damaged"
    for name, num_bytes, digest in entries:
        path = folder / name
        if not path.is_file():
            return f"file {name} is missing"
        if path.stat().st_size != num_bytes:
            return f"file {name} has {path.stat().st_size} bytes, expected {num_bytes}"
        if digest_file(path) != digest:
            return f"file {name} does not have the digest {digest} it was written with"
    return None


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of ``target``; the kernel frees it when its holder dies."""
    locks = target.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{target.name}.lock").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _build_and_commit(target: Path, build: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it to ``target``; the caller holds the lock."""
    temporary = target.with_name(f".{target.name}.making")
    # Whoever left this behind died: the lock is ours.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        build(temporary)
        entries = {}
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            name = path.relative_to(temporary).as_posix()
            entries[name] = {"bytes": path.stat().st_size, "digest": digest_file(path)}
            sync(path)
        (temporary / COMPLETE).write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
        sync(temporary / COMPLETE)
        sync(temporary)
        temporary.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
