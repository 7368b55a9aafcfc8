from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contracts import RowLayout
from orchestrator.data import versions
from orchestrator.data.cache import COMPLETE, make_folder
from orchestrator.data.loader import RowReader
from orchestrator.data.prepare import cut_segments, prepare_rows, verify
from orchestrator.data.prepared import FORMAT_VERSION, Meta
from orchestrator.data.sources import find_source
from orchestrator.data.tokenizer import end_id, for_classification, load_tokenizer
from orchestrator.errors import DataError, NoRoomError
from orchestrator.spec.datasets import Dataset
from tests.unit.data.corpus import (
    make_texts,
    prepared,
    section,
    text_corpus,
    train_small,
    write_csv,
    write_jsonl,
)

PACKED = RowLayout("packed", 32, framed=False, labelled=False)
LABELLED = RowLayout("documents", 24, framed=False, labelled=True)


def prepare(dataset: Dataset, layout: RowLayout, tokenizer: Path, cache: Path, **options: Any) -> Path:
    return prepared("corpus", dataset, "train", layout, tokenizer, cache, **options)


def rows_of(folder: Path, epoch: int = 0) -> list[Any]:
    reader = RowReader.open(folder, seed=1, source_name="corpus")
    return reader.read(np.arange(reader.num_rows), epoch)


def ids_of(folder: Path) -> list[list[int]]:
    return [row.input_ids.tolist() for row in rows_of(folder)]


def joined(rows: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(rows))


def labelled(path: Path, labels: list[Any], **keys: Any) -> Dataset:
    records = [
        {"text": text, "y": label} for text, label in zip(make_texts(len(labels)), labels, strict=True)
    ]
    return section(source="json", files=str(write_jsonl(path, records)), label_column="y", **keys)


def test_packing_drops_no_token_and_ends_every_document(tmp_path: Path, bpe: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    made = prepare(text_corpus(tmp_path, 50), PACKED, bpe, tmp_path)
    rows = ids_of(made)
    expected = [
        token for text in make_texts(50) for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ]
    assert joined(rows) == expected
    assert {len(row) for row in rows[:-1]} == {32}
    assert 1 <= len(rows[-1]) <= 32
    meta = Meta.open(made)
    assert (meta.num_rows, meta.num_tokens, meta.num_documents) == (len(rows), len(expected), 50)
    assert meta.token_dtype == "uint16"


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_framed_packing_puts_each_row_between_cls_and_sep(
    tmp_path: Path, request: pytest.FixtureRequest, algorithm: str
) -> None:
    made_tokenizer = request.getfixturevalue(algorithm)
    tokenizer = load_tokenizer(made_tokenizer)
    rows = ids_of(prepare(text_corpus(tmp_path, 50), replace(PACKED, framed=True), made_tokenizer, tmp_path))
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in rows)
    stream = [
        token
        for text in make_texts(50)
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    ]
    assert joined(row[1:-1] for row in rows) == stream
    assert {len(row) for row in rows[:-1]} == {32}


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
@pytest.mark.parametrize("framed", [False, True])
def test_best_fit_rows_hold_whole_documents_as_they_are_alone(
    tmp_path: Path, request: pytest.FixtureRequest, algorithm: str, framed: bool
) -> None:
    tokenizer_dir = request.getfixturevalue(algorithm)
    tokenizer = load_tokenizer(tokenizer_dir)
    layout = RowLayout("best_fit", 60, framed=framed, labelled=False)
    made = prepare(text_corpus(tmp_path, 50), layout, tokenizer_dir, tmp_path)
    reader = RowReader.open(made, seed=1, source_name="corpus", document_mask=True)
    found = [
        ids.tolist()
        for row in reader.read(np.arange(reader.num_rows), 0)
        for ids in np.split(row.input_ids, np.flatnonzero(np.diff(row.document_ids)) + 1)
    ]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    expected = []
    for text in make_texts(50):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if framed:
            expected += [[cls, *ids[at : at + 58], sep] for at in range(0, len(ids), 58)]
        else:
            ids = [*ids, end_id(tokenizer)]
            expected += [ids[at : at + 60] for at in range(0, len(ids), 60)]
    assert sorted(found) == sorted(expected)
    meta = Meta.open(made)
    assert (meta.num_documents, meta.num_truncated) == (50, 0)
    assert meta.num_split == len(expected) - 50 > 0
    assert meta.packing_efficiency == sum(map(len, expected)) / (60 * meta.num_rows)
    assert meta.num_rows < 50


def test_best_fit_rows_carry_the_label_of_each_document(tmp_path: Path, bpe: Path) -> None:
    """And a document is what it is in a row of its own."""
    records = [{"text": text, "y": row % 3} for row, text in enumerate(make_texts(60))]
    records[7]["text"] = ""
    dataset = section(source="json", files=str(write_jsonl(tmp_path / "a.jsonl", records)), label_column="y")
    alone = rows_of(prepare(dataset, LABELLED, bpe, tmp_path, num_labels=3))
    layout = replace(LABELLED, kind="best_fit")
    made = prepare(dataset, layout, bpe, tmp_path, num_labels=3)
    reader = RowReader.open(made, seed=1, source_name="corpus", document_mask=True)
    rows = reader.read(np.arange(reader.num_rows), 0)
    found = [
        (ids.tolist(), label)
        for row in rows
        for ids, label in zip(
            np.split(row.input_ids, np.flatnonzero(np.diff(row.document_ids)) + 1),
            row.labels.tolist(),
            strict=True,
        )
    ]
    assert sorted(found) == sorted((row.input_ids.tolist(), row.label) for row in alone)
    assert len(rows) < len(alone) == 59
    meta = Meta.open(made)
    assert meta.num_split == 0
    assert (
        meta.num_truncated == Meta.open(prepare(dataset, LABELLED, bpe, tmp_path, num_labels=3)).num_truncated
    )


def test_packing_efficiency_counts_the_frames_of_rows(tmp_path: Path, wordpiece: Path) -> None:
    for kind in ("packed", "documents"):
        layout = RowLayout(kind, 32, framed=True, labelled=False)  # type: ignore[arg-type]
        made = prepare(text_corpus(tmp_path, 50), layout, wordpiece, tmp_path)
        rows = ids_of(made)
        assert Meta.open(made).packing_efficiency == sum(map(len, rows)) / (32 * len(rows))
    pairs = RowLayout("pairs", 32, framed=True, labelled=False)
    made = prepare(text_corpus(tmp_path, 50), pairs, wordpiece, tmp_path)
    assert Meta.open(made).packing_efficiency is None


def test_documents_for_causal_models_end_where_the_text_ends(tmp_path: Path, bpe: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    layout = RowLayout("documents", 20, framed=False, labelled=False)
    made = prepare(text_corpus(tmp_path, 50), layout, bpe, tmp_path)
    full = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in make_texts(50)]
    assert ids_of(made) == [ids[:20] for ids in full]
    assert Meta.open(made).num_truncated == sum(len(ids) > 20 for ids in full) > 0


def test_documents_for_masked_models_are_framed(tmp_path: Path, wordpiece: Path) -> None:
    tokenizer = load_tokenizer(wordpiece)
    layout = RowLayout("documents", 20, framed=True, labelled=False)
    made = prepare(text_corpus(tmp_path, 50), layout, wordpiece, tmp_path)
    assert ids_of(made) == [
        tokenizer(text, truncation=True, max_length=20)["input_ids"] for text in make_texts(50)
    ]


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece"])
def test_classifier_rows_are_what_the_exported_tokenizer_gives(
    tmp_path: Path, request: pytest.FixtureRequest, algorithm: str
) -> None:
    made_tokenizer = request.getfixturevalue(algorithm)
    dataset = labelled(tmp_path / "a.jsonl", [row % 3 for row in range(60)])
    made = prepare(dataset, LABELLED, made_tokenizer, tmp_path, num_labels=3)
    tokenizer = for_classification(load_tokenizer(made_tokenizer))
    expected = [tokenizer(text, truncation=True, max_length=24)["input_ids"] for text in make_texts(60)]
    rows = rows_of(made)
    assert [row.input_ids.tolist() for row in rows] == expected
    assert [row.label for row in rows] == [row % 3 for row in range(60)]
    meta = Meta.open(made)
    assert meta.label_names == ("0", "1", "2")
    longer = [len(tokenizer(text)["input_ids"]) > 24 for text in make_texts(60)]
    assert meta.num_truncated == sum(longer) > 0


def test_empty_documents_are_left_out_with_their_labels_and_counted(tmp_path: Path, bpe: Path) -> None:
    records = [{"text": text, "y": label} for text, label in (("", 0), ("a b", 1), ("", 0), ("c", 0))]
    files = str(write_jsonl(tmp_path / "a.jsonl", records))
    dataset = section(source="json", files=files, label_column="y")
    for layout in (PACKED, LABELLED, replace(LABELLED, labelled=False)):
        meta = Meta.open(prepare(dataset, layout, bpe, tmp_path, num_labels=2 if layout.labelled else None))
        assert (meta.num_documents, meta.num_empty) == (2, 2)
        assert "2 more hold no token and were left out" in meta.summary()
    made = prepare(dataset, LABELLED, bpe, tmp_path, num_labels=2)
    assert [row.label for row in rows_of(made)] == [1, 0]


@pytest.mark.parametrize("text", ["\n\n", "  \n\t \n"])
def test_corpus_without_a_token_is_refused(text: str, tmp_path: Path, bpe: Path) -> None:
    (tmp_path / "a.txt").write_text(text, "utf-8")
    with pytest.raises(DataError, match="none of 2 rows holds a token"):
        prepare(section(source="text", files=str(tmp_path / "a.txt")), PACKED, bpe, tmp_path)


def test_a_row_without_a_label_that_is_skipped_adds_none(tmp_path: Path, bpe: Path) -> None:
    (tmp_path / "a.csv").write_text("text,y\na b,no\nc d,yes\ne f,\n", "utf-8")
    dataset = section(source="csv", files=str(tmp_path / "a.csv"), label_column="y", on_bad_row="skip")
    made = prepare(dataset, LABELLED, bpe, tmp_path, num_labels=2)
    assert Meta.open(made).label_names == ("no", "yes")


def test_string_labels_have_the_ids_of_all_splits(tmp_path: Path, bpe: Path) -> None:
    dataset = labelled(tmp_path / "a.jsonl", ["b", "c", "a", "b"] * 20, test_fraction=0.5)
    names = {
        Meta.open(
            prepared("corpus", dataset, split, LABELLED, bpe, tmp_path, num_labels=3)  # type: ignore[arg-type]
        ).label_names
        for split in ("train", "test")
    }
    assert names == {("a", "b", "c")}


def test_label_names_of_the_source_and_of_the_section_are_used(tmp_path: Path, bpe: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["neg", "pos"])}
    )
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ["a", "b"], "y": [1, 0]}, features=features).save_to_disk(
        str(tmp_path / "saved")
    )
    dataset = section(source="saved", path=str(tmp_path / "saved"), label_column="y")
    made = prepare(dataset, LABELLED, bpe, tmp_path)
    assert Meta.open(made).label_names == ("neg", "pos")
    assert [row.label for row in rows_of(made)] == [1, 0]
    dataset = labelled(tmp_path / "a.jsonl", ["x", "y"], label_names=("y", "x"))
    assert [row.label for row in rows_of(prepare(dataset, LABELLED, bpe, tmp_path))] == [1, 0]


def test_label_names_in_another_order_than_the_sources_own_are_refused(tmp_path: Path, bpe: Path) -> None:
    classes = datasets.Features(
        {"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["n", "p"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a b", "c d"], "y": [0, 1]}, features=classes)
    rows.to_parquet(tmp_path / "rows.parquet")
    keys: dict[str, Any] = {"source": "parquet", "files": str(tmp_path / "rows.parquet"), "label_column": "y"}
    layout = RowLayout("documents", 8, framed=False, labelled=True)

    def names(given: tuple[str, ...]) -> tuple[str, ...]:
        dataset = section(**keys, label_names=given)
        return Meta.open(prepared("corpus", dataset, "train", layout, bpe, tmp_path)).label_names

    assert names(("n", "p")) == ("n", "p")
    assert names(("bad", "good")) == ("bad", "good")
    with pytest.raises(
        DataError, match=r"label_names \['p', 'n'\] are in another order than the column's own"
    ):
        names(("p", "n"))


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_ids_that_mean_other_labels_than_those_learned_are_refused(
    kind: str, tmp_path: Path, bpe: Path
) -> None:
    def held_out(names: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
        rows = [{"text": "a b", "y": 0}, {"text": "c d", "y": 1}]
        if kind == "parquet":
            classes = {"text": datasets.Value("string"), "y": datasets.ClassLabel(names=list(names))}
            made = datasets.Dataset.from_list(rows, features=datasets.Features(classes))
            made.to_parquet(tmp_path / "rows.parquet")
            dataset = section(source=kind, files=str(tmp_path / "rows.parquet"), label_column="y")
        else:
            path = tmp_path / f"rows.{kind}"
            if kind == "json":
                write_jsonl(path, rows)
            else:
                write_csv(path, {key: [row[key] for row in rows] for key in ("text", "y")})
            dataset = section(source=kind, files=str(path), label_column="y", label_names=names)
        folder = prepared("corpus", dataset, "train", LABELLED, bpe, tmp_path, label_names=given)
        assert [row.label for row in rows_of(folder)] == [0, 1]
        return Meta.open(folder).label_names

    assert held_out(("neg", "pos"), ("neg", "pos")) == ("neg", "pos")
    # Fewer labels than were learned, with the same ids.
    assert held_out(("neg", "pos"), ("neg", "pos", "unsure")) == ("neg", "pos", "unsure")
    for names, learned in ((("pos", "neg"), ("neg", "pos")), (("neg", "unsure"), ("neg", "pos", "unsure"))):
        with pytest.raises(DataError, match=r"column 'y'.* label \d is '\w+' of .* in the datasets that"):
            held_out(names, learned)


def test_more_labels_than_the_classifier_has_are_refused_every_time(tmp_path: Path, bpe: Path) -> None:
    numbers = labelled(tmp_path / "a.jsonl", [0, 1, 2])
    prepare(numbers, LABELLED, bpe, tmp_path)
    for _ in range(2):
        with pytest.raises(
            DataError,
            match=r"column 'y', split 'train': .*a.jsonl: line 3, row 2 .*: label 2, expected 0 to 1 with .*",
        ):
            prepare(numbers, LABELLED, bpe, tmp_path, num_labels=2)
    words = labelled(tmp_path / "b.jsonl", ["b", "a", "bb", "a", "b"])
    with pytest.raises(DataError) as raised:
        prepare(words, LABELLED, bpe, tmp_path, num_labels=2)
    assert (
        f"3 labels ['a', 'b', 'bb'], but num_labels is 2; 1 row has 'bb', first {tmp_path}/b.jsonl: line 3,"
        " row 2 (counted from 0). Correct or filter the rows; or set label_names to those that there are"
        in str(raised.value)
    )
    with pytest.raises(
        DataError, match=r"3 labels \['a', 'b', 'bb'\], but num_labels is 2. Set num_labels: 3"
    ):
        prepare(words, LABELLED, bpe, tmp_path, num_labels=2, label_names=("a", "b", "bb"))
    assert not list((tmp_path / "rows").glob(".*.making"))


def test_labelled_rows_need_a_label_column_and_others_ignore_it(tmp_path: Path, bpe: Path) -> None:
    with pytest.raises(DataError, match="label_column is not set"):
        prepare(text_corpus(tmp_path), LABELLED, bpe, tmp_path)
    dataset = labelled(tmp_path / "a.jsonl", [0, None, 7])
    made = prepare(dataset, PACKED, bpe, tmp_path)
    assert made == prepare(dataset.model_copy(update={"label_column": None}), PACKED, bpe, tmp_path)


@pytest.mark.parametrize(
    "layout",
    [
        RowLayout("packed", 2, framed=True, labelled=False),
        RowLayout("documents", 1, framed=False, labelled=False),
        RowLayout("documents", 1, framed=False, labelled=True),
        RowLayout("pairs", 4, framed=True, labelled=False),
    ],
)
def test_rows_without_room_for_text_are_refused(tmp_path: Path, bpe: Path, layout: RowLayout) -> None:
    dataset = labelled(tmp_path / "a.jsonl", [0, 1])
    with pytest.raises(DataError, match=f"seq_len {layout.seq_len} has no room for text"):
        prepare(dataset, layout, bpe, tmp_path)


def test_framed_rows_need_the_tokens_of_bert(tmp_path: Path, wordpiece: Path) -> None:
    tokenizer = load_tokenizer(wordpiece)
    tokenizer.cls_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    layout = RowLayout("packed", 32, framed=True, labelled=False)
    with pytest.raises(
        DataError, match=r"the tokenizer has cls_token None and sep_token '\[SEP\]', and BERT"
    ):
        prepare(text_corpus(tmp_path, 50), layout, tmp_path / "bare", tmp_path)


def test_wide_vocabulary_is_stored_in_32_bits(tmp_path: Path, bpe: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(2**16)])
    tokenizer.save_pretrained(tmp_path / "wide")
    (tmp_path / "a.txt").write_text("a <extra-65535> b\n", "utf-8")
    made = prepare(section(source="text", files=str(tmp_path / "a.txt")), PACKED, tmp_path / "wide", tmp_path)
    assert Meta.open(made).token_dtype == "uint32"
    assert 400 + 65535 in ids_of(made)[0]


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30), longest=st.integers(1, 60))
def test_segments_cover_documents_without_crossing_them(lengths: list[int], longest: int) -> None:
    documents = np.concatenate([[0], np.cumsum(lengths)])
    segments, pairs = cut_segments(documents, longest)
    sizes = np.diff(segments)
    assert set(documents) <= set(segments)
    assert sizes.min() >= 1
    assert sizes.max() <= longest
    ends = set(documents.tolist())
    assert pairs.tolist() == [number for number in range(len(sizes)) if segments[number + 1] not in ends]
    assert {document for document, length in enumerate(lengths) if length > 1} == {
        int(np.searchsorted(documents, segments[pair], side="right")) - 1 for pair in pairs
    }


def test_pairs_need_two_documents_and_a_pair(tmp_path: Path, wordpiece: Path) -> None:
    layout = RowLayout("pairs", 32, framed=True, labelled=False)
    for number, text in enumerate(("one document that is alone\n", "a\nb\n")):
        path = tmp_path / f"{number}.txt"
        path.write_text(text, "utf-8")
        with pytest.raises(DataError, match="next-sentence prediction needs 2 documents and a pair"):
            prepare(section(source="text", files=str(path)), layout, wordpiece, tmp_path)


def test_progress_is_reported_up_to_the_total(tmp_path: Path, bpe: Path) -> None:
    seen: list[tuple[int, int]] = []
    dataset = text_corpus(tmp_path, 2300)
    prepare(dataset, PACKED, bpe, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1000, 2300), (2000, 2300), (2300, 2300)]


def test_cached_rows_are_used_until_something_they_depend_on_changes(tmp_path: Path, bpe: Path) -> None:
    dataset = text_corpus(tmp_path, 50)
    made = prepare(dataset, PACKED, bpe, tmp_path)
    inode = (made / "tokens.bin").stat().st_ino
    assert prepare(dataset, PACKED, bpe, tmp_path) == made
    assert (made / "tokens.bin").stat().st_ino == inode
    others = {
        prepare(dataset, replace(PACKED, seq_len=33), bpe, tmp_path),
        prepare(dataset.model_copy(update={"max_rows": 40}), PACKED, bpe, tmp_path),
        prepare(dataset, PACKED, train_small(tmp_path, vocab_size=390), tmp_path),
    }
    assert len({made, *others}) == 4
    # The corpus file was rewritten in place by train_small, with other content.
    assert prepare(dataset, PACKED, bpe, tmp_path) != made


@pytest.mark.parametrize("file", ["tokens.bin", "documents.npy", "meta.json"])
def test_flipped_byte_is_found_named_and_repaired(
    tmp_path: Path, bpe: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = text_corpus(tmp_path, 50)
    made = prepare(dataset, PACKED, bpe, tmp_path)
    expected = (made / file).read_bytes()
    assert verify(made) is None
    damaged = bytearray(expected)
    damaged[len(damaged) // 2] ^= 1
    (made / file).write_bytes(damaged)
    assert f"file {file} does not have the digest" in str(verify(made))
    with caplog.at_level(logging.WARNING):
        assert prepare(dataset, PACKED, bpe, tmp_path) == made
    assert f"{made}: file {file} does not have the digest" in caplog.text
    assert (made / file).read_bytes() == expected


@pytest.mark.parametrize("file", ["tokens.bin", "documents.npy", "meta.json", COMPLETE])
def test_missing_or_cut_file_is_refused_at_open_and_repaired(tmp_path: Path, bpe: Path, file: str) -> None:
    dataset = text_corpus(tmp_path, 50)
    made = prepare(dataset, PACKED, bpe, tmp_path)
    before = ids_of(made)
    for spoil in (lambda path: path.write_bytes(path.read_bytes()[:-5]), Path.unlink):
        spoil(made / file)
        assert file in str(verify(made))
        with pytest.raises(DataError) as raised:
            RowReader.open(made, seed=1, source_name="corpus")
        assert str(made) in str(raised.value)
        assert file in str(raised.value)
        assert ids_of(prepare(dataset, PACKED, bpe, tmp_path)) == before


def test_folder_of_another_format_version_is_refused(tmp_path: Path, bpe: Path) -> None:
    meta = Meta.open(prepare(text_corpus(tmp_path, 50), PACKED, bpe, tmp_path))
    other = make_folder(tmp_path / "other", replace(meta, format_version=999).save)
    with pytest.raises(DataError, match=f"has format version 999, this code reads {FORMAT_VERSION}"):
        Meta.open(other)


PREPARE_PROGRAM = """
import sys, time
from pathlib import Path
from orchestrator.contracts import RowLayout
from tests.unit.data.corpus import prepared, section
folder, tokenizer, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
dataset = section(source="json", files=str(folder / "corpus.jsonl"))
def progress(done, total):
    print("working", flush=True)
    time.sleep(pause)
layout = RowLayout("packed", 32, framed=False, labelled=False)
print(prepared("corpus", dataset, "train", layout, tokenizer, folder, on_progress=progress))
"""


def start_preparing(folder: Path, tokenizer: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE_PROGRAM, str(folder), str(tokenizer), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_preparers_at_once_do_the_work_once(tmp_path: Path, bpe: Path) -> None:
    text_corpus(tmp_path, 50)
    processes = [start_preparing(tmp_path, bpe, 1.0) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(len(lines) for lines in outputs) == [1, 2]
    assert outputs[0][-1] == outputs[1][-1]
    assert verify(Path(outputs[0][-1])) is None


def test_killed_preparer_leaves_nothing_that_counts(tmp_path: Path, bpe: Path) -> None:
    dataset = text_corpus(tmp_path, 50)
    process = start_preparing(tmp_path, bpe, 60.0)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list((tmp_path / "rows").glob(".*.making"))) == 1
    started = time.monotonic()
    made = prepare(dataset, PACKED, bpe, tmp_path)
    assert time.monotonic() - started < 30
    assert verify(made) is None
    assert not list((tmp_path / "rows").glob(".*.making"))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError("6000 requested and 1008 written")],
    ids=["of the system", "of numpy"],
)
def test_full_disk_is_told_and_leaves_nothing_half_written(error: OSError, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "tokens.bin").write_bytes(b"half")
        raise error

    with pytest.raises(NoRoomError, match=r"(No space left on device|requested and .*): \d+ bytes are free"):
        make_folder(tmp_path / "rows" / "key", build)
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["locks"]


def test_meta_is_readable_json(tmp_path: Path, bpe: Path) -> None:
    made = prepare(text_corpus(tmp_path, 50), PACKED, bpe, tmp_path)
    meta = json.loads((made / "meta.json").read_text("utf-8"))
    layout = {"kind": "packed", "seq_len": 32, "framed": False, "labelled": False}
    assert layout.items() <= meta["layout"].items()
    listed = json.loads((made / COMPLETE).read_text("utf-8"))
    assert set(listed) == {"tokens.bin", "documents.npy", "meta.json"}


def test_a_label_outside_the_set_is_left_out_and_said_where_the_section_skips(
    tmp_path: Path, bpe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skip: dict[str, Any] = {"on_bad_row": "skip"}
    numbers = labelled(tmp_path / "a.jsonl", [0, 1, 2, -1, 1], **skip)
    with caplog.at_level(logging.WARNING):
        rows = rows_of(prepare(numbers, LABELLED, bpe, tmp_path, num_labels=2))
    assert [row.label for row in rows] == [0, 1, 1]
    assert caplog.messages == [
        f"datasets.corpus: column 'y', split 'train': 2 of 5 rows are skipped, first {tmp_path}/a.jsonl:"
        " line 3, row 2 (counted from 0): label 2, expected 0 to 1 with num_labels 2"
    ]
    words = labelled(tmp_path / "b.jsonl", ["a", "c", "b"], **skip)
    made = prepare(words, LABELLED, bpe, tmp_path, label_names=("a", "b"), num_labels=2)
    assert [row.label for row in rows_of(made)] == [0, 1]
    with pytest.raises(
        DataError, match=r"b.jsonl: line 1, row 0 .*: label 'a', expected one of \['x', 'y'\]"
    ):
        prepare(words, LABELLED, bpe, tmp_path, label_names=("x", "y"))


def test_the_scrubbed_text_is_what_is_hashed_and_tokenised(tmp_path: Path, bpe: Path) -> None:
    records = [{"text": text} for text in ("write to a@b.org", "write to c@d.org", "or call")]
    files = str(write_jsonl(tmp_path / "a.jsonl", records))
    dataset = section(source="json", files=files, scrub=["email"], deduplicate=True)
    tokenizer = load_tokenizer(bpe)
    ids = joined(ids_of(prepare(dataset, PACKED, bpe, tmp_path)))
    assert tokenizer.decode(ids) == f"write to <email>{tokenizer.eos_token}or call{tokenizer.eos_token}"


def test_rows_that_another_version_of_the_code_made_are_not_taken(
    tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in make_texts(4)])
    dataset = section(source="json", files=str(path), scrub=("email",), deduplicate=True)

    def names() -> set[Path]:
        source = find_source("corpus", dataset, tmp_path / "cache")
        layout = RowLayout("packed", 8, framed=False, labelled=False)
        return {prepare_rows(source, "train", layout, bpe), *(tmp_path / "cache" / "examined").iterdir()}

    for part in ("conversion", "examination", "near_duplicates", "decontamination"):
        before = names()
        monkeypatch.setitem(versions.ROWS, part, versions.ROWS[part] + 1)
        assert len(names() - before) == 2, part
