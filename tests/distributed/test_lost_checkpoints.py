"""A stage whose checkpoints somebody removed begins anew, and says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launchers.verification import verify_run
from orchestrator.checkpoint.layout import StageLayout
from orchestrator.tracking.events import read_json_lines
from tests.distributed.test_anomalies import STAGE, prepare
from tests.support import run_ranks


def start(stage: str) -> str:
    """How the stage ends."""
    from orchestrator.train.worker import run_stage

    return run_stage(Path(stage).parent, STAGE)


def gone(layout: StageLayout) -> list[int]:
    events = read_json_lines(layout.root.parent / "events.jsonl")
    return [event["recorded"] for event in events if event["event"] == "checkpoints_gone"]


@pytest.mark.parametrize("workers", [1, 2])
def test_removed_checkpoints_are_told(workers: int, tmp_path: Path) -> None:
    plain = {"objective": {"name": "causal_lm"}, "limits": {"max_steps": 4}}
    layout = prepare(tmp_path, "run", num_workers=workers, **plain)
    assert run_ranks(start, workers, str(layout.root)) == ["finished"] * workers
    assert gone(layout) == []
    layout.result.unlink()
    shutil.rmtree(layout.checkpoints)
    assert run_ranks(start, workers, str(layout.root)) == ["finished"] * workers
    assert gone(layout) == [4]
    assert verify_run(layout.root.parent, None)["ok"]
