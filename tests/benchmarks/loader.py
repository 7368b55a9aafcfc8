"""Loader throughput beside Hugging Face ``datasets``: the same tokens, the same shuffled rows, in turn.

Ours pays for the shuffle, whose row numbers it computes; ``datasets`` is given the shuffled row numbers.
Both read memory-mapped files that are warm in the page cache, and give whole batches as arrays.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.cache import make_folder
from orchestrator.data.loader import MixtureReader, RowReader
from orchestrator.data.order import order_key, permute
from orchestrator.data.prepared import FORMAT_VERSION, Meta

SEQ_LEN = 1024
BATCH_ROWS = 8
NUM_ROWS = 8192
NUM_BATCHES = 400
REPEATS = 5
SEED = 17


def measure_loader() -> dict[str, float]:
    """Tokens per second of ``MixtureReader.read_tokens`` and of ``datasets``, best of five turns each.

    Returns:
        ``ours_tokens_per_second``, ``datasets_numpy_tokens_per_second``,
        ``datasets_torch_tokens_per_second``, and ``ratio``: ours over the faster of the two.
    """
    tokens_RS = np.random.default_rng(SEED).integers(0, 50257, (NUM_ROWS, SEQ_LEN), dtype=np.uint16)
    cursor = np.arange(NUM_BATCHES * BATCH_ROWS).reshape(NUM_BATCHES, BATCH_ROWS)
    shuffled = permute(cursor, NUM_ROWS, order_key(SEED, "tokens", 0))
    with tempfile.TemporaryDirectory() as folder:
        ours = _open_ours(Path(folder), tokens_RS)
        numpy_rows = _open_datasets(Path(folder), tokens_RS)
        torch_rows = numpy_rows.with_format("torch")
        assert np.array_equal(ours.read_tokens(cursor[0]), numpy_rows[shuffled[0].tolist()]["input_ids"])
        readers: dict[str, Callable[[int], object]] = {
            "ours": lambda batch: ours.read_tokens(cursor[batch]),
            "datasets_numpy": lambda batch: numpy_rows[shuffled[batch]]["input_ids"],
            "datasets_torch": lambda batch: torch_rows[shuffled[batch]]["input_ids"],
        }
        best = dict.fromkeys(readers, float("inf"))
        for _ in range(REPEATS):
            for name, read in readers.items():
                best[name] = min(best[name], _seconds(read))
    tokens = NUM_BATCHES * BATCH_ROWS * SEQ_LEN
    result = {f"{name}_tokens_per_second": tokens / seconds for name, seconds in best.items()}
    result["ratio"] = min(best["datasets_numpy"], best["datasets_torch"]) / best["ours"]
    return result


def _seconds(read: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for batch in range(NUM_BATCHES):
        read(batch)
    return time.perf_counter() - start


def _open_ours(folder: Path, tokens_RS: np.ndarray) -> MixtureReader:
    """The tokens as one packed folder of a single document."""

    def build(target: Path) -> None:
        tokens_RS.astype("<u2").tofile(target / "tokens.bin")
        np.save(target / "documents.npy", np.array([0, tokens_RS.size], dtype=np.int64))
        Meta(
            format_version=FORMAT_VERSION,
            layout=RowLayout("packed", SEQ_LEN, framed=False, labelled=False),
            num_rows=NUM_ROWS,
            num_tokens=tokens_RS.size,
            num_documents=1,
            num_empty=0,
            num_truncated=0,
            num_split=0,
            packing_efficiency=1.0,
            token_dtype="uint16",
            vocab_size=50257,
            pad_id=0,
            cls_id=None,
            sep_id=None,
            label_names=(),
        ).save(target)

    prepared = make_folder(folder / "ours", build)
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
