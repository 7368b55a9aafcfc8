"""Data parallelism with the model replicated on every rank (torch DistributedDataParallel)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.contracts import EngineSetup
from orchestrator.spec.strategies import DDPStrategy
from orchestrator.strategies.plain import PlainEngine
from orchestrator.strategies.preparation import enable_activation_checkpointing, require_compiler


class DDPEngine(PlainEngine):
    """The reference trajectory: what other strategies are compared with."""

    def __init__(self, model: nn.Module, section: Any, setup: EngineSetup) -> None:
        """Wrap ``model`` as the ``ddp`` section says.

        Raises:
            PlanError: No compiler for ``compile``, or no support for activation checkpointing.
        """
        assert isinstance(section, DDPStrategy)
        if section.compile:
            require_compiler(setup.device)
        if section.activation_checkpointing:
            enable_activation_checkpointing(model)
        model.to(setup.device)
        if section.param_dtype != "float32":
            # Around the forward pass alone: a backward pass under autocast would cast once more.
            dtype: torch.dtype = getattr(torch, section.param_dtype)
            model.forward = torch.autocast(setup.device.type, dtype)(model.forward)
        self._computes_in_float16 = section.param_dtype == "float16"
        if setup.reproducibility == "exact":
            # Its reducer adds in the order of a ring.
            self.model = model
        else:
            self.model = self._ddp = _wrapped(model, setup.device)
            if section.compile:
                self._ddp.compile()
        self._adopt(model, setup.make_optimizer(model), setup)

    @contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        """Sum gradients over ranks in the last micro-batch alone, or in each where their order is fixed."""
        self._last = last
        if last or self._fixed_sum is not None:
            yield
        else:
            with self._ddp.no_sync():
                yield


def _wrapped(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """``model`` with torch's reducer around it."""
    return DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device],
        # Buffers here are constants (positions, rotary frequencies), equal on all ranks.
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
