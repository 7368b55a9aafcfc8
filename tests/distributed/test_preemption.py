"""A notice that nodes are taken away, from a stand-in for the cluster: saved at once, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.checkpoint.steps import list_steps
from orchestrator.tracking.events import read_json_lines
from orchestrator.train.ledger import read_ledger
from orchestrator.train.stop import Leaving, PreemptionNotice
from tests.distributed.test_anomalies import STAGE, layout_of, prepare
from tests.distributed.training import different, end_of
from tests.support import run_ranks

# By start of the stage: what the cluster says, and at which question.
ANSWERS: list[tuple[Leaving, int]] = [("some", 5), ("all", 2), ("none", 0)]
PLAIN = {"objective": {"name": "causal_lm"}, "checkpoint": {"every_steps": 100}}


def run(folder: str) -> list[str]:
    """Outcomes of starts of a stage that ask before every step, and of one that is not told anything."""
    from orchestrator.train.worker import run_stage

    outcomes = []
    for leaving, when in ANSWERS:
        asked: list[Leaving] = []

        def ask(leaving: Leaving = leaving, when: int = when, asked: list[Leaving] = asked) -> Leaving:
            asked.append(leaving)
            return leaving if len(asked) == when else "none"

        notice = PreemptionNotice(ask, interval_seconds=0.0)
        outcomes.append(run_stage(Path(folder, "runs", "moved"), STAGE, notice))
    return [*outcomes, run_stage(Path(folder, "runs", "whole"), STAGE)]


@pytest.mark.parametrize("workers", [2])
def test_no_step_is_lost_to_a_notice(workers: int, tmp_path: Path) -> None:
    for name in ("moved", "whole"):
        prepare(tmp_path, name, num_workers=workers, **PLAIN)
    outcomes = run_ranks(run, workers, str(tmp_path))
    assert outcomes == [["preempted", "stopped", "finished", "finished"]] * workers
    moved, whole = layout_of(tmp_path, "moved"), layout_of(tmp_path, "whole")
    events = list(read_json_lines(moved.root.parent / "events.jsonl"))
    # The question before a step is answered with what came before it saved.
    assert [event["step"] for event in events if event["event"] == "training_started"] == [0, 4, 5]
    assert [event["event"] for event in events if event["event"].startswith("stage_")] == [
        *("stage_preparing",) * sum(event["event"] == "stage_preparing" for event in events),
        *("stage_started", "stage_preempted", "stage_started", "stage_stopped"),
        *("stage_started", "stage_finished"),
    ]
    records = read_ledger(moved.ledger)
    assert [record.steps for record in records][:2] == [(0, 4), (4, 5)]
    assert all(step.is_complete for step in list_steps(moved.checkpoints))
    assert different(*map(end_of, (moved, whole))) == []
