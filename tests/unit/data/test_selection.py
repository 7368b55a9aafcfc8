"""A row's split depends on its text alone, so every stage that reads the text holds out the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.contracts import RowLayout
from orchestrator.data.fields import section_for
from orchestrator.data.rows import find_rows
from orchestrator.data.selection import Split, hash_rows, hash_texts, splits_of, unique_rows
from orchestrator.data.sources import Source, find_source
from tests.unit.data.corpus import make_texts, section, write_jsonl

LANGUAGE = RowLayout("packed", 64, framed=False, labelled=False)
CLASSES = RowLayout("documents", 64, framed=False, labelled=True)
QUESTIONS = make_texts(150, seed=1, longest=9)
# Of the 150 questions 100 have two answers, and 50 one answer twice.
ANSWERS = [*make_texts(150, seed=2), *make_texts(100, seed=3), *make_texts(150, seed=2)[100:]]
COLUMNS = {
    "text_column": "q",
    "text_pair_column": "a",
    "label_column": "y",
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
}


def questions(folder: Path, **keys: Any) -> Source:
    """Pairs of a question and an answer, with labels."""
    pairs = zip(QUESTIONS * 2, ANSWERS, strict=True)
    rows = [{"q": question, "a": answer, "y": n % 2} for n, (question, answer) in enumerate(pairs)]
    path = write_jsonl(folder / "qa.jsonl", rows)
    return find_source("qa", section(source="json", files=str(path), **COLUMNS, **keys), folder / "cache")


def texts_by_split(source: Source) -> dict[Split, set[str]]:
    return {split: set(find_rows(source, split).open()["text"][:]) for split in splits_of(source.dataset)}


@pytest.mark.parametrize("keys", [{}, {"max_rows": 200}, {"deduplicate": True, "max_rows": 120}], ids=str)
def test_no_held_out_text_of_a_pair_is_trained_on_alone(keys: dict[str, Any], tmp_path: Path) -> None:
    source = questions(tmp_path, **keys)
    readers = {
        "language": source.with_section(section_for(source.dataset, LANGUAGE)),
        "classes": source.with_section(section_for(source.dataset, CLASSES)),
        "tokenizer": source.without_labels(),
    }
    found = {reader: texts_by_split(view) for reader, view in readers.items()}
    for reader, splits in found.items():
        assert all(splits.values()), reader
        for other in found.values():
            assert not splits["train"] & (other["test"] | other["validation"])
            assert not splits["validation"] & other["test"]
    if not keys:
        assert found["language"] == found["classes"] == found["tokenizer"]


def test_a_question_and_all_its_answers_share_a_split_and_only_equal_pairs_are_repeats(
    tmp_path: Path,
) -> None:
    source = questions(tmp_path, deduplicate=True)
    rows = [row for split in splits_of(source.dataset) for row in find_rows(source, split).open()]
    pairs = [(row["text"], row["text_pair"]) for row in rows]
    assert sorted(pairs) == sorted(set(zip(QUESTIONS * 2, ANSWERS, strict=True)))
    assert len(pairs) == 250


def test_the_first_hash_is_of_the_text_and_the_second_of_the_whole_row() -> None:
    texts, identities = ["a", "a", "a", "b"], ["a x", "a y", "a x", "b x"]
    hashes = hash_rows(texts, identities)
    assert np.array_equal(hashes[:, 0], hash_texts(texts)[:, 0])
    assert np.array_equal(hashes[:, 1], hash_texts(identities)[:, 1])
    assert unique_rows(hashes).tolist() == [0, 1, 3]
    assert np.array_equal(hash_rows(texts, texts), hash_texts(texts))


def test_rows_that_are_scrubbed_have_no_second_text() -> None:
    with pytest.raises(ValueError, match="rows of text_pair_column 'a' are no single text"):
        section(source="json", files="qa.jsonl", scrub=["email"], **COLUMNS)
