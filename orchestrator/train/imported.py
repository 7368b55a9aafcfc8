"""First weights from checkpoints that other programs wrote: DeepSpeed's own, and plain torch DCP.

Both say nothing of a tokenizer, so whoever names one vouches that its tokens are the stage's. Weights alone
are taken; the names may stand behind one prefix, such as ``model.`` or ``module.``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from orchestrator.checkpoint.torch_dcp import read_torch_dcp, tensor_shapes
from orchestrator.errors import CheckpointError
from orchestrator.strategies.zero_start import import_deepspeed

logger = logging.getLogger(__name__)
NUM_NAMED = 3


def import_weights(model: nn.Module, folder: Path, kind: Literal["deepspeed", "dcp"]) -> None:
    """Fill ``model`` from a checkpoint that ``kind`` wrote.

    Raises:
        CheckpointError: It cannot be read, or holds other parameters than the model.
    """
    place = f"init.checkpoint {folder} (format '{kind}')"
    if kind == "dcp":
        shapes = tensor_shapes(folder)
        prefix = find_prefix(model, shapes)
        names = [name for name in shapes if name.startswith(prefix)]
        known = model.state_dict().keys()
        read = [name for name in names if name.removeprefix(prefix) in known]
        tensors = read_torch_dcp(folder, read)
        odd = {name: torch.empty(shapes[name], device="meta") for name in names if name not in tensors}
        found = {**tensors, **odd}
    else:
        found = read_deepspeed(folder)
        prefix = find_prefix(model, found)
    own = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    take_weights(model, _of_the_model(model, own), place)


def find_prefix(model: nn.Module, names: Collection[str]) -> str:
    """What stands before the names of the model's parameters in ``names``; the one that fits most."""
    wanted = [name for name, _ in model.named_parameters()]
    first = wanted[0]
    prefixes = {name.removesuffix(first) for name in names if name.endswith(first)} or {""}
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + name in names for name in wanted))


def _of_the_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` without what is no parameter: buffers, other names of tied ones, an optimizer's state.

    A name below the same modules that the model does not have stays: it is a parameter of another model.
    """
    parameters = dict(model.named_parameters())
    buffers = {name for name, _ in model.named_buffers()}
    others = (model.state_dict().keys() | buffers) - parameters.keys()
    tops = {name.split(".")[0] for name in parameters}
    return {
        name: value
        for name, value in tensors.items()
        if name in parameters or (name not in others and name.split(".")[0] in tops)
    }


def take_weights(model: nn.Module, weights: Mapping[str, Tensor], place: str) -> None:
    """Copy ``weights`` to the parameters of the same name.

    Args:
        place: What the message calls their origin.

    Raises:
        CheckpointError: Names or shapes differ; nothing is copied.
    """
    wanted = dict(model.named_parameters())
    odd = [_misfit(name, wanted, weights) for name in sorted(wanted.keys() | weights.keys())]
    problems = [problem for problem in odd if problem is not None]
    if problems:
        raise CheckpointError(
            f"{place} does not fit model.config: {len(problems)} parameters differ in name or shape, first"
            f" {'; '.join(problems[:NUM_NAMED])}. Give the model.config it was trained with"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])


def _misfit(name: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """How a parameter differs, if it does."""
    if name not in found:
        return f"'{name}' is not in it"
    if name not in wanted:
        return f"'{name}' is in it alone"
    if wanted[name].shape != found[name].shape:
        return f"'{name}' is {list(found[name].shape)}, expected {list(wanted[name].shape)}"
    return None


def read_deepspeed(folder: Path) -> dict[str, Tensor]:
    """Float32 weights of a checkpoint of ZeRO 1 to 3, put together by DeepSpeed; unpickles its files.

    Raises:
        CheckpointError: DeepSpeed cannot read it.
    """
    import_deepspeed(torch.device("cpu"))
    tools = importlib.import_module("deepspeed.utils.zero_to_fp32")
    where, tag = (folder, None) if (folder / "latest").is_file() else (folder.parent, folder.name)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            weights = tools.get_fp32_state_dict_from_zero_checkpoint(str(where), tag)
    # Its files are pickles: what a damaged one raises is not foreseeable.
    except Exception as error:
        raise CheckpointError(
            f"init.checkpoint {folder}: DeepSpeed cannot read it as a checkpoint of ZeRO 1 to 3: {error};"
            " give the folder that save_checkpoint wrote"
        ) from error
    logger.info("read %d tensors of the DeepSpeed checkpoint %s", len(weights), folder)
    return dict(weights)
