"""The sum of squares of gradients with the same bits in any order of summation, on any layout.

Squares of float32 numbers are exact in float64, and so are sums of multiples of one power of two, as long
as they stay below 2^53 of it. Each square is split into a multiple of such a power, and a rest that is
split again (pre-rounding; Demmel and Nguyen 2013, "Fast Reproducible Floating-Point Summation"). The
powers depend on the largest gradient and on the size of the model alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# Of a model of 2^30 elements each split keeps 21 bits: three leave a rest of 2^-33 of the sum at most.
NUM_SPLITS = 3
# Elements at a time: the float64 copies stay in the cache.
CHUNK_NUMEL = 1 << 18


def exact_sum_of_squares(
    gradients: Sequence[Tensor], num_elements: int, device: torch.device, *, num_holders: int
) -> Tensor:
    """Sum of squares of all float32 gradients, a float64 scalar equal on all ranks; collective.

    Args:
        gradients: What this rank holds; no element is on two ranks that hold different ones.
        num_elements: Gradient elements of the whole model.
        num_holders: Ranks that hold different elements; 1: every rank holds all of them.

    Returns:
        Infinity where an element is not finite.
    """
    largest = _largest(gradients, device)
    if num_holders > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    peak = largest.item()
    if not math.isfinite(peak) or peak == 0.0:
        return largest
    sums = torch.zeros(NUM_SPLITS, dtype=torch.float64, device=device)
    grids = list(_grids(peak * peak, num_elements))
    for gradient in gradients:
        for part in torch.split(gradient.detach().reshape(-1), CHUNK_NUMEL):
            sums += _split_sums(part.double().square(), grids).to(device)
    if num_holders > 1:
        dist.all_reduce(sums)
    # From the smallest up, one fixed order.
    return sums[2] + sums[1] + sums[0]


def _largest(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """The largest absolute value, infinity in place of NaN; a float64 scalar."""
    found = [gradient.detach().abs().amax() for gradient in gradients if gradient.numel()]
    if not found:
        return torch.zeros((), dtype=torch.float64, device=device)
    largest = torch.stack(found).double().amax().to(device)
    return torch.where(largest.isfinite(), largest, torch.inf)


def _grids(peak: float, num_elements: int) -> Iterator[float]:
    """Powers of two, coarse to fine: sums of multiples of each are exact.

    Args:
        peak: The largest number to be split.
    """
    _, size_bits = math.frexp(float(num_elements))
    _, exponent = math.frexp(peak)
    for _ in range(NUM_SPLITS):
        # All numbers together stay below 2^(exponent + size_bits), which is 2^51 grids.
        grid_exponent = exponent + size_bits - 51
        yield math.ldexp(1.0, grid_exponent)
        # What rounding to the grid leaves is half of it at most.
        exponent = grid_exponent


def _split_sums(squares: Tensor, grids: Sequence[float]) -> Tensor:
    """Sums of the multiples of each grid; ``squares`` is left with the rest."""
    sums = []
    for grid in grids:
        # Adding 1.5 * 2^52 grids leaves no room for bits below the grid: they are rounded away.
        shift = 1.5 * 2.0**52 * grid
        multiples = (squares + shift) - shift
        sums.append(multiples.sum())
        squares -= multiples
    return torch.stack(sums)
