"""Rows of many files and of unsound rows: nothing lost, nothing silently changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import examination, sources
from orchestrator.data.rows import find_rows
from orchestrator.data.sources import find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import make_texts, section, write_jsonl

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
    assert tasks.counts == {"_digest_files": 5, "_convert_alone": 5, "examine": 6}


def test_rows_are_examined_once_for_all_splits(tmp_path: Path) -> None:
    keys = {"source": "json", "files": many_files(tmp_path / "in"), "test_fraction": 0.3}
    tasks = CountingTasks()
    for _ in range(2):
        source = find_source("corpus", section(**keys), tmp_path / "cache", tasks)
        train, test = (find_rows(source, split, tasks).numbers for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(40))
    assert tasks.counts["examine"] == 1


def test_files_with_other_columns_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)
    first = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "y": 1}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "y": "one"}])
    source = find_source("corpus", section(source="json", files=[str(first), str(second)]), tmp_path / "c")
    with pytest.raises(DataError) as raised:
        source.open()
    expected = (
        f"{second}: columns text (string), y (string), expected those of {first}: text (string), y (int64)"
    )
    assert expected in str(raised.value)


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
        f"datasets.corpus: {files[1]}: row 0 (counted from 0): column 'text' holds None, expected a string."
        " Correct or filter the row, or set on_bad_row: skip."
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
        f"datasets.corpus: 2 of 6 rows are skipped, first {files[1]}: row 0 (counted from 0):"
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
