"""Which rows of a dataset belong to which split, as a pure function of their text.

The first 8 bytes of the sha256 of a row's text choose its split, whatever the text is paired with: rows with
the same text always share a split, and stages that read the text alone hold out what stages that read pairs
do. Bytes 8 to 16 of the sha256 of all that is read of a row choose which rows ``max_rows`` keeps; stages that
read other columns may keep other rows, each in its split. Neither choice depends on the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from orchestrator.spec.datasets import DatasetSection

Split = Literal["train", "validation", "test"]


def splits_of(dataset: DatasetSection) -> list[Split]:
    """The splits that a dataset has by its fractions."""
    fractions: dict[Split, float] = {"validation": dataset.validation_fraction, "test": dataset.test_fraction}
    trained: list[Split] = ["train"] if sum(fractions.values()) < 1.0 else []
    return [*trained, *(split for split, fraction in fractions.items() if fraction > 0.0)]


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """The first 16 bytes of each text's sha256 over UTF-8, uint64 of shape ``(rows, 2)``."""
    digests = b"".join(hashlib.sha256(text.encode("utf-8")).digest()[:16] for text in texts)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def hash_rows(texts: Sequence[str], identities: Sequence[str]) -> np.ndarray:
    """What the split of each row and its difference from others depend on, uint64 of shape ``(rows, 2)``.

    Args:
        texts: What the first column is made from: a row's split.
        identities: What the second is made from: the whole row.
    """
    hashes = hash_texts(identities)
    # Of rows that are a text and nothing else both are the same, and one sha256 is enough.
    if texts != identities:
        hashes[:, 0] = hash_texts(texts)[:, 0]
    return hashes


def needs_hashes(dataset: DatasetSection) -> bool:
    """Whether ``unique_rows`` or ``select_rows`` looks at the texts at all."""
    held_out = dataset.validation_fraction + dataset.test_fraction
    return dataset.deduplicate or dataset.max_rows is not None or held_out > 0.0


def unique_rows(hashes: np.ndarray) -> np.ndarray:
    """The first of rows that are the same in all that is read of them, int64 and rising.

    Args:
        hashes: As ``hash_rows`` or ``hash_texts`` returns them. Rows with one text and other pairs differ in
            the second column.
    """
    return np.sort(np.unique(hashes, axis=0, return_index=True)[1]).astype(np.int64)


def select_rows(hashes: np.ndarray, dataset: DatasetSection, split: Split) -> np.ndarray:
    """Rows of ``split`` in ascending order, int64.

    ``max_rows`` is applied first, then the split: the test rows are the lowest ``test_fraction`` of
    hashes, the validation rows those that follow.

    Args:
        hashes: As ``hash_rows`` returns them, one line for each row.
        dataset: Its fractions and ``max_rows`` are used.
        split: Which rows.
    """
    rows: np.ndarray = np.arange(len(hashes), dtype=np.int64)
    if dataset.max_rows is not None and len(rows) > dataset.max_rows:
        lowest = np.argsort(hashes[rows, 1], kind="stable")[: dataset.max_rows]
        rows = rows[np.sort(lowest)]
    first = hashes[rows, 0]
    in_test = _is_below(first, dataset.test_fraction)
    in_validation = ~in_test & _is_below(first, dataset.test_fraction + dataset.validation_fraction)
    chosen = {"test": in_test, "validation": in_validation, "train": ~in_test & ~in_validation}
    selected: np.ndarray = rows[chosen[split]]
    return selected


def choose_rows(hashes: np.ndarray, num_rows: int, dataset: DatasetSection, split: Split) -> np.ndarray:
    """Rows of ``split`` among ``num_rows``, ascending, int64; ``hashes`` are theirs where they are needed."""
    if needs_hashes(dataset):
        return select_rows(hashes, dataset, split)
    return np.arange(num_rows if split == "train" else 0)


def _is_below(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which hashes lie among the lowest ``fraction`` of all there could be."""
    if fraction >= 1.0:
        return np.ones(len(hashes), dtype=bool)
    found: np.ndarray = hashes < np.uint64(fraction * 2.0**64)
    return found
