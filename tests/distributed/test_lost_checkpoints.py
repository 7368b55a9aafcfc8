"""A stage whose checkpoints somebody removed goes on from what is left, or begins anew, and says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launchers.verification import verify_run
from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.steps import step_name
from orchestrator.tracking.events import read_json_lines
from tests.distributed.test_anomalies import STAGE, prepare
from tests.support import run_ranks


def start(stage: str) -> str:
    """How the stage ends."""
    from orchestrator.train.worker import run_stage

    return run_stage(Path(stage).parent, STAGE)


def gone(layout: StageLayout) -> list[tuple[int, int]]:
    """Steps that were recorded, and those that a start went on from."""
    events = read_json_lines(layout.root.parent / "events.jsonl")
    return [(event["recorded"], event["step"]) for event in events if event["event"] == "checkpoints_gone"]


@pytest.mark.parametrize("workers", [1, 2])
def test_removed_checkpoints_are_told(workers: int, tmp_path: Path) -> None:
    plain = {"objective": {"name": "causal_lm"}, "limits": {"max_steps": 4}}
    layout = prepare(tmp_path, "run", num_workers=workers, **plain)
    assert run_ranks(start, workers, str(layout.root)) == ["finished"] * workers
    assert gone(layout) == []
    layout.result.unlink()
    shutil.rmtree(layout.checkpoints)
    assert run_ranks(start, workers, str(layout.root)) == ["finished"] * workers
    assert gone(layout) == [(4, 0)]
    assert verify_run(layout.root.parent, None)["ok"]


def test_removed_newest_checkpoints_are_told(tmp_path: Path) -> None:
    plain = {"objective": {"name": "causal_lm"}, "limits": {"max_steps": 6}}
    layout = prepare(tmp_path, "run", num_workers=1, **plain, checkpoint={"every_steps": 2, "keep_last": 3})
    assert run_ranks(start, 1, str(layout.root)) == ["finished"]
    layout.result.unlink()
    shutil.rmtree(layout.checkpoints / step_name(6))
    assert run_ranks(start, 1, str(layout.root)) == ["finished"]
    assert gone(layout) == [(6, 4)]
    layout.result.unlink()
    for file in (layout.checkpoints / step_name(6)).iterdir():
        file.unlink()
    assert run_ranks(start, 1, str(layout.root)) == ["finished"]
    # Its empty folder is set aside as damaged, which is said instead.
    assert gone(layout) == [(6, 4)]
    assert (layout.checkpoints / f"quarantine-{step_name(6)}").is_dir()
    assert verify_run(layout.root.parent, None)["ok"]
