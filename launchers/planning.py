"""What a job will do, in numbers, before it does anything; the content of ``orchestrator plan``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchers.counting import begun_as_planned, packing_efficiency, planned_steps, read_inputs
from launchers.forecast import Forecast, forecast_stages
from launchers.pins import pinned, read_pins
from launchers.run_directory import bent_schedules, refuse_changed
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import newest_step
from orchestrator.errors import ModelError, PlanError
from orchestrator.spec.fingerprint import digest
from orchestrator.spec.job import Job, Stage, TrainStage
from orchestrator.spec.plan import (
    fitting_workers,
    input_stage,
    plan_batch,
    stage_order,
)
from orchestrator.spec.promise import promise
from orchestrator.spec.reads import read_before
from orchestrator.spec.training import (
    CausalLMObjective,
    MaskedLMObjective,
    SequenceClassificationObjective,
    SupervisedFinetuningObjective,
    TokenClassificationObjective,
)

if TYPE_CHECKING:
    from orchestrator.contracts import Head


def plan_job(job: Job, *, runs_dir: Path, with_model: bool) -> dict[str, Any]:
    """Everything ``plan`` prints, as one JSON document.

    Args:
        with_model: Build models that were never counted, which imports torch and transformers.

    Raises:
        PlanError: A batch cannot be split.
        ModelError: A model cannot be built.
    """
    run = RunLayout(runs_dir / job.name)
    job = pinned(job, read_pins(run.pins))
    parameters = ParameterCounts(run.cache / "parameters.json", with_model=with_model)
    refusal = None
    try:
        refuse_changed(job, run)
    except PlanError as error:
        refusal = str(error)
    bent = {} if refusal else bent_schedules(job, run)
    forecasts = forecast_stages(job, run)
    refusal = refusal or next((found.refusal for found in forecasts.values() if found.refusal), None)
    stages = [_plan_stage(job, stage, run, parameters, forecasts[stage.name]) for stage in stage_order(job)]
    return {
        "name": job.name,
        "run_dir": str(run.root),
        "resources": job.resources.model_dump(mode="json", by_alias=True),
        "fitting_workers": fitting_workers(job) if job.resources.is_elastic else None,
        "stages": stages,
        "notes": bent,
        "refusal": refusal,
    }


def _plan_stage(
    job: Job, stage: Stage, run: RunLayout, parameters: ParameterCounts, forecast: Forecast
) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "name": stage.name,
        "kind": stage.kind,
        "needs": input_stage(stage),
        "done": forecast.state == "done",
        "state": forecast.state,
        "changed_data": list(forecast.changed_data),
        "gone_data": list(forecast.gone_data),
    }
    if not isinstance(stage, TrainStage):
        return plan
    batch = plan_batch(stage, job.resources)
    try:
        config, head = _model_config(job, stage, run), _head(stage)
        num_parameters = parameters.count(config, *head)
        num_trained = parameters.count(config, *head, trainable=stage.trainable, freeze=stage.freeze)
    except ModelError as error:
        raise ModelError(f"stage '{stage.name}': {error}") from error
    begun = begun_as_planned(job, stage, run)
    steps = None if begun is None else planned_steps(stage, batch, run.stage(stage.name), begun)
    return plan | {
        "objective": stage.objective.name,
        "strategy": stage.strategy.name,
        "world_size": batch.world_size,
        "micro_batch_size": batch.micro_batch_size,
        "grad_accum_steps": batch.grad_accum_steps,
        "global_batch_size": batch.global_batch_size,
        "seq_len": batch.seq_len,
        "packing_efficiency": packing_efficiency(stage, run.stage(stage.name)),
        "tokens_per_step": batch.tokens_per_step,
        "steps": steps,
        "tokens": None if steps is None else steps * batch.tokens_per_step,
        "rows": None if steps is None else steps * batch.global_batch_size,
        "epochs": stage.limits.max_epochs,
        "parameters": num_parameters,
        "trained_parameters": num_trained,
        "saved_step": newest_step(run.stage(stage.name).checkpoints),
        "read_before": read_before(job, stage),
        "promise": promise(stage, job.resources, job.reproducibility),
    }


def _model_config(job: Job, stage: TrainStage, run: RunLayout) -> dict[str, Any] | None:
    """The configuration a stage's model is built from; ``None`` for one that is not ours to build."""
    while stage.model is None:
        name = input_stage(stage)
        if name is None:
            return None
        origin = job.stage(name)
        assert isinstance(origin, TrainStage)
        stage = origin
    if stage.model.factory != "auto":
        return None
    config = dict(stage.model.config)
    vocab_size = _vocab_size(job, run.stage(stage.name))
    if vocab_size is not None:
        config.setdefault("vocab_size", vocab_size)
    return config


def _vocab_size(job: Job, layout: StageLayout) -> int | None:
    """Entries of the stage's tokenizer: those it has, or before it is trained those that were asked for.

    A small corpus yields fewer than were asked for.
    """
    folders = [read_inputs(layout).get("tokenizer"), job.tokenizer and job.tokenizer.from_]
    for folder in filter(None, folders):
        try:
            content = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
            ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # A hub id, or a vocabulary that is no mapping: transformers alone can tell.
            continue
        return int(max(ids)) + 1
    return job.tokenizer.train.vocab_size if job.tokenizer and job.tokenizer.train else None


def _head(stage: TrainStage) -> tuple[Head | None, int]:
    """What a stage's model predicts, and with how many outputs where it classifies."""
    objective = stage.objective
    if isinstance(objective, MaskedLMObjective):
        return ("pretraining" if objective.next_sentence else "masked_lm"), 2
    if isinstance(objective, SequenceClassificationObjective):
        return "sequence_classification", objective.num_outputs
    if isinstance(objective, TokenClassificationObjective):
        return "token_classification", objective.num_outputs
    is_causal = isinstance(objective, CausalLMObjective | SupervisedFinetuningObjective)
    return ("causal_lm" if is_causal else None), 2


class ParameterCounts:
    """Parameters by model configuration, remembered in a file of the runs folder."""

    def __init__(self, path: Path, *, with_model: bool) -> None:
        """Read what is known; ``with_model`` says whether to count what is not."""
        self._path = path
        self._with_model = with_model
        self._known = self._read()

    def count(
        self,
        config: Mapping[str, Any] | None,
        head: Head | None,
        num_labels: int,
        *,
        trainable: tuple[str, ...] | None = None,
        freeze: tuple[str, ...] | None = None,
    ) -> int | None:
        """Parameters of the model; ``None`` when they are not known and not to be counted.

        Args:
            config: The model's configuration; absent: not ours to build.
            head: What the model predicts; absent: only the user's own objective knows.
            num_labels: Outputs of a classification head.
            trainable: Count those alone; absent: all.
            freeze: Leave those out.

        Raises:
            ModelError: The model cannot be built, or a pattern does not fit it.
        """
        if config is None or head is None:
            return None
        given = {"trainable": trainable, "freeze": freeze}
        part = {name: list(patterns) for name, patterns in given.items() if patterns is not None}
        key = digest({"config": config, "head": head, "num_labels": num_labels, **part})
        if key not in self._known and self._with_model:
            # Here and not above: it imports torch and transformers, which takes seconds.
            from orchestrator.models import count_parameters
            from orchestrator.trained_part import TrainedPart

            self._known[key] = count_parameters(config, head, num_labels, TrainedPart(trainable, freeze))
            self._write()
        return self._known.get(key)

    def _read(self) -> dict[str, int]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        # What cannot be kept is counted again; a plan alone makes no folder for runs.
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._path)
