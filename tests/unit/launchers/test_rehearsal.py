"""What a rehearsal changes of a job, and how it compares runs that are not promised to be equal."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from launchers import rehearsal
from launchers.rehearsal import _largest_loss_gap
from launchers.rehearsed_faults import NotPossibleError, _other_strategy
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import PlanError
from orchestrator.tracking.events import append_event
from orchestrator.tracking.jsonl import JSONLTracker
from tests.unit.launchers.test_run_directory import make_job

STAGE = "pretrain"


@pytest.mark.parametrize(
    ("strategy", "other"),
    [
        ({"name": "fsdp2"}, "zero"),
        ({"name": "ddp", "param_dtype": "bfloat16"}, "fsdp2"),
        ({"name": "zero", "param_dtype": "float16"}, "fsdp2"),
    ],
)
def test_the_other_strategy_has_the_jobs_dtype(strategy: dict[str, str], other: str) -> None:
    changed = _other_strategy(make_job(strategy=strategy))["strategy"]
    assert (changed.name, changed.param_dtype) == (other, strategy.get("param_dtype", "float32"))


@pytest.mark.parametrize(
    ("name", "gpus", "is_possible"), [("ddp", 1, False), ("fsdp2", 0, False), ("fsdp2", 1, True)]
)
def test_in_float16_a_strategy_without_a_peer_that_runs_here_is_not_switched(
    name: str, gpus: int, is_possible: bool
) -> None:
    job = make_job(strategy={"name": name, "param_dtype": "float16"}, resources={"gpus_per_worker": gpus})
    if is_possible:
        assert _other_strategy(job)["strategy"].name == "zero"
        return
    with pytest.raises(NotPossibleError, match="in float16 no other strategy"):
        _other_strategy(job)


def test_a_stage_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError) as caught:
        rehearsal.shortened(make_job(), "pretrian")
    hint = "Did you mean 'pretrain'? Its training stages: pretrain."
    assert str(caught.value) == f"job 'job' has no training stage 'pretrian'. {hint}"


def run_with(folder: Path, losses: list[float]) -> RunLayout:
    layout = RunLayout(folder)
    layout.stage(STAGE).root.mkdir(parents=True)
    tracker = JSONLTracker(layout.stage(STAGE).metrics, resume_step=0)
    for step, loss in enumerate(losses, start=1):
        tracker.log(step, {"train/loss": loss})
    tracker.finish("finished")
    return layout


@pytest.mark.parametrize(
    ("found", "expected", "gap"),
    [
        ([math.nan, 2.0], [math.nan, 4.0], 0.5),
        ([math.nan, 2.0], [2.0, 2.0], math.inf),
        ([2.0, 2.0], [math.nan, 2.0], math.inf),
    ],
)
def test_a_step_left_out_by_both_runs_has_no_loss_to_compare(
    found: list[float], expected: list[float], gap: float, tmp_path: Path
) -> None:
    runs = (run_with(tmp_path / "found", found), run_with(tmp_path / "expected", expected))
    assert _largest_loss_gap(*runs, STAGE) == gap


@pytest.mark.parametrize(
    ("fault", "resumed", "is_ok"),
    [("kill-rank", 4, True), ("kill-rank", 0, False), ("corrupt", 0, True), ("preempt", 4, False)],
)
def test_more_lost_steps_than_the_interval_between_two_saves_are_a_defect(
    fault: str, resumed: int, is_ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunLayout(tmp_path)
    for event, step in (("checkpoint", 4), ("rehearsed_fault", 6), ("training_started", resumed)):
        append_event(run.events, event, stage=STAGE, step=step)
    # What else is compared is as it should be.
    monkeypatch.setattr(rehearsal, "verify_run", lambda *arguments: {"ledger": {"ok": True}})
    monkeypatch.setattr(rehearsal, "compare", lambda *arguments, **options: "yes")
    rehearsed = SimpleNamespace(layout=run)
    stage = make_job().stages[-1]
    finding = rehearsal._judge(fault, rehearsed, rehearsed, stage, exact=True)  # type: ignore[arg-type]
    assert (finding.ok, finding.steps_lost) == (is_ok, 6 - resumed)
    assert is_ok or f"it lost {6 - resumed} steps, expected at most" in finding.note
