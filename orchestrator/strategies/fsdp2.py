"""Sharded parameters, gradients and optimizer state (torch ``fully_shard``, per block and then the rest)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from orchestrator.contracts import EngineSetup
from orchestrator.counts import counted
from orchestrator.errors import PlanError
from orchestrator.spec.strategies import FSDP2Strategy
from orchestrator.strategies.clip import sum_of_squares, sum_over_ranks
from orchestrator.strategies.exact_norm import exact_sum_of_squares
from orchestrator.strategies.plain import PlainEngine
from orchestrator.strategies.preparation import (
    enable_activation_checkpointing,
    quieten_torch,
    require_compiler,
)
from orchestrator.strategies.reduction_tree import ShardedSum, TreeReduceScatter
from orchestrator.strategies.whole_matrices import step_whole_matrices


class FSDP2Engine(PlainEngine):
    """FSDP2, or HSDP where the sharded model is replicated as well."""

    def __init__(self, model: nn.Module, section: Any, setup: EngineSetup) -> None:
        """Shard ``model`` as the ``fsdp2`` section says.

        Raises:
            PlanError: ``replicate_degree`` does not divide the number of workers, or as ``DDPEngine``.
        """
        assert isinstance(section, FSDP2Strategy)
        quieten_torch()
        mesh = build_mesh(section.replicate_degree, setup)
        if section.compile:
            require_compiler(setup.device)
        if section.activation_checkpointing:
            enable_activation_checkpointing(model)
        if section.compile:
            for block in setup.blocks:
                block.compile()
        self._shard(model, mesh, section, setup)
        if setup.reproducibility == "exact":
            _reduce_in_tree(model)
        self._replicate_degree = section.replicate_degree
        self._computes_in_float16 = section.param_dtype == "float16"
        self.model = model
        self._adopt(model, setup.make_optimizer(model), setup)

    def _shard(self, model: nn.Module, mesh: DeviceMesh, section: FSDP2Strategy, setup: EngineSetup) -> None:
        """Shard each block, then what is left."""
        # Shards in pinned memory speed up copies to a GPU; a CPU has none to pin for.
        offload = (
            CPUOffloadPolicy(pin_memory=setup.device.type != "cpu")
            if section.cpu_offload
            else OffloadPolicy()
        )
        for block in setup.blocks:
            fully_shard(
                block,
                mesh=mesh,
                reshard_after_forward=section.reshard_after_forward,
                mp_policy=precision_policy(section),
                offload_policy=offload,
            )
        self._root: FSDPModule = fully_shard(
            model,
            mesh=mesh,
            reshard_after_forward=section.reshard_after_forward,
            # Only here: blocks that cast their output disagree with the dtype of the next block.
            mp_policy=precision_policy(section, output_dtype=torch.float32),
            offload_policy=offload,
        )

    @contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        """Keep gradients of the whole model until the last micro-batch, then sum and shard them.

        Where their order is fixed, they are summed and sharded after each.
        """
        self._last = last
        self._root.set_requires_gradient_sync(last or self._fixed_sum is not None)
        yield

    def _make_sum(self) -> ShardedSum:
        """What adds shards in one order."""
        return ShardedSum(self._trained)

    def _global_squares(self, gradients: Sequence[Tensor]) -> Tensor:
        """Add the shards; each element is on ``replicate_degree`` ranks."""
        device, world_size = self._setup.device, self._setup.world_size
        if self._fixed_sum is None:
            return sum_over_ranks(sum_of_squares(gradients, device), copies=self._replicate_degree)
        # The first copy alone: dividing a sum of all would round otherwise than without copies.
        is_first_copy = self._setup.rank < world_size // self._replicate_degree
        return exact_sum_of_squares(
            gradients if is_first_copy else [], self._num_trained, device, num_holders=world_size
        )

    def _update(self) -> None:
        """Move the weights and clear gradients."""
        if isinstance(self._optimizer, torch.optim.Adafactor):
            step_whole_matrices(self._optimizer, self._setup.device)
            self._optimizer.zero_grad(set_to_none=True)
        else:
            super()._update()

    def neutral_state(self) -> dict[str, Tensor]:
        """Shards as DTensors, by neutral name."""
        self._reshard()
        return super().neutral_state()

    def full_weights(self) -> dict[str, Tensor] | None:
        """All parameters on rank 0, gathered one at a time."""
        self._reshard()
        return super().full_weights()

    def _reshard(self) -> None:
        """Free whole parameters that a forward pass without a backward pass may have left behind."""
        for module in self._module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _reduce_in_tree(model: nn.Module) -> None:
    """Make every sharded module sum gradients neighbours first, without averaging them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_reduce_scatter(TreeReduceScatter())  # type: ignore[arg-type]
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def build_mesh(replicate_degree: int, setup: EngineSetup) -> DeviceMesh:
    """The device mesh: one axis ``shard``, or ``replicate`` by ``shard``.

    Raises:
        PlanError: The number of workers is not a multiple of ``replicate_degree``.
    """
    if setup.world_size % replicate_degree:
        raise PlanError(
            f"strategy.replicate_degree {replicate_degree} does not divide"
            f" {counted(setup.world_size, 'worker')};"
            f" set it to a divisor of {setup.world_size}, or change resources.num_workers"
        )
    if replicate_degree == 1:
        return init_device_mesh(setup.device.type, (setup.world_size,), mesh_dim_names=("shard",))
    return init_device_mesh(
        setup.device.type,
        (replicate_degree, setup.world_size // replicate_degree),
        mesh_dim_names=("replicate", "shard"),
    )


def precision_policy(section: FSDP2Strategy, output_dtype: torch.dtype | None = None) -> MixedPrecisionPolicy:
    """Compute and reduce dtypes of the section; the shards themselves stay float32."""
    param_dtype: torch.dtype = getattr(torch, section.param_dtype)
    reduce_dtype: torch.dtype = getattr(torch, section.reduce_dtype)
    if param_dtype == reduce_dtype == torch.float32:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype, output_dtype=output_dtype)
