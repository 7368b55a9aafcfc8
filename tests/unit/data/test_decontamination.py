"""Training rows share no n-gram with evaluation rows, of other datasets or their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data import decontamination
from orchestrator.data.catalog import Catalog
from orchestrator.data.decontamination import distinct_ngrams, shares_ngram
from orchestrator.data.ngrams import words_of
from orchestrator.data.rows import Rows, find_rows
from tests.unit.data.corpus import make_texts, section, write_jsonl
from tests.unit.data.test_rows import CountingTasks

EVALUATION = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def catalog(folder: Path, web: list[str], exam: list[str], exam_keys: dict[str, Any], **keys: Any) -> Catalog:
    datasets = {}
    for name, texts, more in (("web", web, keys), ("exam", exam, exam_keys)):
        path = write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in texts])
        datasets[name] = section(source="json", files=str(path), **more)
    return Catalog(datasets, folder / "cache")


def training_rows(found: Catalog) -> Rows:
    return find_rows(found.find("web"), "train")


def test_rows_that_quote_an_evaluation_row_are_dropped_and_counted(tmp_path: Path) -> None:
    words = EVALUATION.split()
    web = [
        "before " + " ".join(words[:13]).upper() + "! after",
        "before " + " ".join(words[:12]) + " after",
        "short answer",
        "a short answer",
        "",
    ]
    found = catalog(tmp_path, web, [EVALUATION, "Short answer!", ""], {}, decontaminate={"against": ["exam"]})
    rows = training_rows(found)
    # 13 words in common; 12 are too few; a short row is found where it is the whole text.
    assert rows.numbers.tolist() == [1, 3, 4]
    assert rows.counts.dropped == {"decontaminate": 2}


def test_only_held_out_rows_count_where_there_are_some(tmp_path: Path) -> None:
    exam = make_texts(60, longest=30)
    keys = {"decontaminate": {"against": ["exam"], "ngram": 4}}
    found = catalog(tmp_path, exam, exam, {"test_fraction": 0.2, "validation_fraction": 0.1}, **keys)
    held_out = [
        number
        for split in ("validation", "test")
        for number in find_rows(found.find("exam"), split).numbers.tolist()  # type: ignore[arg-type]
    ]
    kept = training_rows(found).numbers.tolist()
    assert held_out
    assert not set(held_out) & set(kept)


def test_a_dataset_may_be_compared_with_its_own_test_rows_and_two_with_each_other(tmp_path: Path) -> None:
    quoted = [f"{text} and {EVALUATION} {text}" for text in make_texts(30)]
    keys: dict[str, Any] = {"test_fraction": 0.3, "decontaminate": {"against": ["web", "exam"]}}
    found = catalog(
        tmp_path, [*quoted, "free of it"], ["other"], {"decontaminate": {"against": ["web"]}}, **keys
    )
    test = find_rows(found.find("web"), "test").numbers.tolist()
    assert training_rows(found).numbers.tolist() == [30]
    assert len(test) > 0
    assert find_rows(found.find("exam"), "train").numbers.tolist() == [0]


def test_the_digest_follows_the_evaluation_rows(tmp_path: Path) -> None:
    keys = {"decontaminate": {"against": ["exam"]}}
    digests = set()
    for exam in (["one text"], ["another text"]):
        digests.add(catalog(tmp_path, ["a"], exam, {}, **keys).find("web").digest)
    digests.add(catalog(tmp_path, ["a"], ["another text"], {"test_fraction": 0.5}, **keys).find("web").digest)
    assert len(digests) == 3


def test_parts_are_pieces_of_work_that_drop_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decontamination, "PART_ROWS", 4)
    texts = make_texts(30, longest=20)
    found = catalog(tmp_path, texts, texts[::3], {}, decontaminate={"against": ["exam"], "ngram": 20})
    found.tasks = tasks = CountingTasks()
    kept = find_rows(found.find("web"), "train", tasks).numbers.tolist()
    assert not set(kept) & set(range(0, 30, 3))
    assert {name: tasks.counts[name] for name in ("_distinct_ngrams", "_is_clean")} == {
        "_distinct_ngrams": 3,
        "_is_clean": 8,
    }


def test_evaluation_rows_may_be_conversations(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": EVALUATION}, {"role": "assistant", "content": "yes"}]
    exam = write_jsonl(tmp_path / "exam.jsonl", [{"chat": messages}])
    web = write_jsonl(tmp_path / "web.jsonl", [{"text": f"say {EVALUATION}"}, {"text": "free of it"}])
    datasets = {
        "exam": section(source="json", files=str(exam), messages_column="chat"),
        "web": section(source="json", files=str(web), decontaminate={"against": ["exam"]}),
    }
    assert training_rows(Catalog(datasets, tmp_path / "cache")).numbers.tolist() == [1]


def ngrams(text: str, size: int) -> set[tuple[str, ...]]:
    words = words_of(text)
    size = min(size, len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)} if size else set()


TEXTS = st.lists(st.lists(st.sampled_from("abcde"), max_size=12).map(" ".join), min_size=1, max_size=8)


@given(web=TEXTS, exam=TEXTS)
def test_what_is_found_is_what_shares_an_ngram(web: list[str], exam: list[str]) -> None:
    known = distinct_ngrams(exam, 4)
    plain = set().union(*(ngrams(text, 4) for text in exam))
    for text in web:
        assert shares_ngram(text, 4, known) == bool(ngrams(text, 4) & plain)


def test_ngrams_are_the_same_however_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distinct_ngrams(make_texts(50), 3)
    monkeypatch.setattr(decontamination, "AT_ONCE", 10)
    assert distinct_ngrams(make_texts(50), 3).tolist() == whole.tolist()
    assert distinct_ngrams([], 3).tolist() == []
