"""Several runs from one job file: every combination of some keys' values, or a list of runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal

from orchestrator.spec.section import Must, Section, require_one
from orchestrator.spec.tree import KeyPath

MAX_RUNS = 1000
# A run's own name and what makes it one of several are not its to set.
OWN_KEYS = ("name", "sweep")


class EarlyStopping(Section):
    """Which runs end before their last step: those that are behind the others (ASHA, Li et al. 2020)."""

    metric: str
    """What runs are compared by: a metric of the stage's ``evaluation``, such as ``eval/loss``, or
    ``train/loss``."""
    mode: Literal["min", "max"] | None = None
    """Whether its lowest or its highest value is the best; needed for metrics of your own objective alone."""
    stage: str | None = None
    """The training stage that is compared; absent: the first that gives ``metric`` while it trains."""
    grace_steps: Annotated[int, Must(ge=1)]
    """Optimizer steps before the first comparison."""
    reduction_factor: Annotated[int, Must(ge=2)] = 4
    """At each comparison about one run in this many goes on, and the next comes at this many times the steps;
    4 is Ray Tune's default and that of the paper."""


class Sweep(Section):
    """Runs that differ in some keys; each has a run directory of its own."""

    grid: dict[str, tuple[Any, ...]] | None = None
    """Values by key, named as after ``--set``; every combination is a run, and the last key changes first."""
    runs: tuple[dict[str, Any], ...] | None = None
    """Each run's values by key, named as after ``--set``."""
    at_once: Annotated[int, Must(ge=1)] | None = None
    """Most runs at the same time; absent: as many as there is room for."""
    early_stopping: EarlyStopping | None = None
    """Stops runs that are behind the others; absent: every run trains to its end."""

    def __post_init__(self) -> None:
        require_one(self, "grid", "runs")
        for key in {key for point in self.points for key in point}:
            if key.partition(".")[0] in OWN_KEYS or "=" in key:
                raise ValueError(f"a run of a sweep cannot set '{key}'; leave it out")
        if not 0 < len(self.points) <= MAX_RUNS:
            raise ValueError(f"expected 1 to {MAX_RUNS} runs, found {len(self.points)}")

    @property
    def points(self) -> tuple[Mapping[str, Any], ...]:
        """What each run sets."""
        if self.grid is None:
            return self.runs or ()
        return tuple(dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))


def check_points(sweep: Sweep) -> Iterator[tuple[KeyPath, str]]:
    """Each value of a grid, and each run of a list, that is there already: the same run twice."""
    for key, values in (sweep.grid or {}).items():
        for index, first in _repeated(values):
            found = json.dumps(values[index], default=str)
            yield (
                ("sweep", "grid", key, index),
                f"{found} is the same as item {first}, so that runs would be there twice; leave one out",
            )
    for index, first in _repeated(sweep.runs or ()):
        yield ("sweep", "runs", index), f"sets the same as sweep.runs[{first}]; leave one of them out"


def _repeated(values: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Index of each value that an earlier one equals, and of that."""
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        first = seen.setdefault(json.dumps(_comparable(value), sort_keys=True, default=str), index)
        if first != index:
            yield index, first


def _comparable(value: Any) -> Any:
    """``value`` with whole numbers alike, however written: ``1e3`` is 1000, but ``true`` is not 1."""
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
