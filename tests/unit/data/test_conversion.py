"""Texts come out as they are written, whatever they look like; damaged copies are noticed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data import arrow, conversion, sources
from orchestrator.data.fields import documents_of
from orchestrator.data.rows import find_rows
from orchestrator.data.sources import find_source
from orchestrator.errors import DataError
from tests.unit.data.corpus import section, write_csv, write_jsonl

LOOK_ALIKES = ["007", "1e5", "2020-01-01", "2020-01-01T00:00:00Z", "True", "NA", "null", "1,5", " x ", "[1]"]


def read(path: Path, **keys: Any) -> Any:
    source = find_source("corpus", section(files=str(path), **keys), path.parent / "cache")
    return find_rows(source, "train").open()


@pytest.mark.parametrize("text", LOOK_ALIKES)
@pytest.mark.parametrize("form", ["csv", "lines", "list", "field", "columns"])
def test_a_text_is_not_taken_for_something_else(form: str, text: str, tmp_path: Path) -> None:
    texts = [text] * 3
    path, keys = tmp_path / "a", {"source": "json"}
    records = [{"text": value} for value in texts]
    if form == "csv":
        write_csv(path, {"text": texts})
        keys = {"source": "csv"}
    elif form == "lines":
        write_jsonl(path, records)
    elif form == "list":
        path.write_text(json.dumps(records))
    elif form == "field":
        path.write_text(json.dumps({"rows": records}))
        keys["field"] = "rows"
    else:
        path.write_text(json.dumps({"text": texts}, indent=1))
    assert read(path, **keys)["text"][:] == texts


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_what_a_text_is_does_not_depend_on_its_neighbours(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "COPY_ROWS", 2)
    path = tmp_path / "a"
    if kind == "csv":
        write_csv(path, {"text": LOOK_ALIKES, "y": list(range(len(LOOK_ALIKES)))})
    else:
        write_jsonl(path, [{"text": text, "y": y} for y, text in enumerate(LOOK_ALIKES)])
    rows = read(path, source=kind, label_column="y", filter={"y": [0, 3, 4, 9]})
    assert rows["text"][:] == [LOOK_ALIKES[number] for number in (0, 3, 4, 9)]
    assert [int(label) for label in rows["label"]] == [0, 3, 4, 9]


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.1, None],
        [[1], [2.5], []],
        ["a", 3, {"b": [1]}],
        [{"a": 1}, {"b": 2}],
        [2**63, -1],
        [1, 2**64 - 1],
        [2**53 + 1, 0.5],
        [-(2**53) - 1, None, 0.5],
        [2**53, 0.5],
        [[2**63], [-1], []],
        [{"a": {"b": [2**60 + 1]}}, {"a": {"b": [0.5]}}],
    ],
)
@pytest.mark.parametrize("copy_rows", [1, 1000])
def test_values_of_json_are_those_that_stand_there(
    copy_rows: int, values: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "COPY_ROWS", copy_rows)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "y": value} for value in values])
    source = find_source(
        "corpus", section(source="json", files=str(path), label_column="y"), tmp_path / "cache"
    )

    def plain(value: Any) -> Any:
        return (
            {key: held for key, held in value.items() if held is not None}
            if isinstance(value, dict)
            else value
        )

    assert [plain(value) for value in source.open()["y"]] == values


@pytest.mark.parametrize(
    "values",
    [
        [1.5, True, None],
        [[1.5], None, [False]],
        [{"a": 1.5}, {"a": True}],
        [{"a": [{"b": 1.5}]}, {"a": [{"b": True}, {"b": 2.5}]}],
        [{"a": 1.5, "b": True}, {"a": 2.5, "b": False}],
    ],
)
def test_a_boolean_after_a_fraction_is_no_number(values: list[Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "y": value} for value in values])
    dataset = section(source="json", files=str(path), label_column="y")
    found = find_source("corpus", dataset, tmp_path / "cache").open()["y"]
    # As text: Python takes True for equal to 1.0.
    assert list(map(json.dumps, found)) == list(map(json.dumps, values))


@pytest.mark.parametrize("value", [1 << 70, [1, -(1 << 64)], {"a": [{"b": 1 << 64}]}])
def test_a_number_of_too_many_bits_is_named_with_its_line(value: Any, tmp_path: Path) -> None:
    good = [{"text": "t", "y": None, "unread": 1 << 70}, {"text": "u", "y": None}]
    path = write_jsonl(tmp_path / "a.jsonl", [good[0], {"text": "t", "y": value}, good[1]])
    keys = {"source": "json", "label_column": "y"}
    with pytest.raises(
        DataError, match=r"line 2: column 'y' holds the whole number -?1[0-9]+, expected one of"
    ):
        find_source("corpus", section(files=str(path), **keys), tmp_path / "cache").open()
    dataset = section(files=str(path), on_bad_row="skip", **keys)
    source = find_source("corpus", dataset, tmp_path / "cache")
    assert source.open()["text"][:] == ["t", "u"]
    assert source.left_out()[0] == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1,\n"b": 2}', "holds one object with keys ['a', 'b'], expected lines with an object each"),
        ('[{"text": "a"}, 5]', "record 2 (line 1): holds 5, expected an object"),
        ("[\n{]", "line 2: no JSON: "),
    ],
)
def test_a_json_file_of_another_shape_is_named(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        read(path, source="json")
    assert f"{path} cannot be read as json: {expected}" in str(raised.value)


def test_a_header_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,y,text\na,1,b\n")
    with pytest.raises(DataError, match="line 1: the header has the column 'text' twice"):
        read(path, source="csv")


@pytest.mark.parametrize("kind", ["text", "json", "csv", "parquet"])
@pytest.mark.parametrize("how", ["flipped", "cut off", "gone"])
def test_a_damaged_copy_is_made_again_and_the_user_told(
    how: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    texts = [f"text {number}" for number in range(50)]
    path = tmp_path / f"a.{kind}"
    made = datasets.Dataset.from_dict({"text": texts})
    if kind == "text":
        path.write_text("\n".join(texts))
    else:
        {"json": made.to_json, "csv": made.to_csv, "parquet": made.to_parquet}[kind](str(path))
    keys = {"source": kind}
    assert read(path, **keys)["text"][:] == texts
    copy = next((tmp_path / "cache" / "arrow").glob(f"*/{conversion.ROWS}"))
    content = copy.read_bytes()
    if how == "gone":
        copy.unlink()
    elif how == "cut off":
        copy.write_bytes(content[:-700])
    else:
        copy.write_bytes(content.replace(b"text 7", b"text 8"))
    with caplog.at_level(logging.WARNING):
        assert read(path, **keys)["text"][:] == texts
    assert [message for message in caplog.messages if f"{copy.parent}: file {conversion.ROWS}" in message]
    assert "it is made again" in caplog.text


def test_files_without_rows_add_nothing(tmp_path: Path) -> None:
    import datasets

    for kind in ("csv", "parquet"):
        files = [tmp_path / f"{number}.{kind}" for number in range(3)]
        for path, texts in zip(files, ([], ["007"], []), strict=True):
            rows = datasets.Dataset.from_dict(
                {"text": texts}, features=datasets.Features(text=datasets.Value("string"))
            )
            rows.to_csv(str(path)) if kind == "csv" else rows.to_parquet(str(path))
        source = find_source(
            "corpus", section(source=kind, files=[str(path) for path in files]), tmp_path / "cache"
        )
        assert find_rows(source, "train").open()["text"][:] == ["007"]


def test_structures_of_different_rows_are_joined() -> None:
    schemas = [arrow.schema_of([{"y": value}], ["y"]) for value in ([{"a": 1}], [{"b": "x"}], None)]
    joined = arrow.join_schemas(schemas, or_json=True)
    assert str(joined.field("y").type).replace("item", "element") == (
        "list<element: struct<a: int64, b: string>>"
    )


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("json", "[]"),
        ("json", "\n \n"),
        ("json", "[\n]"),
        ("json", "[{}]"),
        ("csv", "\n\n"),
        ("csv", "\ufeff"),
    ],
)
def test_a_corpus_without_rows_is_said_to_be_empty(kind: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"datasets\.corpus: the corpus is empty: 0 rows in"):
        read(path, source=kind)


def test_a_list_may_begin_after_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n [\n{"text": "a"}]')
    assert read(path, source="json")["text"][:] == ["a"]


@pytest.mark.parametrize(("kind", "content"), [("csv", "text,y\n"), ("json", '{"text": null, "y": [}\n')])
def test_a_source_of_several_columns_without_rows_is_empty(kind: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text(content)
    with pytest.raises(DataError, match="the corpus is empty"):
        read(path, source=kind, label_column="y", on_bad_row="skip")


def test_no_row_shapes_the_conversation_of_another(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "c", "tool_calls": [{"arguments": {"city": "Rome", "n": 1}}]}
    other = {"role": "assistant", "content": "c", "tool_calls": [{"arguments": {"name": "x", "n": 2.5}}]}
    path = write_jsonl(tmp_path / "a.jsonl", [{"m": [said]}, {"m": [other]}])
    rows = read(path, source="json", messages_column="m")
    assert documents_of(rows[:]) == [[said], [other]]


def test_a_message_that_is_a_text_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"m": [{"role": "user", "content": "ok"}, "text"]}])
    with pytest.raises(DataError, match=r"message 1 \(counted from 0\) has role None, expected a string"):
        read(path, source="json", messages_column="m")


def test_a_file_that_changes_while_it_is_read_does_not_enter_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "old"}])
    digest = sources.digest_file

    def change_after(path: Path) -> str:
        found = digest(path)
        write_jsonl(path, [{"text": "new"}])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(sources, "digest_file", change_after)
        with pytest.raises(DataError, match=f"{path} was changed while it was read"):
            read(path, source="json")
    write_jsonl(path, [{"text": "old"}])
    assert read(path, source="json")["text"][:] == ["old"]


def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"b\.jsonl is a link to .*gone, which is not there"):
        read(tmp_path / "*.jsonl", source="json")
