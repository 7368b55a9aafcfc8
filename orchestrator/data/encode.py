"""From texts to token ids as a layout of rows needs them, in batches that use all cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.contracts import RowLayout
from orchestrator.data.tokenizer import end_id, for_classification, token_info
from orchestrator.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """One document: its tokens as they go to the disk."""

    ids: Sequence[int]
    is_truncated: bool = False


class Encoder:
    """Encodes documents for one layout."""

    def __init__(self, layout: RowLayout, tokenizer: Any) -> None:
        """Check that layout and tokenizer fit.

        Args:
            layout: How documents become rows.
            tokenizer: A ``transformers`` tokenizer; a labelled layout adds the special tokens of
                ``for_classification``, so that the weights' own tokenizer gives the same rows.

        Raises:
            DataError: ``seq_len`` leaves no room for text, or a special token is missing.
        """
        tokenizer = for_classification(tokenizer) if layout.labelled else tokenizer
        self.layout = layout
        self.info = token_info(tokenizer)
        self.cls_id: int | None = tokenizer.cls_token_id
        self.sep_id: int | None = tokenizer.sep_token_id
        self._cls: Any = self.cls_id
        self._end: Any = self.sep_id if layout.framed else end_id(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self._num_added = self._backend.num_special_tokens_to_add(False) if layout.labelled else 0
        needed = self._smallest_row()
        if layout.seq_len < needed:
            raise DataError(
                f"data.seq_len {layout.seq_len} has no room for text in {layout.kind} rows, which"
                f" need at least {needed} tokens."
            )
        if (layout.framed or layout.kind == "pairs") and None in (self.cls_id, self.sep_id):
            raise DataError(
                f"the tokenizer has cls_token {tokenizer.cls_token!r} and sep_token"
                f" {tokenizer.sep_token!r}, and"
                " BERT-style rows need both. Use a BERT tokenizer, or train one with tokenizer.train."
            )
        if layout.labelled:
            self._backend.enable_truncation(layout.seq_len)

    def encode(self, texts: Sequence[str]) -> Iterator[Encoded | None]:
        """One result for each text, in order; ``None`` for a text without a token."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=self.layout.labelled)
        for encoding in encodings:
            ids = encoding.ids
            yield self._arrange(ids, encoding) if len(ids) > self._num_added else None

    def _arrange(self, ids: list[int], encoding: Any) -> Encoded:
        layout = self.layout
        if layout.kind == "pairs":
            return Encoded(ids)
        if layout.kind == "packed":
            return Encoded([*ids, self._end])
        if layout.labelled:
            return Encoded(ids, bool(encoding.overflowing))
        if layout.kind == "best_fit":
            return Encoded(self._frame_parts(ids) if layout.framed else [*ids, self._end])
        if layout.framed:
            room = layout.seq_len - 2
            return Encoded([self._cls, *ids[:room], self._end], len(ids) > room)
        # A document that is cut does not end here, so it gets no end token.
        return Encoded([*ids, self._end][: layout.seq_len], len(ids) >= layout.seq_len)

    def _frame_parts(self, ids: list[int]) -> list[int]:
        """Each part of a document that fits a row, framed; packing cuts exactly between the frames."""
        room = self.layout.seq_len - 2
        framed: list[int] = []
        for start in range(0, len(ids), room):
            framed += [self._cls, *ids[start : start + room], self._end]
        return framed

    def _smallest_row(self) -> int:
        """Tokens of a row that holds the least text."""
        if self.layout.kind == "pairs":
            return 5
        if self.layout.labelled:
            return int(self._num_added) + 1
        return 3 if self.layout.framed else 2
