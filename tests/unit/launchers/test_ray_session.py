"""What is removed of drivers that were killed, and which jobs have room."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from launchers.ray_session import ABANDONED_SECONDS, _check_nodes, _remove_abandoned
from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources


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


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ({"num_workers": 5}, "room for 4. Set resources.num_workers to 4 or less, or join"),
        ({"cpus_per_worker": 9}, "room for 0. Set resources.cpus_per_worker to 2, or join"),
        ({"gpus_per_worker": 1}, "room for 0. Set resources.gpus_per_worker to 0, or join"),
    ],
)
def test_a_job_without_room_is_told_what_would_fit(asked: dict[str, int], advice: str) -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 0.0}]
    with pytest.raises(PlanError) as refused:
        _check_nodes(Resources.model_validate(asked), nodes)
    assert advice in str(refused.value)


def test_a_range_of_workers_has_room_where_the_fewest_have() -> None:
    _check_nodes(Resources.model_validate({"num_workers": {"min": 2, "max": 9}}), [{"CPU": 2.0}])
