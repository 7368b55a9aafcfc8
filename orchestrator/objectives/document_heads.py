"""A classification head on packed rows: the model's body sees rows, its head sees documents.

Heads pool in many ways - the first token, the last that is not padding, a mean - and all of them expect
one document in each row. So the model is called with one document in each row, as without packing, and
its body, which does nearly all of the work, is given packed rows instead:

1. the call enters with documents ``(N, L)``;
2. a hook before the body puts rows ``(B, S)`` in their place, told apart as ``documents.py`` says;
3. a hook after the body takes each document's hidden states out of the rows again, ``(N, L, H)``;
4. the head pools and classifies documents, and knows nothing of rows.

Legend of shapes: B rows, S tokens of the longest row, D documents of the row that has most, L tokens of
the longest document, N = B * D, H hidden size, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.contracts import Batch, Row
from orchestrator.errors import ModelError
from orchestrator.objectives.documents import attends_causally, model_inputs


def document_places(rows: Sequence[Row]) -> Tensor:
    """Where in its row each token of each document stands, int64 ``(B, D, L)``; -1 after a document's end.

    A row with fewer documents than another repeats its first one, so that no head meets an empty document.
    """
    bounds = []
    for row in rows:
        assert row.document_ids is not None
        begins = np.flatnonzero(np.diff(row.document_ids, prepend=-1))
        bounds.append((begins, np.diff(begins, append=len(row.document_ids))))
    num_documents = max(len(begins) for begins, _ in bounds)
    longest = max(lengths.max() for _, lengths in bounds)
    places = np.full((len(rows), num_documents, longest), -1, dtype=np.int64)
    offsets = np.arange(longest)
    for places_DL, (begins, lengths) in zip(places, bounds, strict=True):
        number = np.arange(num_documents)
        number[len(begins) :] = 0
        inside = offsets < lengths[number, None]
        places_DL[inside] = (begins[number, None] + offsets)[inside]
    return torch.from_numpy(places)


def document_logits(model: nn.Module, batch: Batch, pad_id: int) -> Tensor:
    """Logits of every document, float32 ``(B, D, C)``; those that are repeated are the first one's.

    Args:
        model: A Hugging Face model for sequence classification, or what a strategy made of it.
        batch: ``input_ids``, the fields of ``document_fields``, and ``places`` from ``document_places``.

    Raises:
        ModelError: The model's body is not called as those of Hugging Face are.
    """
    places = batch["places"]
    num_rows, num_documents, _ = places.shape
    length = batch["input_ids"].shape[1]
    row_starts = torch.arange(num_rows, device=places.device) * length
    index_NL = (places.clamp(min=0) + row_starts.view(-1, 1, 1)).flatten(0, 1)
    mask_NL = (places >= 0).flatten(0, 1)

    def apart(values: Tensor) -> Tensor:
        return values.reshape(num_rows * length, *values.shape[2:])[index_NL]

    ids_NL = apart(batch["input_ids"]).masked_fill(~mask_NL, pad_id)
    in_rows = model_inputs(model, batch, is_causal=attends_causally(model))
    with _body_on_rows(_body(model), in_rows, apart):
        logits: Tensor = model(input_ids=ids_NL, attention_mask=mask_NL.long()).logits
    return logits.float().view(num_rows, num_documents, -1)


def _body(model: nn.Module) -> nn.Module:
    """The model without its head, found through the wrappers of strategies."""
    wrapped: Any = next(module for module in model.modules() if hasattr(module, "base_model_prefix"))
    body: nn.Module = wrapped.base_model
    return body


@contextmanager
def _body_on_rows(
    body: nn.Module, in_rows: dict[str, Any], apart: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let ``body`` see rows instead of the documents it is called with, and give documents back."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > 1:
            raise ModelError(
                f"{type(module).__name__} is called with {len(args)} arguments that have no name, expected"
                " input_ids alone; packed rows cannot be put in their place. Set data.packing to none"
            )
        return (), {**kwargs, "attention_mask": None, **in_rows}

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = apart(output.last_hidden_state)
        if getattr(output, "pooler_output", None) is not None:
            output.pooler_output = module.pooler(output.last_hidden_state)  # type: ignore[operator]
        return output

    handles = [
        body.register_forward_pre_hook(enter, with_kwargs=True),
        body.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
