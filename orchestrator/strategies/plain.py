"""Engines whose parameters a torch optimizer holds as they are: ddp, fsdp2, and ZeRO stage 0.

``PlainEngine`` owns the step, the neutral state and the full weights. How a strategy wraps the model and
sums gradients is in the subclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orchestrator.contracts import Engine, EngineSetup
from orchestrator.strategies.clip import clip, norm_of, sum_of_squares, unscale
from orchestrator.strategies.exact_norm import exact_sum_of_squares
from orchestrator.strategies.optimizer_state import check_supported, materialized_state
from orchestrator.strategies.preparation import fill_missing_gradients
from orchestrator.strategies.reduction_tree import ReplicatedSum, ShardedSum


class PlainEngine(Engine):
    """Step, state and weights of parameters that are plain tensors or DTensors."""

    _fixed_sum: ReplicatedSum | ShardedSum | None
    """Adds gradients in one order where the job asks for it."""
    _computes_in_float16 = False
    """Whether ``unscale``, and not ``backward``, undoes the average over ranks."""
    _last = True
    """Whether the micro-batch is the last one of its step."""

    def _adopt(self, module: nn.Module, optimizer: torch.optim.Optimizer, setup: EngineSetup) -> None:
        """Take over the bare model, whose parameter names are the neutral ones, and its optimizer.

        Raises:
            PlanError: The optimizer's state is not one that checkpoints know.
        """
        check_supported(optimizer)
        self._module = module
        self._optimizer = optimizer
        self._setup = setup
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._num_trained = sum(parameter.numel() for parameter in self._trained)
        self._fixed_sum = self._make_sum() if setup.reproducibility == "exact" else None

    def _make_sum(self) -> ReplicatedSum | ShardedSum:
        """What adds gradients in one order."""
        return ReplicatedSum(self._trained)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``."""
        if self._fixed_sum is not None:
            # Not scaled: a factor of the number of ranks would underflow elsewhere.
            loss.backward()  # type: ignore[no-untyped-call]
            self._fixed_sum.add(last=self._last)
            return
        # Data-parallel wrappers average over ranks; the engine contract is a sum, so scale back up.
        factor = 1 if self._computes_in_float16 else self._setup.world_size
        (loss * factor).backward()  # type: ignore[no-untyped-call]

    def unscale(self, loss_scale: float) -> None:
        """Divide by ``loss_scale``; parameters that took no part have a gradient of 0 from here on."""
        fill_missing_gradients(self._trained)
        unscale(self._gradients(), loss_scale, averaged_over=self._setup.world_size)

    def gradient_norm(self) -> float:
        """The global norm; parameters that took no part have a gradient of 0 from here on."""
        fill_missing_gradients(self._trained)
        return norm_of(self._global_squares(self._gradients()))

    def step(self, lr: float, norm: float) -> None:
        """Clip, update with ``lr``, clear gradients."""
        clip(self._gradients(), norm, self._setup.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._update()

    def skip_step(self) -> None:
        """Clear gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def _gradients(self) -> list[Tensor]:
        """What this rank holds of the gradients."""
        return [_local(parameter.grad) for parameter in self._trained]

    def _global_squares(self, gradients: Sequence[Tensor]) -> Tensor:
        """Sum of squares of the whole model's gradients, which this rank holds."""
        device = self._setup.device
        if self._fixed_sum is not None:
            return exact_sum_of_squares(gradients, self._num_trained, device, num_holders=1)
        return sum_of_squares(gradients, device)

    def _update(self) -> None:
        """Move the weights and clear gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def neutral_state(self) -> dict[str, Tensor]:
        """Views of weights and optimizer state by neutral name."""
        state = {f"model.{name}": _data(p) for name, p in self._module.named_parameters()}
        groups = {
            id(parameter): group for group in self._optimizer.param_groups for parameter in group["params"]
        }
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                slots = materialized_state(self._optimizer, groups[id(parameter)], parameter)
                state |= {f"optim.{slot}.{name}": value for slot, value in slots.items()}
        return state

    def neutral_state_loaded(self, state: dict[str, Tensor]) -> None:
        """Nothing is left to do: ``state`` holds the optimizer's own tensors."""

    def full_weights(self) -> dict[str, Tensor] | None:
        """All parameters on rank 0, gathered one at a time."""
        weights = {}
        for name, parameter in self._module.named_parameters():
            tensor = _data(parameter)
            if isinstance(tensor, DTensor):
                tensor = gather(tensor, self._setup.device)
            if dist.get_rank() == 0:
                weights[name] = tensor.to(device="cpu", dtype=torch.float32, copy=True)
        return weights if dist.get_rank() == 0 else None


def gather(tensor: DTensor, device: torch.device) -> Tensor:
    """The whole of ``tensor``, gathered over ``device``, where its process group communicates."""
    whole: Tensor = cast(DTensor, tensor.to(device)).full_tensor()
    return whole


def _data(parameter: nn.Parameter) -> Tensor:
    """The parameter's tensor without its graph."""
    return parameter.detach()


def _local(gradient: Tensor | None) -> Tensor:
    """The part of a gradient that this rank holds."""
    assert gradient is not None
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
