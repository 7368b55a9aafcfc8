"""A DeepSpeed engine around a model, driven by the step contract of ``contracts.Engine``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.contracts import EngineSetup
from orchestrator.errors import PlanError
from orchestrator.spec.strategies import ZeROStrategy
from orchestrator.strategies.optimizer_state import check_supported
from orchestrator.strategies.preparation import (
    enable_activation_checkpointing,
    quieten_torch,
    require_compiler,
)
from orchestrator.strategies.zero_config import JobFacts, build_config
from orchestrator.strategies.zero_start import import_deepspeed, require_async_io, require_float16


class DeepSpeedDriver:
    """A DeepSpeed engine, told when a step is complete by the caller and not by its own counter."""

    def __init__(self, model: nn.Module, section: ZeROStrategy, setup: EngineSetup) -> None:
        """Start DeepSpeed around ``model``.

        Raises:
            PlanError: Version, operators, configuration or optimizer do not allow it.
        """
        quieten_torch()
        deepspeed = import_deepspeed(setup.device)
        if section.param_dtype == "float16":
            require_float16(setup.device)
        if section.compile:
            require_compiler(setup.device)
        if section.activation_checkpointing:
            enable_activation_checkpointing(model)
        optimizer = setup.make_optimizer(model)
        check_optimizer(optimizer, section.stage)
        num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        facts = JobFacts(optimizer=type(optimizer).__name__, num_trained=num_trained)
        config = build_config(section, setup, facts)
        check_offload(config["zero_optimization"], section)
        if section.stage == 3 and setup.blocks:
            # Gathered as a whole: hooks inside a block change the order in which gradients are added.
            kinds = list(dict.fromkeys(type(block) for block in setup.blocks))
            deepspeed.utils.set_z3_leaf_modules(model, kinds)
            for block in setup.blocks:
                block.register_forward_pre_hook(_need_input_gradients)
        self.engine = _initialize(deepspeed, model, optimizer, config, section)
        if section.compile and section.stage == 3:
            # Inside the hooks that gather a block: compiling them as well compiles anew at every step.
            for block in setup.blocks:
                block.forward = torch.compile(block.forward)
        elif section.compile:
            self.engine.compile()
        self._setup = setup
        self._stage = section.stage
        # In float16 gradients are scaled after the backward pass, by ``clip.unscale``.
        self._factor = 1 if section.param_dtype == "float16" else setup.world_size
        self._last = True

    @contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        """Reduce gradients for the update in the last micro-batch alone.

        Where their order is fixed the engine adds micro-batches: each is a whole step to stages 1 to 3,
        and none to stage 0, which then does not reduce.
        """
        self._last = last
        is_boundary = self._stage > 0 if self._setup.reproducibility == "exact" else last
        self.engine.set_gradient_accumulation_boundary(is_boundary)
        yield

    @property
    def last(self) -> bool:
        """Whether the micro-batch is the last one of its step."""
        return self._last

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``."""
        if self._setup.reproducibility == "exact":
            self.engine.backward(loss, scale_wrt_gas=False)
            return
        # DeepSpeed averages over ranks; the engine contract is a sum, so scale back up.
        self.engine.backward(loss * self._factor, scale_wrt_gas=False)
        if not self._last:
            self.engine.step()

    def update(self) -> None:
        """Move the weights and clear gradients."""
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()

    def skip(self) -> None:
        """Clear gradients and count the step, as DeepSpeed does after an update; nothing moves."""
        # DeepSpeed clears buffers of its own only after it has called torch's optimizer.
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        optimizer.step = lambda closure=None: None
        try:
            self.update()
        finally:
            del optimizer.step


def _need_input_gradients(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Ask for gradients of a block's inputs.

    Where all before it is frozen they are not needed, and then DeepSpeed frees the block's parameters before
    its backward pass has used them.
    """
    for value in inputs:
        if torch.is_grad_enabled() and isinstance(value, Tensor) and value.is_floating_point():
            if not value.requires_grad:
                value.requires_grad_()
            return


def check_optimizer(optimizer: torch.optim.Optimizer, stage: int) -> None:
    """Refuse an optimizer that cannot run on flattened parameters.

    Raises:
        PlanError: Adafactor at stage 1 or more, or an optimizer whose state checkpoints do not know.
    """
    check_supported(optimizer)
    if stage > 0 and isinstance(optimizer, torch.optim.Adafactor):
        raise PlanError(
            f"optimizer adafactor under strategy zero, stage {stage}: it factors the rows and columns of"
            " matrices, which ZeRO flattens; use adamw, strategy fsdp2, or stage 0"
        )


def check_offload(zero: Mapping[str, Any], section: ZeROStrategy) -> None:
    """Refuse an offload to NVMe that cannot work, the section's or that of the user's configuration.

    Args:
        zero: The ``zero_optimization`` block made of both.

    Raises:
        PlanError: DeepSpeed cannot read and write a disk here.
    """
    if zero.get("offload_param", {}).get("device") == "nvme":
        in_file = f"strategy.config {section.config}: zero_optimization"
        require_async_io(f"{'strategy' if section.offload_param else in_file}.offload_param.device")


def _initialize(
    deepspeed: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, Any],
    section: ZeROStrategy,
) -> Any:
    """DeepSpeed's engine.

    Raises:
        PlanError: DeepSpeed refuses the user's own configuration.
    """
    refusals = (
        deepspeed.DeepSpeedConfigError,
        AssertionError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    )
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(config))
    except refusals as error:
        if section.config is None:
            raise
        raise PlanError(f"strategy.config {section.config}: DeepSpeed refuses it: {error}") from error
    return engine
