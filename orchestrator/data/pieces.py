"""Which pieces of documents the rows of a prepared folder hold, as memory-mapped arrays tell.

Legend of shapes: B rows that are asked for, P pieces in all of them, T tokens in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.data.packing import join_ranges


@dataclass(frozen=True)
class Pieces:
    """The pieces of some rows, row after row."""

    counts: np.ndarray
    """int64 ``(B,)``: pieces of each row, one at least."""
    starts: np.ndarray
    """int64 ``(P,)``: where each begins among the tokens of the folder."""
    ends: np.ndarray
    """int64 ``(P,)``."""

    def places(self) -> np.ndarray:
        """Where the rows' tokens lie in the folder, int64 ``(T,)``; good for any array beside the tokens."""
        return join_ranges(self.starts, self.ends - self.starts)

    def row_ends(self) -> np.ndarray:
        """Where each row ends among the tokens of all of them, int64 ``(B,)``."""
        ends: np.ndarray = np.cumsum(self.ends - self.starts)[np.cumsum(self.counts) - 1]
        return ends

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """``values`` of all tokens, ``(T,)``, by row."""
        return np.split(values, self.row_ends()[:-1])

    def document_ids(self) -> list[np.ndarray]:
        """For each row, which of its documents each token belongs to: int64, from 0."""
        numbers = join_ranges(np.zeros_like(self.counts), self.counts)
        return self.split(np.repeat(numbers, self.ends - self.starts))


class BestFitRows:
    """Rows as ``plan_best_fit`` made them."""

    def __init__(self, folder: Path) -> None:
        """Map the plan of a prepared folder."""
        self._rows = np.asarray(np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False))
        self._pieces = np.asarray(np.load(folder / "pieces.npy", mmap_mode="r", allow_pickle=False))

    def locate(self, rows: np.ndarray) -> Pieces:
        """The pieces of rows by number, int64 ``(B,)``."""
        first, counts = self._rows[:, rows].astype(np.int64)
        starts, ends = self._pieces[:, join_ranges(first, counts)].astype(np.int64)
        return Pieces(counts, starts, ends)


def cut_pieces(documents: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Pieces:
    """The pieces between two places of the stream of all documents, for rows that are cut from it.

    Args:
        documents: int64 offsets of the documents, one more than there are documents.
        starts: int64 ``(B,)``: where each row begins.
        ends: int64 ``(B,)``: where it ends; above its start.
    """
    first = np.searchsorted(documents, starts, side="right") - 1
    counts = np.searchsorted(documents, ends, side="left") - first
    numbers = join_ranges(first, counts)
    return Pieces(
        counts,
        np.maximum(documents[numbers], np.repeat(starts, counts)),
        np.minimum(documents[numbers + 1], np.repeat(ends, counts)),
    )
