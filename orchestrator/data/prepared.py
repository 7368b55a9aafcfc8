"""The format of a prepared folder: what ``prepare.py`` writes and ``loader.py`` memory-maps.

tokens.bin       all tokens, uint16 or uint32, little-endian, one document after the other
documents.npy    int64 offsets into them, one more than there are documents
rows.npy         int32 or int64 (2, rows): where each row's pieces begin, and how many they are (best_fit)
pieces.npy       int32 or int64 (2, pieces): where each piece begins and ends in the tokens (best_fit)
targets.bin      what is to be predicted of each token, beside tokens.bin: int16 class of the word that begins
                 with the token, or IGNORE_INDEX (words; int32 from 32,769 classes on); uint8
                 1 for tokens to learn, else 0 (conversations)
labels.npy       label of each document, where rows are labelled: int64 class, bool (documents, classes) or
                 float32 (documents, numbers)
seconds.npy      int64 number of the first token of each document's second text, where they are pairs
segments.npy     int64 offsets of segments into the tokens, one more than there are segments (pairs)
pairs.npy        int64 number of the first segment of each row (pairs)
meta.json        ``Meta``
COMPLETE         bytes and digest of each file above; written last
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.contracts import DocumentKind, RowLayout
from orchestrator.errors import DataError

# Raised whenever folders written before can no longer be read, or would be written differently.
FORMAT_VERSION = 5
COMPLETE = "COMPLETE"


def target_dtype(document: DocumentKind, num_labels: int) -> np.dtype[Any] | None:
    """How targets.bin holds the target of a token; ``None``: such documents have none."""
    if document == "words":
        return np.dtype("<i2" if num_labels <= 2**15 else "<i4")
    return np.dtype("|u1") if document == "conversation" else None


@dataclass(frozen=True)
class Meta:
    """What meta.json says."""

    format_version: int
    layout: RowLayout
    num_rows: int
    num_tokens: int
    """Tokens in tokens.bin; frames of packed rows and of pairs are added on reading."""
    num_documents: int
    num_empty: int
    """Documents without a token, which were left out."""
    num_unfit: int
    """Documents without a token to learn, or faulty ones that were to be skipped; left out, too."""
    num_truncated: int
    """Documents that were cut at ``seq_len`` and lost the rest."""
    num_split: int
    """Documents longer than ``seq_len`` that best-fit packing cut, losing nothing."""
    packing_efficiency: float | None
    """Fraction of all row positions that hold a token, frames included; absent for pairs."""
    token_dtype: str
    vocab_size: int
    pad_id: int
    cls_id: int | None
    sep_id: int | None
    label_names: tuple[str, ...]

    def tokens_per_row(self) -> float:
        """Mean tokens of a row, frames left out.

        Raises:
            DataError: Rows are pairs, whose second segment is drawn anew in every epoch.
        """
        if self.layout.kind == "pairs":
            raise DataError(
                "data.mixture_unit: tokens: rows that are pairs of segments have no fixed tokens."
                " Give data.mixture in rows."
            )
        return self.num_tokens / self.num_rows

    def summary(self) -> str:
        """How many rows there are, how full, and what became of documents that fit none, in one line."""
        text = f"{self.num_rows:,} rows of {self.layout.seq_len} tokens"
        if self.packing_efficiency is not None:
            text += f", {self.packing_efficiency:.2%} full"
        for number, fate in ((self.num_split, "cut into pieces"), (self.num_truncated, "truncated")):
            if number:
                text += f"; {number:,} of {self.num_documents:,} documents are longer and were {fate}"
        if self.num_unfit:
            text += f"; {self.num_unfit:,} more have nothing to learn within a row and were left out"
        if self.num_empty:
            text += f"; {self.num_empty:,} more hold no token and were left out"
        return text

    def save(self, folder: Path) -> None:
        """Write meta.json."""
        (folder / "meta.json").write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def open(cls, folder: Path) -> Meta:
        """Read meta.json after checking that the folder is complete and its files have their sizes.

        Raises:
            DataError: The folder is missing, incomplete, damaged, or of another format version.
        """
        _check_sizes(folder)
        values: dict[str, Any] = json.loads((folder / "meta.json").read_text("utf-8"))
        if values["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{folder} has format version {values['format_version']}, this code reads"
                f" {FORMAT_VERSION}. Prepare the data again."
            )
        values["layout"] = RowLayout(**values["layout"])
        values["label_names"] = tuple(values["label_names"])
        return cls(**values)


def content_digest(folder: Path) -> str:
    """One digest of all files of a complete folder, in hexadecimal, from what COMPLETE says of each.

    hashlib's BLAKE2b, because workers do without xxhash.

    Raises:
        DataError: COMPLETE is missing or damaged.
    """
    digests = {name: entry["digest"] for name, entry in _read_marker(folder).items()}
    return hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read_marker(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of each file, as COMPLETE lists them."""
    marker = folder / COMPLETE
    if not marker.is_file():
        raise DataError(
            f"{folder} has no {COMPLETE} file, so it is no prepared dataset. Prepare the data again."
        )
    try:
        entries = json.loads(marker.read_text("utf-8")).items()
        return {
            name: {"bytes": int(entry["bytes"]), "digest": str(entry["digest"])} for name, entry in entries
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{marker} is damaged: {error}. Run the job again to prepare the data anew."
        ) from error


def _check_sizes(folder: Path) -> None:
    """Every file that COMPLETE lists is there with its size."""
    for name, entry in _read_marker(folder).items():
        path, expected = folder / name, entry["bytes"]
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            state = "is missing" if found is None else f"has {found} bytes"
            raise DataError(
                f"{path} {state}, expected {expected} bytes. Run the job again to prepare the data anew."
            )
