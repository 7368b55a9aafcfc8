"""How each stage stands before the next start, as far as small files tell; what ``plan`` says of it.

``run`` decides by the content of everything a stage reads (``preparation.py``). A forecast reads again only
those source files that were written after the stage was prepared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launchers.counting import read_inputs
from launchers.run_directory import has_started
from launchers.runs import read_result
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.errors import DataError, SourceMissingError
from orchestrator.spec.datasets import HubDataset, SavedDataset
from orchestrator.spec.fingerprint import spec_fingerprint, weights_fingerprint
from orchestrator.spec.job import EvaluateStage, ExportStage, Job, Stage, TrainStage
from orchestrator.spec.plan import input_stage, stage_order

State = Literal["to do", "done", "goes on", "starts over"]


@dataclass(frozen=True)
class Forecast:
    """What the next start does with a stage."""

    state: State
    """``done`` is left as it is, unless ``changed_data`` bears on it."""
    changed_data: tuple[str, ...] = ()
    """What became of the files it was prepared from, one line each."""
    gone_data: tuple[str, ...] = ()
    """Datasets whose sources are gone, so that what was prepared from them is kept."""
    refusal: str | None = None
    """Why ``run`` does not begin: what was prepared from sources that are gone was for another job."""


def forecast_stages(job: Job, run: RunLayout) -> dict[str, Forecast]:
    """The forecast of each stage, in their order."""
    found: dict[str, Forecast] = {}
    weights: dict[str, str | None] = {}
    for stage in stage_order(job):
        layout, before = run.stage(stage.name), input_stage(stage)
        inputs = read_inputs(layout)
        known = {} if before is None else {before: weights[before]}
        weights[stage.name] = _weights(job, stage, inputs, known)
        reading = None if isinstance(stage, ExportStage) or not has_started(layout) else stage
        changed, gone = _changed_files(job, inputs, layout) if reading else ([], [])
        inputs_done = before is None or found[before].state == "done"
        state = _state(job, stage, layout, inputs, known, inputs_done)
        refusal = None
        changes = _changes(job, reading, inputs, layout) if reading and gone else []
        if changes:
            names = ", ".join(f"'{name}'" for name in gone)
            refusal = (
                f"stage '{stage.name}': the source of {names} is gone, and what was prepared before cannot"
                f" stand in for it: {'; '.join(changes[:3])}. Bring back what is gone, or undo that change"
            )
        found[stage.name] = Forecast(state, tuple(changed), () if refusal else tuple(gone), refusal)
    return found


def _state(
    job: Job,
    stage: Stage,
    layout: StageLayout,
    inputs: dict[str, Any],
    known: dict[str, str | None],
    inputs_done: bool,
) -> State:
    """What becomes of a stage whose data is what it was.

    Args:
        known: What the weights depend on that it reads, by stage; ``None`` where that cannot be told.
        inputs_done: Whether the stage before it is done.
    """
    is_same = read_result(layout).get("spec_fingerprint") == spec_fingerprint(job, stage)
    if is_same and inputs_done:
        return "done"
    if not isinstance(stage, TrainStage) or not has_started(layout):
        return "to do"
    begun_on = inputs.get("input_fingerprints", {})
    is_other = any(now is not None and begun_on.get(name, now) != now for name, now in known.items())
    return "starts over" if is_other else "goes on"


def _weights(job: Job, stage: Stage, inputs: dict[str, Any], known: dict[str, str | None]) -> str | None:
    """What the stage's weights will depend on, its data being what it was; ``None``: it is not known."""
    digests = inputs.get("data_digests")
    fingerprints = {name: weights for name, weights in known.items() if weights is not None}
    if digests is None or len(fingerprints) < len(known):
        return None
    return weights_fingerprint(job, stage, input_fingerprints=fingerprints, data_digests=digests)


def _changed_files(job: Job, inputs: dict[str, Any], layout: StageLayout) -> tuple[list[str], list[str]]:
    """Files of the stage that are gone, new, or have other content than then; datasets without any now."""
    # Here and not above: its imports take a tenth of the time of 'plan --no-model'.
    from orchestrator.data.files import changed_files

    lines, gone = list[str](), list[str]()
    for name, digests in inputs.get("files", {}).items():
        if not digests or name not in job.datasets:
            continue
        try:
            lines += changed_files(digests, _digests_now(job, name, digests, layout))
        except SourceMissingError:
            gone.append(name)
    return list(dict.fromkeys(lines)), gone


def _changes(
    job: Job, stage: TrainStage | EvaluateStage, inputs: dict[str, Any], layout: StageLayout
) -> list[str]:
    """In what a stage differs from what it was prepared from, beside what is gone."""
    # Here and not above: it imports all that makes data.
    from orchestrator.train.kept import changes_since

    files = inputs.get("files", {})
    return changes_since(
        inputs.get("rows_keys", {}),
        files,
        job,
        stage,
        lambda name: _digests_now(job, name, files.get(name, {}), layout),
    )


def _digests_now(job: Job, name: str, before: dict[str, str], layout: StageLayout) -> dict[str, str]:
    """Digests of a dataset's files; those not written since the stage was prepared are taken as they were.

    Raises:
        SourceMissingError: None are there.
    """
    from orchestrator.data.files import digest_file, find_files

    dataset = job.datasets[name]
    if isinstance(dataset, SavedDataset):
        paths = sorted(path for path in Path(dataset.path).rglob("*") if path.is_file())
        if not paths:
            raise SourceMissingError(f"datasets.{name}: its files are gone")
    elif isinstance(dataset, HubDataset):
        paths = [path for path in map(Path, before) if path.exists()]
        if not paths:
            raise SourceMissingError(f"datasets.{name}: its files are gone")
    else:
        try:
            paths = find_files(name, dataset)
        except SourceMissingError:
            raise
        except DataError:
            # Empty, or another version of a package: other content, whichever.
            paths = []
    prepared_at = layout.inputs.stat().st_mtime_ns
    digests = {}
    for path in paths:
        is_old = str(path) in before and path.stat().st_mtime_ns < prepared_at
        digests[str(path)] = before[str(path)] if is_old else digest_file(path)
    return digests
