"""What every strategy does to a model before it wraps it, and the checks that come first."""

from __future__ import annotations

import os
import shutil
import warnings

import torch
from torch import nn

from orchestrator.errors import PlanError


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass, with the model's own block-wise support.

    The non-reentrant kind keeps parameter names and gives the same bits as no recomputation.

    Raises:
        PlanError: The model does not support it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise PlanError(
            f"strategy.activation_checkpointing: true, but {type(model).__name__} has no"
            " gradient_checkpointing_enable; set it to false"
        )
    model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )


def quieten_torch() -> None:
    """Drop warnings about the code of torch and DeepSpeed, on which a user cannot act."""
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", rf"`torch.distributed.{name}` is deprecated", FutureWarning)
    # It asks not to change a model's output in place; objectives never do.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)


def require_compiler(device: torch.device) -> None:
    """Check that torch.compile can build kernels for ``device``.

    Raises:
        PlanError: On a CPU, no C++ compiler is found where torch.compile looks for one.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise PlanError(
            f"strategy.compile: true needs a C++ compiler on a CPU, and '{compiler}' is not on PATH;"
            " install g++, name another compiler in CXX, or set compile to false"
        )


def fill_missing_gradients(parameters: list[nn.Parameter]) -> None:
    """Give parameters that took no part in the loss a gradient of zero.

    torch's optimizers skip a parameter without a gradient, ZeRO updates flat buffers as a whole and cannot;
    with zeros they agree, and the step count of all parameters stays the same.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
