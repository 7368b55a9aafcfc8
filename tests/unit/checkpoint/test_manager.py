"""Commit order, retention, verification and quarantine, in one process without a process group."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint import saving, seal
from orchestrator.checkpoint.finite import NotFiniteError
from orchestrator.checkpoint.manager import CheckpointManager, Damage
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.checkpoint.storage import read_tensors
from orchestrator.errors import CheckpointError, ReplacedError, TrainingError
from tests.unit.checkpoint.saved import FILES, assert_equal, load, make_tensors, save


def test_load_gives_back_every_bit_and_the_state(tmp_path: Path) -> None:
    manager = save(tmp_path, 3)
    path = manager.newest()
    assert path == tmp_path / "step-00000003"
    tensors, state = load(manager, path)
    assert_equal(tensors, make_tensors(3))
    assert state == {"step": 3, "name": "a"}
    assert sorted(item.name for item in path.iterdir()) == sorted(FILES)


def test_read_weights_gives_the_parameters_alone(tmp_path: Path) -> None:
    save(tmp_path, 3)
    expected = {
        name.removeprefix("model."): value
        for name, value in make_tensors(3).items()
        if name.startswith("model.")
    }
    assert_equal(CheckpointManager.read_weights(tmp_path / step_name(3)), expected)


def test_retention_keeps_the_newest_and_removes_what_was_interrupted_before(tmp_path: Path) -> None:
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "quarantine-step-00000001").mkdir()
    save(tmp_path, 1, 3, 4, 5, retention=Retention(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quarantine-step-00000001",
        "step-00000004",
        "step-00000005",
        "step-00000009",
    ]


def test_step_that_was_interrupted_is_written_anew(tmp_path: Path) -> None:
    leftover = tmp_path / step_name(4)
    leftover.mkdir()
    (leftover / "shard-00000.bin").write_bytes(b"half")
    (leftover / "shard-00007.bin").write_bytes(b"of a larger world")
    manager = save(tmp_path, 4)
    assert seal.verify(leftover) is None
    assert not (leftover / "shard-00007.bin").exists()
    assert_equal(load(manager, leftover)[0], make_tensors(4))


def test_step_that_is_complete_is_not_written_again(tmp_path: Path) -> None:
    manager = save(tmp_path, 4)
    before = (tmp_path / step_name(4) / "COMPLETE").stat()
    manager.save(4, make_tensors(5), {"step": 4})
    assert (tmp_path / step_name(4) / "COMPLETE").stat() == before


def test_folder_that_does_not_exist_has_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointManager(tmp_path / "none").newest() is None
    assert list_steps(tmp_path / "none") == []


def test_misfit_names_the_first_tensors_and_both_shapes(tmp_path: Path) -> None:
    manager = save(tmp_path, 1)
    tensors = make_tensors()
    tensors["model.new"] = tensors.pop("model.bias")
    tensors["model.weight"] = torch.zeros(5, 7)
    with pytest.raises(CheckpointError) as caught:
        manager.load(tmp_path / step_name(1), tensors)
    message = str(caught.value)
    assert "3 tensors differ" in message
    assert "'model.new' is not in it" in message
    assert "'model.bias' is only in it" in message
    assert "'model.weight' is torch.float32 [7, 5] in it, expected torch.float32 [5, 7]" in message


def test_state_that_is_not_json_fails_the_save_and_leaves_nothing(tmp_path: Path) -> None:
    manager = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="could not be saved: rank 0: Object of type set"):
        manager.save(2, make_tensors(2), {"rows": {1}})
    assert [found.step for found in list_steps(tmp_path)] == [1]
    assert manager.newest() == tmp_path / step_name(1)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EIO, "Mend that and run the same command again."),
        (errno.ENOSPC, "bytes, 7 are free there; make room"),
    ],
)
def test_a_write_that_fails_is_told_with_what_helps(
    number: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = save(tmp_path, 1)

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(saving, "write_shard", fail)
    monkeypatch.setattr(saving, "_free_bytes", lambda folder: 7)
    with pytest.raises(CheckpointError, match="could not be saved: rank 0: ") as raised:
        manager.save(2, make_tensors(2), {"step": 2})
    assert advice in str(raised.value)
    assert ("are free" in str(raised.value)) == (number == errno.ENOSPC)
    assert manager.newest() == tmp_path / step_name(1)


def test_a_save_that_fails_since_others_write_by_now_says_so_and_leaves_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_over: list[int] = []

    def check_owner() -> None:
        if taken_over:
            raise ReplacedError("taken over by another")

    def sleep_through(*arguments: object) -> None:
        # As one that is paused in it: the other removes the half of a step, and writes its own.
        shutil.rmtree(tmp_path / step_name(2))
        save(tmp_path, 2)
        taken_over.append(1)
        raise FileNotFoundError(errno.ENOENT, "No such file", "shard-00000.bin")

    saver = saving.DirectSaver(tmp_path, Retention(1), check_owner=check_owner)
    original = saving.write_shard
    calls: list[int] = []

    def write(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments) if len(calls) > 1 else sleep_through()

    monkeypatch.setattr(saving, "write_shard", write)
    with pytest.raises(ReplacedError, match="not saved: rank 0: taken over by another"):
        saver.save(2, make_tensors(2), {"step": 2}, lambda: None)
    assert CheckpointManager(tmp_path).newest() == tmp_path / step_name(2)


def test_a_failed_save_whose_owner_cannot_be_told_is_told_as_it_failed_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def check_owner() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def fail(*arguments: object) -> None:
        raise NotFiniteError("'w' holds NaN")

    saver = saving.DirectSaver(tmp_path, Retention(1), check_owner=check_owner)
    monkeypatch.setattr(saving, "write_shard", fail)
    with pytest.raises(TrainingError, match="not saved: rank 0: 'w' holds NaN"):
        saver.save(1, make_tensors(1), {"step": 1}, lambda: None)
    assert (tmp_path / step_name(1)).is_dir()


def test_a_folder_that_was_seen_as_another_owners_once_is_left(tmp_path: Path) -> None:
    answers = [ReplacedError("taken over by another")]

    def check_owner() -> None:
        if answers:
            raise answers.pop()

    half = tmp_path / step_name(1) / "shard-00000.bin"
    half.parent.mkdir()
    half.write_bytes(b"theirs")
    saver = saving.DirectSaver(tmp_path, Retention(1), check_owner=check_owner)
    with pytest.raises(ReplacedError, match="not saved: rank 0: taken over by another"):
        saver.save(1, make_tensors(1), {"step": 1}, lambda: None)
    assert half.read_bytes() == b"theirs"


def test_a_step_that_was_complete_and_lost_everything_is_told_and_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    for file in (tmp_path / step_name(4)).iterdir():
        file.unlink()
    for name in ("COMPLETE", "manifest.json"):
        (tmp_path / step_name(3) / name).unlink()
    (tmp_path / step_name(5)).mkdir()
    told: list[Damage] = []
    manager = CheckpointManager(tmp_path, on_damage=told.append, committed=lambda: [1, 2, 3, 4])
    assert manager.newest() == tmp_path / step_name(2)
    assert [(damage.step, damage.problem) for damage in told] == [
        (step, "no COMPLETE and no manifest.json, though the ledger has its steps") for step in (4, 3)
    ]
    assert (tmp_path / f"quarantine-{step_name(3)}" / "shard-00000.bin").is_file()
    # A save that was interrupted: nobody has recorded it.
    assert (tmp_path / step_name(5)).is_dir()


def test_a_removal_that_was_interrupted_is_no_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / step_name(2) / "COMPLETE").rename(tmp_path / step_name(2) / seal.WAITING)
    (tmp_path / step_name(2) / "manifest.json").unlink()
    told: list[Damage] = []
    manager = CheckpointManager(tmp_path, on_damage=told.append, committed=lambda: [1, 2])
    assert manager.newest() == tmp_path / step_name(1)
    assert told == []


@pytest.mark.parametrize("thing", ["file", "link to a folder", "link to nothing"])
def test_what_has_the_name_of_the_next_step_is_named_and_stays(thing: str, tmp_path: Path) -> None:
    manager = save(tmp_path, 1)
    path, found = tmp_path / step_name(2), "a file"
    if thing == "file":
        path.write_text("notes")
    else:
        target = tmp_path if thing == "link to a folder" else tmp_path / "nothing"
        path.symlink_to(target)
        found = f"a link to {target}"
    with pytest.raises(CheckpointError) as caught:
        manager.save(2, make_tensors(2), {"step": 2})
    assert str(caught.value) == (
        f"{path}: not saved: rank 0: found {found}, expected no such name, or a folder: move it away, and run"
        " the same command again"
    )
    assert path.is_symlink() or path.read_text() == "notes"
    assert manager.newest() == tmp_path / step_name(1)


def test_metadata_is_json_that_says_where_each_chunk_is(tmp_path: Path) -> None:
    save(tmp_path, 1)
    index = json.loads((tmp_path / step_name(1) / "metadata.json").read_text())
    entry = index["tensors"]["model.weight"]
    assert (entry["dtype"], entry["shape"]) == ("float32", [7, 5])
    (chunk,) = entry["chunks"]
    assert (chunk["offsets"], chunk["sizes"], chunk["length"]) == ([0, 0], [7, 5], 140)
    content = (tmp_path / step_name(1) / chunk["file"]).read_bytes()
    raw = content[chunk["position"] : chunk["position"] + chunk["length"]]
    expected = make_tensors(1)["model.weight"]
    assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.float32).view(7, 5), expected)
    assert chunk["position"] % 64 == 0


def test_format_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / step_name(1)
    (path / "metadata.json").write_text('{"format": "later-2", "tensors": {}}')
    with pytest.raises(CheckpointError, match="format 'later-2', expected 'orchestrator-tensors-1'"):
        read_tensors(path)


@pytest.mark.parametrize("lacks", ["COMPLETE", "manifest.json"])
def test_an_interrupted_removal_is_finished_and_a_lost_complete_is_kept(lacks: str, tmp_path: Path) -> None:
    manager = save(tmp_path, 1, 2)
    (tmp_path / step_name(1) / lacks).unlink()
    if lacks == "manifest.json":
        (tmp_path / step_name(1) / "COMPLETE").unlink()
    CheckpointManager(tmp_path, Retention(2)).save(3, make_tensors(3), {"step": 3})
    assert (tmp_path / step_name(1)).exists() == (lacks == "COMPLETE")
    assert manager.newest() == tmp_path / step_name(3)
