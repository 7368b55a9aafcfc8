"""Tokenise a split once into a folder that workers memory-map.

The folder's name is a digest of everything its content depends on: the source's bytes and keys, the
split, the tokenizer's files, the layout of rows, and the version of this code. Its format is
``prepared.py``.

1. find the rows of the split (``rows.py``) and turn labels into ids or numbers
2. encode them, in parts where there are many (``tokenise.py``); of a streamed source this comes first, shard
   by shard, and then the rows of the split are taken (``streaming.py``)
3. for pairs, cut documents into segments; for best-fit packing, plan the rows
4. write meta.json and commit the folder
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.cache import damage, make_folder
from orchestrator.data.encode import Encoder
from orchestrator.data.fields import section_for
from orchestrator.data.files import digest_values
from orchestrator.data.labelling import NO_LABELS, Labels, find_labels
from orchestrator.data.packing import plan_best_fit
from orchestrator.data.prepared import FORMAT_VERSION, Meta
from orchestrator.data.rows import Rows, find_rows
from orchestrator.data.selection import Split
from orchestrator.data.shards import StreamedSource
from orchestrator.data.sources import Source
from orchestrator.data.streaming import parts_folder, stream_shards
from orchestrator.data.tasks import IN_PROCESS, Tasks
from orchestrator.data.tokenise import Documents, Progress, Work, encode_rows, token_dtype
from orchestrator.data.tokenizer import load_tokenizer, tokenizer_digest
from orchestrator.errors import DataError

log = logging.getLogger(__name__)


def prepare_rows(
    source: Source,
    split: Split,
    layout: RowLayout,
    tokenizer_dir: Path,
    *,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    tasks: Tasks = IN_PROCESS,
    on_progress: Progress = lambda done, total: None,
) -> Path:
    """Folder with the rows of one split of ``source``; made once, whoever else wants it.

    An existing folder is verified byte by byte before it is used, which costs less than the digest
    of its source does; a damaged one is named in a warning and made again.

    Args:
        source: The dataset.
        split: Which of its rows.
        layout: How documents become rows.
        tokenizer_dir: Folder of the tokenizer.
        label_names: Label names in the order of their ids; absent: the section's, the source's own,
            or the sorted values found in all splits.
        num_labels: Outputs of the classifier, to check labels against.
        tasks: Runs the parts of the work.
        on_progress: Called with the documents done and their total.

    Raises:
        DataError: The source, a label or the tokenizer is unfit for these rows.
    """
    source = _needed_columns(source, layout)
    key = _key(source, split, layout, tokenizer_dir, label_names, num_labels)
    target = source.cache_dir / "rows" / digest_values(key)
    unnamed = Work(layout, tokenizer_dir, ())
    parts_dir = _parts_dir(source, split, unnamed, target)

    def label(rows: Rows, open_labels: Callable[[Rows], Any]) -> tuple[Rows, Labels]:
        if not layout.labelled:
            return rows, NO_LABELS
        return find_labels(rows, open_labels(rows), split, layout, label_names, num_labels)

    def build(folder: Path) -> None:
        if isinstance(source, StreamedSource):
            shards = stream_shards(source, split, unnamed, tasks=tasks, on_progress=on_progress)
            rows, labels = label(find_rows(source, split, tasks), shards.labels)
            documents = shards.join(rows, folder)
        else:
            rows, labels = label(find_rows(source, split, tasks), Rows.open)
            work = replace(unnamed, label_names=labels.names)
            documents = encode_rows(
                rows, work, folder, parts_dir=parts_dir, tasks=tasks, on_progress=on_progress
            )
        _write(rows, folder, documents, Encoder(layout, load_tokenizer(tokenizer_dir)), labels)

    prepared = make_folder(target, build)
    # Parts are needed no longer, by whomever they were left.
    shutil.rmtree(parts_dir, ignore_errors=True)
    return prepared


def _key(
    source: Source,
    split: Split,
    layout: RowLayout,
    tokenizer_dir: Path,
    label_names: Sequence[str] | None,
    num_labels: int | None,
) -> dict[str, Any]:
    """What a prepared folder depends on."""
    return {
        "format_version": FORMAT_VERSION,
        "source": source.digest,
        "split": split,
        "tokenizer": tokenizer_digest(tokenizer_dir),
        "layout": asdict(layout),
        "label_names": None if label_names is None else list(label_names),
        "num_labels": num_labels,
    }


def _parts_dir(source: Source, split: Split, work: Work, target: Path) -> Path:
    """Where parts are kept until ``target`` is there."""
    if isinstance(source, StreamedSource):
        return parts_folder(source, split, work)
    return source.cache_dir / "parts" / target.name


def _needed_columns(source: Source, layout: RowLayout) -> Source:
    """The source with the columns alone that these rows are made from.

    Raises:
        DataError: A column that is needed is not named.
    """
    dataset = source.dataset
    where = f"datasets.{source.name}"
    if layout.document == "words" and dataset.words_column is None:
        raise DataError(f"{where}: words_column is not set. Set it to the column that holds lists of words.")
    if layout.document == "conversation" and dataset.messages_column is dataset.prompt_column is None:
        raise DataError(
            f"{where}: it has no conversations. Set messages_column, or prompt_column and completion_column."
        )
    if layout.labelled and dataset.label_column is None:
        raise DataError(
            f"{where}: label_column is not set, and a classifier needs labels. Set it to"
            " the column that holds them."
        )
    return source.with_section(section_for(dataset, layout))


def verify(folder: Path) -> str | None:
    """What is wrong with a prepared folder, every byte read; ``None`` when all digests hold."""
    return damage(folder)


def _write(
    rows: Rows,
    folder: Path,
    documents: Documents,
    encoder: Encoder,
    labels: Labels,
) -> None:
    """Write the files of the format beside tokens.bin."""
    name, info, num_texts = rows.source.name, encoder.info, len(rows.numbers)
    num_documents, num_unfit = len(documents.lengths), len(documents.unfit)
    if not num_documents and num_unfit:
        raise DataError(
            f"datasets.{name}: none of {num_texts} rows has anything to learn in its first"
            f" {encoder.layout.seq_len} tokens. Raise data.seq_len, or look at the rows that the log names."
        )
    if not num_documents:
        raise DataError(
            f"datasets.{name}: none of {num_texts} rows holds a token, expected text. Check text_column."
        )
    offsets = np.concatenate([[0], np.cumsum(documents.lengths, dtype=np.int64)])
    np.save(folder / "documents.npy", offsets)
    num_rows, num_split = _lay_out(name, folder, encoder.layout, offsets)
    if labels.values is not None:
        np.save(folder / "labels.npy", labels.values[documents.kept])
    if documents.second_begins.any():
        np.save(folder / "seconds.npy", documents.second_begins)
    Meta(
        format_version=FORMAT_VERSION,
        layout=encoder.layout,
        num_rows=num_rows,
        num_tokens=int(offsets[-1]),
        num_documents=num_documents,
        num_empty=num_texts - num_documents - num_unfit,
        num_unfit=num_unfit,
        num_truncated=int(documents.is_truncated.sum()),
        num_split=num_split,
        packing_efficiency=_efficiency(encoder.layout, num_rows, int(offsets[-1])),
        token_dtype=token_dtype(info.vocab_size).name,
        vocab_size=info.vocab_size,
        pad_id=info.pad_id,
        cls_id=encoder.cls_id,
        sep_id=encoder.sep_id,
        label_names=labels.names,
    ).save(folder)


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
