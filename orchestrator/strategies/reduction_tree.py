"""Sums over a step's micro-batches in one fixed binary tree, however many ranks share them out.

A sum of floating-point numbers depends on its order, and a ring adds in an order that depends on the
number of ranks. Here micro-batches keep the order of their global numbers: ranks hold neighbours, so
their gradients are added in pairs of neighbours first, and the sums of all ranks, one a turn, are carried
like the digits of a binary counter. With a power of two of ranks, each turn is a subtree of the tree
that a single rank builds, and every addition is the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.strategies.preparation import fill_missing_gradients


class TreeSum:
    """The sum of leaves that come one after the other; holds one partial sum for each binary digit."""

    def __init__(self) -> None:
        """Start with no leaves."""
        self._partial: list[tuple[int, list[Tensor]]] = []
        """Leaves in a partial sum, always a power of two, and the sum."""

    def add(self, leaf: list[Tensor]) -> None:
        """Add a leaf that is not the last one; its tensors are written to from here on."""
        size = 1
        while self._partial and self._partial[-1][0] == size:
            _add_to(leaf, self._partial.pop()[1])
            size *= 2
        self._partial.append((size, leaf))

    def complete(self, leaf: list[Tensor]) -> None:
        """Add the last leaf, whose tensors become the sum, and start anew."""
        # Which of two sums is written to changes no bit: a + b is b + a.
        self.add(leaf)
        self._partial.pop()
        while self._partial:
            _add_to(leaf, self._partial.pop()[1])


def _add_to(target: list[Tensor], other: list[Tensor]) -> None:
    """Add in place; a rank may hold nothing."""
    if target:
        torch._foreach_add_(target, other)


def reduce_scatter(flat: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's chunk of the sum of all ranks' ``flat``, neighbours first; collective.

    Args:
        flat: One-dimensional, a multiple of the number of ranks, which is a power of two.

    Returns:
        A new tensor; with a single rank ``flat`` itself.
    """
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return flat
    received = torch.empty_like(flat)
    dist.all_to_all_single(received, flat, group=group)
    terms = received.view(world_size, -1)
    while len(terms) > 1:
        terms[0::2].add_(terms[1::2])
        terms = terms[0::2]
    return terms[0].clone()


def all_reduce(tensor: Tensor) -> None:
    """Replace ``tensor`` by its sum over all ranks, neighbours first; collective."""
    world_size = dist.get_world_size()
    if world_size == 1 or not tensor.numel():
        return
    flat = tensor.new_zeros(-(-tensor.numel() // world_size) * world_size)
    flat[: tensor.numel()] = tensor.reshape(-1)
    dist.all_gather_single(flat, reduce_scatter(flat))
    tensor.copy_(flat[: tensor.numel()].view_as(tensor))


class ReplicatedSum:
    """Gradients of parameters that every rank holds whole.

    Until the step is complete a rank keeps its chunk of the sums alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of ``parameters``."""
        self._parameters = list(parameters)
        self._tree = TreeSum()

    def add(self, *, last: bool) -> None:
        """Take a micro-batch's gradients; after the last one put back those of the step; collective."""
        flat = self._flatten()
        chunk = reduce_scatter(flat)
        if not last:
            self._tree.add([chunk])
            return
        self._tree.complete([chunk])
        if dist.get_world_size() > 1:
            dist.all_gather_single(flat, chunk)
        for parameter, gradient in zip(self._parameters, self._views(flat), strict=True):
            parameter.grad = gradient

    def _flatten(self) -> Tensor:
        """All gradients in one tensor, padded for the number of ranks; zeros where there is none."""
        world_size = dist.get_world_size()
        numel = sum(parameter.numel() for parameter in self._parameters)
        first = self._parameters[0]
        flat = torch.zeros(-(-numel // world_size) * world_size, dtype=first.dtype, device=first.device)
        for parameter, view in zip(self._parameters, self._views(flat), strict=True):
            if parameter.grad is not None:
                view.copy_(parameter.grad)
                parameter.grad = None
        return flat

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The part of ``flat`` that belongs to each parameter, in its shape."""
        views, offset = [], 0
        for parameter in self._parameters:
            views.append(flat.narrow(0, offset, parameter.numel()).view(parameter.shape))
            offset += parameter.numel()
        return views


class ShardedSum:
    """Gradients of DTensors, of which each micro-batch's backward pass leaves the sum over ranks."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of ``parameters``."""
        self._parameters = list(parameters)
        self._tree = TreeSum()

    def add(self, *, last: bool) -> None:
        """Take a micro-batch's gradients; after the last one those of the step are in place."""
        fill_missing_gradients(self._parameters)
        shards = [parameter.grad.to_local() for parameter in self._parameters]  # type: ignore[union-attr]
        if last:
            self._tree.complete(shards)
            return
        self._tree.add(shards)
        for parameter in self._parameters:
            parameter.grad = None


class TreeReduceScatter:
    """What FSDP2 calls in place of its reduce-scatter."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An empty tensor for FSDP2 to fill."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        """Write this rank's chunk of the sum to ``output_tensor``; ``op`` is the sum already."""
        output_tensor.copy_(reduce_scatter(input_tensor, group))
