"""A sweep: which runs it is, what each of them sets, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.expand import expand
from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job
from tests.unit.spec.jobs import VALID, complaints, write_job

GRID = """\
sweep:
  grid:
    stages.pretrain.optimizer.lr: [1e-3, 3e-4]
    seed: [1, 2]
"""


def runs_of(folder: Path, text: str, *overrides: str) -> list[Job]:
    path = write_job(folder, text)
    return expand(load_job(path, overrides=overrides, env={}), path, lambda job: (), overrides=overrides)


def test_a_grid_is_every_combination_and_the_last_key_changes_first(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, VALID + GRID)
    assert [run.name for run in runs] == ["tiny-0", "tiny-1", "tiny-2", "tiny-3"]
    found = [(run.stages[0].optimizer.lr, run.seed) for run in runs]  # type: ignore[union-attr]
    assert found == [(1e-3, 1), (1e-3, 2), (3e-4, 1), (3e-4, 2)]
    assert all(run.sweep is None for run in runs)


def test_a_run_is_the_job_with_its_values_set(tmp_path: Path) -> None:
    text = VALID + "sweep:\n  runs:\n    - {seed: 3, datasets.rfc.files: ['a $${HOME}', b]}\n    - {}\n"
    first, second = runs_of(tmp_path, text)
    assert first.seed == 3
    # As everywhere in a file, relative to its folder.
    assert first.datasets["rfc"].files == (f"{tmp_path}/a ${{HOME}}", f"{tmp_path}/b")  # type: ignore[union-attr]
    plain = load_job(write_job(tmp_path, VALID), env={})
    assert second.model_dump(exclude=("name",)) == plain.model_dump(exclude=("name",))


@pytest.mark.parametrize(("keys", "group"), [("{project: p}", "tiny"), ("{project: p, group: mine}", "mine")])
def test_its_runs_share_a_group_of_trackers(keys: str, group: str, tmp_path: Path) -> None:
    runs = runs_of(tmp_path, VALID + GRID + f"tracking: {{wandb: {keys}}}\n")
    assert {run.tracking.wandb.group for run in runs if run.tracking.wandb} == {group}


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("{grid: {name: [a, b]}}", "a run of a sweep cannot set 'name'; leave it out"),
        ("{runs: [{sweep.grid: 1}]}", "a run of a sweep cannot set 'sweep.grid'; leave it out"),
        ("{grid: {seed: []}}", "expected 1 to 1000 runs, found 0"),
        ("{runs: []}", "expected 1 to 1000 runs, found 0"),
        ("{at_once: 2}", "give exactly one of 'grid', 'runs', found none"),
        ("{grid: {seed: [1]}, runs: [{}]}", "give exactly one of 'grid', 'runs', found 'grid' and 'runs'"),
    ],
)
def test_what_is_no_sweep_is_said(sweep: str, expected: str, tmp_path: Path) -> None:
    (found,) = complaints(tmp_path, VALID + f"sweep: {sweep}\n")
    assert found.endswith(f"sweep: {expected}")


def test_the_same_run_twice_is_refused_where_it_stands(tmp_path: Path) -> None:
    rates = "stages.pretrain.optimizer.lr:\n      - 1e-3\n      - 0.001\n"
    assert complaints(tmp_path, f"{VALID}sweep:\n  grid:\n    seed: [1, 2]\n    {rates}") == [
        "job.yaml:29: sweep.grid.stages.pretrain.optimizer.lr[1]: 0.001 is the same as item 0, so that"
        " runs would be there twice; leave one out"
    ]
    runs = "sweep:\n  runs:\n    - {seed: 1, tokenizer: null}\n    - {}\n    - {tokenizer: null, seed: 1.0}\n"
    assert complaints(tmp_path, VALID + runs) == [
        "job.yaml:28: sweep.runs[2]: sets the same as sweep.runs[0]; leave one of them out"
    ]


def test_values_that_only_look_alike_are_runs_of_their_own(tmp_path: Path) -> None:
    keys = "stages.pretrain.checkpoint.asynchronous: [true, false], seed: [0, 1]"
    assert len(runs_of(tmp_path, VALID + f"sweep: {{grid: {{{keys}}}}}\n")) == 4
    sweep = load_job(write_job(tmp_path, VALID + "sweep: {grid: {seed: [true, 1, '1']}}\n"), env={}).sweep
    assert sweep is not None
    assert len(sweep.points) == 3


def test_what_is_wrong_with_a_run_is_said_of_it(tmp_path: Path) -> None:
    text = VALID + "sweep: {grid: {stages.pretrain.global_batch_size: [16, 18], seed: [1]}}\n"
    with pytest.raises(SpecError) as raised:
        runs_of(tmp_path, text)
    (problem,) = raised.value.problems
    assert problem.file.endswith("job.yaml: sweep, run 1")
    assert problem.message.startswith("global_batch_size 18 is not a multiple of micro_batch_size 4")
    with pytest.raises(SpecError, match=r"sweep, run 0: stages\.no\.seed: 'stages' has no item 'no'"):
        runs_of(tmp_path, VALID + "sweep: {runs: [{stages.no.seed: 1}]}\n")
    with pytest.raises(SpecError, match=r"sweep, run 0: stages\[0\]\.optimzer: unknown key"):
        runs_of(tmp_path, VALID + "sweep: {runs: [{stages.pretrain.optimzer.lr: 1}]}\n")


def test_values_of_any_kind_arrive(tmp_path: Path) -> None:
    value: dict[str, Any] = {"name": "zero", "stage": 2}
    runs = runs_of(
        tmp_path, VALID + "sweep: {grid: {stages.pretrain.strategy: [{name: ddp}, {name: zero, stage: 2}]}}\n"
    )
    dumped = [run.stages[0].strategy.model_dump() for run in runs]  # type: ignore[union-attr]
    assert [keys["name"] for keys in dumped] == ["ddp", "zero"]
    assert value.items() <= dumped[1].items()
