"""What ``reproducibility: exact`` refuses, and what it tells to set instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.rehearsed_faults import _other_num_workers
from orchestrator.spec.fingerprint import difference, spec_fingerprint, trajectory_keys
from orchestrator.spec.plan import fitting_workers
from tests.unit.spec.jobs import VALID, complaints, first_stage, load

EXACT = "reproducibility=exact"
SET = "stages.pretrain."


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["resources.num_workers=3", f"{SET}global_batch_size=48"],
            "num_workers must be a power of two that divides 12, found 3. Nearest: 2 or 4; or set"
            " 'reproducibility: standard'",
        ),
        (
            ["resources.num_workers=6", f"{SET}global_batch_size=24"],
            "num_workers must be a power of two that divides 6, found 6. Nearest: 2; or",
        ),
        ([f"{SET}optimizer.fused=true"], "set 'fused: false'"),
        ([f"{SET}strategy.param_dtype=bfloat16"], "kept in float32 alone, found bfloat16"),
        ([f"{SET}strategy.param_dtype=float16"], "kept in float32 alone, found float16"),
        ([f"{SET}strategy={{name: fsdp2, reduce_dtype: bfloat16}}"], "kept in float32 alone, found bfloat16"),
        ([f"{SET}strategy.compile=true"], "set 'compile: false'"),
        ([f"{SET}strategy={{name: zero, config: ds.json}}"], "ds.json'; leave them out, or set"),
        ([f"{SET}strategy={{name: 'mine.engine:Engine'}}"], "not known of your own 'mine.engine:Engine'"),
        (
            ["resources.num_workers=4", f"{SET}strategy={{name: fsdp2, replicate_degree: 4}}"],
            "adds at most 2 copies of the sharded model, found 4; lower it",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_with_what_can(
    overrides: list[str], expected: str, tmp_path: Path
) -> None:
    found = complaints(tmp_path, VALID, overrides=(EXACT, *overrides))
    assert [problem for problem in found if expected in problem], found
    if "config" not in overrides[0] and "mine" not in overrides[0]:
        load(tmp_path, VALID, *overrides)


def test_workers_that_do_not_share_the_batch_are_answered_with_those_that_keep_exact(tmp_path: Path) -> None:
    found = complaints(
        tmp_path, VALID, overrides=(EXACT, "resources.num_workers=8", f"{SET}global_batch_size=48")
    )
    assert len(found) == 1, found
    assert "must be a power of two that divides 12, found 8. Nearest: 4; or" in found[0]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_powers_of_two_of_workers_are_taken(num_workers: int, tmp_path: Path) -> None:
    job = load(tmp_path, VALID, EXACT, f"resources.num_workers={num_workers}")
    assert job.reproducibility == "exact"


def test_the_trajectory_is_another_one_and_that_of_earlier_jobs_keeps_its_digest(tmp_path: Path) -> None:
    standard, exact = load(tmp_path), load(tmp_path, VALID, EXACT)
    keys = [trajectory_keys(first_stage(job), job) for job in (standard, exact)]
    assert difference(*keys) == ["reproducibility: absent -> exact"]
    assert "reproducibility" not in keys[0]
    assert spec_fingerprint(standard, first_stage(standard)) != spec_fingerprint(exact, first_stage(exact))


@pytest.mark.parametrize(("overrides", "expected"), [((), 3), ((EXACT,), 2)])
def test_a_rehearsal_resizes_to_a_number_that_can_be_kept(
    overrides: tuple[str, ...], expected: int, tmp_path: Path
) -> None:
    given = ("resources.num_workers=4", f"{SET}global_batch_size=48", *overrides)
    assert _other_num_workers(load(tmp_path, VALID, *given)) == {"num_workers": expected}


@pytest.mark.parametrize(("overrides", "expected"), [((), [1, 2, 3, 4]), ((EXACT,), [1, 2, 4])])
def test_workers_that_come_and_go_are_rounded_to_numbers_that_can_be_kept(
    overrides: tuple[str, ...], expected: list[int], tmp_path: Path
) -> None:
    given = ("resources.num_workers={min: 1, max: 4}", f"{SET}global_batch_size=48", *overrides)
    assert fitting_workers(load(tmp_path, VALID, *given)) == expected
