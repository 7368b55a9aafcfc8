"""Ledger, result and replaced folders survive a death on any line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.errors import DataError
from orchestrator.spec.plan import BatchPlan
from orchestrator.tracking.events import read_json_lines
from orchestrator.train.inputs import StageInputs
from orchestrator.train.results import Ledger, replace_folder, write_result

PLAN = BatchPlan(world_size=2, micro_batch_size=2, grad_accum_steps=1, global_batch_size=4, seq_len=8)
INPUTS = StageInputs("f", "s", "tokenizer", {"a": "x"}, {}, ("no", "yes"), None, "id", {"a": "d"}, {})


def test_ledger_joins_without_gap_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path, PLAN, 0)
    first.commit(3)
    first.commit(6)
    # Killed after step 6 was recorded, resumed from the checkpoint of step 3.
    Ledger(path, PLAN, 3).commit(7)
    assert [record["rows"] for record in read_json_lines(path)] == [[0, 12], [12, 28]]


def test_a_record_lost_between_checkpoint_and_ledger_is_made_up_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, PLAN, 0).commit(5)
    # Killed after the checkpoint of step 10 and before its record.
    Ledger(path, PLAN, 10).commit(15)
    assert [record["steps"] for record in read_json_lines(path)] == [[0, 5], [5, 10], [10, 15]]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    replace_folder(folder, lambda new: new.mkdir() or (new / "a").write_text("old"))

    def fail(new: Path) -> None:
        new.mkdir()
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        replace_folder(folder, fail)
    assert (folder / "a").read_text() == "old"
    replace_folder(folder, lambda new: new.mkdir() or (new / "a").write_text("new"))
    assert (folder / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_inputs_are_read_back_equal_and_their_absence_says_what_to_do(tmp_path: Path) -> None:
    layout = StageLayout(tmp_path / "stage")
    with pytest.raises(DataError, match="orchestrator prepare JOB"):
        StageInputs.read(layout)
    INPUTS.write(layout.inputs)
    assert StageInputs.read(layout) == INPUTS


def test_result_holds_fingerprints_step_and_metrics(tmp_path: Path) -> None:
    layout = StageLayout(tmp_path / "stage")
    layout.root.mkdir()
    write_result(layout, INPUTS, step=5, metrics={"train/loss": 1.5})
    record = json.loads(layout.result.read_text())
    assert (record["stage"], record["fingerprint"], record["step"]) == ("stage", "f", 5)
    assert record["metrics"] == {"train/loss": 1.5}
