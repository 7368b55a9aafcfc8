"""Near duplicates: the earliest of a cluster stays, and nothing that is not near goes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data import near_duplicates
from orchestrator.data.near_duplicates import Signatures, earliest_of_clusters, near_pairs
from orchestrator.data.ngrams import ngram_hashes
from orchestrator.data.rows import find_rows
from orchestrator.data.sources import find_source
from tests.unit.data.corpus import WORDS, section, write_jsonl
from tests.unit.data.test_rows import CountingTasks


def make_words(seed: int, count: int = 120) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def jaccard(first: str, second: str) -> float:
    a, b = (set(ngram_hashes(text, 5).tolist()) for text in (first, second))
    return len(a & b) / len(a | b)


def corpus() -> list[str]:
    """Forty texts, each followed by one with a word changed and one with the second half changed."""
    texts = []
    for seed in range(40):
        words = make_words(seed)
        texts.append(" ".join(words))
        texts.append(" ".join([*words[:60], "other", *words[61:]]).upper() + "!")
        texts.append(" ".join([*words[:60], *make_words(1000 + seed, 60)]))
    return texts


def numbers_of(folder: Path, texts: list[str], **keys: object) -> tuple[list[int], dict[str, int]]:
    path = write_jsonl(folder / "a.jsonl", [{"text": text} for text in texts])
    dataset = section(source="json", files=str(path), **keys)
    rows = find_rows(find_source("corpus", dataset, folder / "cache"), "train")
    return rows.numbers.tolist(), dict(rows.counts.dropped)


def test_rows_that_repeat_most_of_another_go_and_others_stay(tmp_path: Path) -> None:
    texts = corpus()
    assert jaccard(texts[0], texts[1]) > 0.9
    assert jaccard(texts[0], texts[2]) < 0.5
    kept, dropped = numbers_of(tmp_path, texts, near_duplicates={})
    assert kept == [row for row in range(120) if row % 3 != 1]
    assert dropped == {"near_duplicates": 40}


def test_exact_repeats_are_counted_apart_and_rows_without_words_stay(tmp_path: Path) -> None:
    texts = ["?!", corpus()[0], "...", corpus()[1], corpus()[0], ""]
    kept, dropped = numbers_of(tmp_path, texts, near_duplicates={}, deduplicate=True)
    assert kept == [0, 1, 2, 5]
    assert dropped == {"deduplicate": 1, "near_duplicates": 1}


def test_parts_are_pieces_of_work_that_drop_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "PART_ROWS", 7)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in corpus()])
    dataset = section(source="json", files=str(path), near_duplicates={"num_hashes": 64})
    tasks = CountingTasks()
    source = find_source("corpus", dataset, tmp_path / "cache", tasks)
    assert find_rows(source, "train", tasks).numbers.tolist() == [row for row in range(120) if row % 3 != 1]
    assert tasks.counts["_sign_part"] == 18
    assert list((tmp_path / "cache" / "signatures").glob("[!l]*")) == []


def signatures(folder: Path, rows: np.ndarray) -> Signatures:
    np.save(folder / "signatures.npy", rows.astype(np.uint32))
    return Signatures([folder / "signatures.npy"], *rows.shape)


def test_the_earliest_of_a_chain_stays(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 1 << 32, (6, 64))
    rows[3] = rows[1]
    rows[3, :6] = 0
    rows[5] = rows[3]
    rows[5, 58:] = 1
    found = earliest_of_clusters(signatures(tmp_path, rows), 0.85)
    # Rows 1 and 5 agree in less than 0.85, but both are near row 3.
    assert (rows[1] == rows[5]).mean() < 0.85
    assert found.tolist() == [0, 1, 2, 4]


def test_a_shared_band_alone_makes_no_pair(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 1 << 32, (5, 64))
    rows[:, :8] = 7
    rows[4] = rows[2]
    assert near_pairs(signatures(tmp_path, rows), 0, 8, 0.8).tolist() == [[2], [4]]
    assert near_pairs(signatures(tmp_path, rows), 8, 16, 0.8).tolist() == [[2], [4]]
