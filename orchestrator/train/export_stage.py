"""An export stage: another stage's weights in another dtype and in files of bounded size."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from transformers import AutoConfig, AutoTokenizer

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.job import ExportStage
from orchestrator.train.inputs import StageInputs
from orchestrator.train.loop import Outcome
from orchestrator.train.results import replace_folder, write_result

logger = logging.getLogger(__name__)


def run_export_stage(stage: ExportStage, layout: RunLayout) -> Outcome:
    """Write ``weights/`` of the export stage; rank 0 alone works."""
    if dist.get_rank() != 0:
        return "finished"
    stage_layout = layout.stage(stage.name)
    source = layout.stage(stage.from_).weights
    architecture = AutoConfig.from_pretrained(source).architectures[0]
    dtype = getattr(torch, stage.dtype)
    model = getattr(transformers, architecture).from_pretrained(source, dtype=dtype)

    def write(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size=int(stage.max_shard_gigabytes * 1e9))
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)

    replace_folder(stage_layout.weights, write)
    logger.info("wrote %s (%s) to %s", architecture, stage.dtype, stage_layout.weights)
    written = sum(file.stat().st_size for file in stage_layout.weights.glob("*.safetensors"))
    inputs = StageInputs.read(stage_layout)
    write_result(stage_layout, inputs, step=None, metrics={"export/bytes": float(written)})
    return "finished"
