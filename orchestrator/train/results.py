"""What a stage leaves behind: the ledger of consumed rows, and ``result.json`` when it is finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.spec.plan import BatchPlan
from orchestrator.tracking.events import json_text, read_json_lines, replace_text
from orchestrator.train.inputs import StageInputs


class Ledger:
    """ledger.jsonl: which global rows each committed range of steps consumed."""

    def __init__(self, path: Path, batch_plan: BatchPlan, start_step: int) -> None:
        """Continue after ``start_step``; records of later steps belong to no checkpoint and go.

        A process may die between a checkpoint and its record, so a record that is missing is made up for.
        """
        self._path = path
        self._batch_plan = batch_plan
        kept = [record for record in read_json_lines(path) if record["steps"][1] <= start_step]
        self._committed = kept[-1]["steps"][1] if kept else 0
        replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        if self._committed < start_step:
            self.commit(start_step)

    def commit(self, step: int) -> None:
        """Record the steps since the last commit."""
        rows = self._batch_plan.global_batch_size
        record = {
            "steps": [self._committed, step],
            "rows": [self._committed * rows, step * rows],
            "world_size": self._batch_plan.world_size,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._committed = step


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put it in the place of ``folder``."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def write_result(
    layout: StageLayout, inputs: StageInputs, *, step: int | None, metrics: Mapping[str, float]
) -> None:
    """Write ``result.json``, which says that the stage is finished.

    Args:
        step: Optimizer steps completed; ``None`` for a stage that does not train.
    """
    record = {
        "stage": layout.root.name,
        "fingerprint": inputs.fingerprint,
        "spec_fingerprint": inputs.spec_fingerprint,
        "step": step,
        "metrics": dict(metrics),
    }
    replace_text(layout.result, json_text(record, indent=1))


def result_step(layout: StageLayout) -> int:
    """Steps that a finished training stage has completed."""
    return int(json.loads(layout.result.read_text(encoding="utf-8"))["step"])


def last_training_metrics(layout: StageLayout) -> dict[str, float]:
    """Training metrics of the last logged step."""
    last: dict[str, float] = {}
    for record in read_json_lines(layout.metrics):
        if "train/loss" in record:
            last = {key: value for key, value in record.items() if key != "step"}
    return last
