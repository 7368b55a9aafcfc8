"""The scale of the loss in float16: as large as gradients allow, so that small ones do not become 0.

The rule is that of ``torch.amp.GradScaler``: a step whose gradients overflow is left out and halves the
scale, and after so many good steps in a row it doubles. There is one scaler for all strategies, whose state
is two numbers that a checkpoint holds beside the cursor, so that a run goes on under any strategy and number
of workers.

Source: Micikevicius et al. 2017, "Mixed Precision Training", section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.spec.optimization import LossScale

# Below it gradients of the loss itself overflow, which no scale mends.
MIN_SCALE = 1.0
# Its inverse, which gradients are multiplied by, is the smallest normal number of float32.
MAX_SCALE = 2.0**126


@dataclass(frozen=True)
class Overflow:
    """A step whose scaled gradients float16 could not hold."""

    loss_scale: float
    """The scale that was too large."""
    next_loss_scale: float
    """The scale of the steps after it."""


class LossScaler:
    """The scale, and how long it has been good."""

    def __init__(self, section: LossScale, state: Mapping[str, float] | None = None) -> None:
        """Begin as ``section`` says, or go on from the ``state`` of a checkpoint."""
        self._section = section
        self.scale = section.initial
        """What the loss of the next step is multiplied by; a power of two."""
        self._good_steps = 0
        if state is not None:
            self.restore(state)

    @property
    def state(self) -> dict[str, float]:
        """All that the next steps depend on."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go back to an earlier ``state``."""
        self.scale, self._good_steps = float(state["scale"]), int(state["good_steps"])

    def overflow(self) -> Overflow | None:
        """What gradients that are not finite mean; ``None``: not that the scale is too large."""
        halved = self.scale / 2
        return Overflow(self.scale, halved) if halved >= MIN_SCALE else None

    def accept(self) -> None:
        """A step was good, and its update is made."""
        self._good_steps += 1
        if self._good_steps >= self._section.growth_interval:
            self.scale, self._good_steps = min(self.scale * 2, MAX_SCALE), 0

    def back_off(self, overflow: Overflow) -> None:
        """A step overflowed, and is left out."""
        self.scale, self._good_steps = overflow.next_loss_scale, 0
