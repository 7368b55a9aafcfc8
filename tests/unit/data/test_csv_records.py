"""A stray quote costs the line that it stands in, and no other that can be told from what it takes in."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.csv_records import csv_records
from orchestrator.data.record import Record
from orchestrator.data.records import FileFormat, read_records
from orchestrator.data.rows import find_rows
from orchestrator.data.sources import find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import section

EXAMPLE = 'id,text\n1,"unclosed\n2,ok\n3,",start"\n4,fine\n'
COLUMNS = ["a", "b"]
FIELDS = st.text(alphabet='xy", \n', max_size=4)


def records(content: str) -> list[Record]:
    return list(csv_records(iter(content.splitlines(keepends=True)), ",", quoted=True))


def rows_of(found: list[Record]) -> dict[str, list[str]]:
    """Values by place."""
    return {record.place: list(record.values.values()) for record in found if record.values is not None}


def problems_of(found: list[Record]) -> dict[str, str]:
    """Problems by place."""
    return {record.place: record.problem for record in found if record.problem is not None}


def test_lines_that_a_stray_quote_takes_in_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(EXAMPLE)
    keys = {"source": "csv", "files": str(path), "label_column": "id"}
    dataset = section(**keys, on_bad_row="skip")
    rows = find_rows(find_source("corpus", dataset, tmp_path / "cache"), "train")
    assert rows.open()["text"][:] == ["ok", ",start", "fine"]
    problem = "3 fields up to line 4, where a quote is closed, expected 2 as in the header"
    assert rows.counts.skipped == ((f"{path}: line 2", problem),)
    assert rows.counts.num_skipped == 1
    with pytest.raises(DataError) as raised:
        find_source("corpus", section(**keys), tmp_path / "cache").open()
    assert f"{path} cannot be read as csv: line 2: {problem}. Correct it, or set" in str(raised.value)


def test_each_bad_line_of_those_taken_in_is_told_by_its_number() -> None:
    found = records('id,text\n1,"a\n2\n3,b,c\n4,d",e\n5,f\n')
    assert rows_of(found) == {"line 6": ["5", "f"]}
    assert problems_of(found) == {
        "line 2": "3 fields up to line 5, where a quote is closed, expected 2 as in the header",
        "line 3": "1 field, expected 2 as in the header",
        "line 4": "3 fields, expected 2 as in the header",
        "line 5": "3 fields, expected 2 as in the header",
    }


def test_a_field_of_several_lines_is_one_row_though_its_lines_look_like_rows() -> None:
    found = records('id,text\n1,"a\n2,b\n3,c"\n4,d\n')
    assert rows_of(found) == {"line 2": ["1", "a\n2,b\n3,c"], "line 5": ["4", "d"]}
    assert problems_of(found) == {}


def test_lines_at_the_end_of_a_file_are_read_again() -> None:
    found = records('id,text\n1,"a\n2,b\n3,",c')
    assert rows_of(found) == {"line 3": ["2", "b"]}
    assert list(problems_of(found)) == ["line 2", "line 4"]


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n", "\r"])
def test_a_carriage_return_alone_ends_a_line_only_where_no_line_feed_does(
    end: str, quoted: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    value, fields = ("a b", 'c"d' if not quoted else "c") if end == "\r" else ("a\rb", "\rc")
    path.write_bytes(end.join(["text,y", f"{value},{fields}", "e,f", ""]).encode())
    form = FileFormat("csv", quoted=quoted)
    found = [record for record in read_records(path, form) if record.values]
    assert [list((record.values or {}).values()) for record in found] == [[value, fields], ["e", "f"]]
    assert [record.place for record in found] == ["line 2", "line 3"]


def test_a_carriage_return_between_quotes_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,y\n"a\rb\r\nc\r",1\n"d\re" f,2\ng,3\n')
    found = list(read_records(path, FileFormat("csv")))
    assert rows_of(found) == {"line 2": ["a\rb\r\nc\r", "1"], "line 5": ["g", "3"]}
    assert list(problems_of(found)) == ["line 4"]


def written(row: list[str]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(row)
    return buffer.getvalue()


def fields_in(lines: list[str]) -> list[str] | None:
    """The fields of these lines, if they are one record."""
    try:
        found = list(csv.reader(iter(lines), strict=True))
    except csv.Error:
        return None
    return found[0] if len(found) == 1 else None


def in_doubt(lines: list[str], rows: list[range], damaged: list[range]) -> set[int]:
    """Lines of damaged rows, and those that a record of theirs with the right number of fields may take in.

    Where that takes in a part of a row of several lines, the others of it are read as if it were damaged.
    """
    doubted = {line for row in damaged for line in row}
    while True:
        taken_in = {
            line
            for first in doubted
            for end in range(first + 2, len(lines) + 1)
            if len(fields_in(lines[first:end]) or ()) == len(COLUMNS)
            for line in range(first, end)
        }
        more = {line for row in rows if not taken_in.isdisjoint(row) for line in row}
        if more <= doubted:
            return doubted
        doubted |= more


@given(
    rows=st.lists(st.lists(FIELDS, min_size=2, max_size=2), min_size=1, max_size=7),
    stray=st.dictionaries(st.integers(0, 6), st.integers(0, 12), max_size=3),
)
def test_a_sound_row_comes_out_once_and_unchanged_beside_stray_quotes(
    rows: list[list[str]], stray: dict[int, int]
) -> None:
    lines, places = [written(COLUMNS)], list[range]()
    for number, row in enumerate(rows):
        text = written(row)
        if number in stray:
            place = min(stray[number], len(text) - 1)
            text = f'{text[:place]}"{text[place:]}'
        first = len(lines)
        lines += text.splitlines(keepends=True)
        places.append(range(first, len(lines)))

    found = records("".join(lines))

    assert [line for record in found for line in record.lines] == lines, "no line is lost or read twice"
    doubted = in_doubt(lines, places, [places[number] for number in stray if number < len(rows)])
    values = rows_of(found)
    for place, row in zip(places, rows, strict=True):
        if doubted.isdisjoint(place):
            assert values[f"line {place.start + 1}"] == row
    bad = [record for record in found if record.problem is not None]
    assert {record.place for record in bad} <= {f"line {line + 1}" for line in doubted}
    assert all(len(record.lines) == 1 for record in bad)
