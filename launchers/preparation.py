"""What a stage reads, made before its workers start, and what a started stage may not swap."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launchers.changes import why_changed
from launchers.counting import rows_drawn, steps_of
from launchers.display import Display
from launchers.ray_tasks import RayTasks
from launchers.run_directory import has_started, opened_run, set_aside
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import list_steps
from orchestrator.errors import OrchestratorError, PlanError, SourceMissingError
from orchestrator.spec.fingerprint import spec_fingerprint, stage_fingerprint, weights_fingerprint
from orchestrator.spec.job import EvaluateStage, ExportStage, Job, Stage, TrainStage
from orchestrator.spec.load import dump_resolved
from orchestrator.spec.plan import plan_batch, stage_order
from orchestrator.spec.reads import chat_template, dataset_names, trained_stage
from orchestrator.tracking.events import append_event, replace_text

if TYPE_CHECKING:
    from orchestrator.data.tasks import Tasks
    from orchestrator.train.kept import Kept
    from orchestrator.train.preparing import PreparedData


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
    with (
        opened_run(job, layout, display) as (pinned_job, run_id),
        RayTasks(layout.cache, lambda: refuse_to_go_on(layout)) as tasks,
    ):
        preparation = Preparation(pinned_job, layout, display, run_id, tasks)
        preparation.check_sources()
        for stage in stage_order(pinned_job):
            preparation.prepare(stage)


def refuse_to_go_on(layout: RunLayout) -> None:
    """Raise ``StoppedError`` where somebody wants the run to stop."""
    if layout.stop_request.exists():
        raise StoppedError(f"{layout.root.name} was stopped before its workers started")


class Preparation:
    """Makes what the stages of one start of a run read, in their order."""

    def __init__(self, job: Job, layout: RunLayout, display: Display, run_id: str, tasks: Tasks) -> None:
        """Nothing is made yet."""
        # Here and not above: it imports numpy and xxhash, which a refused job never needs.
        from orchestrator.data.catalog import Catalog

        self._job = job
        self._layout = layout
        self._display = display
        self._run_id = run_id
        self._catalog = Catalog(job.datasets, layout.cache, tasks)
        self._found: dict[str, Kept | None] = {}
        self._fingerprints: dict[str, str] = {}
        """What the weights of each stage depend on, by its name."""

    def check_sources(self) -> None:
        """Find the datasets of all stages and check their columns, before the first one is tokenised.

        Raises:
            DataError: A file or a column is missing, or a chat template is none.
        """
        from orchestrator.data.chat_template import check_chat_template

        seen: set[str] = set()
        for stage in stage_order(self._job):
            if isinstance(stage, ExportStage):
                continue
            if isinstance(stage, TrainStage):
                check_chat_template(chat_template(self._job, stage))
            for name in dataset_names(self._job, stage):
                refuse_to_go_on(self._layout)
                if name not in seen:
                    self._display.note(stage.name, f"reading dataset '{name}'")
                seen.add(name)
                try:
                    self._catalog.find(name).check_columns()
                except SourceMissingError as missing:
                    if (kept := self._kept(stage)) is None:
                        raise
                    kept.refuse_changed(missing)

    def prepare(self, stage: Stage) -> str:
        """Make what a stage reads, and write ``job.yaml`` and ``inputs.json``; the stage's fingerprint.

        Raises:
            PlanError: A stage that began reads other data now.
        """
        # Here and not above: it imports torch and transformers.
        from orchestrator.train.inputs import StageInputs
        from orchestrator.train.kept import rows_keys

        job, stage_layout = self._job, self._layout.stage(stage.name)
        data = None if isinstance(stage, ExportStage) else self._prepare_data(stage)
        digests = data.digests() if data else {}
        if data:
            self._refuse_other_tokenizer(stage, data)
        inputs = {name: self._fingerprints[name] for name in input_stages(stage)}
        fingerprint = stage_fingerprint(job, stage, input_fingerprints=inputs, data_digests=digests)
        self._fingerprints[stage.name] = weights_fingerprint(
            job, stage, input_fingerprints=inputs, data_digests=digests
        )
        begun = self._begun(stage, digests) if isinstance(stage, TrainStage) else {}
        if isinstance(stage, TrainStage) and data:
            # A stage without room for a step is refused before anything is set aside for it.
            steps_of(stage, plan_batch(stage, job.resources), data.train, begun)
        if data:
            self._settle_changed_inputs(stage, inputs, data)
        replace_text(stage_layout.job, dump_resolved(job))
        StageInputs(
            fingerprint=fingerprint,
            spec_fingerprint=spec_fingerprint(job, stage),
            tokenizer=str(data.tokenizer) if data else "",
            train={name: str(path) for name, path in data.train.items()} if data else {},
            evaluation={name: str(path) for name, path in data.evaluation.items()} if data else {},
            label_names=data.label_names if data else (),
            weights=self._first_weights(stage),
            run_id=self._tracker_run_id(stage),
            data_digests=digests,
            input_fingerprints=inputs,
            files=data.files if data else {},
            rows_keys=rows_keys(job, stage) if data and not isinstance(stage, ExportStage) else {},
            begun=begun,
        ).write(stage_layout.inputs)
        return fingerprint

    def _refuse_other_tokenizer(self, stage: Stage, data: PreparedData) -> None:
        """A stage reads by the tokenizer of the weights that it goes on from.

        Raises:
            PlanError: They were trained with another one.
        """
        from orchestrator.data.tokenizer import gives_same_tokens
        from orchestrator.train.inputs import StageInputs

        for name in input_stages(stage):
            before = StageInputs.read(self._layout.stage(name)).tokenizer
            if not gives_same_tokens(Path(before), data.tokenizer):
                raise PlanError(
                    f"stage '{stage.name}': its tokenizer is another one than that of '{name}', whose weights"
                    " it starts from: what it was trained on or loaded from has changed. Restore that."
                )

    def _begun(self, stage: TrainStage, digests: Mapping[str, str]) -> dict[str, int]:
        """Rows that the stage's datasets have given in the stages before it, as far as it goes on in them.

        Raises:
            PlanError: They are other rows now.
        """
        from orchestrator.train.inputs import StageInputs

        if stage.data.after is None:
            return {}
        earlier, layout = trained_stage(self._job, stage.data.after), self._layout.stage(stage.data.after)
        before = StageInputs.read(layout).data_digests
        drawn = rows_drawn(earlier, plan_batch(earlier, self._job.resources), layout)
        shared = {name: drawn[name] for name in stage.data.mixture if name in drawn}
        others = [name for name in shared if before[f"train.{name}"] != digests[f"train.{name}"]]
        if others:
            raise PlanError(
                f"stage '{stage.name}': data.after: '{earlier.name}': the rows of {', '.join(others)} are"
                " others there: its objective, tokenizer or dataset keys differ. Leave data.after out to"
                " begin with their first rows"
            )
        return shared

    def _first_weights(self, stage: Stage) -> str | None:
        """Folder or hub id of a training stage's first weights."""
        if not isinstance(stage, TrainStage) or stage.init is None or stage.init.checkpoint is not None:
            return None
        return stage.init.pretrained or str(self._layout.stage(str(stage.init.stage)).weights)

    def _tracker_run_id(self, stage: Stage) -> str:
        """What trackers call a stage: the same over restarts, another one each time it began anew."""
        earlier = sum(1 for _ in self._layout.root.glob(f"{stage.name}.before-*"))
        return f"{self._run_id}-{stage.name}" + (f"-{earlier + 1}" if earlier else "")

    def _kept(self, stage: TrainStage | EvaluateStage) -> Kept | None:
        """What was prepared for the stage before, looked for once."""
        from orchestrator.train.kept import Kept

        if stage.name not in self._found:
            layout = self._layout.stage(stage.name)
            self._found[stage.name] = Kept.find(layout, self._job, stage, self._catalog)
        return self._found[stage.name]

    def _prepare_data(self, stage: TrainStage | EvaluateStage) -> PreparedData:
        """Tokenizer and rows of a stage, until somebody wants the run to stop.

        Raises:
            SourceMissingError: A source is gone, and nothing was prepared from it for this very stage.
        """
        from orchestrator.train.preparing import prepare_data

        def on_progress(what: str, done: int, total: int) -> None:
            refuse_to_go_on(self._layout)
            self._display.prepare(stage.name, what, done, total)

        refuse_to_go_on(self._layout)
        data = prepare_data(self._job, stage, self._catalog, on_progress, lambda: self._kept(stage))
        if data.gone:
            message = " ".join(data.gone)
            self._display.note(stage.name, f"keeps the rows that were prepared before: {message}")
            append_event(self._layout.events, "sources_missing", stage=stage.name, message=message)
        for line in data.summaries():
            self._display.note(stage.name, line)
        return data

    def _settle_changed_inputs(self, stage: Stage, inputs: Mapping[str, str], data: PreparedData) -> None:
        """A started stage must go on with what it began with.

        Other training data is refused, other evaluation data is said; a stage whose input stage was trained
        anew starts over, its old folder renamed.

        Raises:
            PlanError: The training data changed.
        """
        from orchestrator.train.inputs import StageInputs

        stage_layout = self._layout.stage(stage.name)
        if not has_started(stage_layout):
            return
        if not stage_layout.inputs.exists():
            _refuse_other_rows(stage, stage_layout, data)
            return
        before, digests = StageInputs.read(stage_layout), data.digests()
        if before.input_fingerprints != inputs and isinstance(stage, TrainStage):
            target = set_aside(stage_layout.root)
            self._display.note(stage.name, f"starts over on new weights; its old folder is {target}")
            append_event(self._layout.events, "stage_set_aside", stage=stage.name, folder=str(target))
            return
        other = [name for name, digest in before.data_digests.items() if digests.get(name, digest) != digest]
        changed = [name for name in other if not name.startswith("evaluation.")]
        if changed and isinstance(stage, TrainStage):
            why = why_changed(self._job, stage, before, data, changed)
            raise PlanError(
                f"stage '{stage.name}': the content of {', '.join(changed)} changed since the stage began:"
                f" {why}. Restore it to go on, give the job another name, or start over with"
                f" --redo {stage.name}."
            )
        held_out = [name.removeprefix("evaluation.") for name in other if name not in changed]
        if held_out:
            self._display.note(
                stage.name,
                f"evaluates on other rows of {', '.join(held_out)} than before: their data changed",
            )
            append_event(self._layout.events, "evaluation_data_changed", stage=stage.name, datasets=held_out)


def _refuse_other_rows(stage: Stage, layout: StageLayout, data: PreparedData) -> None:
    """Refuse other rows than the newest checkpoint's where nothing else tells what a stage began with.

    Raises:
        PlanError: They are others.
    """
    newest = next((folder for folder in reversed(list_steps(layout.checkpoints)) if folder.is_complete), None)
    if newest is None:
        return
    try:
        state = json.loads((newest.path / "state.json").read_text("utf-8"))
    except (OSError, ValueError):
        # It is damaged; the workers find that, and compare with the one they go on from.
        return
    if not isinstance(state, dict):
        return
    digests = data.digests()
    noted = {name: state.get(f"data.{name}") for name in data.train}
    changed = [name for name, digest in noted.items() if digest not in (None, digests[f"train.{name}"])]
    if changed:
        raise PlanError(
            f"stage '{stage.name}': the content of {', '.join(changed)} changed since the stage began, whose"
            f" {layout.inputs.name} is gone and no longer tells from which files. Restore it to go on, give"
            f" the job another name, or start over with --redo {stage.name}."
        )
