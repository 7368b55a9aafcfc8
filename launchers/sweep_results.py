"""What came of a sweep's runs: how each ended, what it set and what it reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.cli_print import print_table
from launchers.runs import run_status
from orchestrator.spec.early_stopping import rule_of
from orchestrator.spec.job import Job


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended."""

    state: str
    """``finished``, ``stopped early``, ``stopped``, ``failed`` or, where it was not started, ``waiting``."""
    reason: str | None = None
    """Why it was stopped early."""


def results(job: Job, jobs: Sequence[Job], runs_dir: Path) -> list[dict[str, float | None]]:
    """Metrics of each run by ``<stage> <metric>``, as far as it has come.

    They are those of the last stage that evaluates, else the last loss; before them the one by which the
    sweep's runs are compared, where they are.

    Args:
        job: That of the sweep; ``jobs`` are those of its runs.
    """
    rule = rule_of(job)
    found = []
    for run in jobs:
        stages = run_status(runs_dir / run.name)["stages"]
        metrics: dict[str, dict[str, float]] = {stage["name"]: stage["metrics"] for stage in stages}
        shown: dict[str, float | None] = {}
        if rule is not None and rule.stage is not None:
            shown[f"{rule.stage} {rule.metric}"] = metrics.get(rule.stage, {}).get(rule.metric)
        for prefix in ("eval/", "train/loss"):
            last = next((name for name in reversed(metrics) if _of(prefix, metrics[name])), None)
            if last is not None:
                shown |= {f"{last} {key}": value for key, value in _of(prefix, metrics[last]).items()}
                break
        found.append(shown)
    return found


def _of(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith(prefix)}


def print_results(
    points: Sequence[Mapping[str, Any]],
    ends: Mapping[str, Outcome],
    found: Sequence[Mapping[str, float | None]],
) -> None:
    """A line for each run: what it set, and what came of it; then why runs were stopped early."""
    keys = list(dict.fromkeys(key for point in points for key in point))
    names = list(dict.fromkeys(name for metrics in found for name in metrics))
    lines = [
        (
            name,
            end.state,
            *(json.dumps(point[key]) if key in point else "" for key in keys),
            *("" if value is None else f"{value:.6g}" for value in map(metrics.get, names)),
        )
        for (name, end), point, metrics in zip(ends.items(), points, found, strict=True)
    ]
    print_table("runs of the sweep", ("run", "state", *keys, *names), lines)
    for name, end in ends.items():
        if end.reason is not None:
            print(f"{name} was stopped early: {end.reason}")
