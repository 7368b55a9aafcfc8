"""JSON files: one list or a record on each line, and what is wrong with a record costs that record alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.json_records import is_list_file
from orchestrator.data.record import UnreadableFileError
from orchestrator.data.records import FileFormat, read_records
from orchestrator.data.rows import Rows, find_rows
from orchestrator.data.sources import find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import section

LONG, DEEP = b"9" * 5000, b"[" * 100_000 + b"]" * 100_000


def read(folder: Path, *contents: bytes, **keys: Any) -> Rows:
    paths = [folder / f"{number}.json" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    files = [str(path) for path in paths]
    return find_rows(
        find_source("corpus", section(source="json", files=files, **keys), folder / "c"), "train"
    )


def error(folder: Path, *contents: bytes, **keys: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(folder, *contents, **keys)
    return str(raised.value)


RECORDS = {
    "bytes": (b'{"text": "b\xff"}', "byte 0xff after 11 characters is not UTF-8"),
    "bytes in a key": (b'{"text": "b", "y\xff": 1}', "byte 0xff after 16 characters is not UTF-8"),
    "half an emoji": (b'{"text": "\\ud83d"}', "the surrogate 0xd83d after 10 characters is not UTF-8"),
    "a key twice": (b'{"text": "b", "text": "c"}', "no JSON: the key 'text' is there twice"),
    "a long number": (b'{"text": "]", "y": {"z": [' + LONG + b"]}}", "no JSON: Exceeds the limit"),
    "too deep": (b'{"text": "\\"}", "y": ' + DEEP + b"}", "no JSON: maximum recursion depth exceeded"),
    "no number": (b'{"text": NaN}', "column 'text' holds NaN, expected a number that JSON has"),
    "no object": (b"5", "holds 5, expected an object"),
}


@pytest.mark.parametrize("case", RECORDS)
@pytest.mark.parametrize("field", [None, "rows"])
def test_a_bad_record_of_a_list_is_named_or_left_out_and_counted(
    field: str | None, case: str, tmp_path: Path
) -> None:
    record, problem = RECORDS[case]
    content = b'[{"text": "a"},\n' + record + b',\n{"text": "c"}]'
    if field is not None:
        content = b'{"about": {"x": NaN, "x": 1},\n"rows":' + content + b', "more": [' + LONG + b"]}"
    place = f"record 2 (line {2 if field is None else 3})"
    keys = {} if field is None else {"field": field}
    path = tmp_path / "0.json"
    assert error(tmp_path, content, **keys).startswith(
        f"datasets.corpus: {path} cannot be read as json: {place}: {problem}"
    )
    rows = read(tmp_path, content, on_bad_row="skip", **keys)
    assert rows.open()["text"][:] == ["a", "c"]
    ((where, said),) = rows.counts.skipped
    assert where == f"{path}: {place}"
    assert said.startswith(problem)


def test_a_bad_value_in_a_list_of_a_column_costs_its_row(tmp_path: Path) -> None:
    content = b'{"text": ["a", "b\xff", "c", "d"],\n"y": [1, 2, ' + LONG + b", NaN]}"
    rows = read(tmp_path, content, on_bad_row="skip")
    assert rows.open()["text"][:] == ["a", "d"]
    assert [place for place, _ in rows.counts.skipped] == [
        f"{tmp_path / '0.json'}: record {number}" for number in (2, 3)
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"text": "a"},\n{"te', "line 2: no JSON: Unterminated string starting at (character 2)"),
        (b'[{"text": "a"},\n{"text": "b"}', "line 2: no JSON: Expecting ',' delimiter (character 14)"),
        (b'[{"text": "a"}\n{"text": "b"}]', "line 2: no JSON: Expecting ',' delimiter (character 1)"),
        (b'[{"text": "a"},\n]', "line 2: no JSON: Expecting value (character 1)"),
        (b'[\n{"text": "a"}] x', "line 2: no JSON: Extra data (character 16)"),
        (b'{\n"text": ["a"], 5', "line 2: no JSON: Expecting property name enclosed in double quotes"),
        (b'{\n"text" ["a"]', "line 2: no JSON: Expecting ':' delimiter (character 8)"),
        (
            b'{\n"text": ["a"],\n"y\xff": ["b"]\n}',
            "line 3: no JSON: byte 0xff after 2 characters is not UTF-8",
        ),
        (b'{\n"text": ["a"],\n"text": ["b"]\n}', "no JSON: the key 'text' is there twice"),
    ],
)
def test_a_list_file_that_is_broken_is_an_error_of_the_file(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    keys = {"field": "rows"} if content.startswith(b"{") else {}
    content = b'{"rows":' + content if keys else content
    for on_bad_row in ("error", "skip"):
        message = error(tmp_path, content, on_bad_row=on_bad_row, **keys)
        assert f"{tmp_path / '0.json'} cannot be read as json: {problem}" in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[]", "holds no object, expected one with the key 'rows' (field)"),
        (b'{"rowS": []}', "holds an object with keys ['rowS'], expected one with the key 'rows' (field)"),
        (b'{"rows": 5}', "holds 5, expected a list of records"),
        (b'{"rows": {"text": "a"}}', "holds one object with keys ['text'], expected lines with an object"),
        (b'{"rows": [], "rows": []}', "no JSON: the key 'rows' is there twice"),
        (gzip.compress(b'{"rows": []}', mtime=0), "it is compressed with gzip: unpack it before it is read"),
    ],
)
def test_a_file_without_the_list_of_the_field_is_refused(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    message = error(tmp_path, content, field="rows")
    assert f"{tmp_path / '0.json'} cannot be read as json: {problem}" in message


@pytest.mark.parametrize("blank", [b"", b"\n \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("field", [None, "rows"])
def test_a_blank_file_among_others_has_no_rows(field: str | None, blank: bytes, tmp_path: Path) -> None:
    good = b'[{"text": "a"}]' if field is None else b'{"rows": [{"text": "a"}]}'
    rows = read(tmp_path, blank, good, **({} if field is None else {"field": field}))
    assert rows.open()["text"][:] == ["a"]


FIRST_LINES = [
    "[]",
    '["text"]',
    "{",
    '{"text": "a",',
    '{"text": "a", "l": [',
    '{"text": "a", "l": {',
    '{"text": "a", "l": [1,',
    '{"text": "a',
    '{"text":',
    '{"text": "a"',
]


@pytest.mark.parametrize("first", FIRST_LINES)
@pytest.mark.parametrize("second", ["", "rubbish", "\udcff", '{"text": "b"}', '{"text": "b",'])
def test_lines_whose_first_ones_are_bad_are_no_list(first: str, second: str, tmp_path: Path) -> None:
    for others in ([], ['{"text": "c"}'], ['{"text": "c"}'] * 20):
        lines = [first, second, *others]
        if not any(lines[1:]) and first.startswith("["):
            continue
        path = tmp_path / "a.jsonl"
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        assert not is_list_file(path)
        found = [record.values["text"] for record in read_records(path, FileFormat("json")) if record.values]
        assert found == [json.loads(line)["text"] for line in lines[1:] if line.endswith("}")]


@pytest.mark.parametrize("num_rows", range(1, 12))
def test_an_object_over_any_number_of_lines_is_one(num_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    texts = [f"text {row}" for row in range(num_rows)]
    for text in (json.dumps({"text": texts}, indent=1), json.dumps({"text": texts}, indent=0)[:-1] + "\n\n}"):
        path.write_text(text)
        assert is_list_file(path)
        found = [record.values for record in read_records(path, FileFormat("json"))]
        assert found == [{"text": text} for text in texts]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(["text", "y", "[", '"', "{}"]), values, max_size=4)


@given(
    rows=st.lists(objects, max_size=5),
    indent=st.sampled_from([None, 0, 1, 4]),
    shape=st.sampled_from(["list", "field", "columns"]),
    is_ascii=st.booleans(),
)
def test_a_list_holds_what_python_has_written(
    rows: list[dict[str, Any]],
    indent: int | None,
    shape: str,
    is_ascii: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.json"
    written: Any = rows
    if shape == "field":
        written = {"more": {"rows": 1}, "rows": rows, "end": [rows]}
    elif shape == "columns":
        rows = [{"text": row, "y": None} for row in rows] or [{"text": 1, "y": 2}]
        written = {"rows": {key: [row[key] for row in rows] for key in ("text", "y")}}
    path.write_text(json.dumps(written, indent=indent, ensure_ascii=is_ascii), "utf-8")
    form = FileFormat("json", field=None if shape == "list" else "rows")
    found = list(read_records(path, form))
    assert not any(record.problem for record in found)
    assert [record.values for record in found] == rows
    if indent is not None and shape == "list":
        # Cut anywhere, it is no list, and nothing of it is taken for lines.
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UnreadableFileError, match=r"line \d+: no JSON: "):
            list(read_records(path, form))


def test_what_nobody_reads_costs_no_row(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a", "score": NaN}',
        b'{"text": "b", "score": [-Infinity]}',
        b'{"text": "c", "title": "\\ud83d"}',
        b'{"text": "d", "number": ' + b"9" * 30 + b"}",
    ]
    assert read(tmp_path, b"\n".join(lines)).open()["text"][:] == ["a", "b", "c", "d"]
    assert len(read(tmp_path, b"[" + b",".join(lines) + b"]").numbers) == 4
    (tmp_path / "0.json").write_bytes(lines[2])
    read_one = FileFormat("json", wanted=("text", "title"))
    problems = [record.problem for record in read_records(tmp_path / "0.json", read_one)]
    assert problems == ["the surrogate 0xd83d after 24 characters is not UTF-8"]


@pytest.mark.parametrize("value", [b"NaN", b"[Infinity]", b'{"z": -Infinity}', b"1e999"])
def test_a_number_that_json_has_not_is_bad_in_a_column_that_is_read(value: bytes, tmp_path: Path) -> None:
    content = b'{"text": "a", "y": 0}\n{"text": "b", "y": ' + value + b"}\n"
    message = error(tmp_path, content, label_column="y")
    assert "line 2: column 'y' holds " in message
    assert "expected a number that JSON has" in message
    assert len(read(tmp_path, content, label_column="y", on_bad_row="skip").numbers) == 1
