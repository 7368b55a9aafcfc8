"""Batch, step and rank arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources
from orchestrator.spec.load import dump_resolved, load_resolved
from orchestrator.spec.optimization import Limits
from orchestrator.spec.plan import (
    BatchPlan,
    Exhaustion,
    count_steps,
    fitting_workers,
    global_micro_index,
    micro_batch_rows,
    plan_batch,
    stage_order,
)
from tests.unit.spec.jobs import VALID, changed, first_stage, load


def batch_of(world_size: int, micro: int, accum: int, seq_len: int = 8) -> BatchPlan:
    """A plan with these degrees."""
    return BatchPlan(world_size, micro, accum, world_size * micro * accum, seq_len)


def test_accumulation_is_derived(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path))
    assert plan_batch(stage, Resources(num_workers=2)) == BatchPlan(
        world_size=2, micro_batch_size=4, grad_accum_steps=2, global_batch_size=16, seq_len=64
    )
    assert plan_batch(stage, Resources(num_workers=2)).tokens_per_step == 1024


@pytest.mark.parametrize(
    ("rows", "workers", "expected"),
    [
        (
            500,
            16,
            "stages[0] 'pretrain': global_batch_size 500 is not a multiple of micro_batch_size 8"
            " x dp_degree 16 = 128.\nNearest: 384 or 512.",
        ),
        (
            8,
            2,
            "stages[0] 'pretrain': global_batch_size 8 is not a multiple of micro_batch_size 8"
            " x dp_degree 2 = 16.\nNearest: 16. Or num_workers: 1.",
        ),
    ],
)
def test_a_batch_that_cannot_be_split_names_the_nearest(
    rows: int, workers: int, expected: str, tmp_path: Path
) -> None:
    batch = {"global_batch_size": rows, "micro_batch_size": 8}
    stage = first_stage(load(tmp_path)).model_copy(update=batch)
    with pytest.raises(PlanError) as caught:
        plan_batch(stage, Resources(num_workers=workers), place="stages[0]")
    assert str(caught.value) == expected


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_micro_batches_of_a_step_are_its_rows_once(
    world_size: int, micro: int, accum: int, step: int
) -> None:
    batch = batch_of(world_size, micro, accum)
    pieces = {
        global_micro_index(batch, accum_index, rank): micro_batch_rows(batch, step, accum_index, rank)
        for accum_index in range(accum)
        for rank in range(world_size)
    }
    rows = [row for index in sorted(pieces) for row in pieces[index]]
    size = batch.global_batch_size
    assert rows == list(range(step * size, (step + 1) * size))


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 100))
def test_a_micro_batch_holds_the_same_rows_at_any_number_of_workers(
    micro: int, world_size: int, step: int
) -> None:
    alone, many = batch_of(1, micro, 12), batch_of(world_size, micro, 12 // world_size)
    for index in range(12):
        accum_index, rank = divmod(index, world_size)
        assert global_micro_index(many, accum_index, rank) == index
        assert micro_batch_rows(many, step, accum_index, rank) == micro_batch_rows(alone, step, index, 0)


@pytest.mark.parametrize(
    ("limits", "num_rows", "expected"),
    [
        (Limits(max_steps=7), None, 7),
        (Limits(max_tokens=64), None, 1),
        (Limits(max_tokens=65), None, 2),
        (Limits(max_tokens=1), None, 1),
        (Limits(max_epochs=1), None, None),
        (Limits(max_epochs=1), 80, 10),
        (Limits(max_epochs=1), 87, 10),
        (Limits(max_epochs=2.5), 80, 25),
        (Limits(max_epochs=1), 3, 1),
        (Limits(max_epochs=0.3), 80, 3),
        (Limits(max_epochs=0.7), 80, 7),
    ],
)
def test_limits_become_steps(limits: Limits, num_rows: int | None, expected: int | None) -> None:
    assert count_steps(limits, batch_of(2, 2, 2), num_rows) == expected


@pytest.mark.parametrize(
    ("limits", "rows", "expected"),
    [
        (Limits(max_steps=7), 1000, 7),
        (Limits(max_steps=7), 47, 5),
        (Limits(max_steps=7), 48, 6),
        (Limits(max_tokens=64 * 4), 8, 1),
        (Limits(max_epochs=3), 100, 12),
    ],
)
def test_a_stage_ends_with_the_last_whole_batch_before_a_dataset_repeats(
    limits: Limits, rows: int, expected: int
) -> None:
    assert count_steps(limits, batch_of(2, 2, 2), 200, Exhaustion("b", rows)) == expected


def test_a_dataset_shorter_than_one_step_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlanError) as caught:
        count_steps(Limits(max_steps=7), batch_of(2, 2, 2), 200, Exhaustion("b", 7))
    assert str(caught.value) == (
        "data.on_exhausted is 'stop' and dataset 'b' runs out after 7 rows of the mixture, fewer than one"
        " global batch of 8. Lower global_batch_size or the dataset's weight, or set"
        " data.on_exhausted: repeat."
    )


def test_stages_follow_what_they_read_and_else_the_file(tmp_path: Path) -> None:
    text = changed("stages:\n", "stages:\n  - {name: export, kind: export, from: pretrain}\n")
    text += "  - {name: a, kind: export, from: pretrain}\n  - {name: b, kind: export, from: pretrain}\n"
    job = load(tmp_path, text)
    assert [stage.name for stage in stage_order(job)] == ["pretrain", "export", "a", "b"]


def test_stages_without_an_order_are_refused(tmp_path: Path) -> None:
    job = load(tmp_path, VALID + "  - {name: x, kind: export, from: pretrain}\n")
    job = job.model_copy(update={"stages": job.stages[1:]})
    with pytest.raises(PlanError) as caught:
        stage_order(job)
    assert str(caught.value) == "stages wait for each other: 'x' needs 'pretrain'"


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(2, [2]), ({"min": 1, "max": 4}, [1, 2, 4]), ({"min": 3, "max": 4}, [4]), ({"min": 3, "max": 3}, [])],
)
def test_of_a_range_only_numbers_that_share_the_batch_evenly_fit(
    workers: object, expected: list[int], tmp_path: Path
) -> None:
    job = load(tmp_path, VALID)
    stage = first_stage(job).model_copy(update={"global_batch_size": 16, "micro_batch_size": 4})
    resources = Resources.model_validate({"num_workers": workers})
    assert fitting_workers(job.model_copy(update={"resources": resources, "stages": (stage,)})) == expected


def test_a_range_is_planned_at_its_upper_end_and_kept_in_the_resolved_job(tmp_path: Path) -> None:
    job = load(tmp_path, VALID, "resources.num_workers={min: 1, max: 4}")
    assert (job.resources.min_workers, job.resources.num_workers) == (1, 4)
    assert plan_batch(first_stage(job), job.resources).world_size == 4
    assert job.resources.with_workers(2).min_workers == 2
    (tmp_path / "resolved.yaml").write_text(dump_resolved(job))
    assert load_resolved(tmp_path / "resolved.yaml") == job
