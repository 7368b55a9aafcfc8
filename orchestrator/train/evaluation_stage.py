"""An evaluate stage on one rank: another stage's weights on held-out rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.contracts import Objective
from orchestrator.data.loader import RowReader
from orchestrator.data.tokenizer import token_info
from orchestrator.models import load_model
from orchestrator.spec.job import EvaluateStage, Job, TrainStage
from orchestrator.train.agreement import together
from orchestrator.train.building import build_objective, check_model, open_readers, open_tokenizer
from orchestrator.train.evaluate import evaluate_datasets
from orchestrator.train.inputs import StageInputs
from orchestrator.train.loop import Outcome
from orchestrator.train.results import result_step, write_result
from orchestrator.train.trackers import start_trackers

logger = logging.getLogger(__name__)


def run_evaluation_stage(
    job: Job, stage: EvaluateStage, layout: RunLayout, *, device: torch.device
) -> Outcome:
    """Evaluate each dataset; every rank holds the whole model and reads its share; collective."""
    trained = job.stage(stage.from_)
    assert isinstance(trained, TrainStage)
    stage_layout = layout.stage(stage.name)

    def build() -> tuple[StageInputs, nn.Module, Objective, Mapping[str, RowReader]]:
        inputs = StageInputs.read(stage_layout)
        tokens = token_info(open_tokenizer(inputs))
        objective = build_objective(trained, tokens, inputs.label_names)
        weights = str(layout.stage(stage.from_).weights)
        model = load_model(weights, objective.head, tokens, inputs.label_names)
        check_model(trained, model, objective, tokens)
        readers = open_readers(job, inputs.evaluation, trained.data)
        return inputs, model.to(device), objective, readers

    inputs, model, objective, readers = together("loading the weights", build)
    metrics = evaluate_datasets(
        model,
        objective,
        readers,
        micro_batch_size=stage.micro_batch_size,
        max_rows=stage.max_rows,
        seed=job.seed,
        device=device,
        forward_context=nullcontext,
    )
    logger.info("evaluation %s", metrics)
    step = result_step(layout.stage(stage.from_))
    trackers = start_trackers(job, stage, stage_layout, inputs, start_step=step - 1, rank=dist.get_rank())
    for tracker in trackers:
        tracker.log(step, metrics)
        tracker.finish("finished")
    if dist.get_rank() == 0:
        write_result(stage_layout, inputs, step=None, metrics=metrics)
    return "finished"
