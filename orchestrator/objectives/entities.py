"""Entities in a sequence of BIO tags, counted so that the counts add up over batches and workers.

The rules are those of the CoNLL-2000 evaluation script, which the seqeval library follows, too: an
entity begins at a B tag, at an I tag after another kind, and at an I tag after O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

BIO = re.compile(r"(?P<place>[BI])-(?P<kind>.+)", re.DOTALL)


class EntityCounter:
    """Compares entities of two sequences of tags."""

    def __init__(self, is_begin: np.ndarray, kinds: np.ndarray) -> None:
        """By tag: whether it is a B tag, and the number of its kind; -1 outside of entities."""
        self._is_begin = is_begin
        self._kinds = kinds

    @classmethod
    def of_tags(cls, names: Sequence[str]) -> EntityCounter | None:
        """A counter for tags ``O``, ``B-...`` and ``I-...``; ``None`` where a tag is none of these."""
        found = [BIO.fullmatch(name) for name in names]
        if not any(found) or any(
            match is None and name != "O" for match, name in zip(found, names, strict=True)
        ):
            return None
        numbers = {kind: number for number, kind in enumerate(sorted({m["kind"] for m in found if m}))}
        return cls(
            np.array([match is not None and match["place"] == "B" for match in found]),
            np.array([numbers[match["kind"]] if match else -1 for match in found]),
        )

    def count(self, wanted: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Entities in both, in ``wanted`` and in ``predicted``; same words and kind; float64 ``(3,)``.

        Args:
            wanted: Tags of words, int64.
            predicted: Tags of the same words.
        """
        first, second = self.spans(wanted), self.spans(predicted)
        return np.array([len(first & second), len(first), len(second)], dtype=np.float64)

    def spans(self, tags: np.ndarray) -> set[tuple[int, int, int]]:
        """First word, word after the last, and kind of each entity."""
        # A head may have more outputs than there are names: these are outside of entities.
        is_named = tags < len(self._kinds)
        kinds = np.where(is_named, self._kinds[np.where(is_named, tags, 0)], -1)
        is_begin = is_named & self._is_begin[np.where(is_named, tags, 0)]
        changes = np.diff(kinds, prepend=-1) != 0
        starts = np.flatnonzero((kinds >= 0) & (is_begin | changes))
        stops = np.flatnonzero(np.append((kinds < 0) | is_begin | changes, True))
        ends = stops[np.searchsorted(stops, starts, side="right")]
        return set(zip(starts.tolist(), ends.tolist(), kinds[starts].tolist(), strict=True))
