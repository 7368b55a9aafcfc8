"""Steps whose loss or gradients cannot be right, and what the job wants done about them.

All ranks judge the same numbers, the loss and the norm of the whole step, before the optimizer moves, so they
decide alike. A step that is left out has consumed its rows: the cursor passes them, the ledger says so, and
a start from an older checkpoint meets the same numbers and decides the same.

In float16 gradients that overflow are no anomaly as long as the loss can be scaled by less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.counts import counted
from orchestrator.spec.optimization import Anomalies, AnomalyAction
from orchestrator.train.ledger import Range
from orchestrator.train.loss_scale import LossScaler, Overflow


@dataclass(frozen=True)
class Anomaly:
    """What is wrong with a step."""

    what: str
    """As a person would say it, with the values."""
    action: AnomalyAction


class AnomalyWatch:
    """Judges steps, and remembers the losses and the steps left out."""

    def __init__(
        self,
        section: Anomalies,
        recent_losses: Sequence[float] = (),
        in_a_row: int = 0,
        *,
        scaler: LossScaler | None = None,
    ) -> None:
        """Begin with what was before, as a checkpoint has it.

        Args:
            recent_losses: Of the steps before, oldest first.
            in_a_row: Anomalies just before.
            scaler: Scales the loss; ``None``: the stage does not compute in float16.
        """
        self._section = section
        self.in_a_row = in_a_row
        """Anomalies just before the next step."""
        self._left_out: list[Range] = []
        self.recent_losses = list(recent_losses)
        """Of the steps a spike is measured against, oldest first."""
        self.scaler = scaler

    def judge(self, loss: float, norm: float) -> Anomaly | Overflow | None:
        """What is wrong with a step, by the mean loss over its targets and its gradient norm on all ranks.

        Args:
            loss: Of the step as it is, not scaled.
        """
        if not math.isfinite(loss):
            return self._escalated(f"the loss is {loss}{self._in_float16('')}", self._section.nonfinite)
        if not math.isfinite(norm):
            what = f"the gradient norm is {norm}{self._in_float16(', with the smallest loss scale, 1')}"
            overflow = None if self.scaler is None else self.scaler.overflow()
            return overflow or self._escalated(what, self._section.nonfinite)
        spike = self._section.loss_spike
        if spike is None or len(self.recent_losses) < spike.window:
            return None
        mean = sum(self.recent_losses) / len(self.recent_losses)
        if loss <= spike.factor * mean:
            return None
        usual = f"{spike.factor:g} times the mean {mean:.4g} of {counted(spike.window, 'step')}"
        return self._escalated(f"the loss is {loss:.4g}, over {usual}", spike.action)

    def _in_float16(self, more: str) -> str:
        """What a person must know of float16 where that is what the stage computes in."""
        return "" if self.scaler is None else f" (strategy.param_dtype float16 ends at 65504{more})"

    def _escalated(self, what: str, action: AnomalyAction) -> Anomaly:
        """The anomaly with the job's action, or with ``stop`` where that was in vain too often."""
        limit = self._section.max_in_a_row
        if action != "stop" and self.in_a_row >= limit:
            return Anomaly(f"{what}, after {self.in_a_row} in a row (max_in_a_row: {limit})", "stop")
        return Anomaly(what, action)

    def accept(self, loss: float) -> None:
        """A step was right, and its update is made."""
        self.in_a_row = 0
        if self.scaler is not None:
            self.scaler.accept()
        spike = self._section.loss_spike
        if spike is not None:
            self.recent_losses = [*self.recent_losses, loss][-spike.window :]

    def leave_out(self, first: int, end: int) -> None:
        """Steps ``first`` up to before ``end`` (counted from 0) consumed their rows and changed nothing."""
        self.in_a_row += 1
        self._pass_over(first, end)

    def back_off(self, step: int, overflow: Overflow) -> None:
        """``step`` (counted from 0) consumed its rows and changed nothing but the scale of the loss."""
        assert self.scaler is not None
        self.scaler.back_off(overflow)
        self._pass_over(step, step + 1)

    def _pass_over(self, first: int, end: int) -> None:
        self._left_out = [steps for steps in self._left_out if steps[0] < first] + [(first, end)]

    def take_left_out(self) -> list[Range]:
        """Steps left out since the last call, in order."""
        taken, self._left_out = self._left_out, []
        return taken
