"""Result and replaced folders survive a death on any line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.errors import DataError
from orchestrator.train.inputs import StageInputs
from orchestrator.train.results import replace_folder, write_result

INPUTS = StageInputs("f", "s", "tokenizer", {"a": "x"}, {}, ("no", "yes"), None, "id", {"a": "d"}, {})


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
