"""A streamed hub dataset; the hub, which cannot be here, is a folder of files that ``datasets`` streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from pyarrow import parquet

from orchestrator.contracts import RowLayout
from orchestrator.data import shards, streaming
from orchestrator.data.catalog import Catalog
from orchestrator.data.chat_template import prepare_chat_template
from orchestrator.data.loader import RowReader
from orchestrator.data.prepare import prepare_rows, verify
from orchestrator.data.prepared import Meta
from orchestrator.data.rows import find_rows
from orchestrator.data.selection import Split
from orchestrator.data.sources import Source
from orchestrator.data.tasks import IN_PROCESS, InProcess
from orchestrator.errors import DataError, SourceMissingError
from tests.unit.data.corpus import section
from tests.unit.data.hub_folder import COMMIT, make_records, put_in_hubs_place, write_files

PACKED = RowLayout("packed", 32, framed=False, labelled=False)
BEST_FIT = RowLayout("best_fit", 32, framed=False, labelled=False)
DOCUMENTS = RowLayout("documents", 16, framed=False, labelled=False)
LABELLED = RowLayout("documents", 24, framed=False, labelled=True)
MULTI_LABEL = RowLayout("documents", 24, framed=False, labelled=True, labels="classes")
CHAT = RowLayout("documents", 48, framed=False, labelled=False, document="conversation")
PAIRS = RowLayout("pairs", 32, framed=True, labelled=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that ``some/web`` is read from."""
    return put_in_hubs_place(tmp_path / "web", monkeypatch)


@pytest.fixture
def chat(bpe: Path, tmp_path: Path) -> Path:
    """A tokenizer that knows how conversations are written."""
    return prepare_chat_template(bpe, "plain", tmp_path / "chat")


@pytest.fixture(autouse=True)
def no_bars() -> None:
    datasets.disable_progress_bars()


def find(cache: Path, *, streaming: bool, **keys: Any) -> Source:
    dataset = section(source="hub", path="some/web", revision=COMMIT, streaming=streaming, **keys)
    return Catalog({"web": dataset}, cache).find("web")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "COMPLETE"}


def left_over(cache: Path) -> list[str]:
    """Raw rows that are still on the disk."""
    return [str(path) for path in cache.rglob("*.arrow") if path.name != "labels.arrow"]


SPLITS = {"validation_fraction": 0.2, "test_fraction": 0.1}
SECTIONS = {
    "packed": (PACKED, {}),
    "best_fit": (BEST_FIT, SPLITS),
    "documents": (DOCUMENTS, SPLITS),
    "pairs": (PAIRS, SPLITS),
    "filter": (PACKED, {"filter": {"lang": "en"}, **SPLITS}),
    "cleaning": (PACKED, {"scrub": ["email"], "min_chars": 20, "max_chars": 150, **SPLITS}),
    "deduplicate": (BEST_FIT, {"deduplicate": True, **SPLITS}),
    "max_rows": (PACKED, {"deduplicate": True, "max_rows": 40, **SPLITS}),
    "labels": (LABELLED, {"label_column": "label", "deduplicate": True, **SPLITS}),
    "two_texts": (LABELLED, {"label_column": "label", "text_pair_column": "lang", "max_rows": 60, **SPLITS}),
    "outside": (LABELLED, {"label_column": "label", "label_names": ["a", "b"], "on_bad_row": "skip"}),
    "multi_label": (MULTI_LABEL, {"label_column": "labels", "label_names": ["a", "b", "c"], **SPLITS}),
    "conversations": (CHAT, {"messages_column": "messages", "deduplicate": True, **SPLITS}),
}


@pytest.mark.parametrize(("layout", "keys"), SECTIONS.values(), ids=SECTIONS)
def test_streaming_a_folder_in_the_hubs_place_gives_the_bytes_of_downloading_it(
    layout: RowLayout, keys: dict[str, Any], hub: Path, tmp_path: Path, bpe: Path, chat: Path
) -> None:
    write_files(hub, make_records())
    tokenizer = chat if layout is CHAT else bpe
    splits: list[Split] = ["train", "validation", "test"] if "test_fraction" in keys else ["train"]
    for split in splits:
        made = {
            streaming: prepare_rows(
                find(tmp_path / str(streaming), streaming=streaming, **keys), split, layout, tokenizer
            )
            for streaming in (True, False)
        }
        assert content(made[True]) == content(made[False])
        assert verify(made[True]) is None
    assert not left_over(tmp_path / "True")
    assert Meta.open(made[True]).num_documents > 0


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_other_formats_are_streamed_from_a_folder_in_the_hubs_place(
    kind: str, hub: Path, tmp_path: Path, bpe: Path
) -> None:
    records = [{**record, "text": record["text"] or "x"} for record in make_records()]
    write_files(hub, records, kind)
    keys = {"label_column": "label", "deduplicate": True}
    made = [
        prepare_rows(find(tmp_path / str(streaming), streaming=streaming, **keys), "train", LABELLED, bpe)
        for streaming in (True, False)
    ]
    assert content(made[0]) == content(made[1])


def test_counts_and_skipped_rows_are_those_of_the_downloaded_dataset(
    hub: Path, tmp_path: Path, bpe: Path
) -> None:
    records = make_records()
    records[60]["text"] = None
    write_files(hub, records)
    keys = {"on_bad_row": "skip", "deduplicate": True, "scrub": ["email"], "min_chars": 20}
    found = []
    for is_streamed in (True, False):
        source = find(tmp_path / str(is_streamed), streaming=is_streamed, **keys)
        prepare_rows(source, "train", PACKED, bpe)
        counts = find_rows(source, "train").counts
        found.append({**vars(counts), "skipped": [problem for _, problem in counts.skipped]})
    assert found[0] == found[1]
    assert found[0]["num_skipped"] == 1


class CountingTasks:
    """Runs pieces here, counts what is on the disk meanwhile, and dies before a shard."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            if function is streaming.stream_shard and number == self.dies_at:
                raise KeyboardInterrupt
            yield function(item)


def test_a_file_that_is_finished_is_not_read_again(
    hub: Path, tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(hub, make_records())
    read: list[Path] = []
    copy_rows = shards.copy_rows

    def counted(stream: Any, path: Path) -> None:
        # What an earlier shard left would be beside it.
        assert not left_over(path.parents[2])
        read.append(path.parent)
        copy_rows(stream, path)

    monkeypatch.setattr(shards, "copy_rows", counted)
    source = find(tmp_path / "cache", streaming=True, **SPLITS)
    with pytest.raises(KeyboardInterrupt):
        prepare_rows(source, "train", PACKED, bpe, tasks=CountingTasks(dies_at=2))
    assert len(read) == 2
    progress: list[tuple[int, int]] = []
    made = prepare_rows(
        source, "train", PACKED, bpe, on_progress=lambda done, total: progress.append((done, total))
    )
    assert [folder.name[-6:] for folder in read] == ["000000", "000001", "000002", "000003"]
    assert progress == [(18, 72), (45, 90), (45, 60), (90, 90)]
    # Held-out rows were encoded in the same go.
    prepare_rows(source, "validation", PACKED, bpe)
    assert len(read) == 4
    assert not left_over(tmp_path / "cache")
    monkeypatch.undo()
    reader = RowReader.open(made, seed=0, source_name="web")
    assert len(reader.read(np.arange(reader.num_rows), 0)) == reader.num_rows


def test_a_damaged_part_is_made_again(hub: Path, tmp_path: Path, bpe: Path) -> None:
    write_files(hub, make_records())
    source = find(tmp_path / "cache", streaming=True)
    with pytest.raises(KeyboardInterrupt):
        prepare_rows(source, "train", PACKED, bpe, tasks=CountingTasks(dies_at=3))
    tokens = sorted((tmp_path / "cache" / "parts").glob("*/000001/tokens.bin"))[0]
    tokens.write_bytes(tokens.read_bytes()[:-2])
    made = prepare_rows(source, "train", PACKED, bpe)
    whole = prepare_rows(find(tmp_path / "whole", streaming=False), "train", PACKED, bpe)
    assert content(made) == content(whole)


def test_what_a_killed_task_left_on_the_disk_is_removed(hub: Path, tmp_path: Path, bpe: Path) -> None:
    write_files(hub, make_records())
    source = find(tmp_path / "cache", streaming=True).without_labels()
    left = tmp_path / "cache" / "streaming" / f"{source.digest}-000001"
    left.mkdir(parents=True)
    (left / "rows.arrow").write_bytes(b"raw")
    prepare_rows(source, "train", PACKED, bpe)
    assert not left_over(tmp_path / "cache")


def test_only_the_columns_that_are_needed_are_copied(
    hub: Path, tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(hub, make_records())
    seen = []
    copy_rows = shards.copy_rows
    monkeypatch.setattr(
        shards,
        "copy_rows",
        lambda stream, path: (seen.append(stream.column_names), copy_rows(stream, path)),
    )
    source = find(tmp_path / "cache", streaming=True, filter={"lang": "en"}, label_column="label")
    prepare_rows(source, "train", PACKED, bpe)
    assert seen == [["text", "lang"]] * 4


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_without_rows_among_others_holds_nothing_up(
    streaming: bool, hub: Path, tmp_path: Path, bpe: Path
) -> None:
    write_files(hub, make_records())
    expected = content(prepare_rows(find(tmp_path / "a", streaming=streaming), "train", PACKED, bpe))
    first, _, empty, _ = sorted(hub.iterdir())
    # Unlike the library it writes a group of no rows.
    parquet.write_table(parquet.read_table(first).slice(0, 0), empty)
    assert parquet.ParquetFile(empty).num_row_groups == 1
    found = content(prepare_rows(find(tmp_path / "b", streaming=streaming), "train", PACKED, bpe))
    assert found["tokens.bin"] == expected["tokens.bin"]


def test_a_damaged_file_of_a_downloaded_dataset_is_no_matter_of_the_network(
    hub: Path, tmp_path: Path
) -> None:
    write_files(hub, make_records())
    sorted(hub.iterdir())[-1].write_bytes(b"PAR1xxxx")
    with pytest.raises(
        DataError, match=r"cannot be loaded: ArrowInvalid: .* A file of it was fetched and cannot"
    ):
        find(tmp_path, streaming=False)


def test_another_commit_is_other_content(hub: Path, tmp_path: Path) -> None:
    write_files(hub, make_records())
    first = find(tmp_path, streaming=True)
    dataset = first.dataset.model_copy(update={"revision": "d" * 40})
    assert Catalog({"web": dataset}, tmp_path).find("web").digest != first.digest


def refusal(source: Source, layout: RowLayout, tokenizer: Path) -> str:
    with pytest.raises(DataError) as raised:
        prepare_rows(source, "train", layout, tokenizer, tasks=IN_PROCESS)
    message = str(raised.value)
    assert message.startswith("datasets.web: ")
    assert "\n" not in message
    return message


def test_what_cannot_be_streamed_is_refused_with_its_reason(hub: Path, tmp_path: Path, bpe: Path) -> None:
    records = make_records()
    records[30]["text"] = None
    for record in records:
        record["label"] = f"n{record['label']}"
    write_files(hub, records)
    assert refusal(find(tmp_path, streaming=True), PACKED, bpe) == (
        "datasets.web: file 1, row 12 (both counted from 0): column 'text' holds None, expected a string."
        " Correct or filter the row, or set on_bad_row: skip."
    )
    assert refusal(find(tmp_path, streaming=True, label_column="label"), LABELLED, bpe).startswith(
        "datasets.web: label_names is not set, and column 'label' holds strings"
    )
    assert "keeps none of 90 rows; column 'lang' starts with values 'de', 'en', expected 'fr'" in refusal(
        find(tmp_path, streaming=True, filter={"lang": "fr"}), PACKED, bpe
    )
    with pytest.raises(DataError, match=r"text_column: there is no column 'txet'.* Did you mean 'text'\?"):
        find(tmp_path, streaming=True, text_column="txet").check_columns()


def test_a_revision_that_is_no_commit_is_refused(hub: Path, tmp_path: Path) -> None:
    for revision, shown in ((None, "main"), ("v2", "v2")):
        dataset = section(source="hub", path="some/web", streaming=True, revision=revision)
        with pytest.raises(DataError, match=f"'some/web' at revision '{shown}', expected a commit"):
            Catalog({"web": dataset}, tmp_path).find("web")


def test_a_dataset_that_cannot_be_reached_is_missing(hub: Path, tmp_path: Path) -> None:
    dataset = section(source="hub", path="gone/away", streaming=True, revision=COMMIT)
    with pytest.raises(SourceMissingError, match=r"'gone/away' .* cannot be streamed: OSError: 404"):
        Catalog({"web": dataset}, tmp_path).find("web")


def test_a_file_that_breaks_off_is_named_and_the_others_are_kept(
    hub: Path, tmp_path: Path, bpe: Path
) -> None:
    write_files(hub, make_records())
    source = find(tmp_path / "cache", streaming=True)
    bad = hub / "train-00003-of-00004.parquet"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:100])
    message = refusal(source, PACKED, bpe)
    assert "file 3 (counted from 0) of the 4 of 'some/web' cannot be streamed: " in message
    bad.write_bytes(whole)
    assert len(list((tmp_path / "cache" / "parts").glob("*/0*"))) == 3
    prepare_rows(source, "train", PACKED, bpe)


def test_pieces_can_be_sent_to_other_processes(hub: Path, tmp_path: Path, bpe: Path) -> None:
    import pickle

    class Sent(InProcess):
        def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
            return super().map(function, pickle.loads(pickle.dumps(items)))

    write_files(hub, make_records())
    source = find(tmp_path / "cache", streaming=True)
    assert verify(prepare_rows(source, "train", PACKED, bpe, tasks=Sent())) is None
