"""Tokenise a split once into a folder that workers memory-map.

The folder's name is a digest of everything its content depends on: the source's bytes and keys, the
split, the tokenizer's files, the layout of rows, and the version of this code. Its format is
``prepared.py``.

1. read the rows and turn labels into ids
2. encode batch by batch; tokens go straight to the disk
3. for pairs, cut documents into segments; for best-fit packing, plan the rows
4. write meta.json and commit the folder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.cache import damage, make_folder
from orchestrator.data.encode import Encoder
from orchestrator.data.files import digest_values
from orchestrator.data.labels import label_ids
from orchestrator.data.packing import plan_best_fit
from orchestrator.data.prepared import FORMAT_VERSION, Meta
from orchestrator.data.selection import Split
from orchestrator.data.sources import distinct_labels, load_rows, source_digest
from orchestrator.data.tokenizer import load_tokenizer, tokenizer_digest
from orchestrator.errors import DataError
from orchestrator.spec.datasets import Dataset

# 1000 documents: enough for both ends of a batch to keep all cores busy, a few MB of text.
BATCH_ROWS = 1000

Progress = Callable[[int, int], None]


def prepare_rows(
    name: str,
    dataset: Dataset,
    split: Split,
    layout: RowLayout,
    tokenizer_dir: Path,
    cache_dir: Path,
    *,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Folder with the rows of one split of dataset ``name``; made once, by one process.

    An existing folder is verified byte by byte before it is used, which costs less than the digest
    of its source does; a damaged one is named in a warning and made again.

    Args:
        name: The dataset's name in the job file, for messages.
        dataset: Its section.
        split: Which of its rows.
        layout: How documents become rows.
        tokenizer_dir: Folder of the tokenizer.
        cache_dir: Folder for prepared data.
        label_names: Label names in the order of their ids; absent: the section's, the source's own,
            or the sorted values found in all splits.
        num_labels: Size of the classifier, to check labels against.
        on_progress: Called with the documents done and their total.

    Raises:
        DataError: The source, a label or the tokenizer is unfit for these rows.
    """
    dataset = _needed_columns(name, dataset, layout)
    key = {
        "format_version": FORMAT_VERSION,
        "source": source_digest(name, dataset, cache_dir),
        "split": split,
        "tokenizer": tokenizer_digest(tokenizer_dir),
        "layout": asdict(layout),
        "label_names": None if label_names is None else list(label_names),
        "num_labels": num_labels,
    }

    def build(folder: Path) -> None:
        rows = load_rows(name, dataset, split, cache_dir)
        ids, names = None, tuple[str, ...]()
        if layout.labelled:
            known = label_names or _label_names(name, dataset, rows, cache_dir)
            where = f"datasets.{name}: column '{dataset.label_column}', split '{split}'"
            ids, names = label_ids(where, rows["label"][:], known, num_labels)
        encoder = Encoder(layout, load_tokenizer(tokenizer_dir))
        _write(name, folder, rows, encoder, ids, names, on_progress or _no_progress)

    return make_folder(cache_dir.absolute() / "rows" / digest_values(key), build)


def _needed_columns(name: str, dataset: Dataset, layout: RowLayout) -> Dataset:
    """The section without its labels, where rows carry none."""
    if layout.labelled and dataset.label_column is None:
        raise DataError(
            f"datasets.{name}: label_column is not set, and a classifier needs labels. Set it to"
            " the column that holds them."
        )
    if layout.labelled:
        return dataset
    # Labels that nobody reads must not be able to spoil a run, nor to divide the cache.
    return dataset.model_copy(update={"label_column": None, "label_names": None})


def verify(folder: Path) -> str | None:
    """What is wrong with a prepared folder, every byte read; ``None`` when all digests hold."""
    return damage(folder)


def _no_progress(done: int, total: int) -> None:
    """Nobody is watching."""


def _label_names(name: str, dataset: Dataset, rows: Any, cache_dir: Path) -> Sequence[str] | None:
    """The section's names, the source's own or its strings; ``None`` for plain numbers."""
    own: Sequence[str] | None = getattr(rows.features["label"], "names", None)
    if dataset.label_names is not None or own is not None:
        return dataset.label_names or own
    if isinstance(rows[0]["label"], str):
        return distinct_labels(name, dataset, cache_dir)
    return None


@dataclass
class _Tokens:
    """tokens.bin while it is written."""

    stream: BinaryIO
    dtype: np.dtype[Any]
    lengths: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """Row of each document that has a token."""
    num_truncated: int = 0

    def add(self, row: int, ids: Sequence[int]) -> None:
        """Append one document."""
        self.stream.write(np.array(ids, dtype=self.dtype).tobytes())
        self.lengths.append(len(ids))
        self.kept.append(row)


def _write(
    name: str,
    folder: Path,
    rows: Any,
    encoder: Encoder,
    labels: np.ndarray | None,
    label_names: tuple[str, ...],
    on_progress: Progress,
) -> None:
    """Encode all rows and write the files of the format."""
    info = encoder.info
    dtype = np.dtype("<u2" if info.vocab_size < 2**16 else "<u4")
    with (folder / "tokens.bin").open("wb") as stream:
        tokens = _Tokens(stream, dtype)
        _encode_rows(rows, encoder, tokens, on_progress)
    if not tokens.lengths:
        raise DataError(
            f"datasets.{name}: none of {len(rows)} rows holds a token, expected text. Check text_column."
        )
    documents = np.concatenate([[0], np.cumsum(tokens.lengths, dtype=np.int64)])
    np.save(folder / "documents.npy", documents)
    num_rows, num_split = _lay_out(name, folder, encoder.layout, documents)
    if labels is not None:
        np.save(folder / "labels.npy", labels[tokens.kept])
    Meta(
        format_version=FORMAT_VERSION,
        layout=encoder.layout,
        num_rows=num_rows,
        num_tokens=int(documents[-1]),
        num_documents=len(tokens.lengths),
        num_empty=len(rows) - len(tokens.lengths),
        num_truncated=tokens.num_truncated,
        num_split=num_split,
        packing_efficiency=_efficiency(encoder.layout, num_rows, int(documents[-1])),
        token_dtype=dtype.name,
        vocab_size=info.vocab_size,
        pad_id=info.pad_id,
        cls_id=encoder.cls_id,
        sep_id=encoder.sep_id,
        label_names=label_names,
    ).save(folder)


def _encode_rows(rows: Any, encoder: Encoder, tokens: _Tokens, on_progress: Progress) -> None:
    done = 0
    for batch in rows.select_columns(["text"]).iter(BATCH_ROWS):
        for offset, encoded in enumerate(encoder.encode(batch["text"])):
            if encoded is not None:
                tokens.add(done + offset, encoded.ids)
                tokens.num_truncated += encoded.is_truncated
        done += len(batch["text"])
        on_progress(done, len(rows))


def _lay_out(name: str, folder: Path, layout: RowLayout, documents: np.ndarray) -> tuple[int, int]:
    """Write what rows need besides documents at these offsets.

    Returns:
        The number of rows, and of documents that best-fit packing had to cut.
    """
    if layout.kind == "documents":
        return len(documents) - 1, 0
    if layout.kind == "packed":
        body = layout.seq_len - (2 if layout.framed else 0)
        return int(-(-documents[-1] // body)), 0
    if layout.kind == "best_fit":
        plan = plan_best_fit(documents, layout.seq_len)
        np.save(folder / "rows.npy", plan.rows)
        np.save(folder / "pieces.npy", plan.pieces)
        return plan.rows.shape[1], plan.num_split
    return _write_pairs(name, folder, layout, documents), 0


def _efficiency(layout: RowLayout, num_rows: int, num_tokens: int) -> float | None:
    """Fraction of row positions that hold a token; pairs draw theirs anew every epoch."""
    if layout.kind == "pairs":
        return None
    frames = 2 * num_rows if layout.kind == "packed" and layout.framed else 0
    return (num_tokens + frames) / (num_rows * layout.seq_len)


def _write_pairs(name: str, folder: Path, layout: RowLayout, documents: np.ndarray) -> int:
    """Cut documents into segments and write them; the number of pairs they give.

    Raises:
        DataError: There are too few documents for pairs.
    """
    segments, pairs = cut_segments(documents, (layout.seq_len - 3) // 2)
    if len(documents) < 3 or len(pairs) == 0:
        raise DataError(
            f"datasets.{name}: {len(documents) - 1} documents give {len(pairs)} pairs of segments, and"
            " next-sentence prediction needs 2 documents and a pair. For text files, make a row a"
            " whole document: sample_by: document."
        )
    np.save(folder / "segments.npy", segments)
    np.save(folder / "pairs.npy", pairs)
    return len(pairs)


def cut_segments(documents: np.ndarray, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into segments of nearly equal length, at least two where there are two tokens.

    Args:
        documents: int64 offsets, one more than there are documents.
        max_tokens: Longest segment.

    Returns:
        int64 offsets of segments, one more than there are segments; and the int64 numbers of those
        that have a successor in their document.
    """
    lengths = np.diff(documents)
    counts = np.maximum(-(-lengths // max_tokens), np.minimum(lengths, 2))
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = documents[document] + lengths[document] * number // counts[document]
    has_successor = number + 1 < counts[document]
    return np.append(starts, documents[-1]), np.flatnonzero(has_successor)
