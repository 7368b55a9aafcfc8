"""Attention that stays inside a document: what a batch of packed rows carries, and how a model is told.

Rows with ``document_ids`` become a batch with ``document_ids`` and ``position_ids``, which begin anew in
every document and in the padding. How a model takes them depends on its attention implementation:

====================  ================================================================================
causal, sdpa, eager,  positions that begin anew, from which transformers makes the mask itself
or flex_attention
bidirectional, sdpa   a boolean mask ``(B, 1, S, S)``
bidirectional, eager  the same mask as numbers that are added to the scores
bidirectional, flex   the same mask as a block mask
flash_attention_...   all rows as one long row, whose positions tell flash attention its sequences
====================  ================================================================================

Whether a model heeds what it is told is not taken on trust: ``train/confinement.py`` tries it out.

Legend of shapes: B rows, S tokens of the longest row.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from orchestrator.contracts import Batch, Row
from orchestrator.errors import ModelError
from orchestrator.objectives.language import pad_rows

# Padding is a document of its own, so that no token is left with nothing to attend to.
PADDING_DOCUMENT = -1


def document_fields(rows: Sequence[Row]) -> Batch:
    """``document_ids`` and ``position_ids``, int64 ``(B, S)``; empty for rows without documents."""
    documents = [row.document_ids for row in rows if row.document_ids is not None]
    if not documents:
        return {}
    document_ids = pad_rows(documents, PADDING_DOCUMENT)
    begins = np.diff(document_ids.numpy(), axis=1, prepend=document_ids[:, :1].numpy() - 1) != 0
    places = np.broadcast_to(np.arange(begins.shape[1]), begins.shape)
    position_ids = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return {"document_ids": document_ids, "position_ids": torch.from_numpy(position_ids)}


def model_inputs(model: nn.Module, batch: Batch, *, is_causal: bool) -> dict[str, Any]:
    """What ``model`` is called with for rows that carry documents.

    Args:
        model: A Hugging Face model, or what a strategy made of it.
        batch: ``input_ids`` and the fields of ``document_fields``, all ``(B, S)``.
        is_causal: Whether the model's attention is causal.

    Returns:
        Arguments for rows of the same shape, or ``(1, B * S)`` with flash attention.

    Raises:
        ModelError: The attention implementation is none that can be confined.
    """
    traits = _traits(model)
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"] + traits.first_position}
    if traits.attention.startswith("flash_attention"):
        return {name: value.reshape(1, -1) for name, value in inputs.items()}
    if traits.attention not in ("sdpa", "eager", "flex_attention"):
        raise ModelError(
            f"model.config.attn_implementation '{traits.attention}' cannot keep attention inside a document:"
            " expected sdpa, eager, flex_attention or flash_attention_2. Use one of them, or set"
            " data.document_mask to false"
        )
    if is_causal:
        return inputs
    dtype = next(model.parameters()).dtype
    mask = _bidirectional_mask(batch["document_ids"], traits.attention, dtype)
    if traits.window is not None:
        near = _bidirectional_mask(batch["document_ids"], traits.attention, dtype, window=traits.window)
        return {**inputs, "attention_mask": {"full_attention": mask, "sliding_attention": near}}
    return {**inputs, "attention_mask": mask}


def attends_causally(model: nn.Module) -> bool:
    """Whether the attention of ``model`` is causal, as its own modules say."""
    return _traits(model).is_causal


def _bidirectional_mask(
    documents: Tensor, attention: str, dtype: torch.dtype, *, window: int | None = None
) -> Any:
    """Who may see whom, as the implementation wants it.

    Args:
        documents: ``(B, S)``.
        window: Tokens to either side that are seen at most.
    """

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = documents[row, query] == documents[row, key]
        return same if window is None else same & ((query - key).abs() <= window)

    num_rows, length = documents.shape
    device = documents.device
    if attention == "flex_attention":
        return create_block_mask(sees, num_rows, None, length, length, device=device)
    rows, places = torch.arange(num_rows, device=device), torch.arange(length, device=device)
    row, query, key = rows.view(-1, 1, 1, 1), places.view(-1, 1), places.view(1, -1)
    mask = sees(row, row, query, key)
    if attention == "sdpa":
        return mask
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, lowest)


@dataclass(frozen=True)
class _Traits:
    """What of a model decides how it takes documents."""

    attention: str
    is_causal: bool
    first_position: int
    """Number of a document's first position: RoBERTa and its kin leave room for the padding's."""
    window: int | None
    """Tokens to either side that some of the layers see, where others see all."""


_known_traits: weakref.WeakKeyDictionary[nn.Module, _Traits] = weakref.WeakKeyDictionary()


def _traits(model: nn.Module) -> _Traits:
    """The traits of a model, looked up once: searching its modules takes longer than a small step."""
    if model not in _known_traits:
        _known_traits[model] = _find_traits(model)
    return _known_traits[model]


def config_of(model: nn.Module) -> Any:
    """The Hugging Face configuration of a model, or of what a strategy has wrapped; ``None`` without one."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((config for config in configs if hasattr(config, "_attn_implementation")), None)


def _find_traits(model: nn.Module) -> _Traits:
    config = config_of(model)
    padding = [
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    is_mixed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return _Traits(
        attention=str(getattr(config, "_attn_implementation", None)),
        is_causal=any(getattr(module, "is_causal", False) for module in model.modules()),
        first_position=padding[0] + 1 if padding else 0,
        window=config.sliding_window if config is not None and is_mixed else None,
    )
