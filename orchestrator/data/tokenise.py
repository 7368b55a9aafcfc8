"""Encode the documents of some rows into one stream of tokens on the disk.

Many rows are cut into parts, a task for each; a part that is finished is kept until the whole is, so that
an interrupted preparation goes on with the next part. Beside tokens.bin lies targets.bin where documents
have targets of their own.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.cache import make_folder
from orchestrator.data.encode import Encoder, Unfit
from orchestrator.data.encoders import encoder_for
from orchestrator.data.fields import documents_of, texts_of
from orchestrator.data.prepared import target_dtype
from orchestrator.data.rows import Rows
from orchestrator.data.tasks import Tasks
from orchestrator.data.texts import TextPart, cut_rows
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import DataError

# 1000 documents: enough for both ends of a batch to keep all cores busy, a few MB of text.
BATCH_ROWS = 1000
# 4 Mi at once, or one document: the tokenizers library needs up to 200 bytes for each, so a shelf of books
# would else fill the memory.
BATCH_CHARS = 1 << 22
# 100,000 documents are tokenised in about a minute on one core: little to lose, and worth a process.
PART_ROWS = 100_000
# Raised when a part's folder holds other files.
PART_VERSION = 2
# What a part's ``Documents`` hold, as it is kept on the disk.
ARRAYS = ("lengths", "kept", "second_begins", "is_truncated", "unfit")

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the documents done and their total."""


@dataclass(frozen=True)
class Documents:
    """Documents as they lie in a stream of tokens."""

    lengths: np.ndarray
    """int64: tokens of each document."""
    kept: np.ndarray
    """int64: row of each document, among the rows that were encoded; rows without a token are missing."""
    second_begins: np.ndarray
    """int64: where in a document the second text of its pair begins; 0: it is no pair."""
    is_truncated: np.ndarray
    """bool: whether a document was cut at ``seq_len``."""
    unfit: np.ndarray
    """int64: rows of which nothing can be learned, which were left out."""


@dataclass(frozen=True)
class Work:
    """How documents are encoded."""

    layout: RowLayout
    tokenizer_dir: Path
    label_names: tuple[str, ...]
    """Names of words' tags in the order of their ids; not looked at for other documents."""

    def encoder(self) -> Encoder:
        """An encoder that does it."""
        return encoder_for(self.layout, load_tokenizer(self.tokenizer_dir), self.label_names)


@dataclass(frozen=True)
class Part:
    """Rows that one task encodes."""

    rows: TextPart
    work: Work
    folder: Path
    """Where its tokens go."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned integers that hold every id."""
    return np.dtype("<u2" if vocab_size < 2**16 else "<u4")


def encode_rows(
    rows: Rows, work: Work, folder: Path, *, parts_dir: Path, tasks: Tasks, on_progress: Progress
) -> Documents:
    """Write the tokens of all documents of ``rows``, and their targets, into ``folder``.

    Args:
        parts_dir: Folder for finished parts; its name stands for all that their content depends on.

    Raises:
        DataError: A row cannot be encoded and is not to be skipped.
    """
    total = len(rows.numbers)
    if total <= PART_ROWS:
        return _encode(TextPart(rows.source, rows.numbers), work, folder, on_progress)
    parts = [
        Part(part, work, parts_dir / f"{PART_VERSION}-{PART_ROWS}-{index:06d}")
        for index, part in enumerate(cut_rows(rows.source, rows.numbers, PART_ROWS))
    ]
    sizes = [0 if part.folder.exists() else len(part.rows.numbers) for part in parts]
    # Before the first one is done: a rate begins here, without parts of an earlier start.
    done = total - sum(sizes)
    on_progress(done, total)
    for size, _ in zip(sizes, tasks.map(encode_part, parts), strict=True):
        done += size
        on_progress(done, total)
    return join_parts([(part.folder, 0) for part in parts], rows.numbers, folder)


def encode_part(part: Part) -> None:
    """Make a part's folder, unless it is there."""
    make_folder(part.folder, lambda folder: write_part(part.rows, part.work, folder))


def write_part(rows: TextPart, work: Work, folder: Path) -> None:
    """Fill a part's folder."""
    documents = _encode(rows, work, folder, lambda done, total: None)
    np.save(folder / "numbers.npy", rows.numbers)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(documents, name))


def join_parts(parts: Sequence[tuple[Path, int]], numbers: np.ndarray, folder: Path) -> Documents:
    """Append the tokens and targets of the parts' documents to one another, without rows not asked for.

    Args:
        parts: Their folders in order, each with what its rows' numbers are counted from.
        numbers: int64 rows that are asked for, rising; each is in one of the parts.
        folder: Where the joined files go.
    """
    found = [_placed(part, first, numbers) for part, first in parts]
    for name in ("tokens.bin", "targets.bin"):
        if (parts[0][0] / name).exists():
            with (folder / name).open("wb") as joined:
                for (part, _), (lengths, is_wanted, _) in zip(parts, found, strict=True):
                    _append(part / name, lengths, is_wanted, joined)
    documents = [part for _, _, part in found]
    return Documents(**{name: np.concatenate([getattr(part, name) for part in documents]) for name in ARRAYS})


def find_numbers(part: Path, first: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in ``numbers`` the rows of a part stand, int64, and whether each is there at all, bool."""
    of_part = np.load(part / "numbers.npy", allow_pickle=False) + first
    return np.searchsorted(numbers, of_part), np.isin(of_part, numbers, assume_unique=True)


def _placed(part: Path, first: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, Documents]:
    """Tokens of each document of a part, whether it is asked for, and the documents that are."""
    arrays = {name: np.load(part / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
    places, is_there = find_numbers(part, first, numbers)
    is_wanted = is_there[arrays["kept"]]
    kept, unfit = arrays["kept"][is_wanted], arrays["unfit"][is_there[arrays["unfit"]]]
    documents = Documents(
        lengths=arrays["lengths"][is_wanted],
        kept=places[kept],
        second_begins=arrays["second_begins"][is_wanted],
        is_truncated=arrays["is_truncated"][is_wanted],
        unfit=places[unfit],
    )
    return arrays["lengths"], is_wanted, documents


def _append(file: Path, lengths: np.ndarray, is_wanted: np.ndarray, joined: BinaryIO) -> None:
    """Append what ``file`` holds of the documents that are asked for."""
    if is_wanted.all():
        with file.open("rb") as stream:
            shutil.copyfileobj(stream, joined, 1 << 22)
        return
    # Of any width: a line for each token, as bytes.
    tokens = np.memmap(file, np.uint8, mode="r").reshape(int(lengths.sum()), -1)
    joined.write(tokens[np.repeat(is_wanted, lengths)].tobytes())


def _encode(rows: TextPart, work: Work, folder: Path, on_progress: Progress) -> Documents:
    """Encode ``rows`` batch by batch; tokens and targets go straight to the disk."""
    opened, encoder = rows.open(), work.encoder()
    dtype = token_dtype(encoder.info.vocab_size)
    of_target = target_dtype(work.layout.document, len(work.label_names))
    lengths: list[int] = []
    kept: list[int] = []
    second_begins: list[int] = []
    is_truncated: list[bool] = []
    unfit: list[int] = []
    done = 0
    with ExitStack() as stack:
        tokens = stack.enter_context((folder / "tokens.bin").open("wb"))
        if of_target is not None:
            targets = stack.enter_context((folder / "targets.bin").open("wb"))
        for documents in _batches(opened):
            for row, encoded in enumerate(encoder.encode(documents), start=done):
                if isinstance(encoded, Unfit):
                    _leave_out(rows, row, encoded, is_first=not unfit)
                    unfit.append(row)
                elif encoded is not None:
                    tokens.write(np.array(encoded.ids, dtype=dtype).tobytes())
                    if of_target is not None:
                        targets.write(np.array(encoded.targets, dtype=of_target).tobytes())
                    lengths.append(len(encoded.ids))
                    kept.append(row)
                    second_begins.append(encoded.second_begins)
                    is_truncated.append(encoded.is_truncated)
            done += len(documents)
            on_progress(done, len(opened))
    return Documents(
        lengths=np.array(lengths, np.int64),
        kept=np.array(kept, np.int64),
        second_begins=np.array(second_begins, np.int64),
        is_truncated=np.array(is_truncated, bool),
        unfit=np.array(unfit, np.int64),
    )


def _batches(opened: Any) -> Iterator[list[Any]]:
    """What an encoder takes, at most ``BATCH_ROWS`` and about ``BATCH_CHARS`` at once."""
    for batch in opened.iter(BATCH_ROWS):
        documents = documents_of(batch)
        ends = np.cumsum([len(text) for text in texts_of(batch)])
        cuts = np.flatnonzero(np.diff(ends // BATCH_CHARS)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(documents)]):
            yield documents[start:end]


def _leave_out(rows: TextPart, row: int, unfit: Unfit, *, is_first: bool) -> None:
    """Say that a row is left out.

    Raises:
        DataError: It is faulty, and faulty rows are errors.
    """
    source = rows.source
    is_error = unfit.is_fault and source.dataset.on_bad_row == "error"
    if not is_first and not is_error:
        # To say where a row stands, its file is read.
        return
    where = f"datasets.{source.name}: {source.place_of(int(rows.numbers[row]))}: {unfit.problem}"
    if is_error:
        raise DataError(f"{where}. Correct or filter the row, or set on_bad_row: skip.")
    if is_first:
        log.warning("%s; this row is left out, and others like it", where)
