"""Time to the first batch: of a large folder beside a small one, and late in an epoch beside early.

Every turn opens its folder anew, as a worker does that starts or resumes, and reads one batch; sides take
turns in one process. Files are warm in the page cache, and both folders have the format that workers read.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.data.loader import RowReader
from orchestrator.data.prepared import Meta
from orchestrator.data.stream import MixtureReader
from tests.prepared import write_prepared

FEW, MANY = 10_000, 10_000_000
SEQ_LEN = 128
BATCH_ROWS = 8
TURNS = 300
SEED = 17
KINDS: tuple[Literal["packed", "documents"], ...] = ("packed", "documents")


def measure_seek(num_few: int = FEW, num_many: int = MANY) -> dict[str, dict[str, float]]:
    """Seconds until the first batch, median over turns.

    Args:
        num_few: Documents of the small folder.
        num_many: Documents of the large one, which the resumes read.

    Returns:
        By row kind ``packed`` and ``documents``: ``few``, ``many`` (documents), ``early`` (1% into an
        epoch), ``late`` (90%), and the ratios ``many_to_few`` and ``late_to_early``, each the median
        over pairs of turns.
    """
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            few, many = (
                _write(Path(folder) / f"{kind}-{count}", count, kind) for count in (num_few, num_many)
            )
            num_rows = Meta.open(many).num_rows
            few_to_many = _take_turns({"few": (few, 0), "many": (many, 0)})
            resumes = {"early": (many, num_rows // 100), "late": (many, num_rows * 9 // 10)}
            measured[kind] = few_to_many | _take_turns(resumes)
    return measured


def _write(folder: Path, num_documents: int, kind: Literal["packed", "documents"]) -> Path:
    """Documents of 8 to 24 random tokens."""
    rng = np.random.default_rng(SEED)
    documents = np.zeros(num_documents + 1, dtype=np.int64)
    np.cumsum(rng.integers(8, 25, num_documents), out=documents[1:])
    tokens = rng.integers(0, 50257, documents[-1], dtype=np.uint16)
    write_prepared(folder, tokens, documents, kind=kind, seq_len=SEQ_LEN)
    for path in folder.iterdir():
        path.read_bytes()
    return folder


def _first_batch(folder: Path, cursor: int, *, seed: int) -> None:
    """What a worker does before its first step, as far as its rows are concerned."""
    reader = RowReader.open(folder, seed=seed, source_name="tokens")
    mixed = MixtureReader({"tokens": reader}, {"tokens": 1.0}, seed=seed)
    mixed.read_global(range(cursor, cursor + BATCH_ROWS))


def _take_turns(sides: dict[str, tuple[Path, int]]) -> dict[str, float]:
    """Median seconds of two folders and cursors, and the median ratio of the second to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS):
        # The side that goes first pays for whatever came before it.
        for name in list(sides) if turn % 2 else list(reversed(sides)):
            began = time.perf_counter()
            # Another order in every turn: where its rows stand, and whether the permutation has to walk
            # on for one of them (80 us more), is a matter of luck.
            _first_batch(*sides[name], seed=turn)
            seconds[name].append(time.perf_counter() - began)
    below, above = sides
    ratios = [late / early for early, late in zip(seconds[below], seconds[above], strict=True)]
    medians = {name: statistics.median(turns) for name, turns in seconds.items()}
    return medians | {f"{above}_to_{below}": statistics.median(ratios)}


if __name__ == "__main__":
    print(json.dumps(measure_seek(), indent=1))
