"""Preparation in pieces on a real Ray: the bytes of one process, errors in their own words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launchers.preparation import StoppedError
from launchers.ray_session import available_cpus
from launchers.ray_tasks import RayTasks
from orchestrator.contracts import RowLayout
from orchestrator.data import examination, sources, tokenise
from orchestrator.data.catalog import Catalog
from orchestrator.data.prepare import prepare_rows
from orchestrator.data.tokenizer import prepare_tokenizer
from orchestrator.errors import DataError
from orchestrator.spec.datasets import Tokenizer
from tests.unit.data.corpus import make_texts, section, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
PACKED = RowLayout("packed", 32, framed=False, labelled=False)
TOKENIZER = {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": ["corpus"]}}


def prepare(folder: Path, cache: Path, tasks: RayTasks, **keys: object) -> dict[str, bytes]:
    """The files prepared from all of ``folder``."""
    datasets = {"corpus": section(source="json", files=str(folder / "*.jsonl"), deduplicate=True, **keys)}
    catalog = Catalog(datasets, cache, tasks)
    tokenizer = prepare_tokenizer(Tokenizer.model_validate(TOKENIZER), catalog)
    made = prepare_rows(catalog.find("corpus"), "train", PACKED, tokenizer, tasks=tasks)
    return {path.name: path.read_bytes() for path in made.iterdir()}


def test_pieces_all_over_a_cluster_give_the_bytes_of_one_process_and_can_be_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    texts = make_texts(60)
    for number in range(3):
        part = [{"text": text} for text in texts[number * 20 : number * 20 + 20]]
        write_jsonl(tmp_path / f"{number}.jsonl", part)
    with RayTasks(tmp_path) as tasks:
        whole = prepare(tmp_path, tmp_path / "whole", tasks)
    monkeypatch.setattr(sources, "GROUP_BYTES", 1)
    monkeypatch.setattr(examination, "RANGE_ROWS", 25)
    monkeypatch.setattr(tokenise, "PART_ROWS", 11)
    wishes: list[str] = []

    def on_wait() -> None:
        if wishes:
            raise StoppedError(wishes[0])

    with RayTasks(tmp_path, on_wait) as tasks:
        assert list(tasks.map(_process, [0])) == [os.getpid()]
        assert prepare(tmp_path, tmp_path / "pieces", tasks) == whole
        assert os.getpid() not in set(tasks.map(_process, [0, 1, 2]))
        write_jsonl(tmp_path / "2.jsonl", [{"text": 7}])
        with pytest.raises(
            DataError, match=r"^datasets.corpus: .*2.jsonl: line 1, row 0 .* holds 7, expected a string"
        ):
            prepare(tmp_path, tmp_path / "bad", tasks)
        write_jsonl(tmp_path / "2.jsonl", [{"text": None}, {"text": "a"}])
        with pytest.raises(
            DataError, match=r"^datasets.corpus: .*2.jsonl: line 1, row 0 .* holds None, expected"
        ):
            prepare(tmp_path, tmp_path / "bad", tasks)
        # One process has one Ray of its own, so the rest is here.
        import ray

        others = ray.util.placement_group([{"CPU": available_cpus()}])
        ray.get(others.ready())
        wishes.append("enough")
        with pytest.raises(StoppedError, match="enough"):
            list(tasks.map(_process, [0, 1]))
        wishes.clear()
        ray.util.remove_placement_group(others)
        assert len(list(tasks.map(_process, [0, 1]))) == 2


def _process(number: int) -> int:
    return os.getpid()
