"""Errors of shape and contradictions between sections come together, and none is made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.spec.load import load_job, load_resolved
from orchestrator.spec.tree import key_text
from orchestrator.spec.yaml12 import dump
from tests.unit.spec.jobs import VALID, complaints
from tests.unit.spec.test_references import EVALUATE, TUNE


def test_a_typo_and_a_wrong_name_in_one_stage_are_shown_together(tmp_path: Path) -> None:
    text = VALID.replace("{rfc: 1.0}", "{rcf: 1.0}").replace("seq_len: ", "seq_length: ")
    found = "\n".join(complaints(tmp_path, text))
    assert "stages[0].data.seq_length: unknown key. Did you mean 'seq_len'?" in found
    assert "stages[0].data.mixture.rcf: no dataset is called 'rcf'. Did you mean 'rfc'?" in found


def test_every_stage_that_is_sound_is_compared_with_the_rest(tmp_path: Path) -> None:
    text = VALID.replace("max_steps:", "max_step:") + EVALUATE.replace(", split: validation", "")
    found = "\n".join(complaints(tmp_path, text))
    assert "stages[0].limits.max_step: unknown key" in found
    assert "stages[1].datasets[0]: dataset 'rfc' has no test rows" in found


def test_what_is_reset_for_the_check_is_not_judged(tmp_path: Path) -> None:
    """The dataset's split is unreadable, so nobody can say whether it holds out rows."""
    text = VALID.replace("validation_fraction: 0.1", "validation_fraction: some") + EVALUATE
    assert len(complaints(tmp_path, text)) == 1
    text = VALID.replace("name: pretrain", "name: Pre train") + TUNE
    assert "no stage is called" not in str(complaints(tmp_path, text))


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def broken(tree: Any, path: tuple[Any, ...]) -> Any:
    """``tree`` with a value at ``path`` that no key accepts."""
    copy = yaml.safe_load(yaml.safe_dump(tree))
    node = copy
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = [[[]]]
    return copy


def test_one_unreadable_value_is_one_complaint_and_hides_no_other(tmp_path: Path) -> None:
    """At every place of a real job, beside a stage that reads one which is not there."""
    tree = load_job(Path("jobs/demo.yaml")).model_dump(mode="json", by_alias=True)
    last = len(tree["stages"])
    tree["stages"].append({"name": "last", "kind": "export", "from": "nowhere"})
    file = tmp_path / "job.yaml"
    for path in places(tree):
        if path[:2] == ("stages", last):
            continue
        file.write_text(dump(broken(tree, path)), "utf-8")
        with pytest.raises(SpecError) as caught:
            load_resolved(file)
        keys = {problem.key for problem in caught.value.problems}
        is_nameless = path[0] == "stages" and (len(path) < 3 or path[2] == "name")
        assert f"stages[{last}].from" in keys or is_nameless, path
        part = key_text(path[:2] if path[0] in ("stages", "datasets") else path[:1])
        assert all(key.startswith(part) for key in keys - {f"stages[{last}].from"}), (path, keys)


PAIRS = {
    "resources": (
        "seed: 17",
        "seed: 17\nresources: {num_workers: two}",
        ["resources.num_workers", "n_positions 32"],
    ),
    "tokenizer": ("vocab_size: 512", "vocab_size: big", ["vocab_size", "n_positions 32"]),
    "optimizer": ("lr: 1e-3", "lr: x", ["optimizer.lr", "n_positions 32"]),
    "dataset": ("  rfc:\n", "  Rfc:\n", ["datasets.Rfc", "n_positions 32"]),
    "stage": ("name: pretrain", "name: Pre train", ["stages[0].name", "n_positions 32"]),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_an_error_elsewhere_does_not_hide_what_it_has_nothing_to_do_with(pair: str, tmp_path: Path) -> None:
    old, new, expected = PAIRS[pair]
    assert VALID.count(old) == 1
    text = VALID.replace(old, new).replace("{model_type: gpt2}", "{model_type: gpt2, n_positions: 32}")
    found = complaints(tmp_path, text)
    assert len(found) == len(expected)
    assert all(any(part in line for line in found) for part in expected)


def test_a_misspelt_section_is_not_called_missing(tmp_path: Path) -> None:
    (found,) = complaints(tmp_path, VALID.replace("tokenizer:", "tokeniser:"))
    assert "Did you mean 'tokenizer'?" in found
    (found,) = complaints(tmp_path, VALID.replace("datasets:\n", "datsets:\n"))
    assert "Did you mean 'datasets'?" in found


def test_datasets_of_a_tokenizer_are_looked_up_beside_a_wrong_algorithm(tmp_path: Path) -> None:
    text = VALID.replace("algorithm: bpe", "algorithm: bpee").replace("datasets: [rfc]", "datasets: [rcf]")
    found = "\n".join(complaints(tmp_path, text))
    assert "tokenizer.train.algorithm: expected one of 'bpe', 'wordpiece', found 'bpee'" in found
    assert "tokenizer.train.datasets[0]: no dataset is called 'rcf'. Did you mean 'rfc'?" in found
