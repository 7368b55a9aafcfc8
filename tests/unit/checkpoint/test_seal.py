"""A sealed folder that is no checkpoint is damaged like one that has changed; nothing waits for its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.manager import CheckpointManager, Damage
from orchestrator.checkpoint.steps import step_name
from orchestrator.checkpoint.storage import read_index
from orchestrator.errors import CheckpointError
from tests.unit.checkpoint.saved import FILES, reseal, save


def forge_manifest(path: Path, content: str) -> None:
    """A manifest that its ``COMPLETE`` confirms."""
    (path / "manifest.json").write_text(content)
    (path / "COMPLETE").write_text(seal.digest_bytes(content.encode()).xxh3_128)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("manifest.json", "[]", "manifest.json: found a list, expected a JSON object"),
        ("manifest.json", "null", "manifest.json: found a NoneType, expected a JSON object"),
        ("manifest.json", "{", "manifest.json: not JSON: "),
        ("manifest.json", "[" * 100_000, "manifest.json: not JSON: "),
        ("manifest.json", "{}", "manifest.json: lists no state.json, found nothing"),
        (
            "manifest.json",
            '{"state.json": 5}',
            "manifest.json: 'state.json' is 5, expected its size and digest",
        ),
        ("state.json", "{}", "state.json: found step None, expected a number of steps"),
        ("state.json", '{"step": "2"}', "state.json: found step '2', expected a number of steps"),
        ("state.json", "[]", "state.json: found a list, expected a JSON object"),
        ("metadata.json", "[]", "metadata.json: found a list, expected a JSON object"),
        ("metadata.json", "{}", "metadata.json: found format None, expected 'orchestrator-tensors-1'"),
        (
            "metadata.json",
            '{"format": "orchestrator-tensors-1"}',
            "metadata.json: KeyError('tensors'), expected",
        ),
        ("shard-00000.bin", "", "of shard-00000.bin, which has 0"),
    ],
)
def test_what_was_sealed_and_is_no_checkpoint_is_damaged(
    name: str, content: str, expected: str, tmp_path: Path
) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / step_name(2)
    if name == "manifest.json":
        forge_manifest(path, content)
    else:
        (path / name).write_text(content)
        reseal(path)
    assert expected in str(CheckpointManager.verify(path))
    if name in ("state.json", "manifest.json"):
        with pytest.raises(CheckpointError, match=step_name(2)):
            CheckpointManager.read_state(path)
    told: list[Damage] = []
    assert CheckpointManager(tmp_path, on_damage=told.append).newest() == tmp_path / step_name(1)
    assert expected in told[0].problem
    assert (tmp_path / f"quarantine-{step_name(2)}" / name).is_file()


def forget_chunk(entry: dict[str, Any]) -> None:
    entry["chunks"] = []


def halve_chunk(entry: dict[str, Any]) -> None:
    entry["chunks"][0]["sizes"][0] = 3


def empty_chunk(entry: dict[str, Any]) -> None:
    entry["chunks"][0]["length"] = 0


def move_before_the_file(entry: dict[str, Any]) -> None:
    entry["chunks"][0]["position"] = -64


def lengthen_chunk(entry: dict[str, Any]) -> None:
    entry["chunks"][0]["length"] += 4


@pytest.mark.parametrize(
    "forge", [forget_chunk, halve_chunk, empty_chunk, move_before_the_file, lengthen_chunk]
)
def test_an_index_that_leaves_out_a_part_of_a_tensor_is_damaged(
    forge: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / step_name(2)
    index = json.loads((path / "metadata.json").read_text())
    forge(index["tensors"]["model.weight"])
    (path / "metadata.json").write_text(json.dumps(index))
    reseal(path)
    assert "'model.weight'" in str(CheckpointManager.verify(path))
    assert CheckpointManager(tmp_path).newest() == tmp_path / step_name(1)


@pytest.mark.parametrize(
    "tensors", ['{"a": 5}', '{"a": {"dtype": "nn", "shape": [], "chunks": []}}', '{"a": {"chunks": []}}']
)
def test_an_index_that_cannot_be_read_is_named(tensors: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(f'{{"format": "orchestrator-tensors-1", "tensors": {tensors}}}')
    with pytest.raises(CheckpointError, match=r"metadata\.json: .* expected dtype, shape and chunks"):
        read_index(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_named_pipe_in_place_of_any_file_is_damage_and_nobody_waits_for_it(
    name: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    path = tmp_path / step_name(1)
    (path / name).unlink()
    os.mkfifo(path / name)
    program = "import sys, pathlib; from orchestrator.checkpoint import seal; "
    program += "print(seal.verify(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=30)
    assert name in done.stdout, done.stderr
    if name == "manifest.json":
        assert done.stdout == f"{path}/{name}: found a named pipe, expected a regular file\n"
        with pytest.raises(CheckpointError, match="named pipe"):
            CheckpointManager.read_state(path)
