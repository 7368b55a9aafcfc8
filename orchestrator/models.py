"""Models: built from a Hugging Face configuration or loaded, checked against their rows, written out.

Everything here is float32 on the CPU or on the meta device and equal on all ranks; strategies wrap and
shard it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import logging as hf_logging

from orchestrator.contracts import Head, TokenInfo
from orchestrator.errors import ModelError
from orchestrator.head_labels import check_labels
from orchestrator.heads import auto_class
from orchestrator.spec.messages import suggestion
from orchestrator.spec.positions import first_position
from orchestrator.spec.training import Init
from orchestrator.trained_part import TrainedPart

if TYPE_CHECKING:
    # It imports the modules of all attentions and losses, seconds that only who builds a model needs.
    from transformers import PreTrainedModel

# A bar for each load would stand between the lines of whoever loads.
hf_logging.disable_progress_bar()

# Takes part in every configuration, though only as an argument: sdpa, eager, flash_attention_2 and so on.
ATTENTION = "attn_implementation"


def make_config(config: Mapping[str, Any], tokens: TokenInfo | None = None) -> PretrainedConfig:
    """Hugging Face configuration of a job's ``model.config``, special ids and vocabulary filled in.

    Raises:
        ModelError: Unknown ``model_type``, a key the architecture does not have, or values it refuses.
    """
    keys = dict(config)
    model_type = keys.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
    except (ValueError, KeyError) as error:
        hint = suggestion(model_type, list(CONFIG_MAPPING), plural="Architectures")
        raise ModelError(
            f"model.config.model_type '{model_type}' is not a Hugging Face architecture of transformers"
            f" {transformers.__version__}.{hint}"
        ) from error
    unknown = sorted(key for key in keys if not hasattr(known, key) and key != ATTENTION)
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(known.to_diff_dict()), n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"It has {sorted(known.to_diff_dict())}."
        raise ModelError(f"model.config: '{model_type}' has no keys {unknown}. {hint}")
    if tokens is not None:
        keys.setdefault("vocab_size", tokens.vocab_size)
        keys.setdefault("pad_token_id", tokens.pad_id)
        keys.setdefault("eos_token_id", tokens.eos_id)
        keys.setdefault("bos_token_id", tokens.eos_id)
    try:
        return AutoConfig.for_model(model_type, **keys)
    except Exception as error:  # strict configurations raise their own validation errors
        raise ModelError(f"model.config for '{model_type}': {error}") from error


def load_config(source: str, init: Init) -> PretrainedConfig:
    """Configuration of a pretrained model.

    Raises:
        ModelError: Nothing can be loaded from there.
    """
    try:
        return AutoConfig.from_pretrained(source, **_remote(init))
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error


def _remote(init: Init) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that choose and trust a hub id."""
    return {"revision": init.revision or "main", "trust_remote_code": init.trust_remote_code}


def _unreachable(source: str, error: Exception) -> ModelError:
    """The error for a folder or hub id that does not load."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"'{source}' could not be loaded: {first_line}"
        " Expected a folder written by save_pretrained, or a hub id that this machine can reach."
    )


@contextmanager
def errors_only() -> Iterator[None]:
    """Without transformers' warnings."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)


def count_parameters(
    config: Mapping[str, Any], head: Head, num_labels: int, part: TrainedPart | None = None
) -> int:
    """Parameters of the model with this head, tied ones counted once; allocates nothing.

    Args:
        num_labels: Outputs of a classification head; others have none.
        part: Count what is trained alone.

    Raises:
        ModelError: The model cannot be built, or ``part`` does not fit it.
    """
    # The architecture's own special ids may not fit the vocabulary; a tokenizer will bring others.
    with errors_only():
        made = make_config(config)
    made.num_labels = num_labels
    with torch.device("meta"):
        try:
            model = _checked_head(auto_class(made, head).from_config(made), head)
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise ModelError(f"model.config for '{made.model_type}': {error}") from error
    (part or TrainedPart()).apply(model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def build_auto_model(
    config: Mapping[str, Any], head: Head, tokens: TokenInfo, label_names: tuple[str, ...]
) -> PreTrainedModel:
    """A model with fresh weights drawn from torch's current seed.

    Raises:
        ModelError: The architecture has no such head, or refuses the configuration.
    """
    made = make_config(config, tokens)
    _set_labels(made, label_names)
    made.use_cache = False
    try:
        model = auto_class(made, head).from_config(made, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"model_type '{made.model_type}' cannot be built for {head}: {error}") from error
    return _checked_head(model, head)


def load_model(
    source: str,
    head: Head,
    tokens: TokenInfo,
    label_names: tuple[str, ...],
    init: Init | None = None,
) -> PreTrainedModel:
    """Weights of a folder or hub id under the wanted head; a head it lacks is drawn from torch's seed.

    Raises:
        ModelError: Nothing can be loaded from there; it has no such head, or one with the same labels in
            another order.
    """
    remote = _remote(init) if init is not None else {}
    try:
        config = AutoConfig.from_pretrained(source, **remote)
        own = config.id2label or {}
        check_labels(source, [own[label_id] for label_id in sorted(own)], label_names)
        _set_labels(config, label_names)
        config.use_cache = False
        if config.pad_token_id is None:
            config.pad_token_id = tokens.pad_id
        model = auto_class(config, head).from_pretrained(source, config=config, dtype=torch.float32, **remote)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unreachable(source, error) from error
    return _checked_head(model, head)


def _set_labels(config: PretrainedConfig, label_names: tuple[str, ...]) -> None:
    """Give the configuration the job's labels: the head has their number, predictions have their names."""
    if label_names:
        config.num_labels = len(label_names)
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: index for index, name in enumerate(label_names)}


def _checked_head(model: PreTrainedModel, head: Head) -> PreTrainedModel:
    """Refuse a pretraining class without a next-sentence head (only BERT and few relatives have one)."""
    if head == "pretraining" and not hasattr(getattr(model, "cls", None), "seq_relationship"):
        raise ModelError(
            f"objective masked_lm with next_sentence needs a model with a next-sentence head,"
            f" but model_type '{model.config.model_type}' has none; use 'bert', or next_sentence: false"
        )
    return model


def check_fit(config: PretrainedConfig, tokens: TokenInfo, seq_len: int, where: str) -> None:
    """Refuse a model whose vocabulary or positions are too small for its rows.

    Raises:
        ModelError: Too few entries or positions.
    """
    text_config = config.get_text_config()
    entries = text_config.vocab_size
    if tokens.vocab_size > entries:
        raise ModelError(
            f"{where}: the tokenizer has {tokens.vocab_size} entries, the model's vocab_size is {entries}."
            f" Use the tokenizer the model was made with, or leave vocab_size out of model.config."
        )
    usable = usable_positions(config, tokens.pad_id)
    if usable is not None and seq_len > usable:
        positions = text_config.max_position_embeddings
        first = positions - usable
        rest = (
            f" (max_position_embeddings {positions}, which begin at {first} in '{text_config.model_type}')"
            if first
            else ""
        )
        raise ModelError(
            f"{where}: data.seq_len {seq_len} is longer than the model's {usable} positions{rest}."
            f" Use seq_len {usable} or less, or a model with more positions."
        )


def usable_positions(config: PretrainedConfig, pad_id: int) -> int | None:
    """Tokens that a row of the model can have; ``None`` where it has no table of positions."""
    text_config = config.get_text_config()
    positions: int | None = getattr(text_config, "max_position_embeddings", None)
    return None if positions is None else positions - first_position(text_config.to_dict(), pad_id)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the longest list of modules of one class, by number of parameters.

    Raises:
        ModelError: There is no such list.
    """
    candidates = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(Counter(type(child) for child in module)) == 1
    ]
    if not candidates:
        raise ModelError(f"{type(model).__name__} has no list of repeated blocks; fsdp2 and zero 3 need one")
    return max(
        candidates,
        key=lambda blocks: sum(p.numel() for block in blocks for p in block.parameters()),
    )


def save_weights(model: PreTrainedModel, weights: Mapping[str, Tensor], tokenizer: Any, folder: Path) -> None:
    """Write what ``from_pretrained`` loads: configuration, safetensors and tokenizer files.

    Args:
        model: Gives class and configuration; its own tensors are not read.
        weights: Every parameter by name; tied copies are restored when loading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffers = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in model.state_dict() and name not in weights
    }
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict={**weights, **buffers})
    model.config.use_cache = False
    positions = usable_positions(model.config, tokenizer.pad_token_id)
    if positions is not None:
        # So that truncation in plain transformers cuts where the model ends.
        tokenizer.model_max_length = positions
    tokenizer.save_pretrained(folder)
    # The safetensors library makes its files readable by their owner alone.
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)
