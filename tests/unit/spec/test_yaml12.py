"""Scalars as a person means them, bounds, and what is refused of YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.load import load_job
from orchestrator.spec.tree import plain
from orchestrator.spec.yaml12 import MAX_BYTES, dump, parse, scalar
from tests.unit.spec.jobs import changed, complaints


def read(text: str) -> Any:
    """``text`` without places."""
    return plain(parse(text, "job.yaml", quoted=str, problems=[]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("20_000_000", 20_000_000),
        ("-3", -3),
        ("+.5", 0.5),
        ("6.0e-4", 6.0e-4),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("1_", "1_"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("-", "-"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_quotes_make_a_word_of_a_number() -> None:
    assert read("a: '8'\nb: \"1e-4\"\nc: |\n  8\nd: !!str 8") == {
        "a": "8",
        "b": "1e-4",
        "c": "8\n",
        "d": "8",
    }


def test_anchors_and_aliases_share_values() -> None:
    assert read("a: &x {k: 1}\nb: *x") == {"a": {"k": 1}, "b": {"k": 1}}


REFUSED = {
    "a: [1\nb: 2\n": (
        "2: not valid YAML: while parsing a flow sequence, did not find expected ',' or ']'."
        " Line 1 opens '[' and does not close it."
    ),
    "a:\n\tb: 1\n": (
        "2: not valid YAML: while scanning for the next token, found character that cannot start"
        " any token. Line 2 is indented with a tab; YAML indents with spaces."
    ),
    "a: 1\n---\nb: 2\n": (
        "2: not valid YAML: expected a single document in the stream, but found another document"
    ),
    "a: *b\n": "1: not valid YAML: found undefined alias",
    "a: {b: ${N}, c: 1}\n": (
        "1: not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'. Inside '{...}'"
        " and '[...]' a variable stands in quotes: '${NAME}'"
    ),
    "a: &a [*a]\n": "1: nested deeper than 64 levels, aliases written out",
    f"a: {'[' * 70}{']' * 70}\n": "1: nested deeper than 64 levels",
    "a: " + "[" * 200_000: "1: nested deeper than 64 levels",
    "- " * 300_000: "1: nested deeper than 64 levels",
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.items(), ids=REFUSED.values())
def test_what_is_not_a_plain_document_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, text) == [f"job.yaml:{expected}"]


def test_a_document_that_explodes_through_aliases_is_refused(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    (message,) = complaints(tmp_path, "\n".join(levels))
    assert message.endswith(": more than 100000 values, aliases written out")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed: 17", "seed: 17\nseed: 18", "3: seed: duplicate key, first given in line 2"),
        (
            "      lr: 1e-3",
            "      lr: 1e-3\n      lr: 2e-3",
            "22: stages[0].optimizer.lr: duplicate key, first given in line 21",
        ),
        (
            "seed: 17",
            "<<: {seed: 1}",
            "2: merge key '<<' is not YAML 1.2; use 'defaults:' or 'extends:'",
        ),
        (
            "seed: 17",
            "seed: !!python/object:os.system x",
            "2: seed: tag '!!python/object:os.system' is not allowed; give a plain value",
        ),
        ("seed: 17", "? [a]\n: 1", "2: a key must be one word, found a list or a section"),
    ],
)
def test_surprises_of_yaml_are_refused(old: str, new: str, expected: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, changed(old, new)) == [f"job.yaml:{expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected keys such as 'name' and 'stages', found an empty file"),
        ("# only a comment\n", "expected keys such as 'name' and 'stages', found an empty file"),
        ("- a\n- b\n", "expected keys such as 'name' and 'stages', found a list"),
        ("hello", "expected keys such as 'name' and 'stages', found 'hello'"),
        ("a: \0\n", "not a text file: control characters are not allowed"),
        ("#" * (MAX_BYTES + 1), "larger than 1048576 bytes, which no job file is"),
    ],
)
def test_what_is_no_job_file_gets_one_message(text: str, expected: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, text) == [f"job.yaml: {expected}"]


def test_binary_files_folders_and_missing_files_get_one_message(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"name: \xff\xfe\x00")
    found = []
    for name in ("binary", ".", "missing.yaml", "binary/job.yaml"):
        with pytest.raises(SpecError) as caught:
            load_job(tmp_path / name)
        found.append(str(caught.value).removeprefix(str(tmp_path)))
    assert found == [
        "/binary: not a text file in UTF-8: byte 0xff at position 6",
        ": is a folder; give a job file (.yaml)",
        "/missing.yaml: no such file.",
        "/binary/job.yaml: cannot be read: Not a directory",
    ]


def test_a_job_file_nearby_is_suggested(tmp_path: Path) -> None:
    for name in ("bert_base.yaml", "gpt2.yaml"):
        (tmp_path / name).touch()
    found = []
    for path in (tmp_path / "bert_bsae.yaml", tmp_path / "gpt2", tmp_path):
        with pytest.raises(SpecError) as caught:
            load_job(path)
        found.append(str(caught.value))
    assert found == [
        f"{tmp_path}/bert_bsae.yaml: no such file. Did you mean '{tmp_path}/bert_base.yaml'?",
        f"{tmp_path}/gpt2: no such file. Did you mean '{tmp_path}/gpt2.yaml'?",
        f"{tmp_path}: is a folder; give a job file, such as '{tmp_path}/bert_base.yaml'",
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.from_regex(r"[-+0-9_.eox]{1,8}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def without_merge_keys(node: Any) -> Any:
    """``node`` without the one key that cannot be written."""
    if isinstance(node, dict):
        return {key: without_merge_keys(value) for key, value in node.items() if key != "<<"}
    return [without_merge_keys(item) for item in node] if isinstance(node, list) else node


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=5), VALUES, max_size=4).map(without_merge_keys))
def test_what_is_dumped_is_read_back_the_same(values: dict[str, Any]) -> None:
    back = read(dump(values))
    assert back == values
    assert repr(back) == repr(values)  # 1, 1.0 and true are equal, but not the same
