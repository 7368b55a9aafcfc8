"""The jobs of a file: one, or one for each run of its sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.counts import counted
from orchestrator.errors import Problem, SpecError
from orchestrator.spec.early_stopping import Complaint, check_run, rule_of
from orchestrator.spec.job import Job
from orchestrator.spec.load import Check, Values, load_checked
from orchestrator.spec.overrides import FLAG


def run_name(job: Job, index: int) -> str:
    """Name of a sweep's run; ``index`` is counted from 0."""
    return f"{job.name}-{index}"


def expand(job: Job, path: Path, check: Check, *, overrides: Sequence[str]) -> list[Job]:
    """The job of each run of ``job``'s sweep, in order.

    Args:
        job: With a sweep, loaded from ``path`` with ``check`` and ``overrides``.

    Raises:
        SpecError: Everything wrong with the first run that is wrong.
    """
    assert job.sweep is not None
    rule = rule_of(job)
    runs: list[Job] = []

    def check_compared(run: Job) -> Iterator[Complaint]:
        yield from check(run)
        if rule is not None:
            yield from check_run(rule, run, next(iter(runs), run))

    for index in range(len(job.sweep.points)):
        values = Values(f"{path}: sweep, run {index}", _values(job, index))
        runs.append(_load_run(path, check_compared, overrides, values))
    return runs


def _load_run(path: Path, check: Check, overrides: Sequence[str], values: Values) -> Job:
    try:
        return load_checked(path, check, overrides=overrides, values=values)
    except SpecError as error:
        problems = [
            # A key that names nothing is said to be an override.
            replace(problem, file=values.place, line=None)
            if problem.file == values.place or (problem.file == FLAG and problem.key in values.by_key)
            else problem
            for problem in error.problems
        ]
        raise SpecError(problems) from error


def _values(job: Job, index: int) -> dict[str, Any]:
    """What makes a job of the file its sweep's run ``index``."""
    assert job.sweep is not None
    given = {"sweep": None, "name": run_name(job, index), **job.sweep.points[index]}
    wandb = job.tracking.wandb
    if wandb is not None and wandb.group is None:
        given["tracking.wandb.group"] = job.name
    return given


def refuse_sweep(job: Job, path: Path) -> NoReturn:
    """Raise ``SpecError``: a command for one run was given a sweep."""
    assert job.sweep is not None
    message = (
        f"a sweep of {counted(len(job.sweep.points), 'run')}, and this command is for one run; leave it out"
        " with --set sweep=null, and give one's values with --set"
    )
    raise SpecError([Problem(str(path), None, "sweep", message)])
