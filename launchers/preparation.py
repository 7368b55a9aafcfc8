"""What a stage reads, made before its workers start, and what a started stage may not swap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launchers.display import Display
from launchers.run_directory import has_started, opened_run, set_aside
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.errors import OrchestratorError, PlanError
from orchestrator.spec.fingerprint import spec_fingerprint, stage_fingerprint
from orchestrator.spec.job import EvaluateStage, ExportStage, Job, Stage, TrainStage
from orchestrator.spec.plan import stage_order
from orchestrator.tracking.events import append_event

if TYPE_CHECKING:
    from orchestrator.train.inputs import PreparedData


class StoppedError(OrchestratorError):
    """Somebody wants the run to stop; the next start goes on."""

    exit_code = 75


def input_stages(stage: Stage) -> list[str]:
    """Stages whose weights this one reads."""
    if isinstance(stage, TrainStage):
        return [stage.init.stage] if stage.init and stage.init.stage else []
    return [stage.from_]


def prepare_stages(job: Job, layout: RunLayout, display: Display) -> None:
    """Make what all stages read, for workers that somebody starts by hand.

    Raises:
        OrchestratorError: A source, tokenizer or model is unfit, or the run is being run.
    """
    with opened_run(job, layout) as run_id:
        fingerprints: dict[str, str] = {}
        for stage in stage_order(job):
            prepare_stage(job, stage, layout, display, run_id, fingerprints)


def prepare_stage(
    job: Job,
    stage: Stage,
    layout: RunLayout,
    display: Display,
    run_id: str,
    fingerprints: dict[str, str],
) -> str:
    """Make what a stage reads, write ``inputs.json``, and add its fingerprint to ``fingerprints``.

    Raises:
        PlanError: A stage that began reads other data now.
    """
    # Here and not above: data preparation imports torch and transformers, which a refused job never needs.
    from orchestrator.train.inputs import StageInputs

    stage_layout = layout.stage(stage.name)
    data = None if isinstance(stage, ExportStage) else _prepare_data(job, stage, layout, display)
    digests = data.digests() if data else {}
    inputs = {name: fingerprints[name] for name in input_stages(stage)}
    fingerprint = stage_fingerprint(job, stage, input_fingerprints=inputs, data_digests=digests)
    fingerprints[stage.name] = _weights_fingerprint(job, stage, inputs, digests)
    _settle_changed_inputs(stage, stage_layout, layout, inputs, digests, display)
    weights = None
    if isinstance(stage, TrainStage) and stage.init is not None and stage.init.checkpoint is None:
        weights = stage.init.pretrained or str(layout.stage(str(stage.init.stage)).weights)
    StageInputs(
        fingerprint=fingerprint,
        spec_fingerprint=spec_fingerprint(job, stage),
        tokenizer=str(data.tokenizer) if data else "",
        train={name: str(path) for name, path in data.train.items()} if data else {},
        evaluation={name: str(path) for name, path in data.evaluation.items()} if data else {},
        label_names=data.label_names if data else (),
        weights=weights,
        run_id=_tracker_run_id(stage_layout, run_id),
        data_digests=digests,
        input_fingerprints=inputs,
    ).write(stage_layout.inputs)
    return fingerprint


def refuse_to_go_on(layout: RunLayout) -> None:
    """Raise ``StoppedError`` where somebody wants the run to stop."""
    if layout.stop_request.exists():
        raise StoppedError(f"{layout.root.name} was stopped before its workers started")


def _prepare_data(
    job: Job, stage: TrainStage | EvaluateStage, layout: RunLayout, display: Display
) -> PreparedData:
    """Tokenizer and rows of a stage, until somebody wants the run to stop."""
    from orchestrator.train.inputs import prepare_data

    def on_progress(what: str, done: int, total: int) -> None:
        refuse_to_go_on(layout)
        display.prepare(stage.name, what, done, total)

    refuse_to_go_on(layout)
    data = prepare_data(job, stage, layout, on_progress)
    for line in data.summaries():
        display.note(stage.name, line)
    return data


def _tracker_run_id(stage_layout: StageLayout, run_id: str) -> str:
    """What trackers call this stage: the same over restarts, another one for each time it began anew."""
    earlier = sum(1 for _ in stage_layout.root.parent.glob(f"{stage_layout.root.name}.before-*"))
    return f"{run_id}-{stage_layout.root.name}" + (f"-{earlier + 1}" if earlier else "")


def _weights_fingerprint(job: Job, stage: Stage, inputs: dict[str, str], digests: dict[str, str]) -> str:
    """What the stage's weights depend on: all of its fingerprint but evaluation."""
    if isinstance(stage, TrainStage):
        stage = stage.model_copy(update={"evaluation": None})
        digests = {name: digest for name, digest in digests.items() if not name.startswith("evaluation.")}
    return stage_fingerprint(job, stage, input_fingerprints=inputs, data_digests=digests)


def _settle_changed_inputs(
    stage: Stage,
    stage_layout: StageLayout,
    layout: RunLayout,
    inputs: dict[str, str],
    digests: dict[str, str],
    display: Display,
) -> None:
    """A started stage must go on with what it began with.

    Other training data is refused; a stage whose input stage was trained anew starts over, its old
    folder renamed.

    Raises:
        PlanError: The training data changed.
    """
    from orchestrator.train.inputs import StageInputs

    if not stage_layout.inputs.exists() or not has_started(stage_layout):
        return
    before = StageInputs.read(stage_layout)
    changed = [
        name
        for name, digest in before.data_digests.items()
        if not name.startswith("evaluation.") and digests.get(name, digest) != digest
    ]
    if changed and isinstance(stage, TrainStage):
        raise PlanError(
            f"stage '{stage.name}': the content of {changed} changed since the stage began."
            " Restore the files to go on, give the job another name, or start over with --fresh."
        )
    if before.input_fingerprints != inputs and isinstance(stage, TrainStage):
        target = set_aside(stage_layout.root)
        display.note(stage.name, f"starts over on new weights; its old folder is {target}")
        append_event(layout.events, "stage_set_aside", stage=stage.name, folder=str(target))
