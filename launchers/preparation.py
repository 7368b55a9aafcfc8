"""What a stage reads, made before its workers start, and what a started stage may not swap."""

from __future__ import annotations

from launchers.display import Display
from launchers.run_directory import has_started, opened_run, set_aside
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.errors import PlanError
from orchestrator.spec.fingerprint import spec_fingerprint, stage_fingerprint
from orchestrator.spec.job import ExportStage, Job, Stage, TrainStage
from orchestrator.spec.plan import stage_order
from orchestrator.tracking.events import append_event


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
    from orchestrator.train.inputs import StageInputs, prepare_data

    stage_layout = layout.stage(stage.name)
    digests: dict[str, str] = {}
    data = None
    if not isinstance(stage, ExportStage):
        data = prepare_data(
            job,
            stage,
            layout,
            lambda what, done, total: display.prepare(stage.name, what, done, total),
        )
        digests = data.digests()
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
        run_id=run_id,
        data_digests=digests,
        input_fingerprints=inputs,
    ).write(stage_layout.inputs)
    return fingerprint


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
