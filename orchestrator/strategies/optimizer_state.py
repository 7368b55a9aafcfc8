"""Which slots of state an optimizer has, and state that exists before its first step.

torch creates optimizer state at the first step. A checkpoint before that, and loading into a fresh engine,
need it earlier: zeros and a step count of 0 are what the first step would start from, so creating
them changes no bit of the trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import PlanError

SUPPORTED = (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor)


def check_supported(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state the neutral checkpoint does not know.

    Raises:
        PlanError: Not one of ``SUPPORTED``, or AdamW with ``amsgrad``.
    """
    amsgrad = any(group.get("amsgrad") for group in optimizer.param_groups)
    if isinstance(optimizer, SUPPORTED) and not amsgrad:
        return
    name = type(optimizer).__name__ + (" with amsgrad" if amsgrad else "")
    names = [kind.__name__ for kind in SUPPORTED]
    raise PlanError(
        f"optimizer {name}: a checkpoint knows the state of {names} of torch.optim; use one of these"
    )


def materialized_state(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> dict[str, Tensor]:
    """The state of one parameter, created first where the optimizer has not done so.

    Returns:
        Slot name to tensor, the optimizer's own; without momentum SGD has none.
    """
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state.update(_first_state(optimizer, group, parameter))
    return state


def _first_state(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Slots and what a first step starts from; shapes as torch.optim creates them."""
    data = parameter.detach()
    if isinstance(optimizer, torch.optim.SGD):
        if group["momentum"] != 0:
            yield "momentum_buffer", torch.zeros_like(data)
        return
    on_device = bool(group.get("fused") or group.get("capturable"))
    yield "step", torch.zeros((), dtype=torch.float32, device=data.device if on_device else "cpu")
    if isinstance(optimizer, torch.optim.AdamW):
        yield "exp_avg", torch.zeros_like(data)
        yield "exp_avg_sq", torch.zeros_like(data)
    elif data.dim() > 1:
        # Not zeros_like: of a sharded parameter too, Adafactor's state is whole (``whole_matrices``).
        yield "row_var", _zeros((*data.shape[:-1], 1), data)
        yield "col_var", _zeros((*data.shape[:-2], 1, data.shape[-1]), data)
    else:
        yield "variance", _zeros(tuple(data.shape), data)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A plain tensor of zeros with the dtype and device of ``like``."""
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
