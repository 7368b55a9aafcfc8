"""What is removed of drivers that were killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from launchers.ray_session import ABANDONED_SECONDS, _remove_abandoned


def make_folder(parent: Path, name: str, *, age: float, lock: bool = True) -> Path:
    folder = parent / name
    folder.mkdir()
    if lock:
        (folder / "lock").touch()
    written = folder.stat().st_mtime - age
    os.utime(folder, (written, written))
    return folder


def test_only_an_old_folder_whose_driver_is_gone_is_removed(tmp_path: Path) -> None:
    old = ABANDONED_SECONDS + 60
    gone = make_folder(tmp_path, "orc-gone", age=old)
    alive = make_folder(tmp_path, "orc-alive", age=old)
    young = make_folder(tmp_path, "orc-young", age=0)
    foreign = make_folder(tmp_path, "orc-foreign", age=old, lock=False)
    other = make_folder(tmp_path, "other", age=old)
    with (alive / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_abandoned(tmp_path)
    assert not gone.exists()
    assert all(folder.exists() for folder in (alive, young, foreign, other))
