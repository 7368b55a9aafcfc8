"""Files with bad bytes, quotes and rows: named, or left out and counted; nothing lost, nothing changed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from orchestrator.data import conversion, sources
from orchestrator.data.columns import read_batches
from orchestrator.data.json_records import is_list_file
from orchestrator.data.record import UnreadableFileError
from orchestrator.data.records import FileFormat, read_records
from orchestrator.data.rows import Rows, find_rows
from orchestrator.data.sources import find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import section, write_jsonl

CSV = FileFormat("csv")


def read(path: Path | list[Path], **keys: Any) -> Rows:
    files = [str(one) for one in (path if isinstance(path, list) else [path])]
    cache = (path[0] if isinstance(path, list) else path).parent / "cache"
    return find_rows(find_source("corpus", section(files=files, **keys), cache), "train")


def error(path: Path, **keys: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(path, **keys)
    return str(raised.value)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


QUOTE = "a quote is not closed, or is not doubled inside a field"
FILES = {
    "text": ("text", b"a\nb\xff\nc\n", 2, ["a", "c"], "byte 0xff after 1 characters is not UTF-8"),
    "csv bytes": (
        "csv",
        b"text,y\na,1\nb\xff,2\nc,3\n",
        3,
        ["a", "c"],
        "byte 0xff after 1 characters is not",
    ),
    "csv open quote": ("csv", b'text,y\na,1\n"b,2\nc,3\nd,4\n', 3, ["a", "c", "d"], QUOTE),
    "csv two rows in one": ("csv", b'text,y\n"b,1\nc,"2"\nd,3\n', 2, ["c", "d"], QUOTE),
    "csv bare quote": ("csv", b'text,y\n"b "and" b",1\nc,2\n', 2, ["c"], QUOTE),
    "csv field too many": ("csv", b"text,y\nb,b,1\nc,2\n", 2, ["c"], "3 fields, expected 2 as in the header"),
    "csv field too few": ("csv", b"text,y\nb\n\nc,2\n", 2, ["c"], "1 field, expected 2 as in the header"),
    "json bytes": (
        "json",
        b'{"text": "a"}\n{"text": \xff}\n{"text": "c"}\n',
        2,
        ["a", "c"],
        "byte 0xff after",
    ),
    "json cut off": (
        "json",
        b'{"text": "a"}\n{"text": "b\n{"text": "c"}\n',
        2,
        ["a", "c"],
        "no JSON: Invalid",
    ),
    "json surrogate": (
        "json",
        b'{"text": "a"}\n{"text": "\\ud800"}\n',
        2,
        ["a"],
        "the surrogate 0xd800 after",
    ),
    "json first line cut off after a comma": (
        "json",
        b'{"text": "a",\n{"text": "b"}\n{"text": "c"}\n',
        1,
        ["b", "c"],
        "no JSON: Expecting property name",
    ),
    "json first line cut off in a list": (
        "json",
        b'\n{"tags": [\n{"text": "b"}\n{"text": "c"}\n',
        2,
        ["b", "c"],
        "no JSON: Expecting value",
    ),
    "csv with NUL": (
        "csv",
        b"text,y\na,1\nb\0,2\nc,3\n",
        3,
        ["a", "c"],
        "a NUL character after 1 characters",
    ),
    "text with NUL": ("text", b"a\nb\0b\nc\n", 2, ["a", "c"], "a NUL character after 1 characters"),
    "json no object": ("json", b'{"text": "a"}\n[5]\n', 2, ["a"], "holds [5], expected an object"),
    "json key twice": ("json", b'{"text": "a"}\n{"text": "b", "text": "c"}\n', 2, ["a"], "no JSON: the key"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_line_is_named_or_left_out_and_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, content, line, texts, problem = FILES[name]
    path = write(tmp_path / f"a.{kind}", content)
    message = error(path, source=kind)
    assert message.startswith(f"datasets.corpus: {path} cannot be read as {kind}: line {line}: {problem}")
    assert "Correct it, or set on_bad_row: skip." in message
    with caplog.at_level(logging.WARNING):
        rows = read(path, source=kind, on_bad_row="skip")
    assert rows.open()["text"][:] == texts
    assert rows.counts.num_skipped == 1
    assert rows.counts.num_rows == len(texts) + 1
    ((place, said),) = rows.counts.skipped
    assert place == f"{path}: line {line}"
    assert problem in said
    assert caplog.messages == [
        f"datasets.corpus: 1 of {len(texts) + 1} rows are skipped, first {path}: line {line}: {said}"
    ]


def test_a_header_that_cannot_be_read_is_an_error_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'te"xt,"y\na,1\n')
    message = error(path, source="csv", on_bad_row="skip")
    assert f"{path} cannot be read as csv: line 1: {QUOTE}" in message
    assert "skip" not in message


def test_a_json_list_that_is_broken_has_no_lines_to_leave_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'[{"text": "a"},\n{"text": b}]')
    assert f"{path} cannot be read as json: " in error(path, source="json", on_bad_row="skip")


@pytest.mark.parametrize(
    ("sample_by", "kept", "line"), [("paragraph", ["a\na", "c"], 4), ("document", ["whole\n"], 1)]
)
def test_what_is_left_out_of_a_text_file_is_a_row(
    sample_by: str, kept: list[str], line: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.txt", b"a\na\n\nb\nb\xff\n\nc")
    whole = [write(tmp_path / "b.txt", b"whole\n")] if sample_by == "document" else []
    rows = read([path, *whole], source="text", sample_by=sample_by, on_bad_row="skip")
    assert rows.open()["text"][:] == kept
    assert rows.counts.skipped[0][0] == f"{path}: line {line}"


def test_text_of_parquet_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    # The reader of Parquet does not look at the bytes of a text.
    parquet = tmp_path / "a.parquet"
    table = datasets.Dataset.from_dict({"text": [b"a", b"\xff", None, b"c"]}).with_format("arrow")[:]
    binary = table["text"]
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": binary.cast("string", safe=False)}), parquet)
    rows = read(parquet, source="parquet", on_bad_row="skip")
    assert rows.open()["text"][:] == ["a", "c"]
    assert rows.counts.num_skipped == 2


BROKEN = pyarrow.array([b"ok", b"x\xff", b"z"])
STRINGS = pyarrow.Array.from_buffers(pyarrow.string(), 3, BROKEN.buffers())
ONE_EACH = pyarrow.array([0, 1, 2, 3], pyarrow.int32())
NESTED = {
    "words": (
        {"words": pyarrow.ListArray.from_arrays(ONE_EACH, STRINGS), "tags": [[0], [1], [0]]},
        {"words_column": "words", "label_column": "tags"},
        "column 'words', word 0 (counted from 0) is b'x\\xff', expected a string",
    ),
    "labels": (
        {"text": ["a", "b", "c"], "tags": pyarrow.ListArray.from_arrays(ONE_EACH, STRINGS)},
        {"label_column": "tags"},
        "column 'tags' holds b'x\\xff', which is not UTF-8",
    ),
    "messages": (
        {
            "m": pyarrow.ListArray.from_arrays(
                ONE_EACH, pyarrow.StructArray.from_arrays([["user"] * 3, STRINGS], names=["role", "content"])
            )
        },
        {"messages_column": "m"},
        "column 'm', message 0 (counted from 0) has content b'x\\xff', expected a string",
    ),
    "other keys of messages": (
        {
            "m": pyarrow.ListArray.from_arrays(
                ONE_EACH,
                pyarrow.StructArray.from_arrays(
                    [["user"] * 3, ["a"] * 3, pyarrow.ListArray.from_arrays(ONE_EACH, STRINGS)],
                    names=["role", "content", "tools"],
                ),
            )
        },
        {"messages_column": "m"},
        "column 'm', message 0 (counted from 0) holds b'x\\xff', which is not UTF-8",
    ),
}


@pytest.mark.parametrize("case", NESTED)
def test_nested_text_of_parquet_that_is_not_utf8_is_a_bad_row(case: str, tmp_path: Path) -> None:
    columns, keys, problem = NESTED[case]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    assert f"{path}: row 1 (counted from 0): {problem}." in error(path, source="parquet", **keys)
    assert read(path, source="parquet", on_bad_row="skip", **keys).numbers.tolist() == [0, 2]


def test_a_row_that_the_filter_cannot_judge_is_a_bad_row(tmp_path: Path) -> None:
    texts = pyarrow.array([b"en", b"e\xff", b"de", b"\xff", b"en"])
    columns = {
        "text": ["a", "b", "c", "d", "e"],
        "language": pyarrow.Array.from_buffers(pyarrow.string(), 5, texts.buffers()),
        "score": [1, 1, 1, 2, 1],
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    keys = {"source": "parquet", "filter": {"language": "en", "score": 1}}
    problem = "column 'language' holds b'e\\xff', which is not UTF-8"
    assert f"{path}: row 1 (counted from 0): {problem}. Correct or filter the row" in error(path, **keys)
    rows = read(path, on_bad_row="skip", **keys)
    # The other text that is none stands in a row which its score keeps out.
    assert rows.numbers.tolist() == [0, 4]
    counts = rows.counts
    assert (counts.num_rows, counts.num_filtered, counts.num_skipped) == (5, 3, 1)
    assert counts.skipped == ((f"{path}: row 1 (counted from 0)", problem),)
    keys["filter"] = {"language": "en", "score": 3}
    assert "keeps none of 5 rows; column 'language' starts with values 'de', 'en', b" in error(path, **keys)


def test_a_key_of_messages_that_is_null_everywhere_spoils_nothing(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "a", "name": None, "meta": {"x": None}}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"m": [turn] * (1 + row % 3)} for row in range(2500)]).to_parquet(str(path))
    rows = read(path, source="parquet", messages_column="m").open()
    assert rows["messages"][:][2] == [turn] * 3
    # Slices of nested columns whose bytes are looked at one by one.
    content = pyarrow.array([b"a"] * 1494 + [b"x\xff"] + [b"z"] * 5)
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 1500, content.buffers())
    empty = pyarrow.StructArray.from_arrays([pyarrow.nulls(1500)], names=["x"])
    columns = [["user"] * 1500, texts, empty]
    turns = pyarrow.StructArray.from_arrays(columns, names=["role", "content", "meta"])
    lists = pyarrow.ListArray.from_arrays(pyarrow.array(range(1501), pyarrow.int32()), turns)
    table = pyarrow.table({"m": pyarrow.chunked_array([lists, lists])})
    found = [value for batch in read_batches(datasets.Dataset(table), ["m"]) for value in batch["m"]]
    assert len(found) == 3000
    assert [row for row, value in enumerate(found) if value[0]["content"] not in ("a", "z")] == [1494, 2994]


def test_a_parquet_file_that_the_library_cannot_take_is_named(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a"], "y": pyarrow.array([[("k", 1)]], pyarrow.map_("string", "int64"))})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    assert f"{path} cannot be read as parquet: Arrow type map<string, int64" in error(
        path, source="parquet", label_column="y"
    )
    parquet.write_table(table.select(["text"]).replace_schema_metadata({"huggingface": '{"info": {}}'}), path)
    assert f"{path} cannot be read as parquet: its metadata 'huggingface' lacks 'features'." in error(
        path, source="parquet"
    )


def test_a_parquet_file_with_a_column_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table([["a"], ["b"], ["c"]], names=["text", "y", "y"])
    parquet.write_table(table, path)
    assert read(path, source="parquet").open()["text"][:] == ["a"]
    parquet.write_table(table.rename_columns(["text", "text", "y"]), path)
    assert (
        f"{path} cannot be read as parquet: its column 'text' is there twice: rename one of them."
        in error(path, source="parquet")
    )


def test_what_is_left_out_for_a_column_divides_the_cache(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "y": 2**70 if n == 2 else n % 2} for n in range(8)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    keys: dict[str, Any] = {"source": "json", "on_bad_row": "skip", "text_column": "text"}
    labelled = find_source("a", section(files=[str(path)], label_column="y", **keys), tmp_path / "cache")
    plain = find_source("a", section(files=[str(path)], **keys), tmp_path / "cache")
    # Without its labels the one section reads as the other, and yet it has a row less.
    unlabelled = labelled.without_labels()
    assert unlabelled.dataset == plain.dataset
    assert [len(find_rows(source, "train").numbers) for source in (unlabelled, plain)] == [7, 8]


def test_rows_behind_a_line_that_was_left_out_are_placed_among_those_that_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text,y\n"a,1\nb,2\nc,\n')
    rows = read(path, source="csv", on_bad_row="skip", label_column="y")
    assert [place for place, _ in rows.counts.skipped] == [
        f"{path}: line 2",
        f"{path}: line 4, row 1 of those that can be read (counted from 0)",
    ]


@pytest.mark.parametrize("group_bytes", [1, 1 << 28])
def test_bad_lines_of_many_files_are_left_out_with_an_empty_file_among_them(
    group_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "GROUP_BYTES", group_bytes)
    good = [write(tmp_path / f"{name}.csv", f"text,y\n{name},1\n".encode()) for name in ("a", "c")]
    empty = write(tmp_path / "b.csv", b"")
    header = write(tmp_path / "d.csv", b"text,y\n")
    bad = write(tmp_path / "e.csv", b'text,y\n"e,1\n')
    rows = read([good[0], empty, good[1], header, bad], source="csv", on_bad_row="skip")
    assert rows.open()["text"][:] == ["a", "c"]
    assert rows.counts.skipped[0][0] == f"{bad}: line 2"


def test_a_csv_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", b"text,y\na,1\n")
    read(path, source="csv")
    monkeypatch.setattr(conversion, "read_records", None)
    assert read(path, source="csv").open()["text"][:] == ["a"]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_separator_is_suggested(mark: str, tmp_path: Path) -> None:
    hint = f"f {mark!r} separates columns, set delimiter: {json.dumps(mark)}"
    path = write(tmp_path / "a.csv", f"text{mark}y\na{mark}1\n".encode())
    columns = [f"text{mark}y"]
    assert f"the columns are {columns}. I{hint}." in error(path, source="csv")
    path = write(tmp_path / "b.csv", f"text{mark}y\na, b{mark}1\n".encode())
    keys = {"source": "csv", "text_column": columns[0]}
    assert f"line 2: 2 fields, expected 1 as in the header (i{hint})" in error(path, **keys)
    assert read(path, source="csv", delimiter=mark).open()["text"][:] == ["a, b"]


def test_a_label_outside_the_set_names_its_file_and_row_or_is_left_out(tmp_path: Path) -> None:
    rows = [{"text": "a", "y": "good"}, {"text": "b", "y": "goood"}, {"text": "c", "y": "bad"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    keys = {"source": "json", "label_column": "y", "label_names": ["bad", "good"]}
    assert error(path, **keys) == (
        f"datasets.corpus: {path}: line 2, row 1 (counted from 0): column 'y' holds 'goood', expected one of"
        " ['bad', 'good']. Correct or filter the row, or set on_bad_row: skip."
    )
    found = read(path, **keys, on_bad_row="skip")
    assert found.open()["label"][:] == ["good", "bad"]
    assert found.counts.num_skipped == 1


@pytest.mark.parametrize("kind", ["text", "csv"])
def test_a_row_of_fifty_megabytes_is_read_whole_from(kind: str, tmp_path: Path) -> None:
    long = "many words " * 5_000_000
    lines = ["short", long, "end"]
    path = write(tmp_path / "a", ("text\n" * (kind == "csv") + "\n".join(lines) + "\n").encode())
    assert [len(text) for text in read(path, source=kind).open()["text"]] == [5, len(long), 3]


FIELDS = st.text(alphabet='ab",\n\r 01.\u00e9', max_size=6)


@given(rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=6), ends=st.sampled_from(["\n", "\r\n"]))
def test_a_csv_holds_what_a_csv_writer_has_written(
    rows: list[tuple[str, str]], ends: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=ends, quoting=csv.QUOTE_ALL).writerows([("text", "y"), *rows])
    path = write(tmp_path_factory.getbasetemp() / "rows.csv", buffer.getvalue().encode())
    found = [record for record in read_records(path, CSV) if record.values is not None]
    assert [(record.values["text"], record.values["y"]) for record in found if record.values] == rows
    assert not any(record.problem for record in found)


@given(content=st.binary(max_size=40) | st.text(alphabet='a,"\n\r', max_size=40).map(str.encode))
@pytest.mark.parametrize("kind", ["csv", "json", "text"])
def test_every_line_is_in_one_record(
    kind: str, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any", content)
    try:
        records = list(read_records(path, FileFormat(kind)))
    except UnreadableFileError:
        return
    joined = "".join(line for record in records for line in record.lines)
    if not (kind == "json" and is_list_file(path)):
        assert joined.encode("utf-8", "surrogateescape") == content.removeprefix(b"\xef\xbb\xbf")
        assert [record.place for record in records] == [
            f"line {1 + sum(len(before.lines) for before in records[:index])}"
            for index in range(len(records))
        ]
    assert not any(record.values is not None and record.problem for record in records)


@pytest.mark.parametrize(
    ("source", "content"),
    [("json", b"{]\nno json\n"), ("csv", b"text\na,1\nb,2\n"), ("text", b"\xff\n\xfe\n")],
)
def test_a_source_of_bad_records_alone_is_not_called_empty_without_them(
    source: str, content: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows", content)
    message = error(path, source=source, on_bad_row="skip")
    first = 2 if source == "csv" else 1
    assert (
        f"0 rows in {path}, expected text. 2 records that cannot be read are skipped, first {path}:"
        f" line {first}: "
    ) in message


def test_a_page_of_a_parquet_file_that_fails_its_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"number {row}" for row in range(100)]})
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    assert len(read(path, source="parquet").numbers) == 100
    content = path.read_bytes().replace(b"number 77", b"nulber 77")
    path.write_bytes(content)
    assert f"{path} cannot be read as parquet: " in error(path, source="parquet")


@pytest.mark.parametrize("kind", ["text", "csv", "json"])
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_file_that_is_no_text_is_refused_as_what_it_is(kind: str, on_bad_row: str, tmp_path: Path) -> None:
    lines = "text\nabc\n" if kind != "json" else '{"text": "abc"}\n'
    for content, expected in (
        (gzip.compress(lines.encode()), "it is compressed with gzip: unpack it before it is read"),
        (bz2.compress(lines.encode()), "it is compressed with bzip2"),
        (lines.encode("utf-16"), "it is UTF-16: convert it to UTF-8"),
        (lines.encode("utf-16-be"), "NUL"),
    ):
        path = write(tmp_path / "a", content)
        with pytest.raises(DataError) as raised:
            read(path, source=kind, on_bad_row=on_bad_row)
        assert f"{path}" in str(raised.value)
        assert expected in str(raised.value)


def test_quotes_mean_nothing_where_fields_are_not_quoted(tmp_path: Path) -> None:
    content = b'text\tlabel\n"Yes\t1\nNo"\t0\nMay "be"\t1\n'
    path = write(tmp_path / "a.tsv", content)
    keys = {"source": "csv", "delimiter": "\t", "label_column": "label"}
    rows = read(path, quoted=False, **keys).open()
    assert rows["text"][:] == ['"Yes', 'No"', 'May "be"']
    assert rows["label"][:] == ["1", "0", "1"]
    assert read(path, **keys).open()["text"][:] == ["Yes\t1\nNo", 'May "be"']


def test_parquet_files_whose_ids_mean_other_classes_are_refused(tmp_path: Path) -> None:
    for file, names in (("a", ["neg", "pos"]), ("b", ["pos", "neg"])):
        classes = datasets.ClassLabel(names=names)
        features = datasets.Features({"text": datasets.Value("string"), "y": classes})
        rows = datasets.Dataset.from_dict({"text": ["t"], "y": [0]}, features=features)
        rows.to_parquet(tmp_path / f"{file}.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(DataError) as raised:
        read(files, source="parquet", label_column="y")
    assert f"column 'y' has classes ['neg', 'pos'] and ['pos', 'neg'], {files[0]}" in str(raised.value)
    assert len(read(files, source="parquet").numbers) == 2
