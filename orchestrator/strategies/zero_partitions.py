"""Where DeepSpeed 0.19 keeps what ZeRO stages 1 to 3 partition; no other file touches its private attributes.

Both kinds of partition keep float32 master weights in flat tensors. Stages 1 and 2 flatten each parameter
group and give every rank one slice of it; stage 3 splits each parameter and flattens a rank's pieces.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from orchestrator.errors import PlanError
from orchestrator.strategies.flat_ranges import FlatRanges
from orchestrator.strategies.reduction_tree import all_reduce, reduce_scatter

# DeepSpeed's count of micro-batches in a step at stages 1 and 2, before the first one.
FIRST_MICRO_STEP = -1
# Stage 3's averaging and scattering of a bucket.
SCATTER = "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads"


class Fragment(NamedTuple):
    """The elements of one parameter that this rank holds."""

    flat: int
    """Index of the flat tensor."""
    offset: int
    """First element in the flat tensor."""
    start: int
    """First element in the flattened parameter."""
    numel: int


class Partitions(ABC):
    """This rank's flat tensors, and what of which parameter is in them."""

    def __init__(self, zero_optimizer: Any) -> None:
        """Look into DeepSpeed's ``zero_optimizer``.

        Raises:
            PlanError: It lacks what DeepSpeed 0.19 has, or has it otherwise.
        """
        self._zero = zero_optimizer
        used = [*self.attributes, *self.methods]
        missing = [name for name in used if not hasattr(zero_optimizer, name)]
        changed = [
            name
            for name, num_arguments in self.methods.items()
            if name not in missing and not _takes(getattr(zero_optimizer, name), num_arguments)
        ]
        kind, remedy = type(zero_optimizer).__name__, "install deepspeed 0.19.8, or use strategy fsdp2"
        if missing:
            raise PlanError(f"DeepSpeed's {kind} has no {missing}, which this engine reads; {remedy}")
        if changed:
            wanted = {name: self.methods[name] for name in changed}
            raise PlanError(
                f"DeepSpeed's {kind} has {changed} with other arguments than this engine gives, expected"
                f" {wanted}; {remedy}"
            )

    attributes: tuple[str, ...]
    """Private attributes of the optimizer that are used here."""
    methods: ClassVar[Mapping[str, int]]
    """Methods of it that are called or replaced here, and how many arguments each takes."""

    @property
    @abstractmethod
    def flats(self) -> list[Tensor]:
        """Float32 master weights, the tensors that torch's optimizer updates."""

    @property
    @abstractmethod
    def offloaded(self) -> bool:
        """Whether gradients of a complete step lie in ``grad`` of the flat tensors."""

    @abstractmethod
    def fragment(self, parameter: nn.Parameter) -> Fragment | None:
        """What this rank holds of a trained parameter; ``None``: nothing."""

    @abstractmethod
    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """The parameter's natural shape."""

    @abstractmethod
    def working(self, parameter: nn.Parameter, fragment: Fragment) -> Tensor:
        """The working weights of a fragment."""

    @abstractmethod
    def hold_frozen(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """What this rank keeps of ``whole``, the float32 value of a parameter that is not trained."""

    @abstractmethod
    def restore_frozen(self, parameter: nn.Parameter, held: Tensor) -> None:
        """Set the working copy of a parameter that is not trained."""

    @abstractmethod
    def masters_changed(self) -> None:
        """Copy master weights to working weights, on all ranks; collective."""

    @abstractmethod
    def reduce_in_tree(self) -> None:
        """Sum gradients over ranks neighbours first, and do not average them, in place of DeepSpeed's way."""

    @abstractmethod
    def forget_gradients(self) -> None:
        """Be ready for the first backward pass of a step, as DeepSpeed is after a step."""

    def gradients(self) -> list[Tensor]:
        """Gradients of the complete step that this rank holds; no element is on two ranks."""
        return self._offloaded_gradients() if self.offloaded else self._averaged_gradients()

    def zero_gradients(self) -> None:
        """Zero the gradients of a step, wherever they are, so that none of them is part of the next.

        DeepSpeed adds the next step to what a step with infinite gradients has left in some of its buffers.
        """
        for gradient in (*self._offloaded_gradients(), *self._averaged_gradients()):
            gradient.zero_()

    def _offloaded_gradients(self) -> list[Tensor]:
        return [flat.grad for flat in self.flats if flat.grad is not None]

    def _averaged_gradients(self) -> list[Tensor]:
        groups = self._zero.averaged_gradients.values()
        return [gradient for group in groups for gradient in group or []]


class GroupPartitions(Partitions):
    """Stages 1 and 2: one slice of every flattened parameter group."""

    attributes = (
        "averaged_gradients",
        "cpu_offload",
        "micro_step_id",
        "single_partition_of_fp32_groups",
    )
    methods: ClassVar[Mapping[str, int]] = {"average_tensor": 2, "update_lp_params": 0, "zero_grad": 0}

    @property
    def flats(self) -> list[Tensor]:
        """One flat tensor a parameter group."""
        return list(self._zero.single_partition_of_fp32_groups)

    @property
    def offloaded(self) -> bool:
        """Whether the optimizer is in host memory."""
        return bool(self._zero.cpu_offload)

    def fragment(self, parameter: nn.Parameter) -> Fragment | None:
        """The part of the parameter inside this rank's slice."""
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        working, master = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Fragment(mapping.param_group_index, master.start, working.start, master.numel)

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """The parameter is whole on every rank."""
        return parameter.shape

    def working(self, parameter: nn.Parameter, fragment: Fragment) -> Tensor:
        """A part of the parameter."""
        return parameter.detach().view(-1).narrow(0, fragment.start, fragment.numel)

    def hold_frozen(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """All of it: DeepSpeed replicates it."""
        return whole

    def restore_frozen(self, parameter: nn.Parameter, held: Tensor) -> None:
        """Copy, in the dtype DeepSpeed gave it."""
        parameter.detach().copy_(held)

    def masters_changed(self) -> None:
        """Copy this rank's slice, then gather the others'."""
        self._zero.update_lp_params()

    def reduce_in_tree(self) -> None:
        """Replace the averaging of a bucket, of which DeepSpeed then takes this rank's slice."""
        self._zero.average_tensor = lambda bucket, communication_data_type: all_reduce(bucket)

    def forget_gradients(self) -> None:
        """Drop them, and count micro-batches from the first again."""
        if self.offloaded:
            for gradient in self.gradients():
                gradient.zero_()
        self._zero.averaged_gradients.clear()
        self._zero.zero_grad()
        self._zero.micro_step_id = FIRST_MICRO_STEP


class ParameterPartitions(Partitions):
    """Stage 3: one slice of every parameter."""

    attributes = (
        "averaged_gradients",
        "fp32_partitioned_groups_flat",
        "fp16_partitioned_groups_flat",
        "offload_optimizer",
        "grad_position",
    )
    methods: ClassVar[Mapping[str, int]] = {
        "get_param_id": 1,
        "checkpoint_event_prologue": 0,
        "checkpoint_event_epilogue": 0,
        "zero_grad": 0,
        "_get_param_partition_rank": 1,
        "_reassign_or_swap_out_partitioned_parameters": 1,
        SCATTER: 2,
    }

    @property
    def flats(self) -> list[Tensor]:
        """One flat tensor a sub-group of parameters."""
        return list(self._zero.fp32_partitioned_groups_flat)

    @property
    def offloaded(self) -> bool:
        """Whether the optimizer is outside device memory."""
        return bool(self._zero.offload_optimizer)

    def fragment(self, parameter: nn.Parameter) -> Fragment | None:
        """This rank's slice of the parameter, without the padding of the last ranks."""
        start, numel = self._slice(parameter)
        flat, offset, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
        return Fragment(flat, offset, start, numel) if numel else None

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """The shape before DeepSpeed emptied the parameter."""
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        return shape

    def working(self, parameter: nn.Parameter, fragment: Fragment) -> Tensor:
        """This rank's slice, empty while it is on NVMe."""
        partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        return partition.detach().view(-1)[: fragment.numel]

    def hold_frozen(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's slice."""
        start, numel = self._slice(parameter)
        held = whole.view(-1).narrow(0, start, numel).clone()
        return FlatRanges(whole.shape, [(start, held)] if numel else [])

    def restore_frozen(self, parameter: nn.Parameter, held: Tensor) -> None:
        """Copy the slice, in the dtype DeepSpeed gave it."""
        assert isinstance(held, FlatRanges)
        partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        for _, elements in held.ranges:
            partition.detach().view(-1).narrow(0, 0, elements.numel()).copy_(elements)

    def reduce_in_tree(self) -> None:
        """Replace the averaging and scattering of a bucket."""
        setattr(self._zero, SCATTER, lambda bucket, communication_data_type: _scatter_in_tree(bucket))

    def forget_gradients(self) -> None:
        """Zero the buffers, which a parameter without a part in the next loss leaves as they are."""
        for gradient in self.gradients():
            gradient.zero_()
        self._zero.zero_grad()

    def _slice(self, parameter: Any) -> tuple[int, int]:
        """First element and number of elements of this rank's slice."""
        # Not the tensor's own size: on NVMe it is empty between uses.
        size = parameter.partition_numel()
        rank = self._zero._get_param_partition_rank(parameter)
        start = min(rank * size, parameter.ds_numel)
        return start, min(size, parameter.ds_numel - start)

    def masters_changed(self) -> None:
        """Copy every slice, then gather the small parameters that stay whole."""
        self._zero.checkpoint_event_prologue()
        for index in range(len(self._zero.fp16_partitioned_groups_flat)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        self._zero.checkpoint_event_epilogue()


def _takes(method: Callable[..., Any], num_arguments: int) -> bool:
    """Whether ``method`` can be called with that many arguments, as far as its signature says."""
    try:
        inspect.signature(method).bind(*[None] * num_arguments)
    except TypeError:
        return False
    return True


def _scatter_in_tree(parameters: Sequence[Any]) -> list[Tensor]:
    """This rank's slices of the sums of gradients of stage 3's parameters, padded with zeros."""
    world_size = dist.get_world_size()
    sizes = [parameter.partition_numel() for parameter in parameters]
    slices = [
        pad(parameter.grad.reshape(-1), (0, size * world_size - parameter.ds_numel)).view(world_size, size)
        for parameter, size in zip(parameters, sizes, strict=True)
    ]
    return list(torch.split(reduce_scatter(torch.cat(slices, dim=1).reshape(-1)), sizes))
