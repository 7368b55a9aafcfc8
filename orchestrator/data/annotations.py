"""What a prepared folder says of its documents besides their tokens: labels, segments, targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.contracts import Row
from orchestrator.data.prepared import Meta, target_dtype


class Annotations:
    """Memory-mapped annotations of a folder; see ``prepared.py`` for the files."""

    def __init__(self, folder: Path, meta: Meta) -> None:
        """Map the files that the folder's layout has."""
        self._layout = layout = meta.layout
        has_labels = layout.labelled and layout.document == "text"
        self._labels = _map(folder / "labels.npy") if has_labels else None
        self._seconds = _map(folder / "seconds.npy") if (folder / "seconds.npy").exists() else None
        self._targets: np.ndarray | None = None
        dtype = target_dtype(layout.document, len(meta.label_names))
        if dtype is not None:
            self._targets = np.asarray(np.memmap(folder / "targets.bin", dtype=dtype, mode="r"))

    def row(self, number: int, input_ids: np.ndarray, begin: int) -> Row:
        """The row of a document alone, whose tokens begin at ``begin`` in the folder."""
        if self._targets is not None:
            targets = self._targets[begin : begin + len(input_ids)]
            if self._layout.document == "words":
                return Row(input_ids, token_labels=targets.astype(np.int64))
            return Row(input_ids, is_learned=targets == 1)
        segment_ids = None
        if self._seconds is not None:
            segment_ids = (np.arange(len(input_ids)) >= self._seconds[number]).astype(np.int64)
        return Row(input_ids, label=self._label(number), segment_ids=segment_ids)

    def is_learned(self, places: np.ndarray) -> np.ndarray | None:
        """Whether the tokens at these places are to be predicted; ``None``: the folder does not say."""
        return None if self._targets is None else self._targets[places] == 1

    def classes(self, numbers: np.ndarray) -> np.ndarray | None:
        """Class of each of these documents, int64; ``None``: they have none, or no single one."""
        if self._labels is None or self._layout.labels != "class":
            return None
        found: np.ndarray = self._labels[numbers]
        return found

    def _label(self, number: int) -> int | np.ndarray | None:
        if self._labels is None:
            return None
        if self._layout.labels == "class":
            return int(self._labels[number])
        values: np.ndarray = self._labels[number].astype(np.float32)
        return values


def _map(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
