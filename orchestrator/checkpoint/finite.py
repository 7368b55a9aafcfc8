"""No state is saved as good that holds NaN or infinity: nothing right could come from it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# A message names this many tensors; the rest is usually more of the same.
NUM_NAMED = 3


class NotFiniteError(ValueError):
    """Part of a state holds NaN or infinity."""


def refuse_not_finite(chunks: Iterable[tuple[str, Tensor]]) -> None:
    """Look at every element of the named ``chunks``.

    Raises:
        NotFiniteError: Naming the first tensors that are not finite.
    """
    bad = sorted({name for name, chunk in chunks if not is_finite(chunk)})
    if bad:
        raise NotFiniteError(
            f"{len(bad)} tensors of weights or optimizer state hold NaN or infinity:"
            f" {', '.join(bad[:NUM_NAMED])}"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are; one pass without a mask of the tensor's size."""
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        # numpy computes in the calling thread alone: torch would bring a second set of threads to the cores
        # that training uses.
        with np.errstate(all="ignore"):
            if np.isfinite(np.add.reduce(tensor.numpy(), axis=None)):
                return True
    # A sum is NaN or infinite where an element is; that of float32 may overflow without.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float64)))
