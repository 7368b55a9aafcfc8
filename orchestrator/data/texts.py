"""Chosen rows of a source as they are trained on: their columns renamed, personal data scrubbed.

Everything that reads texts - hashes, n-grams, tokenizers - reads them here, so all see the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.data.columns import read_batches, select_columns
from orchestrator.data.fields import Batch, field_texts, texts_of
from orchestrator.data.readers import quiet
from orchestrator.data.scrub import Scrubbed
from orchestrator.data.sources import Source


@dataclass(frozen=True)
class TextPart:
    """Some rows of a source that one task reads."""

    source: Source
    numbers: np.ndarray
    """int64: their numbers in the source, rising."""

    def open(self) -> Any:
        """A map-style ``datasets.Dataset`` with the fields of a row as columns (``fields.py``)."""
        return open_rows(self.source, self.numbers)

    def unscrubbed(self) -> TextPart:
        """The same rows as the source has them."""
        section = self.source.dataset.model_copy(update={"scrub": ()})
        return TextPart(self.source.with_section(section), self.numbers)

    def texts(self) -> Iterator[str]:
        """All text of each row, in order: of conversations what is said, of words what they are joined to."""
        for batch in self.batches():
            yield from texts_of(batch)

    def passages(self) -> Iterator[str]:
        """The same, and after each row that has several fields or messages every one of them by itself."""
        for batch in self.batches():
            for text, fields in zip(texts_of(batch), field_texts(batch), strict=True):
                yield text
                yield from fields if len(fields) > 1 else ()

    def batches(self) -> Iterator[Batch]:
        """The rows without their labels."""
        with quiet():
            rows = open_rows(self.source, self.numbers)
            yield from read_batches(rows, [field for field in rows.column_names if field != "label"])


def open_rows(source: Source, numbers: np.ndarray) -> Any:
    """A map-style ``datasets.Dataset`` with the fields of a row as columns (``fields.py``).

    Args:
        source: Where they are.
        numbers: int64 numbers of sound rows.
    """
    dataset = source.dataset
    with quiet():
        rows = select_columns(source.name, dataset, source.open()).select(numbers)
        if not dataset.scrub:
            return rows
        return rows.with_transform(Scrubbed(dataset.scrub, dataset.phone_regions))


def cut_rows(source: Source, numbers: np.ndarray, part_rows: int) -> list[TextPart]:
    """Rows of a source in parts of ``part_rows``; the last may have fewer."""
    starts = range(0, len(numbers), part_rows)
    return [TextPart(source, numbers[start : start + part_rows]) for start in starts]
