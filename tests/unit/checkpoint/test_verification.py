"""Damage to a checkpoint is found before anything is parsed, and nothing is ever unpickled."""

from __future__ import annotations

import errno
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.steps import step_name
from orchestrator.errors import CheckpointError
from tests.unit.checkpoint.saved import FILES, load, save


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def clear(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "truncate": truncate,
    "clear": clear,
    "zero": zero,
    "delete": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_falls_back_to_the_step_before_and_keeps_the_evidence(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = save(tmp_path, 1, 2)
    DAMAGE[damage](tmp_path / step_name(2) / name)
    problem = CheckpointManager.verify(tmp_path / step_name(2))
    assert problem is not None and name in problem
    with caplog.at_level(logging.WARNING):
        assert manager.newest() == tmp_path / step_name(1)
    # Without COMPLETE it is a save that was interrupted, and its folder is written anew.
    is_interrupted = (name, damage) == ("COMPLETE", "delete")
    assert (tmp_path / step_name(2)).exists() == is_interrupted
    assert (tmp_path / "quarantine-step-00000002").exists() != is_interrupted
    assert ("step-00000002 is damaged" in caplog.text) != is_interrupted


def test_second_quarantine_of_a_step_gets_a_name_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        manager = save(tmp_path, 2)
        flip(tmp_path / step_name(2) / "shard-00000.bin")
        assert manager.newest() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quarantine-step-00000002",
        "quarantine-step-00000002-2",
    ]


def test_a_damaged_checkpoint_that_cannot_be_renamed_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = save(tmp_path, 2)
    flip(tmp_path / step_name(2) / "shard-00000.bin")

    def rename(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError) as caught:
        manager.newest()
    assert str(caught.value) == (
        f"{tmp_path}: a damaged checkpoint could not be set aside: [Errno 13] Permission denied:"
        f" '{tmp_path / step_name(2)}'. Move it out of the folder, or make the folder writable"
    )


def test_load_of_a_damaged_checkpoint_is_refused_before_anything_is_parsed(tmp_path: Path) -> None:
    manager = save(tmp_path, 1)
    (tmp_path / step_name(1) / "metadata.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"metadata\.json: 1 bytes with digest"):
        load(manager, tmp_path / step_name(1))
    with pytest.raises(CheckpointError, match=r"metadata\.json: 1 bytes with digest"):
        CheckpointManager.read_weights(tmp_path / step_name(1))


@pytest.mark.parametrize(
    ("content", "expected"),
    [("[1]", "found a list, expected a JSON object"), ("{", "not JSON: Expecting property name")],
)
def test_state_that_is_no_json_object_is_named(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        seal.read_json(tmp_path / "state.json")
    assert str(caught.value).startswith(f"{tmp_path}/state.json: {expected}")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._marker,))


def reseal(path: Path) -> None:
    """Make whatever is in ``path`` verify."""
    names = [item.name for item in path.iterdir() if item.name not in ("manifest.json", "COMPLETE")]
    seal.seal(path, {name: seal.digest_file(path / name) for name in names})


@pytest.mark.parametrize("is_resealed", [False, True])
@pytest.mark.parametrize("name", [*FILES, ".metadata"])
def test_pickle_in_place_of_any_file_never_runs(tmp_path: Path, name: str, is_resealed: bool) -> None:
    manager = save(tmp_path / "checkpoints", 1)
    path = tmp_path / "checkpoints" / step_name(1)
    marker = tmp_path / "ran"
    (path / name).write_bytes(pickle.dumps(Bomb(marker)))
    if is_resealed:
        reseal(path)
    manager.newest()
    for read in (load, lambda m, p: m.read_weights(p)):
        try:
            read(manager, path)
        except (CheckpointError, ValueError, RuntimeError, OSError):
            assert name != ".metadata"
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb itself does not work"
