"""What a rehearsal changes of a job, and how it compares runs that are not promised to be equal."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from launchers.rehearsal import _largest_loss_gap
from launchers.rehearsed_faults import NotPossibleError, _other_strategy
from orchestrator.checkpoint.layout import RunLayout
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


def run_with(folder: Path, losses: list[float]) -> RunLayout:
    layout = RunLayout(folder)
    layout.stage(STAGE).root.mkdir(parents=True)
    lines = [json.dumps({"step": step, "train/loss": loss}) for step, loss in enumerate(losses, start=1)]
    layout.stage(STAGE).metrics.write_text("\n".join(lines) + "\n")
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
