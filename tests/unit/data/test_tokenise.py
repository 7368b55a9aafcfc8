"""Parts of a tokenisation: the same tokens as in one piece, and none is made twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.contracts import RowLayout
from orchestrator.data import tokenise
from orchestrator.data.encode import Encoder
from orchestrator.data.loader import RowReader
from orchestrator.data.prepare import prepare_rows
from orchestrator.data.sources import find_source
from tests.unit.data.corpus import make_texts, section, write_jsonl

PACKED = RowLayout("packed", 32, framed=False, labelled=False)
LABELLED = RowLayout("documents", 24, framed=False, labelled=True)


class DyingTasks:
    """Runs pieces here and dies after some of them."""

    def __init__(self, num_pieces: int) -> None:
        self.left = num_pieces

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        for item in items:
            if function is tokenise.encode_part:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            yield function(item)


def corpus(folder: Path) -> Any:
    """Fifty documents, some of them without a token, with labels."""
    texts = ["" if row % 7 == 3 else text for row, text in enumerate(make_texts(50))]
    records = [{"text": text, "y": row % 3} for row, text in enumerate(texts)]
    return section(source="json", files=str(write_jsonl(folder / "a.jsonl", records)), label_column="y")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "COMPLETE"}


@pytest.mark.parametrize("layout", [PACKED, LABELLED])
def test_parts_give_the_bytes_of_one_piece(
    layout: RowLayout, tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = corpus(tmp_path)
    whole = prepare_rows(find_source("corpus", dataset, tmp_path / "whole"), "train", layout, bpe)
    monkeypatch.setattr(tokenise, "PART_ROWS", 8)
    progress: list[tuple[int, int]] = []
    source = find_source("corpus", dataset, tmp_path / "parts")
    parts = prepare_rows(
        source, "train", layout, bpe, on_progress=lambda done, total: progress.append((done, total))
    )
    assert content(parts) == content(whole)
    assert progress == [(min(done, 50), 50) for done in range(0, 57, 8)]
    assert not list((tmp_path / "parts" / "parts").iterdir())


def test_an_interrupted_preparation_goes_on_with_the_next_part(
    tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "PART_ROWS", 8)
    source = find_source("corpus", corpus(tmp_path), tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        prepare_rows(source, "train", PACKED, bpe, tasks=DyingTasks(4))
    finished = sorted((tmp_path / "cache" / "parts").glob("*/2-8-*"))
    assert [folder.name for folder in finished] == [f"2-8-{part:06d}" for part in range(4)]
    times = [folder.stat().st_mtime_ns for folder in finished]
    # A finished part that was damaged since is made again, and said.
    tokens = finished[2] / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(KeyboardInterrupt):
        prepare_rows(source, "train", PACKED, bpe, tasks=DyingTasks(6))
    again = [folder.stat().st_mtime_ns for folder in finished]
    assert [before == after for before, after in zip(times, again, strict=True)] == [True, True, False, True]
    progress: list[int] = []
    made = prepare_rows(source, "train", PACKED, bpe, on_progress=lambda done, _: progress.append(done))
    # What was finished before says nothing of how fast the rest goes.
    assert progress == [48] * 7 + [50]
    monkeypatch.setattr(tokenise, "PART_ROWS", 1000)
    whole = prepare_rows(find_source("corpus", corpus(tmp_path), tmp_path / "whole"), "train", PACKED, bpe)
    assert content(made) == content(whole)
    reader = RowReader.open(made, seed=0, source_name="corpus")
    assert len(reader.read(np.arange(reader.num_rows), 0)) == reader.num_rows


@pytest.mark.parametrize("layout", [PACKED, LABELLED])
def test_long_texts_are_encoded_few_at_a_time(
    layout: RowLayout, tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = corpus(tmp_path)
    whole = prepare_rows(find_source("corpus", dataset, tmp_path / "whole"), "train", layout, bpe)
    monkeypatch.setattr(tokenise, "BATCH_CHARS", 300)
    encode, sizes = Encoder.encode, []

    def counted(encoder: Encoder, documents: Sequence[str]) -> Iterator[Any]:
        sizes.append([len(text) for text in documents])
        return encode(encoder, documents)

    monkeypatch.setattr(Encoder, "encode", counted)
    few = prepare_rows(find_source("corpus", dataset, tmp_path / "few"), "train", layout, bpe)
    assert content(few) == content(whole)
    assert sum(map(len, sizes)) == 50
    assert len(sizes) > 5
    assert all(sum(texts[1:]) <= 300 for texts in sizes)
