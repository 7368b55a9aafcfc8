"""What a stage leaves behind when it is finished: folders replaced whole, and ``result.json``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.weights import KEY, weights_digests
from orchestrator.tracking.events import json_text, read_json_lines, replace_text
from orchestrator.train.inputs import StageInputs


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put it in the place of ``folder``."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def write_result(
    layout: StageLayout,
    inputs: StageInputs,
    *,
    step: int | None,
    metrics: Mapping[str, float],
    weights_step: int | None = None,
) -> None:
    """Write ``result.json``, which says that the stage is finished and which weights it wrote.

    Args:
        step: Optimizer steps completed; ``None`` for a stage that does not train.
        weights_step: The step that its weights are of; absent for a stage that does not train.
    """
    record = {
        "stage": layout.root.name,
        "fingerprint": inputs.fingerprint,
        "spec_fingerprint": inputs.spec_fingerprint,
        "step": step,
        **({} if weights_step is None else {"weights_step": weights_step}),
        "metrics": dict(metrics),
        KEY: weights_digests(layout.weights),
    }
    replace_text(layout.result, json_text(record, indent=1))


def result_step(layout: StageLayout) -> int:
    """Steps that a finished training stage has completed."""
    return int(json.loads(layout.result.read_text(encoding="utf-8"))["step"])


def is_logged(layout: StageLayout, step: int, metrics: Mapping[str, float]) -> bool:
    """Whether ``metrics.jsonl`` has these metrics of a step."""
    wanted = {"step": step, **metrics}
    return any(wanted.items() <= record.items() for record in read_json_lines(layout.metrics))


def last_training_metrics(layout: StageLayout) -> dict[str, float]:
    """Training metrics of the last logged step, without those of the run as a whole."""
    last: dict[str, float] = {}
    for record in read_json_lines(layout.metrics):
        if "train/loss" in record:
            last = {key: value for key, value in record.items() if not key.startswith(("step", "goodput/"))}
    return last
