"""Which complete checkpoints of a stage are kept when a new one is committed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.steps import StepFolder
from orchestrator.errors import CheckpointError

METRICS = "metrics"
"""Key of a checkpoint's state: metrics of the evaluation at its step; absent without one."""


@dataclass(frozen=True)
class Best:
    """The checkpoint of the best evaluation is kept."""

    metric: str
    mode: Literal["min", "max"]
    """Whether the lowest or the highest value is the best."""


@dataclass(frozen=True)
class Retention:
    """What is never removed: the newest, and what these keep."""

    keep_last: int
    """This many of the newest."""
    keep_every_steps: int | None = None
    """And each whose step is a multiple of this."""
    best: Best | None = None

    def removable(self, complete: Sequence[StepFolder]) -> list[StepFolder]:
        """Those of ``complete``, by rising step, that nothing keeps."""
        kept = {found.step for found in complete[-self.keep_last :]}
        if self.keep_every_steps is not None:
            kept |= {found.step for found in complete if found.step % self.keep_every_steps == 0}
        if self.best is not None and (best := _best_of(complete, self.best)) is not None:
            kept.add(best)
        return [found for found in complete if found.step not in kept]


def _best_of(complete: Sequence[StepFolder], best: Best) -> int | None:
    """Step with the best value, the latest of equals; ``None``: none was evaluated."""
    values = {found.step: value for found in complete if (value := _value(found, best.metric)) is not None}
    sign = 1 if best.mode == "max" else -1
    return max(values, key=lambda step: (sign * values[step], step), default=None)


def _value(found: StepFolder, metric: str) -> float | None:
    """A finite value that the evaluation at this step gave."""
    try:
        state: dict[str, Any] = seal.read_json(found.path / seal.STATE)
        value = float(state[METRICS][metric])
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):
        return None
    return value if math.isfinite(value) else None
