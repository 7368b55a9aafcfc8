"""Weights that are not those that a stage has written are noticed, whatever happened to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.weights import KEY, check_weights, weights_digests, weights_problem
from orchestrator.errors import CheckpointError

CONTENT = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 4}


@pytest.fixture
def finished(tmp_path: Path) -> StageLayout:
    """A stage with weights and a result that tells of them."""
    layout = StageLayout(tmp_path / "classify")
    layout.weights.mkdir(parents=True)
    for name, content in CONTENT.items():
        (layout.weights / name).write_bytes(content)
    layout.result.write_text(json.dumps({"step": 3, KEY: weights_digests(layout.weights)}))
    return layout


def test_weights_as_they_were_written_hold(finished: StageLayout) -> None:
    assert weights_problem(finished) is None
    (finished.weights / "README.md").write_text("of somebody")
    assert weights_problem(finished) is None


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("how", ["flipped", "cut off", "longer", "gone"])
def test_damage_is_named(name: str, how: str, finished: StageLayout) -> None:
    path, content = finished.weights / name, CONTENT[name]
    if how == "gone":
        path.unlink()
    else:
        flipped = bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes({"flipped": flipped, "cut off": content[:-1], "longer": content + b"0"}[how])
    with pytest.raises(CheckpointError) as raised:
        check_weights(finished)
    said = f"{path} is missing" if how == "gone" else f"{path} has {path.stat().st_size} bytes with digest"
    assert str(raised.value).startswith(f"weights of stage 'classify' are damaged: {said}")
    assert "Run the job again" in str(raised.value)


@pytest.mark.parametrize("result", [None, "{", "[]", '{"step": 3}'])
def test_a_stage_that_did_not_say_is_not_accused(result: str | None, finished: StageLayout) -> None:
    finished.result.unlink()
    if result is not None:
        finished.result.write_text(result)
    (finished.weights / "config.json").unlink()
    check_weights(finished)
