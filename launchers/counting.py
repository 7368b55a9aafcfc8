"""How many steps a stage has, as far as its prepared data says; reads small files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.errors import DataError, PlanError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.plan import BatchPlan, count_steps, plan_batch
from orchestrator.spec.reads import trained_stage

MAPPINGS = ("train", "begun", "data_digests", "input_fingerprints")
"""What inputs.json holds by name."""


def planned_steps(
    stage: TrainStage, batch: BatchPlan, layout: StageLayout, begun: Mapping[str, int] | None = None
) -> int | None:
    """Optimizer steps of a stage; ``None`` while they depend on data that is not prepared.

    Args:
        begun: Rows that its datasets will have given before it; absent: as it was prepared.

    Raises:
        PlanError: The stage stops at the end of a dataset that is shorter than its first step.
    """
    folders = _prepared_folders(stage, layout)
    return steps_of(stage, batch, folders, _begun(layout) if begun is None else begun)


def steps_of(
    stage: TrainStage, batch: BatchPlan, folders: Mapping[str, Path], begun: Mapping[str, int]
) -> int | None:
    """Optimizer steps of a stage on these prepared folders, which have given ``begun`` rows before it.

    Raises:
        PlanError: The stage stops at the end of a dataset that is shorter than its first step.
    """
    if stage.data.on_exhausted == "repeat":
        return count_steps(stage.limits, batch, _count_rows(folders))
    # Here and not above: it imports numpy, which plans of stages that repeat their data do without.
    from orchestrator.data.mixture import Mixture
    from orchestrator.data.prepared import Meta

    try:
        metas = {name: Meta.open(folder) for name, folder in folders.items()}
    except DataError:
        return None
    if not metas:
        return None
    mixture = Mixture.of_prepared(stage.data.mixture, stage.data.mixture_unit, metas, begun)
    try:
        return count_steps(stage.limits, batch, int(mixture.num_rows.sum()), mixture.exhaustion())
    except PlanError as error:
        raise PlanError(f"stage '{stage.name}': {error}") from error


def rows_drawn(
    stage: TrainStage, batch: BatchPlan, layout: StageLayout, begun: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Rows that each dataset of a prepared stage has given when it ends, those of stages before included.

    Args:
        begun: Rows that its datasets will have given before it; absent: as it was prepared.
    """
    from orchestrator.data.mixture import Mixture
    from orchestrator.data.prepared import Meta

    begun = _begun(layout) if begun is None else begun
    steps = planned_steps(stage, batch, layout, begun)
    assert steps is not None
    metas = {name: Meta.open(folder) for name, folder in _prepared_folders(stage, layout).items()}
    mixture = Mixture.of_prepared(stage.data.mixture, stage.data.mixture_unit, metas, begun)
    return mixture.drawn(steps * batch.global_batch_size)


def begun_as_planned(job: Job, stage: TrainStage, run: RunLayout) -> dict[str, int] | None:
    """Rows that a stage's datasets will have given before it; ``None`` while that is not known."""
    if stage.data.after is None:
        return {}
    earlier = trained_stage(job, stage.data.after)
    batch, layout = plan_batch(earlier, job.resources), run.stage(earlier.name)
    before = begun_as_planned(job, earlier, run)
    if before is None or not _prepared_folders(earlier, layout):
        return None
    try:
        if planned_steps(earlier, batch, layout, before) is None:
            return None
        drawn = rows_drawn(earlier, batch, layout, before)
    except DataError:
        return None
    return {name: drawn[name] for name in stage.data.mixture if name in drawn}


def read_inputs(layout: StageLayout) -> dict[str, Any]:
    """The stage's inputs.json; empty where there is none that can be read, which ``run`` makes anew."""
    try:
        inputs = json.loads(layout.inputs.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(inputs, dict) or not isinstance(inputs.get("tokenizer", ""), str):
        return {}
    files = inputs.get("files", {})
    mappings = [*(inputs.get(key, {}) for key in MAPPINGS), files]
    mappings += files.values() if isinstance(files, dict) else ()
    return inputs if all(isinstance(found, dict) for found in mappings) else {}


def _begun(layout: StageLayout) -> dict[str, int]:
    """Rows that the datasets of a prepared stage have given before it."""
    begun: dict[str, int] = read_inputs(layout).get("begun", {})
    return begun


def packing_efficiency(stage: TrainStage, layout: StageLayout) -> float | None:
    """Fraction of the training rows' positions that hold a token; ``None`` before data is prepared."""
    try:
        metas = [
            json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            for folder in _prepared_folders(stage, layout).values()
        ]
        used = sum(meta["num_rows"] * meta["packing_efficiency"] for meta in metas)
        return float(used / sum(meta["num_rows"] for meta in metas))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _prepared_folders(stage: TrainStage, layout: StageLayout) -> dict[str, Path]:
    """Folders of a stage's datasets as they were last prepared; empty before that."""
    try:
        train = read_inputs(layout)["train"]
        return {name: Path(train[name]) for name in stage.data.mixture}
    except (KeyError, TypeError):
        return {}


def _count_rows(folders: Mapping[str, Path]) -> int | None:
    """Rows of one epoch of all datasets; ``None`` where they are not prepared."""
    try:
        metas = [(folder / "meta.json").read_text(encoding="utf-8") for folder in folders.values()]
        return sum(int(json.loads(meta)["num_rows"]) for meta in metas) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None
