"""Encode the documents of some rows into one stream of tokens on the disk.

Many rows are cut into parts, a task for each; a part that is finished is kept until the whole is, so that
an interrupted preparation goes on with the next part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.cache import make_folder
from orchestrator.data.encode import Encoder
from orchestrator.data.rows import Rows
from orchestrator.data.tasks import Tasks
from orchestrator.data.tokenizer import load_tokenizer

# 1000 documents: enough for both ends of a batch to keep all cores busy, a few MB of text.
BATCH_ROWS = 1000
# 100,000 documents are tokenised in about a minute on one core: little to lose, and worth a process.
PART_ROWS = 100_000

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


@dataclass(frozen=True)
class Part:
    """Rows that one task encodes."""

    rows: Rows
    layout: RowLayout
    tokenizer_dir: Path
    folder: Path
    """Where its tokens go."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned integers that hold every id."""
    return np.dtype("<u2" if vocab_size < 2**16 else "<u4")


def encode_rows(
    rows: Rows,
    layout: RowLayout,
    tokenizer_dir: Path,
    stream: Path,
    *,
    parts_dir: Path,
    tasks: Tasks,
    on_progress: Progress,
) -> Documents:
    """Write the tokens of all documents of ``rows`` to ``stream``.

    Args:
        parts_dir: Folder for finished parts; its name stands for all that their content depends on.
    """
    total = len(rows.numbers)
    if total <= PART_ROWS:
        encoder = Encoder(layout, load_tokenizer(tokenizer_dir))
        return _encode(rows.open(), encoder, stream, on_progress)
    parts = [
        Part(
            replace(rows, numbers=rows.numbers[start : start + PART_ROWS]),
            layout,
            tokenizer_dir,
            parts_dir / f"{PART_ROWS}-{start // PART_ROWS:06d}",
        )
        for start in range(0, total, PART_ROWS)
    ]
    done = 0
    for part, _ in zip(parts, tasks.map(encode_part, parts), strict=True):
        done += len(part.rows.numbers)
        on_progress(done, total)
    return _join([part.folder for part in parts], stream)


def encode_part(part: Part) -> None:
    """Make a part's folder, unless it is there."""

    def build(folder: Path) -> None:
        encoder = Encoder(part.layout, load_tokenizer(part.tokenizer_dir))
        documents = _encode(part.rows.open(), encoder, folder / "tokens.bin", lambda done, total: None)
        np.save(folder / "lengths.npy", documents.lengths)
        np.save(folder / "kept.npy", documents.kept)
        counts = {"num_truncated": documents.num_truncated, "num_rows": len(part.rows.numbers)}
        (folder / "counts.json").write_text(json.dumps(counts), "utf-8")

    make_folder(part.folder, build)


def _join(parts: list[Path], stream: Path) -> Documents:
    """Append the parts' tokens to one another."""
    lengths, kept, num_truncated, first = [], [], 0, 0
    with stream.open("wb") as joined:
        for part in parts:
            with (part / "tokens.bin").open("rb") as tokens:
                shutil.copyfileobj(tokens, joined, 1 << 22)
            counts = json.loads((part / "counts.json").read_text("utf-8"))
            lengths.append(np.load(part / "lengths.npy", allow_pickle=False))
            kept.append(np.load(part / "kept.npy", allow_pickle=False) + first)
            num_truncated += int(counts["num_truncated"])
            first += int(counts["num_rows"])
    return Documents(np.concatenate(lengths), np.concatenate(kept), num_truncated)


def _encode(rows: Any, encoder: Encoder, stream: Path, on_progress: Progress) -> Documents:
    """Encode ``rows``, a ``datasets.Dataset``, batch by batch; tokens go straight to the disk."""
    dtype = token_dtype(encoder.info.vocab_size)
    lengths: list[int] = []
    kept: list[int] = []
    num_truncated = done = 0
    with stream.open("wb") as tokens:
        for batch in rows.select_columns(["text"]).iter(BATCH_ROWS):
            for offset, encoded in enumerate(encoder.encode(batch["text"])):
                if encoded is not None:
                    tokens.write(np.array(encoded.ids, dtype=dtype).tobytes())
                    lengths.append(len(encoded.ids))
                    kept.append(done + offset)
                    num_truncated += encoded.is_truncated
            done += len(batch["text"])
            on_progress(done, len(rows))
    return Documents(np.array(lengths, np.int64), np.array(kept, np.int64), num_truncated)
