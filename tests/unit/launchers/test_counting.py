"""The number of steps that plan shows is the one the prepared data gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchers.counting import begun_as_planned, planned_steps
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources, TrainStage
from orchestrator.spec.plan import plan_batch
from tests.prepared import write_rows
from tests.unit.spec.jobs import VALID, changed, first_stage, load

STOP = changed("mixture: {rfc: 1.0}", "on_exhausted: stop, mixture: {rfc: 1.0}")


def steps_of(stage: TrainStage, layout: StageLayout) -> int | None:
    return planned_steps(stage, plan_batch(stage, Resources()), layout)


def prepare(layout: StageLayout, num_rows: int) -> Path:
    """The stage's inputs as its preparation leaves them."""
    folder = write_rows(layout.root / "rows", num_rows)
    layout.inputs.write_text(json.dumps({"train": {"rfc": str(folder)}}))
    return folder


def test_epochs_are_steps_once_the_data_is_prepared(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, VALID.replace("max_steps: 10", "max_epochs: 2")))
    layout = StageLayout(tmp_path / "pretrain")
    assert steps_of(stage, layout) is None
    prepare(layout, 100)
    assert steps_of(stage, layout) == 200 // 16


@pytest.mark.parametrize(("num_rows", "expected"), [(1000, 10), (100, 6), (96, 6), (95, 5), (16, 1)])
def test_a_stage_that_stops_ends_with_its_data(num_rows: int, expected: int, tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, STOP))
    layout = StageLayout(tmp_path / "pretrain")
    assert steps_of(stage, layout) is None, "unknown before the rows are counted"
    prepare(layout, num_rows)
    assert steps_of(stage, layout) == expected


def test_a_stage_that_stops_before_its_first_step_is_refused(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, STOP))
    prepare(StageLayout(tmp_path / "pretrain"), 15)
    with pytest.raises(PlanError, match=r"'rfc' runs out after 15 rows .* fewer than one global batch of 16"):
        steps_of(stage, StageLayout(tmp_path / "pretrain"))


def test_damaged_data_counts_as_not_prepared(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, STOP))
    layout = StageLayout(tmp_path / "pretrain")
    (prepare(layout, 100) / "tokens.bin").write_bytes(b"")
    assert steps_of(stage, layout) is None


def test_a_stage_that_goes_on_in_the_rows_of_another_begins_where_that_will_end(tmp_path: Path) -> None:
    second = VALID[VALID.index("  - name: pretrain") :].replace("name: pretrain", "name: go-on", 1)
    second = second.replace("model: {config: {model_type: gpt2}}", "init: {stage: pretrain}")
    text = VALID + second.replace("mixture: {rfc: 1.0}", "after: pretrain, mixture: {rfc: 1.0}")
    run = RunLayout(tmp_path / "run")
    for name in ("pretrain", "go-on"):
        run.stage(name).root.mkdir(parents=True)
    job = load(tmp_path, text)
    first, second_stage = job.stages
    assert isinstance(first, TrainStage)
    assert isinstance(second_stage, TrainStage)
    assert begun_as_planned(job, first, run) == {}
    assert begun_as_planned(job, second_stage, run) is None, "nothing is prepared"
    prepare(run.stage("pretrain"), 1000)
    assert begun_as_planned(job, second_stage, run) == {"rfc": 160}
    longer = load(tmp_path, text, "stages.pretrain.limits.max_steps=20")
    assert begun_as_planned(longer, longer.stages[1], run) == {"rfc": 320}  # type: ignore[arg-type]
