"""Which complete checkpoints of a stage are kept when a new one is committed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

    def removable(self, complete: Sequence[int], state_of: Callable[[int], Mapping[str, Any]]) -> list[int]:
        """Those of the steps ``complete``, which rise, that nothing keeps.

        Args:
            state_of: The state that was saved with a step; may raise ``CheckpointError`` where it is damaged:
                such a step may be the best one, and stays.
        """
        kept = set(complete[-self.keep_last :])
        if self.keep_every_steps is not None:
            kept |= {step for step in complete if step % self.keep_every_steps == 0}
        if self.best is not None:
            kept |= {step for step, _ in best_first(complete, self.best, state_of)[:1]}
            kept |= {step for step in complete if _is_damaged(step, state_of)}
        return [step for step in complete if step not in kept]


def best_first(
    complete: Sequence[int], best: Best, state_of: Callable[[int], Mapping[str, Any]]
) -> list[tuple[int, float]]:
    """Steps that were evaluated and their values, the best first, the latest of equals."""
    values = {step: value for step in complete if (value := _value(step, best.metric, state_of)) is not None}
    sign = 1 if best.mode == "max" else -1
    return sorted(values.items(), key=lambda found: (sign * found[1], found[0]), reverse=True)


def _is_damaged(step: int, state_of: Callable[[int], Mapping[str, Any]]) -> bool:
    try:
        state_of(step)
    except CheckpointError:
        return True
    return False


def _value(step: int, metric: str, state_of: Callable[[int], Mapping[str, Any]]) -> float | None:
    """A finite value that the evaluation at this step gave."""
    try:
        value = float(state_of(step)[METRICS][metric])
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):
        return None
    return value if math.isfinite(value) else None
