"""Several runs from one job file: every combination of some keys' values, or a list of runs."""

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any

from orchestrator.spec.section import Must, Section, require_one

MAX_RUNS = 1000
# A run's own name and what makes it one of several are not its to set.
OWN_KEYS = ("name", "sweep")


class Sweep(Section):
    """Runs that differ in some keys; each has a run directory of its own."""

    grid: dict[str, tuple[Any, ...]] | None = None
    """Values by key, named as after ``--set``; every combination is a run, and the last key changes first."""
    runs: tuple[dict[str, Any], ...] | None = None
    """Each run's values by key, named as after ``--set``."""
    at_once: Annotated[int, Must(ge=1)] | None = None
    """Most runs at the same time; absent: as many as there is room for."""

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
