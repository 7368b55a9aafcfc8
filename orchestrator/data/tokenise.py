"""Encode the documents of some rows into one stream of tokens on the disk.

Many rows are cut into parts, a task for each; a part that is finished is kept until the whole is, so that
an interrupted preparation goes on with the next part. Beside tokens.bin lies targets.bin where documents
have targets of their own.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.cache import make_folder
from orchestrator.data.encode import Encoder, Unfit
from orchestrator.data.encoders import encoder_for
from orchestrator.data.fields import documents_of
from orchestrator.data.prepared import TARGET_DTYPES
from orchestrator.data.rows import Rows
from orchestrator.data.tasks import Tasks
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import DataError

# 1000 documents: enough for both ends of a batch to keep all cores busy, a few MB of text.
BATCH_ROWS = 1000
# 100,000 documents are tokenised in about a minute on one core: little to lose, and worth a process.
PART_ROWS = 100_000
# What a part's ``Documents`` hold, as it is kept on the disk.
ARRAYS = ("lengths", "kept", "second_begins")
COUNTS = ("num_truncated", "num_unfit")

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
    num_truncated: int
    """Documents that were cut at ``seq_len``."""
    num_unfit: int
    """Rows of which nothing can be learned, which were left out."""
    second_begins: np.ndarray
    """int64: where in a document the second text of its pair begins; 0: it is no pair."""


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

    rows: Rows
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
        return _encode(rows, work.encoder(), folder, on_progress)
    parts = [
        Part(
            replace(rows, numbers=rows.numbers[start : start + PART_ROWS]),
            work,
            parts_dir / f"{PART_ROWS}-{start // PART_ROWS:06d}",
        )
        for start in range(0, total, PART_ROWS)
    ]
    done = 0
    for part, _ in zip(parts, tasks.map(encode_part, parts), strict=True):
        done += len(part.rows.numbers)
        on_progress(done, total)
    return _join([part.folder for part in parts], folder)


def encode_part(part: Part) -> None:
    """Make a part's folder, unless it is there."""

    def build(folder: Path) -> None:
        documents = _encode(part.rows, part.work.encoder(), folder, lambda done, total: None)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(documents, name))
        counts = {name: getattr(documents, name) for name in COUNTS}
        (folder / "counts.json").write_text(
            json.dumps({**counts, "num_rows": len(part.rows.numbers)}), "utf-8"
        )

    make_folder(part.folder, build)


def _join(parts: list[Path], folder: Path) -> Documents:
    """Append the parts' tokens and targets to one another."""
    for name in ("tokens.bin", "targets.bin"):
        if (parts[0] / name).exists():
            with (folder / name).open("wb") as joined:
                for part in parts:
                    with (part / name).open("rb") as stream:
                        shutil.copyfileobj(stream, joined, 1 << 22)
    counts = [json.loads((part / "counts.json").read_text("utf-8")) for part in parts]
    lengths, kept, second_begins = (
        [np.load(part / f"{name}.npy", allow_pickle=False) for part in parts] for name in ARRAYS
    )
    first = 0
    for rows, count in zip(kept, counts, strict=True):
        rows += first
        first += int(count["num_rows"])
    return Documents(
        lengths=np.concatenate(lengths),
        kept=np.concatenate(kept),
        second_begins=np.concatenate(second_begins),
        num_truncated=sum(int(count["num_truncated"]) for count in counts),
        num_unfit=sum(int(count["num_unfit"]) for count in counts),
    )


def _encode(rows: Rows, encoder: Encoder, folder: Path, on_progress: Progress) -> Documents:
    """Encode ``rows`` batch by batch; tokens and targets go straight to the disk."""
    opened = rows.open()
    dtype = token_dtype(encoder.info.vocab_size)
    target_dtype = TARGET_DTYPES.get(encoder.layout.document)
    lengths: list[int] = []
    kept: list[int] = []
    second_begins: list[int] = []
    unfit: list[int] = []
    num_truncated = done = 0
    with ExitStack() as stack:
        tokens = stack.enter_context((folder / "tokens.bin").open("wb"))
        if target_dtype is not None:
            targets = stack.enter_context((folder / "targets.bin").open("wb"))
        for batch in opened.iter(BATCH_ROWS):
            documents = documents_of(batch)
            for row, encoded in enumerate(encoder.encode(documents), start=done):
                if isinstance(encoded, Unfit):
                    _leave_out(rows, row, encoded, is_first=not unfit)
                    unfit.append(row)
                elif encoded is not None:
                    tokens.write(np.array(encoded.ids, dtype=dtype).tobytes())
                    if target_dtype is not None:
                        targets.write(np.array(encoded.targets, dtype=target_dtype).tobytes())
                    lengths.append(len(encoded.ids))
                    kept.append(row)
                    second_begins.append(encoded.second_begins)
                    num_truncated += encoded.is_truncated
            done += len(documents)
            on_progress(done, len(opened))
    return Documents(
        lengths=np.array(lengths, np.int64),
        kept=np.array(kept, np.int64),
        second_begins=np.array(second_begins, np.int64),
        num_truncated=num_truncated,
        num_unfit=len(unfit),
    )


def _leave_out(rows: Rows, row: int, unfit: Unfit, *, is_first: bool) -> None:
    """Say that a row is left out.

    Raises:
        DataError: It is faulty, and faulty rows are errors.
    """
    if not is_first and not unfit.is_fault:
        return
    source = rows.source
    where = f"datasets.{source.name}: {source.place_of(int(rows.numbers[row]))}: {unfit.problem}"
    if unfit.is_fault and source.dataset.on_bad_row == "error":
        raise DataError(f"{where}. Correct or filter the row, or set on_bad_row: skip.")
    if is_first:
        log.warning("%s; this row is left out, and others like it", where)
