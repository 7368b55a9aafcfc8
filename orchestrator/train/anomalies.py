"""Steps whose loss or gradients cannot be right, and what the job wants done about them.

All ranks judge the same numbers, the loss and the norm of the whole step, before the optimizer moves, so they
decide alike. A step that is left out has consumed its rows: the cursor passes them, the ledger says so, and
a start from an older checkpoint meets the same numbers and decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.spec.optimization import Anomalies, AnomalyAction
from orchestrator.train.ledger import Range


@dataclass(frozen=True)
class Anomaly:
    """What is wrong with a step."""

    what: str
    """As a person would say it, with the values."""
    action: AnomalyAction


class AnomalyWatch:
    """Judges steps, and remembers the losses and the steps left out."""

    def __init__(self, section: Anomalies, recent_losses: Sequence[float] = ()) -> None:
        """Begin with the losses of the steps before, as a checkpoint has them."""
        self._section = section
        self._in_a_row = 0
        self._left_out: list[Range] = []
        self.recent_losses = list(recent_losses)
        """Of the steps a spike is measured against, oldest first."""

    def judge(self, loss: float, norm: float) -> Anomaly | None:
        """What is wrong with a step, by the mean loss over its targets and its gradient norm on all ranks."""
        if not math.isfinite(loss):
            return self._escalated(f"the loss is {loss}", self._section.nonfinite)
        if not math.isfinite(norm):
            return self._escalated(f"the gradient norm is {norm}", self._section.nonfinite)
        spike = self._section.loss_spike
        if spike is None or len(self.recent_losses) < spike.window:
            return None
        mean = sum(self.recent_losses) / len(self.recent_losses)
        if loss <= spike.factor * mean:
            return None
        usual = f"{spike.factor:g} times the mean {mean:.4g} of {spike.window} steps"
        return self._escalated(f"the loss is {loss:.4g}, over {usual}", spike.action)

    def _escalated(self, what: str, action: AnomalyAction) -> Anomaly:
        """The anomaly with the job's action, or with ``stop`` where that was in vain too often."""
        limit = self._section.max_in_a_row
        if action != "stop" and self._in_a_row >= limit:
            return Anomaly(f"{what}, after {self._in_a_row} in a row (max_in_a_row: {limit})", "stop")
        return Anomaly(what, action)

    def accept(self, loss: float) -> None:
        """A step was right, and its update is made."""
        self._in_a_row = 0
        spike = self._section.loss_spike
        if spike is not None:
            self.recent_losses = [*self.recent_losses, loss][-spike.window :]

    def leave_out(self, first: int, end: int) -> None:
        """Steps ``first`` up to before ``end`` (counted from 0) consumed their rows and changed nothing."""
        self._in_a_row += 1
        self._left_out = [steps for steps in self._left_out if steps[0] < first] + [(first, end)]

    def take_left_out(self) -> list[Range]:
        """Steps left out since the last call, in order."""
        taken, self._left_out = self._left_out, []
        return taken
