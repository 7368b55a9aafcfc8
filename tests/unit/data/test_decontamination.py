"""Training rows share no n-gram with evaluation rows, of other datasets or their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contracts import RowLayout
from orchestrator.data import decontamination
from orchestrator.data.catalog import Catalog
from orchestrator.data.decontamination import distinct_ngrams, shares_ngram
from orchestrator.data.fields import section_for
from orchestrator.data.ngrams import words_of
from orchestrator.data.rows import Rows, find_rows
from orchestrator.data.selection import splits_of
from orchestrator.errors import DataError
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


def test_an_empty_fraction_beside_one_with_rows_contributes_nothing(tmp_path: Path) -> None:
    fractions = {"validation_fraction": 0.999, "test_fraction": 1e-9}
    found = catalog(
        tmp_path,
        [f"x {EVALUATION}", "free of it"],
        [EVALUATION],
        fractions,
        decontaminate={"against": ["exam"]},
    )
    assert training_rows(found).numbers.tolist() == [1]


@pytest.mark.parametrize("keys", [{"test_fraction": 1e-9}, {"min_chars": 1000}], ids=str)
def test_a_dataset_without_a_row_to_compare_with_is_named_with_who_asks(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    found = catalog(tmp_path, ["free of it"], [EVALUATION], keys, decontaminate={"against": ["exam"]})
    with pytest.raises(DataError) as raised:
        training_rows(found)
    message = str(raised.value)
    assert message.startswith("datasets.web: decontaminate: dataset 'exam' has no row to compare with.")
    assert "has none of 1 rows" in message
    assert message.endswith("Or take 'exam' out of against.")


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


ADDRESSED = EVALUATION.replace("seven", "joe.doe@example.org or +1 650-253-0000")


@pytest.mark.parametrize("trained", [(), ("email",), ("phone", "email")], ids=str)
@pytest.mark.parametrize("held_out", [(), ("email",), ("phone",)], ids=str)
def test_a_copy_is_found_whichever_of_the_two_is_scrubbed(
    trained: tuple[str, ...], held_out: tuple[str, ...], tmp_path: Path
) -> None:
    web = [f"say {ADDRESSED}", "free of it"]
    keys: dict[str, Any] = {"scrub": trained, "decontaminate": {"against": ["exam"]}}
    found = catalog(tmp_path, web, [ADDRESSED], {"scrub": held_out}, **keys)
    assert training_rows(found).numbers.tolist() == [1]


def test_a_copy_of_a_scrubbed_row_is_found_in_a_message(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": ADDRESSED}, {"role": "assistant", "content": "yes"}]
    exam = write_jsonl(tmp_path / "exam.jsonl", [{"chat": messages}])
    web = write_jsonl(tmp_path / "web.jsonl", [{"text": ADDRESSED}, {"text": "free of it"}])
    keys: dict[str, Any] = {"scrub": ["email"], "decontaminate": {"against": ["exam"]}}
    datasets = {
        "exam": section(source="json", files=str(exam), messages_column="chat"),
        "web": section(source="json", files=str(web), **keys),
    }
    assert training_rows(Catalog(datasets, tmp_path / "cache")).numbers.tolist() == [1]


QUESTIONS = make_texts(80, longest=9)
FRACTIONS = {"validation_fraction": 0.2, "test_fraction": 0.2}


@pytest.mark.parametrize("keys", [{}, {"max_rows": 40}, {"on_bad_row": "skip", "max_rows": 40}], ids=str)
def test_no_question_that_any_stage_holds_out_is_left_in_other_texts(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"q": question, "a": f"answer {question}"} for question in QUESTIONS]
    rows = [{**row, "y": number % 2} for number, row in enumerate(rows)]
    if "on_bad_row" in keys:
        rows = [{**row, ("a", "y", "b")[number % 3]: None} for number, row in enumerate(rows)]
    exam = write_jsonl(tmp_path / "exam.jsonl", rows)
    web = write_jsonl(tmp_path / "web.jsonl", [{"text": question} for question in QUESTIONS])
    columns = {"text_column": "q", "text_pair_column": "a", "label_column": "y"}
    datasets = {
        "exam": section(source="json", files=str(exam), **columns, **FRACTIONS, **keys),
        "web": section(source="json", files=str(web), decontaminate={"against": ["exam"]}),
    }
    found = Catalog(datasets, tmp_path / "cache")
    left = set(training_rows(found).open()["text"][:])
    assert len(left) > 20
    for layout in (RowLayout("packed", 8, False, False), RowLayout("documents", 8, False, labelled=True)):
        view = found.find("exam").with_section(section_for(datasets["exam"], layout))
        for split in splits_of(view.dataset)[1:]:
            held_out = set(find_rows(view, split).open()["text"][:])
            assert held_out
            assert not held_out & left


def test_a_row_that_nearly_repeats_one_without_a_label_is_held_out_for_who_reads_labels(
    tmp_path: Path,
) -> None:
    rows = [{"text": "one two three four five six", "y": None}, {"text": "one two three four five 6", "y": 1}]
    exam = write_jsonl(tmp_path / "exam.jsonl", rows)
    web = write_jsonl(tmp_path / "web.jsonl", [{"text": rows[1]["text"]}, {"text": "free of it"}])
    keys = {"label_column": "y", "on_bad_row": "skip", "near_duplicates": {"threshold": 0.5, "ngram": 1}}
    datasets = {
        "exam": section(source="json", files=str(exam), test_fraction=1.0, **keys),
        "web": section(source="json", files=str(web), decontaminate={"against": ["exam"]}),
    }
    found = Catalog(datasets, tmp_path / "cache")
    assert find_rows(found.find("exam"), "test").numbers.tolist() == [1]
    assert find_rows(found.find("exam").without_labels(), "test").numbers.tolist() == [0]
    assert training_rows(found).numbers.tolist() == [1]


CHAT = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A short answer."}]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"m": CHAT}, {"messages_column": "m"}),
        (
            {"p": CHAT[0]["content"], "c": CHAT[1]["content"]},
            {"prompt_column": "p", "completion_column": "c"},
        ),
        (
            {"p": CHAT[0]["content"], "c": CHAT[1]["content"]},
            {"text_column": "p", "text_pair_column": "c"},
        ),
    ],
)
def test_each_field_of_an_evaluation_row_is_found_by_itself(
    row: dict[str, Any], columns: dict[str, str], tmp_path: Path
) -> None:
    exam = write_jsonl(tmp_path / "exam.jsonl", [row])
    texts = ["what is it", "a short answer", "What is it? A short answer.", "is it a short answer", "a short"]
    web = write_jsonl(tmp_path / "web.jsonl", [{"text": text} for text in texts])
    datasets = {
        "exam": section(source="json", files=str(exam), **columns),
        "web": section(source="json", files=str(web), decontaminate={"against": ["exam"]}),
    }
    assert training_rows(Catalog(datasets, tmp_path / "cache")).numbers.tolist() == [3, 4]


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
