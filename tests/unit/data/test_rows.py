"""Rows of many files and of unsound rows: nothing lost, nothing silently changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from orchestrator.data import examination, sources
from orchestrator.data.rows import find_rows
from orchestrator.data.sources import find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import make_texts, section, write_csv, write_jsonl

TEXTS = make_texts(40)


class CountingTasks:
    """Runs pieces here, and counts those of each function."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        self.counts[function.__name__] = self.counts.get(function.__name__, 0) + len(items)
        return map(function, items)


def many_files(folder: Path, num_files: int = 4) -> str:
    """``TEXTS`` over files of ten rows, and one that is empty; the pattern that finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        part = TEXTS[number * 10 : number * 10 + 10]
        write_jsonl(folder / f"{number}.jsonl", [{"text": text} for text in part])
    (folder / "1b.jsonl").touch()
    return str(folder / "*.jsonl")


@pytest.mark.parametrize(("group_bytes", "num_groups"), [(1, 5), (1 << 28, 1)])
def test_rows_of_many_files_come_in_order_however_they_are_grouped(
    group_bytes: int, num_groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "GROUP_BYTES", group_bytes)
    dataset = section(source="json", files=many_files(tmp_path / "in"))
    source = find_source("corpus", dataset, tmp_path / "cache")
    assert len(source.groups) == num_groups
    assert find_rows(source, "train").open()["text"][:] == TEXTS


def test_groups_and_ranges_are_pieces_of_work_that_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"source": "json", "files": many_files(tmp_path / "in"), "deduplicate": True, "test_fraction": 0.3}
    whole = find_rows(find_source("corpus", section(**keys), tmp_path / "whole"), "test").numbers
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)
    monkeypatch.setattr(examination, "RANGE_ROWS", 7)
    tasks = CountingTasks()
    source = find_source("corpus", section(**keys), tmp_path / "cut", tasks)
    assert np.array_equal(find_rows(source, "test", tasks).numbers, whole)
    assert tasks.counts == {"_digest_files": 5, "_look": 5, "_convert": 5, "examine": 6}


def test_rows_are_examined_once_for_all_splits(tmp_path: Path) -> None:
    keys = {"source": "json", "files": many_files(tmp_path / "in"), "test_fraction": 0.3}
    tasks = CountingTasks()
    for _ in range(2):
        source = find_source("corpus", section(**keys), tmp_path / "cache", tasks)
        train, test = (find_rows(source, split, tasks).numbers for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(40))
    assert tasks.counts["examine"] == 1


@pytest.mark.parametrize("group_bytes", [1, 1 << 28])
def test_columns_that_nobody_reads_may_differ(
    group_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "GROUP_BYTES", group_bytes)
    parts = [{"text": "a", "y": 1}, {"text": "b", "y": "one"}, {"text": "c", "z": [{"q": 2}, 3]}]
    for source in ("json", "csv", "parquet"):
        files = []
        for number, row in enumerate(parts):
            path = tmp_path / f"{number}.{source}"
            if source == "json":
                write_jsonl(path, [row])
            elif source == "csv":
                write_csv(path, {name: [value] for name, value in row.items()})
            else:
                datasets.Dataset.from_list([{**row, "z": str(row.get("z"))}]).to_parquet(str(path))
            files.append(str(path))
        found = find_source("corpus", section(source=source, files=files), tmp_path / "cache")
        assert find_rows(found, "train").open()["text"][:] == ["a", "b", "c"]
        assert set(found.open().column_names) >= {"text", "y"}


@pytest.mark.parametrize("group_bytes", [1, 1 << 28])
def test_a_column_that_is_read_has_one_type_in_all_files(
    group_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "GROUP_BYTES", group_bytes)
    values: list[list[Any]] = [[1, 2], [0.5], ["one"], []]
    files = [str(tmp_path / f"{number}.parquet") for number in range(4)]
    for path, labels in zip(files, values, strict=True):
        texts = [f"t{label}" for label in labels]
        datasets.Dataset.from_dict({"text": texts, "y": labels}).to_parquet(path)
    keys = {"source": "parquet", "label_column": "y"}
    source = find_source("corpus", section(files=[*files[:2], files[3]], **keys), tmp_path / "c")
    assert source.open()["y"][:] == [1.0, 2.0, 0.5]
    with pytest.raises(DataError) as raised:
        find_source("corpus", section(files=files, **keys), tmp_path / "c")
    assert f"{files[2]}: column 'y' holds double and string" in str(raised.value)


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_a_file_without_a_column_that_others_have_is_named(source: str, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.{source}") for number in range(2)]
    for path, row in zip(files, ({"text": ["a"], "y": ["p"]}, {"text": ["b"]}), strict=True):
        made = datasets.Dataset.from_dict(row)
        made.to_csv(path) if source == "csv" else made.to_parquet(path)
    with pytest.raises(DataError) as raised:
        find_source("corpus", section(source=source, files=files, label_column="y"), tmp_path / "c")
    assert f"{files[1]} cannot be read as {source}: its columns are ['text'], and other files of" in str(
        raised.value
    )


def unsound_files(folder: Path) -> list[str]:
    """Two files of three rows: the fourth row has no text, the sixth no label."""
    first = [{"text": f"t{row}", "y": "a"} for row in range(3)]
    second = [{"text": None, "y": "a"}, {"text": "t4", "y": "b"}, {"text": "t5", "y": None}]
    return [str(write_jsonl(folder / name, part)) for name, part in (("a.jsonl", first), ("b.jsonl", second))]


@pytest.mark.parametrize("group_bytes", [1, 1 << 28])
def test_an_unsound_row_is_named_with_its_file(
    group_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "GROUP_BYTES", group_bytes)
    files = unsound_files(tmp_path)
    source = find_source("corpus", section(source="json", files=files, label_column="y"), tmp_path / "c")
    with pytest.raises(DataError) as raised:
        find_rows(source, "train")
    assert str(raised.value) == (
        f"datasets.corpus: {files[1]}: line 1, row 0 (counted from 0): column 'text' holds None, expected"
        " a string. Correct or filter the row, or set on_bad_row: skip."
    )


def test_skipped_rows_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = unsound_files(tmp_path)
    dataset = section(source="json", files=files, label_column="y", on_bad_row="skip")
    source = find_source("corpus", dataset, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        found = find_rows(source, "train")
    assert found.open()["text"][:] == ["t0", "t1", "t2", "t4"]
    assert found.num_skipped == 2
    assert caplog.messages == [
        f"datasets.corpus: 2 of 6 rows are skipped, first {files[1]}: line 1, row 0 (counted from 0):"
        " column 'text' holds None, expected a string"
    ]
    (counts,) = (tmp_path / "cache" / "examined").glob("*/counts.json")
    skipped = json.loads(counts.read_text())["skipped"]
    assert [row["number"] for row in skipped] == [3, 5]
    # Without labels the sixth row is sound.
    assert find_rows(source.without_labels(), "train").num_skipped == 1


def test_a_row_of_fifty_megabytes_is_read_whole(tmp_path: Path) -> None:
    long = "many words " * 5_000_000
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": long}, {"text": "end"}])
    source = find_source("corpus", section(source="json", files=str(path)), tmp_path / "cache")
    assert [len(text) for text in find_rows(source, "train").open()["text"]] == [5, len(long), 3]
