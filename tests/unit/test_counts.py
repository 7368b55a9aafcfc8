"""One of something is written as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.base import RefusedJobError, workers_per_node
from orchestrator.counts import counted
from orchestrator.spec.job import Resources
from tests.unit.spec.jobs import changed, complaints


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "step", "0 steps"),
        (1, "step", "1 step"),
        (1.0, "epoch", "1 epoch"),
        (0.5, "epoch", "0.5 epochs"),
        (20_000, "row", "20,000 rows"),
    ],
)
def test_a_number_of_things(number: float, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_a_plural_of_its_own() -> None:
    assert [counted(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]


def test_a_stage_of_one_step(tmp_path: Path) -> None:
    text = changed("{max_steps: 10}", "{max_steps: 1}")
    assert complaints(tmp_path, text)[0].endswith("is longer than the stage, which has 1 step")


def test_one_worker() -> None:
    with pytest.raises(RefusedJobError, match="Ask for at most 1 node, or"):
        workers_per_node(Resources(num_workers=1), 2)
