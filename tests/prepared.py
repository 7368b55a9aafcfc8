"""Prepared folders of given tokens, in the format that workers read, without a tokenizer or a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.cache import make_folder
from orchestrator.data.prepared import FORMAT_VERSION, Meta


def write_prepared(
    target: Path,
    tokens: np.ndarray,
    documents: np.ndarray,
    *,
    kind: Literal["packed", "documents"] = "packed",
    seq_len: int,
) -> Path:
    """Folder ``target`` with ``tokens`` cut into documents at the offsets ``documents``.

    Args:
        tokens: uint16 ``(T,)``.
        documents: int64, one more than there are documents, from 0 to T.
        seq_len: Tokens of a packed row; the longest document.
    """
    num_documents = len(documents) - 1

    def build(folder: Path) -> None:
        tokens.astype("<u2", copy=False).tofile(folder / "tokens.bin")
        np.save(folder / "documents.npy", documents)
        Meta(
            format_version=FORMAT_VERSION,
            layout=RowLayout(kind, seq_len, framed=False, labelled=False),
            num_rows=num_documents if kind == "documents" else -(-len(tokens) // seq_len),
            num_tokens=len(tokens),
            num_documents=num_documents,
            num_empty=0,
            num_unfit=0,
            num_truncated=0,
            num_split=0,
            packing_efficiency=1.0,
            token_dtype="uint16",
            vocab_size=50257,
            pad_id=0,
            cls_id=None,
            sep_id=None,
            label_names=(),
        ).save(folder)

    return make_folder(target, build)


def write_rows(target: Path, num_rows: int, *, seq_len: int = 4, first_token: int = 0) -> Path:
    """Folder ``target`` with ``num_rows`` packed rows of the tokens that follow ``first_token``."""
    tokens = ((np.arange(num_rows * seq_len) + first_token) % 50_000).astype(np.uint16)
    return write_prepared(target, tokens, np.array([0, len(tokens)]), seq_len=seq_len)
