"""What ``orchestrator compare`` reports: the keys and the final metrics in which runs differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launchers.runs import UnknownRunError, read_result
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import PlanError
from orchestrator.spec.fingerprint import leaves
from orchestrator.spec.load import load_resolved

# Every run has its own.
NAME = "name"


def compare_runs(run_dirs: Sequence[Path]) -> dict[str, Any]:
    """Differences of runs.

    Returns:
        ``{runs, keys: [{key, values}], metrics: [{stage, metric, values}]}``: keys whose values differ, and
        all final metrics; ``values`` has one for each run, ``None`` where it has none.

    Raises:
        PlanError: There are fewer than two runs.
        UnknownRunError: A run was submitted and has not begun.
        SpecError: A run's job.yaml cannot be read.
    """
    if len(run_dirs) < 2:
        raise PlanError(f"found {len(run_dirs)} run, expected two or more to compare")
    layouts = [RunLayout(run_dir) for run_dir in run_dirs]
    for layout in layouts:
        _refuse_unbegun(layout)
    keys = _columns(_job_keys(layout) for layout in layouts)
    metrics = _columns(_metrics(layout) for layout in layouts)
    return {
        "runs": [run_dir.resolve().name for run_dir in run_dirs],
        "keys": [
            {"key": key, "values": values}
            for key, values in keys.items()
            if any(value != values[0] for value in values)
        ],
        "metrics": [
            {"stage": stage, "metric": metric, "values": values}
            for (stage, metric), values in metrics.items()
        ],
    }


def _refuse_unbegun(layout: RunLayout) -> None:
    if layout.submission.is_file() and not layout.job.is_file() and not layout.events.is_file():
        raise UnknownRunError(
            f"{layout.root} has not begun: it was submitted, and until its driver starts it has no job.yaml"
            f" to compare. 'orchestrator status {shlex.quote(str(layout.root))}' shows what it waits for;"
            " compare it once it runs"
        )


def _columns(found: Iterable[Mapping[Any, Any]]) -> dict[Any, list[Any]]:
    """The values of all runs by key, in order of the keys' first appearance."""
    runs = list(found)
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: [run.get(name) for run in runs] for name in names}


def _job_keys(layout: RunLayout) -> dict[str, Any]:
    """A run's job as key paths and values; stages by their names."""
    job = load_resolved(layout.job).model_dump(mode="json", by_alias=True)
    stages = {stage.pop(NAME): stage for stage in job["stages"]}
    return {key: value for key, value in leaves({**job, "stages": stages}) if key != NAME}


def _metrics(layout: RunLayout) -> dict[tuple[str, str], float]:
    """Final metrics by stage and name, of the stages that are finished."""
    return {
        (stage.name, metric): value
        for stage in load_resolved(layout.job).stages
        for metric, value in read_result(layout.stage(stage.name)).get("metrics", {}).items()
    }
