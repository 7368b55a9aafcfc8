"""Starting DeepSpeed: the right version, quiet, and on a CPU without a compiler."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType
from typing import Any

import torch

from orchestrator.errors import PlanError

SUPPORTED_VERSION = "0.19."


def import_deepspeed(device: torch.device) -> Any:
    """The ``deepspeed`` module, ready for ``initialize``.

    Raises:
        PlanError: DeepSpeed is not installed, or is not a version whose internals this engine knows.
    """
    if device.type == "cpu" and not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed insists on the variable even where the process group is there already.
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    try:
        deepspeed = importlib.import_module("deepspeed")
    except ModuleNotFoundError as error:
        raise PlanError(f"strategy zero: {error}; install deepspeed 0.19.8, or use strategy fsdp2") from error
    check_version(str(deepspeed.__version__))
    _redirect_log()
    if device.type == "cpu":
        _avoid_compiler(deepspeed)
    return deepspeed


def check_version(version: str) -> None:
    """Refuse a version whose private attributes may differ.

    Raises:
        PlanError: Not a ``SUPPORTED_VERSION``.
    """
    if not version.startswith(SUPPORTED_VERSION):
        raise PlanError(
            f"strategy zero: found deepspeed {version}, expected {SUPPORTED_VERSION}x, whose internals the"
            " checkpoint reads; install deepspeed 0.19.8, or use strategy fsdp2"
        )


def require_float16(device: torch.device) -> None:
    """Check that DeepSpeed computes in float16 here.

    Raises:
        PlanError: It does not.
    """
    accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
    if not accelerator.is_fp16_supported():
        raise PlanError(
            f"strategy zero, param_dtype: found 'float16', which DeepSpeed does not run on this {device.type}"
            " (a CPU needs AVX512-FP16); set 'bfloat16', or use strategy fsdp2 or ddp"
        )


def require_async_io(place: str) -> None:
    """Check that DeepSpeed can read and write a local disk, as the key ``place`` asks.

    Raises:
        PlanError: Its async_io operator cannot be built here.
    """
    builder = importlib.import_module("deepspeed.ops.op_builder").AsyncIOBuilder()
    if not builder.is_compatible(verbose=False):
        raise PlanError(
            f"{place}: found 'nvme', which needs DeepSpeed's async_io operator, and it cannot be built here;"
            " install libaio with its headers (Debian: libaio-dev) and a C++ compiler, or set 'cpu'"
        )


def _redirect_log() -> None:
    """Send DeepSpeed's messages through the root logger: its own handler writes to stdout."""
    logger = logging.getLogger("DeepSpeed")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    # Which optimizers may run is decided, and tested, here.
    logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())


def _avoid_compiler(deepspeed: ModuleType) -> None:
    """Keep DeepSpeed from building its shared-memory collectives, which on a CPU it does at start, always.

    Measured on two cores: 33 s, and without a compiler an error; training is the same without them.
    """
    importlib.import_module("deepspeed.ops")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
