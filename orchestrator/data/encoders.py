"""The encoder that a layout of rows needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.contracts import RowLayout
from orchestrator.data.conversations import ConversationEncoder
from orchestrator.data.encode import Encoder
from orchestrator.data.labels import LabelIds
from orchestrator.data.words import WordEncoder


def encoder_for(layout: RowLayout, tokenizer: Any, label_names: Sequence[str]) -> Encoder:
    """The encoder of texts, of words with these tags, or of conversations.

    Raises:
        DataError: Layout and tokenizer do not fit.
    """
    if layout.document == "words":
        return WordEncoder(layout, tokenizer, LabelIds(tuple(label_names)))
    if layout.document == "conversation":
        return ConversationEncoder(layout, tokenizer)
    return Encoder(layout, tokenizer)
