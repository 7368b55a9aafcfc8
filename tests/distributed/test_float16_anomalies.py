"""float16 and steps that cannot be right: a loss, or gradients at the smallest scale, that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.steps import step_name
from orchestrator.tracking.events import read_json_lines
from tests.distributed.test_anomalies import anomalies, layout_of, left_out, prepare, run, set_poison
from tests.support import run_ranks

FLOAT16 = {"strategy": {"name": "fsdp2", "param_dtype": "float16"}, "num_workers": 1}
CHANGES: dict[str, dict[str, Any]] = {
    "overflow": {"loss_scale": {"initial": 1024.0, "growth_interval": 9}},
    "lowest": {"loss_scale": {"initial": 1.0}, "anomalies": {"nonfinite": "skip"}},
    "rollback": {
        "loss_scale": {"initial": 1.0, "growth_interval": 1},
        "anomalies": {"nonfinite": "rollback"},
    },
}
# The first two have a finite loss, and gradients that float16 cannot hold at any scale.
POISON = {"overflow": 1e9, "lowest": 1e9, "rollback": float("nan")}
Runs = tuple[Path, dict[str, str]]


def run_poisoned(folder: str) -> dict[str, str]:
    outcomes = {}
    for name, factor in POISON.items():
        set_poison(Path(folder), layout_of(Path(folder), name), factor)
        outcomes |= run(folder, [name])
    return outcomes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("float16-anomalies")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name, changes in CHANGES.items():
            prepare(folder, name, **FLOAT16, **changes)
        (outcomes,) = run_ranks(run_poisoned, 1, str(folder))
        yield folder, outcomes


def overflows(folder: Path, name: str) -> list[int]:
    events = read_json_lines(folder / "runs" / name / "events.jsonl")
    return [event["step"] for event in events if event["event"] == "overflow"]


@pytest.mark.slow
def test_gradients_that_overflow_only_halve_the_scale_while_it_is_above_1(runs: Runs) -> None:
    folder, outcomes = runs
    assert outcomes["overflow"] == "finished"
    assert anomalies(folder, "overflow") == []
    assert len(overflows(folder, "overflow")) >= 2, "the row comes once an epoch"
    assert left_out(folder, "overflow") == [(step - 1, step) for step in overflows(folder, "overflow")]


@pytest.mark.slow
def test_at_a_scale_of_1_they_are_an_anomaly_that_names_float16(runs: Runs) -> None:
    folder, outcomes = runs
    assert outcomes["lowest"] == "finished"
    assert overflows(folder, "lowest") == []
    found = anomalies(folder, "lowest")
    assert [event["step"] for event in found] == overflows(folder, "overflow")
    for event in found:
        assert event["action"] == "skip"
        assert event["what"].startswith("the gradient norm is ")
        assert event["what"].endswith(
            " (strategy.param_dtype float16 ends at 65504, with the smallest loss scale, 1)"
        )


@pytest.mark.slow
def test_a_rollback_takes_the_scale_of_the_checkpoint_as_well(runs: Runs) -> None:
    folder, outcomes = runs
    assert outcomes["rollback"] == "finished"
    for event in anomalies(folder, "rollback"):
        assert event["what"] == "the loss is nan (strategy.param_dtype float16 ends at 65504)"
    checkpoints = layout_of(folder, "rollback").checkpoints
    gaps = left_out(folder, "rollback")
    assert any(end - first > 1 for first, end in gaps), "it has grown since the checkpoint"
    for first, end in gaps:
        before, after = (
            CheckpointManager.read_state(checkpoints / step_name(step))["loss_scale"] for step in (first, end)
        )
        assert after == before
