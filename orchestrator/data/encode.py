"""From texts to token ids as a layout of rows needs them, in batches that use all cores.

Words are encoded by ``words.py``, conversations by ``conversations.py``.
"""

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
    second_begins: int = 0
    """Number of the first token of a pair's second text; 0: there is no second text."""
    targets: Sequence[int] | None = None
    """What is to be predicted of each token, where documents are no plain text; see ``prepared.py``."""


@dataclass(frozen=True)
class Unfit:
    """A document that nothing can be learned from."""

    problem: str
    is_fault: bool
    """Whether the document itself is wrong; else it is only too long to leave a target."""


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
        self._num_added = self._added(is_pair=False)
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

    def encode(self, documents: Sequence[Any]) -> Iterator[Encoded | Unfit | None]:
        """One result for each document, in order; ``None`` for one without a token.

        Args:
            documents: Texts; or pairs of texts, all of them, where the layout is labelled. A pair that is
                too long is cut token by token at the end of the longer text.

        Raises:
            DataError: ``seq_len`` leaves no room for pairs.
        """
        is_pair = len(documents) > 0 and not isinstance(documents[0], str)
        num_added = self._added(is_pair=is_pair)
        if is_pair and self.layout.seq_len < num_added + 2:
            raise DataError(
                f"data.seq_len {self.layout.seq_len} has no room for pairs of texts, which need at least"
                f" {num_added + 2} tokens."
            )
        encodings = self._backend.encode_batch_fast(documents, add_special_tokens=self.layout.labelled)
        for encoding in encodings:
            ids = encoding.ids
            if len(ids) <= num_added:
                yield None
            elif is_pair:
                second = encoding.type_ids.index(1) if 1 in encoding.type_ids else len(ids)
                yield Encoded(ids, bool(encoding.overflowing), second)
            else:
                yield self._arrange(ids, encoding)

    def _added(self, *, is_pair: bool) -> int:
        """Special tokens that frame a labelled text or pair of texts."""
        return int(self._backend.num_special_tokens_to_add(is_pair)) if self.layout.labelled else 0

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
