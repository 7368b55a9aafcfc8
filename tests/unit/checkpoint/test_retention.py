"""Which checkpoints are kept: the newest, those of an interval, and the best by a metric."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.retention import METRICS, Best, Retention
from orchestrator.checkpoint.steps import list_steps
from tests.unit.checkpoint.saved import make_tensors

LOSSES = {2: 5.0, 4: 3.0, 6: math.nan, 8: 3.5, 10: 3.0, 12: 4.0}


def kept(folder: Path, retention: Retention) -> list[int]:
    """Steps that are left after saves at all even steps to 14, the last one without an evaluation."""
    manager = CheckpointManager(folder, retention)
    for step in range(2, 16, 2):
        metrics = {"eval/loss": LOSSES[step]} if step in LOSSES else {}
        manager.save(step, make_tensors(step), {"step": step, METRICS: metrics})
    return [found.step for found in list_steps(folder)]


def test_the_newest_and_those_of_an_interval_are_kept(tmp_path: Path) -> None:
    assert kept(tmp_path / "a", Retention(2)) == [12, 14]
    assert kept(tmp_path / "b", Retention(2, keep_every_steps=4)) == [4, 8, 12, 14]


@pytest.mark.parametrize(("mode", "best"), [("min", 10), ("max", 2)])
def test_the_best_evaluation_is_kept_however_old(
    mode: Literal["min", "max"], best: int, tmp_path: Path
) -> None:
    """Of equals the latest; a value that is not finite is never the best."""
    assert kept(tmp_path, Retention(2, best=Best("eval/loss", mode))) == [best, 12, 14]


def test_a_metric_that_no_checkpoint_has_keeps_none(tmp_path: Path) -> None:
    assert kept(tmp_path, Retention(3, best=Best("eval/f1", "max"))) == [10, 12, 14]


def test_a_step_whose_state_is_damaged_may_be_the_best_and_stays(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, Retention(2, best=Best("eval/loss", "min")))
    for step in (2, 4, 6):
        manager.save(step, make_tensors(step), {"step": step, METRICS: {"eval/loss": float(step)}})
    (tmp_path / "step-00000002" / "state.json").write_text("[")
    manager.save(8, make_tensors(8), {"step": 8, METRICS: {}})
    assert [found.step for found in list_steps(tmp_path)] == [2, 4, 6, 8]
