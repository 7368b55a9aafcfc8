"""Loader throughput beside Hugging Face ``datasets`` and the usual loop over a file of tokens, in turn.

All give the inputs and labels of causal language modelling as tensors, what a training step takes, from the
same tokens in memory-mapped files that are warm in the page cache. Ours pays for the exact shuffle, whose
row numbers it computes; ``datasets`` is given the shuffled row numbers; the loop over a file, known from
nanoGPT's ``get_batch``, draws places at random and copies slice by slice.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor

from orchestrator.contracts import IGNORE_INDEX, Batch, TokenInfo
from orchestrator.data.loader import RowReader
from orchestrator.data.order import order_key, permute
from orchestrator.data.stream import MixtureReader
from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.spec.training import CausalLMObjective
from tests.prepared import write_prepared

SEQ_LEN = 1024
BATCH_ROWS = 8
NUM_ROWS = 8192
NUM_BATCHES = 400
REPEATS = 5
SEED = 17


def measure_loader() -> dict[str, float]:
    """Tokens per second of a training step's batches, best of five turns each.

    Returns:
        ``<name>_tokens_per_second`` of ``ours``, ``datasets`` (its faster format) and ``file_loop``.
    """
    tokens_RS = np.random.default_rng(SEED).integers(0, 50257, (NUM_ROWS, SEQ_LEN), dtype=np.uint16)
    cursor = np.arange(NUM_BATCHES * BATCH_ROWS).reshape(NUM_BATCHES, BATCH_ROWS)
    shuffled = permute(cursor, NUM_ROWS, order_key(SEED, "tokens", 0))
    with tempfile.TemporaryDirectory() as folder:
        ours = open_ours(Path(folder), tokens_RS)
        numpy_rows = _open_datasets(Path(folder), tokens_RS)
        torch_rows = numpy_rows.with_format("torch")
        objective, rng = causal_lm(), np.random.default_rng(SEED)
        readers: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
            "ours": lambda batch: _values(
                objective.collate(ours.read_global(range(batch * BATCH_ROWS, (batch + 1) * BATCH_ROWS)), rng)
            ),
            "datasets_numpy": lambda batch: _shift(
                torch.from_numpy(numpy_rows[shuffled[batch]]["input_ids"]).long()
            ),
            "datasets_torch": lambda batch: _shift(torch_rows[shuffled[batch]]["input_ids"].long()),
            "file_loop": lambda batch: _file_loop_batch(Path(folder) / "ours" / "tokens.bin"),
        }
        for mine, theirs in zip(readers["ours"](0), readers["datasets_torch"](0), strict=True):
            assert torch.equal(mine, theirs)
        best = dict.fromkeys(readers, float("inf"))
        for _ in range(REPEATS):
            for name, read in readers.items():
                best[name] = min(best[name], _seconds(read))
    tokens = NUM_BATCHES * BATCH_ROWS * SEQ_LEN
    best["datasets"] = min(best.pop("datasets_numpy"), best.pop("datasets_torch"))
    return {f"{name}_tokens_per_second": tokens / seconds for name, seconds in best.items()}


def causal_lm() -> CausalLM:
    """The objective as the worker makes it, for a vocabulary of GPT-2's size."""
    tokens = TokenInfo(50257, 0, 0, None, (0,), np.zeros(50257, dtype=bool))
    return CausalLM(CausalLMObjective(name="causal_lm"), tokens, ())


def _values(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch["input_ids"], batch["labels"]


def _shift(ids_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs, and the next token of each place as its label."""
    labels_BS = torch.full_like(ids_BS, IGNORE_INDEX)
    labels_BS[:, :-1] = ids_BS[:, 1:]
    return ids_BS, labels_BS


def _file_loop_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Rows at random places of a file of tokens, mapped anew for every batch so that memory is given back."""
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    places = torch.randint(len(tokens) - SEQ_LEN, (BATCH_ROWS,)).tolist()
    rows = [torch.from_numpy(tokens[i : i + SEQ_LEN].astype(np.int64)) for i in places]
    labels = [torch.from_numpy(tokens[i + 1 : i + 1 + SEQ_LEN].astype(np.int64)) for i in places]
    return torch.stack(rows), torch.stack(labels)


def _seconds(read: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for batch in range(NUM_BATCHES):
        read(batch)
    return time.perf_counter() - start


def open_ours(folder: Path, tokens_RS: np.ndarray) -> MixtureReader:
    """The tokens as one packed folder of a single document."""
    tokens, documents = tokens_RS.ravel(), np.array([0, tokens_RS.size], dtype=np.int64)
    prepared = write_prepared(folder / "ours", tokens, documents, seq_len=tokens_RS.shape[1])
    reader = RowReader.open(prepared, seed=SEED, source_name="tokens")
    return MixtureReader({"tokens": reader}, {"tokens": 1.0}, seed=SEED)


def _open_datasets(folder: Path, tokens_RS: np.ndarray) -> datasets.Dataset:
    """The tokens as a memory-mapped map-style dataset; int32 is what a tokenizer's ``map`` writes."""
    was_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    rows = {"input_ids": tokens_RS.astype(np.int32)}
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder / "datasets"))
    if not was_disabled:
        datasets.enable_progress_bars()
    return datasets.load_from_disk(str(folder / "datasets")).with_format("numpy")


if __name__ == "__main__":
    print(json.dumps(measure_loader(), indent=1))
