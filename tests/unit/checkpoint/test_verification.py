"""Damage to a checkpoint is found before anything is parsed, and nothing is ever unpickled."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.manager import CheckpointManager, Damage
from orchestrator.checkpoint.steps import step_name
from orchestrator.errors import CheckpointError
from tests.unit.checkpoint.saved import FILES, assert_equal, load, make_tensors, reseal, save

NUM_FLIPS = 24


def flip(path: Path, bit: int | None = None) -> None:
    """Turn one bit over, by default one in the middle."""
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def truncate(path: Path, num_bytes: int) -> None:
    os.truncate(path, num_bytes)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Bytes of each file; ``None``: it is a folder."""
    return {item.name: None if item.is_dir() else item.read_bytes() for item in folder.iterdir()}


def damages(path: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Everything that is done to one file, by name."""
    size = path.stat().st_size
    yield "deleted", Path.unlink
    yield "zeroed", zero
    yield "replaced by a folder", make_folder
    for num_bytes in sorted({0, 1, size // 2, size - 1}):
        yield f"truncated to {num_bytes} of {size} bytes", partial(truncate, num_bytes=num_bytes)
    rng = random.Random(f"{path.name} {size}")
    for bit in sorted({0, 8 * size - 1, *(rng.randrange(8 * size) for _ in range(NUM_FLIPS))}):
        yield f"bit {bit} of {8 * size} flipped", partial(flip, bit=bit)


@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_falls_back_to_the_step_before_and_keeps_the_evidence(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "good", 1, 2)
    noticed = 0
    for number, (damage, do) in enumerate(damages(tmp_path / "good" / step_name(2) / name)):
        folder = shutil.copytree(tmp_path / "good", tmp_path / str(number))
        do(folder / step_name(2) / name)
        content = content_of(folder / step_name(2))
        told: list[Damage] = []
        caplog.clear()
        manager = CheckpointManager(folder, on_damage=told.append)
        assert manager.newest() == folder / step_name(1), damage
        kept = folder / "quarantine-step-00000002"
        assert content_of(kept) == content, damage
        assert not (folder / step_name(2)).exists()
        ((step, problem, kept_as),) = [(found.step, found.problem, found.kept_as) for found in told]
        assert (step, kept_as) == (2, str(kept)) and name in problem, damage
        assert "step-00000002 is damaged" in caplog.text
        assert_equal(load(manager, folder / step_name(1))[0], make_tensors(1))
        noticed += 1
    assert noticed >= NUM_FLIPS


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


PROGRAM = """
import sys
from pathlib import Path
import torch
import orchestrator.train.building
from orchestrator.checkpoint.manager import CheckpointManager
from tests.unit.checkpoint.saved import load

seen = []
sys.addaudithook(lambda event, arguments: seen.append(event))
manager = CheckpointManager(Path(sys.argv[1]))
path = manager.newest()
load(manager, path)
manager.read_weights(path)
unpickled = sorted({event for event in seen if event.startswith(("pickle.", "marshal.", "exec", "compile"))})
print(path.name, unpickled, "open" in seen)
"""


def test_the_whole_load_path_unpickles_nothing(tmp_path: Path) -> None:
    """Python itself tells of every object that an unpickler looks up."""
    save(tmp_path, 1, 2)
    flip(tmp_path / step_name(2) / "shard-00000.bin")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "step-00000001 [] True"


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    for step in (2, 4):
        manager.save(step, make_tensors(step), {"step": step})
    (tmp_path / step_name(4)).rename(tmp_path / step_name(6))
    assert "of step 4, and the folder is called step-00000006" in str(
        CheckpointManager.verify(tmp_path / step_name(6))
    )
    newest = CheckpointManager(tmp_path).newest()
    assert newest == tmp_path / step_name(2)
    assert (tmp_path / f"quarantine-{step_name(6)}").is_dir()


def test_a_state_is_read_only_where_its_digest_holds(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(2, make_tensors(2), {"step": 2, "loss": 1.0})
    state = tmp_path / step_name(2) / "state.json"
    state.write_text(state.read_text().replace("1.0", "9.0"))
    with pytest.raises(CheckpointError, match=r"state\.json: .* bytes with digest"):
        CheckpointManager.read_state(tmp_path / step_name(2))
