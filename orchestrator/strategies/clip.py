"""The canonical gradient norm and clip: the same bits however gradients are laid out over ranks.

Each rank sums squares of what it holds in float64, the sums are added over ranks, and the float32 root
gives one coefficient for every element. Partial sums in float64 differ between layouts by about 1e-16,
which the rounding to float32 removes; a norm computed in float32 differs in its last bit from one
layout to the next, and so do all weights after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# torch.nn.utils.clip_grad_norm_ adds the same term, so that a norm of 0 needs no case of its own.
CLIP_EPSILON = 1e-6


def sum_of_squares(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Sum of squares of all elements, a float64 scalar on ``device``."""
    norms = [torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64) for gradient in gradients]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(norms).square().sum().to(device)


def sum_over_ranks(squares: Tensor, copies: int = 1) -> Tensor:
    """``squares`` added over all ranks, of which ``copies`` hold the same elements."""
    if dist.get_world_size() > 1:
        dist.all_reduce(squares)
    return squares / copies


def norm_of(squares: Tensor) -> float:
    """The float32 norm of a sum of squares that is equal on all ranks; NaN or infinite where it is."""
    return squares.sqrt().float().item()


def unscale(gradients: Sequence[Tensor], loss_scale: float, *, averaged_over: int) -> None:
    """Make of gradients of a scaled loss, averaged over ranks, the sum of those of the loss itself.

    Both factors come after the backward pass, in float32: a factor of the number of ranks before it would
    make what overflows float16 depend on that number.
    """
    if gradients:
        torch._foreach_mul_(list(gradients), averaged_over / loss_scale)


def clip(gradients: Sequence[Tensor], norm: float, max_norm: float | None) -> None:
    """Scale ``gradients`` in place so that a global norm of ``norm`` becomes at most ``max_norm``."""
    if max_norm is None or not gradients:
        return
    coefficient = max_norm / (norm + CLIP_EPSILON)
    if coefficient < 1.0:
        torch._foreach_mul_(list(gradients), coefficient)
