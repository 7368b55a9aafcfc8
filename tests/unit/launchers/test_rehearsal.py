"""What a rehearsal changes of a job, and how it compares runs that are not promised to be equal."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launchers import rehearsal
from launchers.rehearsal import _largest_loss_gap
from launchers.rehearsed_faults import DAMAGE_STEP, NotPossibleError, _other_strategy
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.errors import PlanError
from orchestrator.tracking.events import append_event
from orchestrator.tracking.jsonl import JSONLTracker
from tests.unit.launchers.test_run_directory import make_job

STAGE = "pretrain"


@pytest.mark.parametrize(
    ("strategy", "other"),
    [
        ({"name": "fsdp2"}, "zero"),
        ({"name": "ddp"}, "fsdp2"),
        ({"name": "fsdp2", "param_dtype": "bfloat16"}, "zero"),
        ({"name": "zero", "param_dtype": "bfloat16"}, "fsdp2"),
        ({"name": "zero", "param_dtype": "float16"}, "fsdp2"),
    ],
)
def test_the_other_strategy_has_the_jobs_dtype(strategy: dict[str, str], other: str) -> None:
    changed = _other_strategy(make_job(strategy=strategy, global_batch_size=4))["strategy"]
    assert (changed.name, changed.param_dtype) == (other, strategy.get("param_dtype", "float32"))


@pytest.mark.parametrize(
    ("name", "gpus", "is_possible"), [("ddp", 1, False), ("fsdp2", 0, False), ("fsdp2", 1, True)]
)
def test_in_float16_a_strategy_without_a_peer_that_runs_here_is_not_switched(
    name: str, gpus: int, is_possible: bool
) -> None:
    strategy = {"name": name, "param_dtype": "float16"}
    job = make_job(strategy=strategy, resources={"gpus_per_worker": gpus}, global_batch_size=4)
    if is_possible:
        assert _other_strategy(job)["strategy"].name == "zero"
        return
    with pytest.raises(NotPossibleError, match=f"so near to {name} that a defect would show: float16"):
        _other_strategy(job)


def test_a_stage_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError) as caught:
        rehearsal.shortened(make_job(), "pretrian")
    hint = "Did you mean 'pretrain'? Its training stages: pretrain."
    assert str(caught.value) == f"job 'job' has no training stage 'pretrian'. {hint}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"strategy": {"name": "ddp"}}, ("fsdp2", None)),
        ({"strategy": {"name": "fsdp2"}}, ("zero", 1)),
        ({"strategy": {"name": "fsdp2"}, "optimizer": {"name": "adafactor", "lr": 0.001}}, ("zero", 0)),
        ({"strategy": {"name": "zero", "stage": 1}}, ("fsdp2", None)),
        ({"strategy": {"name": "zero", "stage": 2}}, ("zero", 3)),
        ({"strategy": {"name": "zero", "stage": 2, "param_dtype": "bfloat16"}}, ("fsdp2", None)),
        ({"strategy": {"name": "fsdp2", "compile": True}}, ("zero", 1)),
    ],
)
def test_of_many_micro_batches_the_other_strategy_adds_in_the_same_order(
    changes: dict[str, Any], expected: tuple[str, int | None]
) -> None:
    other = _other_strategy(make_job(**changes))["strategy"]
    assert (other.name, getattr(other, "stage", None)) == expected
    assert other.compile == changes["strategy"].get("compile", False)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"name": "ddp", "param_dtype": "bfloat16"}, "global_batch_size": 4},
        {"strategy": {"name": "fsdp2", "param_dtype": "bfloat16", "compile": True}},
        {"strategy": {"name": "fsdp2", "reduce_dtype": "bfloat16"}},
        {"strategy": {"name": "mine.engine:Engine"}},
    ],
)
def test_a_strategy_without_a_useful_promise_is_not_switched(changes: dict[str, Any]) -> None:
    with pytest.raises(NotPossibleError, match="that a defect would show"):
        _other_strategy(make_job(**changes))


@pytest.mark.parametrize(
    ("promised", "loss", "expected"),
    [
        (0.0, 2.0, "no: 1 of 1 tensors differ, such as weight"),
        (1e-6, 2.0, "losses within 0.0e+00"),
        (1e-6, 2.00001, "no: losses differ by 5.0e-06, expected at most 1.0e-06"),
        (None, 2.00001, "losses within 5.0e-06 (nothing is promised)"),
        (None, math.nan, "no: a step has a loss in one of the two runs alone"),
    ],
)
def test_runs_are_held_to_what_is_promised(
    promised: float | None, loss: float, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = (run_with(tmp_path / "found", [loss]), run_with(tmp_path / "expected", [2.0]))
    for number, run in enumerate(runs):
        folder = run.stage(STAGE).checkpoints / "step-00000001"
        folder.mkdir(parents=True)
        (folder / "number").write_text(str(number))
    monkeypatch.setattr(CheckpointManager, "verify", lambda path: None)

    def read_tensors(path: Path) -> dict[str, torch.Tensor]:
        return {"weight": torch.tensor(int((path / "number").read_text()))}

    monkeypatch.setattr("orchestrator.checkpoint.storage.read_tensors", read_tensors)
    assert rehearsal.compare(*runs, STAGE, promised=promised) == expected


@pytest.mark.parametrize(("num_workers", "promised"), [((2,), 0.0), ((2, 1), 1e-6), ((1,), 1e-6)])
def test_an_elastic_run_that_went_on_with_fewer_workers_is_held_to_the_order_of_summation(
    num_workers: tuple[int, ...], promised: float, tmp_path: Path
) -> None:
    run = RunLayout(tmp_path)
    for number in num_workers:
        append_event(run.stage(STAGE).ledger, "", world_size=number)
    assert rehearsal._promised(make_job(resources={"num_workers": 2}), run, {}) == promised


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
    ("fault", "step", "resumed", "is_ok"),
    [
        ("kill-rank", 6, 4, True),
        ("kill-rank", 6, 0, False),
        ("corrupt", DAMAGE_STEP, 4, True),
        ("corrupt", DAMAGE_STEP, 0, False),
        ("preempt", 6, 4, False),
    ],
)
def test_more_lost_steps_than_a_fault_may_cost_are_a_defect(
    fault: str, step: int, resumed: int, is_ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunLayout(tmp_path)
    for event, at in (("checkpoint", 4), ("rehearsed_fault", step), ("training_started", resumed)):
        append_event(run.events, event, stage=STAGE, step=at, max_steps=12)
    # What else is compared is as it should be.
    monkeypatch.setattr(rehearsal, "verify_run", lambda *arguments: {"ledger": {"ok": True}})
    monkeypatch.setattr(rehearsal, "compare", lambda *arguments, **options: "yes")
    rehearsed = SimpleNamespace(layout=run)
    stage = make_job().stages[-1]
    finding = rehearsal._judge(fault, rehearsed, rehearsed, stage, promised=0.0)  # type: ignore[arg-type]
    assert (finding.ok, finding.steps_lost) == (is_ok, step - resumed)
    assert is_ok or f"it lost {step - resumed} steps, expected at most" in finding.note
