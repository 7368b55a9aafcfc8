"""Sets of labels, numbers, tags of words and pairs of texts: as prepared folders hold them, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from orchestrator.contracts import IGNORE_INDEX, Row, RowLayout
from orchestrator.data.loader import RowReader
from orchestrator.data.prepared import Meta
from orchestrator.data.rows import find_rows
from orchestrator.data.sources import find_source
from orchestrator.data.tokenizer import for_classification, load_tokenizer
from orchestrator.errors import DataError
from tests.unit.data.corpus import make_texts, prepared, section, write_csv, write_jsonl

WORDS = RowLayout("documents", 24, framed=True, labelled=True, document="words")
SETS = RowLayout("documents", 24, framed=True, labelled=True, labels="classes")
NUMBERS = RowLayout("documents", 24, framed=True, labelled=True, labels="numbers")
ONE = RowLayout("documents", 24, framed=True, labelled=True)
BIO = ["O", "B-PER", "I-PER"]


def rows_of(folder: Path) -> list[Row]:
    reader = RowReader.open(folder, seed=1, source_name="corpus")
    return reader.read(np.arange(reader.num_rows), 0)


def corpus(path: Path, rows: list[dict[str, Any]], **keys: Any) -> Any:
    return section(source="json", files=str(write_jsonl(path, rows)), **keys)


def prepare(dataset: Any, layout: RowLayout, tokenizer: Path, cache: Path, **options: Any) -> Path:
    return prepared("corpus", dataset, "train", layout, tokenizer, cache, **options)


def texts(values: list[Any]) -> list[dict[str, Any]]:
    return [{"text": text, "y": value} for text, value in zip(make_texts(len(values)), values, strict=True)]


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
def test_sets_of_labels_become_a_table(names: Any, tmp_path: Path, bpe: Path) -> None:
    values: list[Any] = [["a"], [], ["c", "b"], ["b", "b"]]
    keys = {"label_column": "y", "label_names": names}
    made = prepare(corpus(tmp_path / "rows.jsonl", texts(values), **keys), SETS, bpe, tmp_path, num_labels=3)
    table = [[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0]]
    found = [row.label for row in rows_of(made)]
    assert [label.tolist() for label in found if isinstance(label, np.ndarray)] == table
    assert {label.dtype for label in found if isinstance(label, np.ndarray)} == {np.dtype(np.float32)}
    assert Meta.open(made).label_names == ("a", "b", "c")


def test_sets_of_ids_are_as_many_as_the_head_has_outputs(tmp_path: Path, bpe: Path) -> None:
    dataset = corpus(tmp_path / "rows.jsonl", texts([[0], [2], []]), label_column="y")
    made = prepare(dataset, SETS, bpe, tmp_path, num_labels=4)
    assert Meta.open(made).label_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(("num_values", "values"), [(1, [0.5, -2, 3]), (2, [[0.5, 1], [2, 3], [-1, 0]])])
def test_numbers_are_labels_of_regression(
    num_values: int, values: list[Any], tmp_path: Path, bpe: Path
) -> None:
    dataset = corpus(tmp_path / "rows.jsonl", texts(values), label_column="y")
    made = prepare(dataset, NUMBERS, bpe, tmp_path, num_labels=num_values)
    found = np.stack([np.asarray(row.label) for row in rows_of(made)])
    assert found.tolist() == np.array(values, dtype=np.float32).reshape(3, -1).tolist()
    assert Meta.open(made).label_names == (("y",) if num_values == 1 else ("y_0", "y_1"))


@pytest.mark.parametrize("odd", [[1.0], True])
def test_a_list_or_a_boolean_among_numbers_is_named_or_left_out(
    odd: Any, tmp_path: Path, bpe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = texts([1.5, odd, -2])
    place = f"{path}: line 2, row 1 (counted from 0): label {odd}, expected a finite number"
    with pytest.raises(DataError) as caught:
        prepare(corpus(path, rows, label_column="y"), NUMBERS, bpe, tmp_path, num_labels=1)
    assert place in str(caught.value)
    dataset = corpus(path, rows, label_column="y", on_bad_row="skip")
    made = prepare(dataset, NUMBERS, bpe, tmp_path, num_labels=1)
    assert [np.ravel(row.label).tolist() for row in rows_of(made)] == [[1.5], [-2.0]]
    assert f"1 of 3 rows are skipped, first {place}" in caplog.text


def test_a_column_of_lists_of_one_number_is_one_of_numbers(tmp_path: Path, bpe: Path) -> None:
    dataset = corpus(tmp_path / "rows.jsonl", texts([[1.5], [-2]]), label_column="y")
    made = prepare(dataset, NUMBERS, bpe, tmp_path, num_labels=1)
    assert [np.ravel(row.label).tolist() for row in rows_of(made)] == [[1.5], [-2.0]]


MISTAKES: dict[str, tuple[RowLayout, list[Any], dict[str, Any], str]] = {
    "set: unknown name": (
        SETS,
        [["a"], ["z"]],
        {"label_names": ["a", "b", "c"]},
        "row 1 (counted from 0): column 'y', item 0 (counted from 0) is 'z', expected one of ['a', 'b', 'c']",
    ),
    "set: id out of range": (
        SETS,
        [[0], [3]],
        {},
        "row 1 (counted from 0): label 3, expected one of ['0', '1', '2'] or their ids. Correct the label,",
    ),
    "set: no list": (SETS, ["a", "b"], {}, "row 0 (counted from 0): label 'a', expected a list of labels"),
    "set: too many names": (
        SETS,
        [["a", "b", "c", "d"]],
        {},
        "4 labels ['a', 'b', 'c', 'd'], but num_labels",
    ),
    "numbers: text": (NUMBERS, ["a", "b"], {}, "row 0 (counted from 0): label 'a', expected a list of 3"),
    "numbers: too few": (
        NUMBERS,
        [[1, 2, 3], [1, 2]],
        {},
        "row 1 (counted from 0): label [1, 2], expected a",
    ),
    "numbers: null": (NUMBERS, [[1, 2, 3], None], {}, "row 1 (counted from 0): column 'y' holds no label"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_label_of_the_wrong_kind_is_named_with_its_row(case: str, tmp_path: Path, bpe: Path) -> None:
    layout, values, keys, message = MISTAKES[case]
    dataset = corpus(tmp_path / "rows.jsonl", texts(values), label_column="y", **keys)
    with pytest.raises(DataError) as caught:
        prepare(dataset, layout, bpe, tmp_path, num_labels=3)
    assert message in str(caught.value)
    assert "datasets.corpus" in str(caught.value)


def sentences(num_rows: int = 8) -> list[dict[str, Any]]:
    """Words of several tokens, some longer than a row, each with a tag."""
    rows = [{"w": [*text.split(), "Zürich-Örlikon"]} for text in make_texts(num_rows, longest=12)]
    return [{**row, "t": [BIO[(len(word) + n) % 3] for n, word in enumerate(row["w"])]} for row in rows]


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
@pytest.mark.parametrize("as_ids", [False, True])
def test_the_first_token_of_a_word_has_its_tag_and_no_other(
    algorithm: str, as_ids: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(algorithm)
    rows = sentences()
    saved = [{**row, "t": [BIO.index(tag) for tag in row["t"]]} for row in rows] if as_ids else rows
    keys = {"words_column": "w", "label_column": "t", "label_names": BIO}
    made = prepare(corpus(tmp_path / "rows.jsonl", saved, **keys), WORDS, folder, tmp_path, num_labels=3)
    tokenizer = for_classification(load_tokenizer(folder))
    found = rows_of(made)
    assert len(found) == len(rows)
    for row, wanted in zip(found, rows, strict=True):
        # What the same text is without being cut into words.
        text = " ".join(wanted["w"])
        expected = tokenizer(text, truncation=True, max_length=24, return_offsets_mapping=True)
        assert row.input_ids.tolist() == expected["input_ids"]
        starts = np.cumsum([0, *(len(word) + 1 for word in wanted["w"])])
        begins = dict(zip(starts.tolist(), wanted["t"], strict=False))
        assert row.token_labels is not None
        tagged = np.flatnonzero(row.token_labels != IGNORE_INDEX)
        numbers = row.token_labels[tagged].tolist()
        assert [BIO[number] for number in numbers] == wanted["t"][: len(numbers)]
        for place, number in zip(tagged, numbers, strict=True):
            # Byte-level tokens begin at the space before a word.
            begin = expected["offset_mapping"][place][0]
            assert BIO[number] == begins[begin if begin in begins else begin + 1]
    assert Meta.open(made).num_truncated > 0
    assert Meta.open(made).label_names == tuple(BIO)


def test_wordpiece_words_are_those_of_transformers_own_call(tmp_path: Path, wordpiece: Path) -> None:
    keys = {"words_column": "w", "label_column": "t"}
    made = prepare(corpus(tmp_path / "rows.jsonl", sentences(), **keys), WORDS, wordpiece, tmp_path)
    tokenizer = load_tokenizer(wordpiece)
    for row, wanted in zip(rows_of(made), sentences(), strict=True):
        expected = tokenizer(wanted["w"], is_split_into_words=True, truncation=True, max_length=24)
        assert row.input_ids.tolist() == expected["input_ids"]
        names = sorted(BIO)
        labels, previous = [], None
        for word in expected.word_ids():
            is_first = word is not None and word != previous
            labels.append(names.index(wanted["t"][word]) if is_first else IGNORE_INDEX)
            previous = word
        assert row.token_labels is not None
        assert row.token_labels.tolist() == labels


@pytest.mark.parametrize(("num_labels", "dtype"), [(2**15, np.int16), (2**15 + 1, np.int32)])
def test_as_many_tags_as_there_are_fit_beside_the_tokens(
    num_labels: int, dtype: type[np.signedinteger[Any]], tmp_path: Path, bpe: Path
) -> None:
    keys = {"words_column": "w", "label_column": "t"}
    source = corpus(tmp_path / "rows.jsonl", [{"w": ["a", "b"], "t": [num_labels - 1, 0]}], **keys)
    made = prepare(source, WORDS, bpe, tmp_path, num_labels=num_labels)
    (row,) = rows_of(made)
    assert row.token_labels is not None
    tagged = row.token_labels != IGNORE_INDEX
    assert row.token_labels[tagged].tolist() == [num_labels - 1, 0]
    assert (made / "targets.bin").stat().st_size == len(row.input_ids) * np.dtype(dtype).itemsize


def test_tags_of_a_class_label_have_its_names(tmp_path: Path, bpe: Path) -> None:
    features = datasets.Features(
        {"w": datasets.List(datasets.Value("string")), "t": datasets.List(datasets.ClassLabel(names=BIO))}
    )
    rows = [{"w": ["Ada", "L", "is"], "t": [1, 2, 0]}] * 3
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    dataset = section(source="saved", path=str(tmp_path / "saved"), words_column="w", label_column="t")
    made = prepare(dataset, WORDS, bpe, tmp_path, num_labels=3)
    assert Meta.open(made).label_names == tuple(BIO)
    labels = rows_of(made)[0].token_labels
    assert labels is not None
    assert labels[labels != IGNORE_INDEX].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        (["a", "b"], ["O"], "column 't' holds 1 tags for 2 words, expected a tag for each."),
        ([], [], "column 'w' holds [], expected a list of words."),
        (["a", None], ["O", "O"], "column 'w', word 1 (counted from 0) is None, expected a string."),
        (
            ["a", "b"],
            ["O", "X"],
            "column 't', item 1 (counted from 0) is 'X', expected one of ['O', 'B-PER', ",
        ),
    ],
)
def test_words_without_fitting_tags_are_named_with_their_row(
    words: list[Any], tags: list[Any], message: str, tmp_path: Path, bpe: Path
) -> None:
    rows = [{"w": ["x"], "t": ["O"]}, {"w": words, "t": tags}]
    keys = {"words_column": "w", "label_column": "t", "label_names": BIO}
    with pytest.raises(DataError) as caught:
        prepare(corpus(tmp_path / "rows.jsonl", rows, **keys), WORDS, bpe, tmp_path, num_labels=3)
    assert message in str(caught.value)
    assert f"{tmp_path / 'rows.jsonl'}: line 2, row 1 (counted from 0)" in str(caught.value)
    dataset = corpus(tmp_path / "rows.jsonl", rows, on_bad_row="skip", **keys)
    assert Meta.open(prepare(dataset, WORDS, bpe, tmp_path, num_labels=3)).num_documents == 1


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_pairs_of_texts_are_what_the_tokenizer_makes_of_two(
    algorithm: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(algorithm)
    first, second = make_texts(20, seed=1, longest=9), make_texts(20, seed=2, longest=20)
    rows = [{"text": a, "b": b, "y": n % 2} for n, (a, b) in enumerate(zip(first, second, strict=True))]
    dataset = corpus(tmp_path / "rows.jsonl", rows, text_pair_column="b", label_column="y")
    made = prepare(dataset, ONE, folder, tmp_path)
    tokenizer = for_classification(load_tokenizer(folder))
    for row, a, b in zip(rows_of(made), first, second, strict=True):
        expected = tokenizer(a, b, truncation="longest_first", max_length=24, return_token_type_ids=True)
        assert row.input_ids.tolist() == expected["input_ids"]
        assert row.segment_ids is not None
        assert row.segment_ids.tolist() == expected["token_type_ids"]
    assert 0 < Meta.open(made).num_truncated < 20


def test_a_pair_is_one_row_and_repeats_only_with_both_texts(tmp_path: Path, bpe: Path) -> None:
    rows = [{"text": "a", "b": "x", "y": 0}, {"text": "a", "b": "z", "y": 1}, {"text": "a", "b": "x", "y": 1}]
    keys = {"label_column": "y", "deduplicate": True}
    pairs = corpus(tmp_path / "rows.jsonl", rows, text_pair_column="b", **keys)
    assert len(rows_of(prepare(pairs, ONE, bpe, tmp_path))) == 2
    single = corpus(tmp_path / "rows.jsonl", rows, **keys)
    assert [row.segment_ids for row in rows_of(prepare(single, ONE, bpe, tmp_path, num_labels=2))] == [None]


def test_a_row_has_room_for_both_texts(tmp_path: Path, bpe: Path) -> None:
    rows = [{"text": "a", "b": "x", "y": 0}] * 2
    dataset = corpus(tmp_path / "rows.jsonl", rows, text_pair_column="b", label_column="y")
    layout = RowLayout("documents", 3, framed=True, labelled=True)
    with pytest.raises(DataError, match=r"data\.seq_len 3 has no room for pairs .* at least 4 tokens"):
        prepare(dataset, layout, bpe, tmp_path)


def test_columns_that_a_stage_does_not_read_cannot_spoil_it(tmp_path: Path, bpe: Path) -> None:
    rows = [{"text": "a b", "b": None, "w": None, "m": None, "y": None}] * 2
    keys = {"text_pair_column": "b", "words_column": "w", "messages_column": "m", "label_column": "y"}
    packed = RowLayout("packed", 8, framed=False, labelled=False)
    made = prepare(corpus(tmp_path / "rows.jsonl", rows, **keys), packed, bpe, tmp_path)
    assert made == prepare(corpus(tmp_path / "rows.jsonl", rows), packed, bpe, tmp_path)


CSV_LABELS: dict[str, tuple[list[str], Any, list[int], tuple[str, ...]]] = {
    "whole numbers": (["0", "2", "1"], None, [0, 2, 1], ("0", "1", "2")),
    "names": (["pos", "neg", "pos"], None, [1, 0, 1], ("neg", "pos")),
    "names and a number": (["1", "a", "b"], None, [0, 1, 2], ("1", "a", "b")),
    "ids of names": (["1", "0", "1"], ("neg", "pos"), [1, 0, 1], ("neg", "pos")),
    "truths of names": (["True", "false", "True"], ("neg", "pos"), [1, 0, 1], ("neg", "pos")),
    "names with zeros": (["02", "01", "02"], ("01", "02"), [1, 0, 1], ("01", "02")),
    "stars": (["5", "1", "3"], ("1", "2", "3", "4", "5"), [4, 0, 2], ("1", "2", "3", "4", "5")),
}


@pytest.mark.parametrize("case", CSV_LABELS)
def test_labels_of_a_csv_are_ids_or_names(case: str, tmp_path: Path, bpe: Path) -> None:
    values, given, ids, names = CSV_LABELS[case]
    path = write_csv(tmp_path / "a.csv", {"text": ["a b", "c d", "e f"], "y": values})
    dataset = section(source="csv", files=str(path), label_column="y", label_names=given)
    made = prepare(dataset, ONE, bpe, tmp_path)
    assert [row.label for row in rows_of(made)] == ids
    assert Meta.open(made).label_names == names


def test_numbers_of_a_csv_are_numbers(tmp_path: Path, bpe: Path) -> None:
    path = write_csv(tmp_path / "a.csv", {"text": ["a b", "c d", "e f"], "y": ["3", "-0.5", "1e2"]})
    dataset = section(source="csv", files=str(path), label_column="y")
    made = prepare(dataset, NUMBERS, bpe, tmp_path, num_labels=1)
    assert [np.ravel(row.label).tolist() for row in rows_of(made)] == [[3.0], [-0.5], [100.0]]


UNFIT: dict[str, tuple[RowLayout, list[Any], dict[str, Any]]] = {
    "set": (SETS, [["a"], ["z"], ["b"]], {"label_names": ["a", "b", "c"]}),
    "numbers": (NUMBERS, [[1, 2, 3], [1, 2], [0, 0, 0]], {}),
    "class": (ONE, [0, 7, 2], {}),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_row_with_an_unfit_label_is_left_out_where_bad_rows_are_skipped(
    case: str, tmp_path: Path, bpe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout, values, keys = UNFIT[case]
    dataset = corpus(tmp_path / "rows.jsonl", texts(values), label_column="y", on_bad_row="skip", **keys)
    made = prepare(dataset, layout, bpe, tmp_path, num_labels=3)
    assert len(rows_of(made)) == 2
    assert (
        f"1 of 3 rows are skipped, first {tmp_path / 'rows.jsonl'}: line 2, row 1 (counted from 0): "
        in caplog.text
    )


def test_a_row_with_an_unknown_tag_is_counted_as_skipped(tmp_path: Path) -> None:
    rows = [{"w": ["x"], "t": ["O"]}, {"w": ["a", "b"], "t": ["O", "X"]}]
    keys = {"words_column": "w", "label_column": "t", "label_names": BIO, "on_bad_row": "skip"}
    found = find_rows(find_source("corpus", corpus(tmp_path / "rows.jsonl", rows, **keys), tmp_path), "train")
    assert found.counts.num_skipped == 1
    assert found.numbers.tolist() == [0]


def test_a_row_with_a_tag_that_is_no_id_is_named_or_left_out(
    tmp_path: Path, bpe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"w": ["x"], "t": [0]}, {"w": ["a", "b"], "t": [2, 3]}, {"w": ["y"], "t": [1]}]
    keys = {"words_column": "w", "label_column": "t"}
    place = f"{tmp_path / 'rows.jsonl'}: line 2, row 1 (counted from 0): word 1 (counted from 0) has label 3"
    with pytest.raises(DataError) as caught:
        prepare(corpus(tmp_path / "rows.jsonl", rows, **keys), WORDS, bpe, tmp_path, num_labels=3)
    assert place in str(caught.value)
    dataset = corpus(tmp_path / "rows.jsonl", rows, on_bad_row="skip", **keys)
    assert Meta.open(prepare(dataset, WORDS, bpe, tmp_path, num_labels=3)).num_documents == 2
    assert f"1 of 3 rows are skipped, first {place}" in caplog.text


def test_numbers_that_are_missing_or_no_numbers_are_left_out_of_a_csv(tmp_path: Path, bpe: Path) -> None:
    path = write_csv(
        tmp_path / "a.csv", {"text": ["a b", "c d", "e f", "g h"], "y": ["3", "", "nan", "four"]}
    )
    dataset = section(source="csv", files=str(path), label_column="y", on_bad_row="skip")
    assert len(rows_of(prepare(dataset, NUMBERS, bpe, tmp_path, num_labels=1))) == 1


def test_labels_of_two_kinds_are_refused(tmp_path: Path, bpe: Path) -> None:
    dataset = corpus(tmp_path / "rows.jsonl", texts(["a", 3, "b"]), label_column="y")
    path = tmp_path / "rows.jsonl"
    with pytest.raises(DataError) as caught:
        prepare(dataset, ONE, bpe, tmp_path)
    rows = (
        f"{path}: line 1, row 0 (counted from 0) holds 'a' and {path}: line 2, row 1 (counted from 0) holds 3"
    )
    assert f"column 'y': {rows}, expected labels of one kind" in str(caught.value)


MIXED: list[tuple[list[Any], Any, str]] = [
    ([1, "no"], ["no", "maybe"], ""),
    ([1, "odd"], ["no", "yes"], "column 'y' holds 'odd', expected one of ['no', 'yes']"),
    ([0, [0]], None, "label [0] of type list, expected an integer"),
    ([1, 1.5], None, "row 1 (counted from 0): label 1.5 of type float, expected an integer"),
    (["p", {"k": 1}], None, "label {'k': 1} of type dict, expected"),
]


@pytest.mark.parametrize(("values", "names", "message"), MIXED)
def test_labels_of_other_kinds_are_named(
    values: list[Any], names: Any, message: str, tmp_path: Path, bpe: Path
) -> None:
    dataset = corpus(tmp_path / "rows.jsonl", texts(values), label_column="y", label_names=names)
    if not message:
        assert [row.label for row in rows_of(prepare(dataset, ONE, bpe, tmp_path))] == [1, 0]
        return
    with pytest.raises(DataError) as caught:
        prepare(dataset, ONE, bpe, tmp_path, num_labels=2)
    assert message in str(caught.value)


def test_one_fraction_does_not_make_the_whole_numbers_unfit(tmp_path: Path, bpe: Path) -> None:
    for layout, values in ((ONE, [0, 1, 1.5, 1]), (SETS, [[0], [1], [1.5], [1]])):
        keys = {"label_column": "y", "on_bad_row": "skip"}
        dataset = corpus(tmp_path / "rows.jsonl", texts(values), **keys)
        assert len(rows_of(prepare(dataset, layout, bpe, tmp_path, num_labels=2))) == 3


@pytest.mark.parametrize("value", ["1e300", "3.5e38", "9" * 400])
def test_a_number_that_float32_does_not_hold_is_refused(value: str, tmp_path: Path, bpe: Path) -> None:
    path = write_csv(tmp_path / "a.csv", {"text": ["a b", "c d"], "y": ["1", value]})
    dataset = section(source="csv", files=str(path), label_column="y")
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\): label .* expected a finite number"):
        prepare(dataset, NUMBERS, bpe, tmp_path, num_labels=1)


def test_labels_of_rows_that_are_left_out_are_no_classes(tmp_path: Path, bpe: Path) -> None:
    rows = [*texts(["pos", "neg"]), {"text": None, "y": "weird"}, {"text": "x", "y": "odd"}]
    keys = {"label_column": "y", "on_bad_row": "skip", "min_chars": 2}
    made = prepare(corpus(tmp_path / "rows.jsonl", rows, **keys), ONE, bpe, tmp_path)
    assert Meta.open(made).label_names == ("neg", "pos")


@pytest.mark.parametrize("names", [["0", "1", "10", "2"], ["1", "2", "3", "4"], ["False", "True"]])
def test_values_of_a_column_with_names_are_ids_whatever_the_names_look_like(
    names: list[str], tmp_path: Path, bpe: Path
) -> None:
    ids = [index % len(names) for index in range(12)]
    classes = datasets.ClassLabel(names=names)
    features = datasets.Features({"text": datasets.Value("string"), "y": classes})
    rows = datasets.Dataset.from_dict({"text": make_texts(12), "y": ids}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    dataset = section(source="parquet", files=str(tmp_path / "rows.parquet"), label_column="y")
    made = prepare(dataset, ONE, bpe, tmp_path)
    assert [row.label for row in rows_of(made)] == ids
    assert Meta.open(made).label_names == tuple(names)
    # Under other names they are the same ids.
    renamed = dataset.model_copy(update={"label_names": tuple(f"n{name}" for name in names)})
    assert [row.label for row in rows_of(prepare(renamed, ONE, bpe, tmp_path))] == ids


def test_integers_among_several_are_names_where_all_names_are_numbers(tmp_path: Path, bpe: Path) -> None:
    values: list[Any] = [[0], [2, 1], ["2"]]
    keys = {"label_column": "y", "label_names": ("2", "1", "0")}
    made = prepare(corpus(tmp_path / "rows.jsonl", texts(values), **keys), SETS, bpe, tmp_path, num_labels=3)
    found = [row.label.tolist() for row in rows_of(made) if isinstance(row.label, np.ndarray)]
    assert found == [[0, 0, 1], [1, 1, 0], [1, 0, 0]]


def test_a_number_is_no_id_where_the_labels_learned_are_fractions(tmp_path: Path, bpe: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", {"text": make_texts(2), "y": ["1", "2"]})
    dataset = section(source="csv", files=str(path), label_column="y")
    with pytest.raises(DataError, match=r"label '1', expected one of \['1.0', '2.0'\]"):
        prepare(dataset, ONE, bpe, tmp_path, label_names=("1.0", "2.0"))
