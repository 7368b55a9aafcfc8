"""Rows of one prepared folder by number, read from memory-mapped files.

Needs numpy and this package alone, so workers can be lean. A row is a pure function of (seed,
source, epoch, row number); no reader has a state.

Legend of shapes: B rows that are asked for, S ``seq_len``, R full rows of a packed folder, C tokens
of the stream in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.contracts import Row
from orchestrator.data.annotations import Annotations
from orchestrator.data.order import mix, order_key
from orchestrator.data.pieces import BestFitRows, cut_pieces
from orchestrator.data.prepared import Meta


class RowReader:
    """Rows of one prepared folder, by number."""

    def __init__(self, folder: Path, meta: Meta, *, seed: int, source_name: str, document_mask: bool) -> None:
        """Map the folder's files; use ``open``."""
        self.folder = folder
        self.meta = meta
        self.num_rows = meta.num_rows
        self.seed = seed
        self.source_name = source_name
        self._document_mask = document_mask
        dtype = np.dtype(meta.token_dtype).newbyteorder("<")
        self._tokens = np.asarray(np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"))
        self._documents = self._map("documents.npy")
        layout = meta.layout
        self._cls_id: Any = meta.cls_id
        self._sep_id: Any = meta.sep_id
        self._annotations = Annotations(folder, meta)
        if layout.kind == "packed":
            self._body = layout.seq_len - (2 if layout.framed else 0)
            self._num_full = meta.num_tokens // self._body
            self._grid_RC = self._tokens[: self._num_full * self._body].reshape(-1, self._body)
        if layout.kind == "best_fit":
            self._best_fit = BestFitRows(folder)
        if layout.kind == "pairs":
            self._segments = self._map("segments.npy")
            self._pairs = self._map("pairs.npy")

    @classmethod
    def open(cls, folder: Path, *, seed: int, source_name: str, document_mask: bool = False) -> RowReader:
        """Open a folder that ``prepare_rows`` wrote.

        Args:
            folder: The prepared folder; the sizes of its files are checked, its digests are not.
            seed: The job's seed.
            source_name: The dataset's name in the job file; two names are two orders.
            document_mask: Whether packed rows say where their documents are; the folder is the same.

        Raises:
            DataError: The folder is missing, incomplete or damaged.
        """
        meta = Meta.open(folder)
        return cls(folder, meta, seed=seed, source_name=source_name, document_mask=document_mask)

    def read(self, rows: np.ndarray, epoch: int) -> list[Row]:
        """Rows by number.

        Args:
            rows: int64 ``(B,)``, each in ``[0, num_rows)``.
            epoch: Pass over the source; decides the second segments of pairs and nothing else.

        Raises:
            IndexError: A row number outside the folder.
        """
        self._check(rows)
        if self.meta.layout.kind == "pairs":
            return self._read_pairs(rows, epoch)
        if self.meta.layout.kind == "documents":
            return [self._read_document(int(row)) for row in rows]
        if not len(rows):
            return []
        if self.meta.layout.kind == "best_fit":
            return self._read_best_fit(rows)
        return self._read_packed(rows)

    def read_tokens(self, rows: np.ndarray) -> np.ndarray:
        """Packed rows as one int64 array ``(B, S)``.

        Only the last row of a folder can be short; it is filled up with the padding token, and
        ``row_lengths`` tells where it ends.

        Raises:
            IndexError: A row number outside the folder.
        """
        assert self.meta.layout.kind == "packed"
        if self._check(rows) < self._num_full:
            return self._gather(rows)
        tokens_BS = np.empty((len(rows), self.meta.layout.seq_len), dtype=np.int64)
        is_short = rows >= self._num_full
        tokens_BS[~is_short] = self._gather(rows[~is_short])
        tokens_BS[is_short] = self._last_row()
        return tokens_BS

    def read_equal(self, rows: np.ndarray) -> np.ndarray | None:
        """Rows that are nothing but ``seq_len`` tokens each, int64 ``(B, S)``; ``None``: some are not.

        Args:
            rows: int64 ``(B,)``, each in ``[0, num_rows)``.
        """
        is_plain = self.meta.layout.kind == "packed" and not self._document_mask
        if not is_plain or not len(rows) or rows.max() >= self._num_full:
            return None
        return self._gather(rows)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        """Full packed rows, int64 ``(B, S)``."""
        tokens_BS = np.empty((len(rows), self.meta.layout.seq_len), dtype=np.int64)
        if self.meta.layout.framed:
            tokens_BS[:, 0] = self._cls_id
            tokens_BS[:, -1] = self._sep_id
            tokens_BS[:, 1:-1] = self._grid_RC[rows]
        else:
            tokens_BS[:] = self._grid_RC[rows]
        return tokens_BS

    def row_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each packed row, int64 ``(B,)``; the rest of the row is padding."""
        assert self.meta.layout.kind == "packed"
        missing = self.num_rows * self._body - self.meta.num_tokens
        return self.meta.layout.seq_len - np.where(rows == self.num_rows - 1, missing, 0)

    def _last_row(self) -> np.ndarray:
        """The short last row, padded; int64 ``(S,)``."""
        meta = self.meta
        rest = self._tokens[self._num_full * self._body :]
        row = np.full(meta.layout.seq_len, meta.pad_id, dtype=np.int64)
        start = int(meta.layout.framed)
        row[start : start + len(rest)] = rest
        if meta.layout.framed:
            row[0] = self._cls_id
            row[len(rest) + 1] = self._sep_id
        return row

    def _read_packed(self, rows: np.ndarray) -> list[Row]:
        read = zip(self.read_tokens(rows), self.row_lengths(rows), strict=True)
        tokens = [ids[:length] for ids, length in read]
        if not self._document_mask:
            return [Row(ids) for ids in tokens]
        starts = rows * self._body
        pieces = cut_pieces(self._documents, starts, np.minimum(starts + self._body, self.meta.num_tokens))
        documents = pieces.document_ids()
        if self.meta.layout.framed:
            # The frame of a row belongs to the documents that it touches.
            documents = [np.pad(in_row, 1, mode="edge") for in_row in documents]
        return [Row(ids, document_ids=in_row) for ids, in_row in zip(tokens, documents, strict=True)]

    def _read_best_fit(self, rows: np.ndarray) -> list[Row]:
        pieces = self._best_fit.locate(rows)
        tokens = pieces.split(self._tokens[pieces.places()].astype(np.int64))
        if not self._document_mask:
            return [Row(ids) for ids in tokens]
        numbers = np.searchsorted(self._documents, pieces.starts, side="right") - 1
        labels = self._annotations.classes(numbers)
        is_learned = self._annotations.is_learned(pieces.places())
        none: Sequence[None] = [None] * len(rows)
        return [
            Row(ids, document_ids=in_row, labels=of_row, is_learned=learned)
            for ids, in_row, of_row, learned in zip(
                tokens,
                pieces.document_ids(),
                none if labels is None else np.split(labels, np.cumsum(pieces.counts)[:-1]),
                none if is_learned is None else pieces.split(is_learned),
                strict=True,
            )
        ]

    def _read_document(self, row: int) -> Row:
        begin, end = int(self._documents[row]), int(self._documents[row + 1])
        return self._annotations.row(row, self._tokens[begin:end].astype(np.int64), begin)

    def _read_pairs(self, rows: np.ndarray, epoch: int) -> list[Row]:
        """``[CLS] A [SEP] B [SEP]``; B is A's successor or, half of the time, from elsewhere."""
        key = np.uint64(order_key(self.seed, f"{self.source_name}/pairs", epoch))
        first_draw = mix(mix(rows.astype(np.uint64)) ^ key)
        is_next = (first_draw >> np.uint64(63)).astype(bool)
        second_draw = mix(first_draw ^ key)
        return [
            self._pair(int(self._pairs[row]), successor, int(draw))
            for row, successor, draw in zip(rows, is_next.tolist(), second_draw, strict=True)
        ]

    def _pair(self, first: int, is_next: bool, draw: int) -> Row:
        second = first + 1 if is_next else self._segment_elsewhere(first, draw)
        cls, sep = [self._cls_id], [self._sep_id]
        segment_a, segment_b = self._segment(first), self._segment(second)
        input_ids = np.concatenate([cls, segment_a, sep, segment_b, sep]).astype(np.int64)
        segment_ids = np.zeros(len(input_ids), dtype=np.int64)
        segment_ids[len(segment_a) + 2 :] = 1
        return Row(input_ids, segment_ids=segment_ids, is_next=is_next)

    def _segment_elsewhere(self, segment: int, draw: int) -> int:
        """A segment of any document but the one that ``segment`` belongs to, chosen by ``draw``."""
        start = self._segments[segment]
        document = int(np.searchsorted(self._documents, start, side="right")) - 1
        bounds = self._documents[document : document + 2]
        own_first, own_end = (int(number) for number in np.searchsorted(self._segments, bounds))
        num_own = own_end - own_first
        chosen = draw % (len(self._segments) - 1 - num_own)
        return chosen if chosen < own_first else chosen + num_own

    def _segment(self, number: int) -> np.ndarray:
        return self._tokens[self._segments[number] : self._segments[number + 1]]

    def _map(self, file: str) -> np.ndarray:
        return np.asarray(np.load(self.folder / file, mmap_mode="r", allow_pickle=False))

    def _check(self, rows: np.ndarray) -> int:
        """The highest of ``rows``, all of them being in the folder; -1 when there are none."""
        lowest, highest = (int(rows.min()), int(rows.max())) if len(rows) else (0, -1)
        if lowest < 0 or highest >= self.num_rows:
            raise IndexError(
                f"{self.folder}: rows {lowest} to {highest} are asked for, expected 0 to {self.num_rows - 1}"
            )
        return highest
