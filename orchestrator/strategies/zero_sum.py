"""Gradients that DeepSpeed partitions, added over micro-batches in the fixed tree of ``reduction_tree``."""

from __future__ import annotations

from orchestrator.strategies.reduction_tree import TreeSum
from orchestrator.strategies.zero_partitions import Partitions


class PartitionedSum:
    """Takes each micro-batch's gradients away from DeepSpeed, to which it is a step of its own."""

    def __init__(self, partitions: Partitions) -> None:
        """Sum the gradients in ``partitions``."""
        self._partitions = partitions
        self._tree = TreeSum()

    def add(self, *, last: bool) -> None:
        """Take a micro-batch's gradients; after the last one those of the step are in place."""
        gradients = self._partitions.gradients()
        if last:
            self._tree.complete(gradients)
            return
        # Copies: DeepSpeed writes the next micro-batch's gradients to the same buffers.
        self._tree.add([gradient.clone() for gradient in gradients])
        self._partitions.forget_gradients()
