"""What every rank of a training stage builds before it communicates: rows, objective, model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.contracts import Objective, TokenInfo
from orchestrator.data.loader import RowReader
from orchestrator.data.prepared import content_digest
from orchestrator.data.stream import MixtureReader
from orchestrator.data.tokenizer import for_classification, load_tokenizer, token_info
from orchestrator.errors import CheckpointError, DataError, ModelError
from orchestrator.head_labels import check_labels
from orchestrator.models import check_fit, load_model
from orchestrator.registry import resolve
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.plan import BatchPlan, count_steps, plan_batch
from orchestrator.spec.training import CausalLMObjective, Data, SupervisedFinetuningObjective
from orchestrator.train.confinement import check_causal, check_confined
from orchestrator.train.imported import import_weights, take_weights
from orchestrator.train.inputs import StageInputs
from orchestrator.train.randomness import derive_seed
from orchestrator.trained_part import TrainedPart


@dataclass(frozen=True)
class Parts:
    """One rank's parts of a training stage, equal on all ranks."""

    inputs: StageInputs
    tokenizer: Any
    objective: Objective
    reader: MixtureReader
    evaluation: Mapping[str, RowReader]
    """Validation rows by dataset."""
    model: PreTrainedModel
    batch_plan: BatchPlan
    max_steps: int
    data_digests: Mapping[str, str]
    """Content digest of the prepared training rows by dataset."""


def build_parts(job: Job, stage: TrainStage, layout: RunLayout) -> Parts:
    """Open the prepared rows, build objective and model, and check that they fit each other.

    Raises:
        OrchestratorError: Something is missing or does not fit.
    """
    inputs = StageInputs.read(layout.stage(stage.name))
    tokenizer = open_tokenizer(inputs)
    tokens = token_info(tokenizer)
    objective = build_objective(stage, tokens, inputs.label_names)
    readers, data = open_readers(job, inputs.train, stage.data), stage.data
    begun = inputs.begun
    reader = MixtureReader(readers, data.mixture, seed=job.seed, unit=data.mixture_unit, begun=begun)
    batch_plan = plan_batch(stage, job.resources)
    exhaustion = reader.mixture.exhaustion() if data.on_exhausted == "stop" else None
    max_steps = count_steps(stage.limits, batch_plan, reader.num_rows, exhaustion)
    assert max_steps is not None
    model = _first_model(job, stage, inputs, objective, tokens)
    choose_trained(stage, model)
    check_model(stage, model, objective, tokens)
    return Parts(
        inputs=inputs,
        tokenizer=tokenizer,
        objective=objective,
        reader=reader,
        evaluation=open_readers(job, inputs.evaluation, stage.data),
        model=model,
        batch_plan=batch_plan,
        max_steps=max_steps,
        data_digests={name: content_digest(Path(folder)) for name, folder in inputs.train.items()},
    )


def open_tokenizer(inputs: StageInputs) -> Any:
    """The stage's tokenizer, which makes of a text exactly the row that the stage reads."""
    tokenizer = load_tokenizer(Path(inputs.tokenizer))
    return for_classification(tokenizer) if inputs.label_names else tokenizer


def check_model(stage: TrainStage, model: PreTrainedModel, objective: Objective, tokens: TokenInfo) -> None:
    """Refuse a model that does not fit the stage's rows, looks ahead, or mixes documents that it keeps apart.

    Raises:
        ModelError: Naming the stage and the key to change.
    """
    where = f"stage '{stage.name}'"
    check_fit(model.config, tokens, stage.data.seq_len, where)
    kind = objective.row_layout(stage.objective, stage.data).kind
    if isinstance(stage.objective, CausalLMObjective | SupervisedFinetuningObjective):
        check_causal(model, tokens, seq_len=stage.data.seq_len, where=where)
    if stage.data.confines_documents and kind in ("packed", "best_fit"):
        check_confined(model, tokens, head=objective.head, seq_len=stage.data.seq_len, where=where)


def open_readers(job: Job, folders: Mapping[str, str], data: Data) -> dict[str, RowReader]:
    """Readers of prepared rows by dataset; ``data`` says whether rows tell their documents apart."""
    mask = data.confines_documents
    return {
        name: RowReader.open(Path(folder), seed=job.seed, source_name=name, document_mask=mask)
        for name, folder in folders.items()
    }


def build_objective(stage: TrainStage, tokens: TokenInfo, label_names: tuple[str, ...]) -> Objective:
    """The stage's objective, ours or the user's.

    Raises:
        DataError: It does not fit the tokenizer or the labels; the message names the stage.
    """
    kind = resolve("objective", stage.objective.name)
    try:
        objective: Objective = kind(stage.objective, tokens, label_names)
    except DataError as error:
        raise DataError(f"stage '{stage.name}': {error}") from error
    return objective


def _first_model(
    job: Job, stage: TrainStage, inputs: StageInputs, objective: Objective, tokens: TokenInfo
) -> PreTrainedModel:
    """The model before its first step: the same on every rank, whatever their number."""
    torch.manual_seed(derive_seed(job.seed, "init"))
    if inputs.weights is not None:
        return _named_problem(
            load_model(inputs.weights, objective.head, tokens, inputs.label_names, stage.init), objective
        )
    assert stage.model is not None
    factory: Callable[..., PreTrainedModel] = resolve("model", stage.model.factory)
    model = factory(stage.model.config, objective.head, tokens, inputs.label_names)
    model = _named_problem(model, objective)
    if stage.init is not None and stage.init.checkpoint is not None:
        tokenizer = inputs.data_digests["tokenizer"]
        folder = Path(stage.init.checkpoint)
        if stage.init.format == "orchestrator":
            load_checkpoint_weights(model, folder, tokenizer_digest=tokenizer, label_names=inputs.label_names)
        else:
            import_weights(model, folder, stage.init.format)
    return model


def choose_trained(stage: TrainStage, model: PreTrainedModel) -> None:
    """Freeze what the stage does not train.

    Raises:
        ModelError: Naming the stage and the pattern that fits nothing, or everything.
    """
    try:
        TrainedPart(stage.trainable, stage.freeze).apply(model)
    except ModelError as error:
        raise ModelError(f"stage '{stage.name}': {error}") from error


def _named_problem(model: PreTrainedModel, objective: Objective) -> PreTrainedModel:
    """The model, its configuration saying what its head predicts, so that others compute the same loss."""
    if objective.problem_type is not None:
        model.config.problem_type = objective.problem_type
    return model


def load_checkpoint_weights(
    model: PreTrainedModel, folder: Path, *, tokenizer_digest: str, label_names: Sequence[str] = ()
) -> None:
    """Take the weights of another run's checkpoint.

    Args:
        tokenizer_digest: Of the tokenizer that these weights are going to see.
        label_names: What the outputs of a classifier are going to mean.

    Raises:
        CheckpointError: It does not verify, holds other parameters than the model, or was trained with
            another tokenizer.
        ModelError: Its outputs mean other labels.
    """
    manager = CheckpointManager(folder.parent)
    problem = manager.verify(folder)
    if problem is not None:
        raise CheckpointError(f"init.checkpoint {folder}: {problem}; name another checkpoint")
    state = manager.read_state(folder)
    # Checkpoints of earlier versions do not say.
    check_labels(f"init.checkpoint {folder}", state.get("label_names", ()), label_names)
    trained_with = state.get("tokenizer")
    if trained_with != tokenizer_digest:
        raise CheckpointError(
            f"init.checkpoint {folder} was trained with the tokenizer {trained_with}, and this stage's is"
            f" {tokenizer_digest}: its tokens would mean something else. Set tokenizer.from to the"
            " folder of the one it was trained with, such as the weights/ of its stage"
        )
    take_weights(model, manager.read_weights(folder), f"init.checkpoint {folder}")
