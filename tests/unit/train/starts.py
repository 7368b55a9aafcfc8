"""Training stages as their starts leave them on disk, without training: ledger, checkpoints, result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import step_name
from orchestrator.data.mixture import Mixture
from orchestrator.data.prepared import Meta, content_digest
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import dump_resolved
from orchestrator.spec.plan import BatchPlan, micro_batch_rows, plan_batch
from orchestrator.tracking.events import append_event
from orchestrator.train.ledger import Ledger

# A multiple of 1, 2, 3, 4 and 8 workers' micro-batches.
GLOBAL_BATCH_SIZE = 24
STAGE = "pretrain"


@dataclass(frozen=True)
class Start:
    """One start of a stage's workers; steps after its last checkpoint are lost with the kill."""

    workers: int
    save_every: int
    killed_at: int
    loses_record: bool = False
    """The kill comes between the last checkpoint and its record."""


@dataclass
class TrainedStage:
    """A stage that reads the prepared ``folders``."""

    run: RunLayout
    job: Job
    folders: Mapping[str, Path]
    saved_by: dict[int, int] = field(default_factory=dict)
    """Workers by step of checkpoint."""
    consumed: dict[int, list[range]] = field(default_factory=dict)
    """Micro-batches of all ranks by step, lost steps left out once another start has begun."""

    @property
    def layout(self) -> StageLayout:
        return self.run.stage(STAGE)

    @property
    def stage(self) -> TrainStage:
        stage = self.job.stage(STAGE)
        assert isinstance(stage, TrainStage)
        return stage

    @property
    def mixture(self) -> Mixture:
        metas = {name: Meta.open(folder) for name, folder in self.folders.items()}
        return Mixture.of_prepared(self.stage.data.mixture, self.stage.data.mixture_unit, metas)

    def batch(self, workers: int) -> BatchPlan:
        return plan_batch(self.stage, self.job.resources.with_workers(workers))

    def start(self, start: Start) -> None:
        """Train from the newest checkpoint to the kill as ``training_stage`` does."""
        begun = max(self.saved_by, default=0)
        batch, ledger = self.batch(start.workers), self.ledger(begun, start.workers)
        self.consumed = {step: read for step, read in self.consumed.items() if step < begun}
        append_event(self.run.events, "training_started", stage=STAGE, step=begun, max_steps=99)
        last_save = start.killed_at // start.save_every * start.save_every
        for step in range(begun, start.killed_at):
            self.consumed[step] = [
                micro_batch_rows(batch, step, accum_index, rank)
                for rank in range(batch.world_size)
                for accum_index in range(batch.grad_accum_steps)
            ]
            completed = step + 1
            if completed % start.save_every:
                continue
            state = self.save(completed, start.workers, ledger.committed)
            if not (start.loses_record and completed == last_save):
                ledger.commit(completed)
                append_event(self.run.events, "checkpoint", stage=STAGE, **state)

    def ledger(self, begun: int, workers: int) -> Ledger:
        """The ledger as a start of ``workers`` continues it after the checkpoint of step ``begun``."""
        path = self.layout.checkpoints / step_name(begun)
        state = seal.read_state(path) if begun else {}
        return Ledger(
            self.layout.ledger,
            self.batch(workers),
            begun,
            mixture=self.mixture,
            data={name: content_digest(folder) for name, folder in self.folders.items()},
            seed=self.job.seed,
            saved_by=state.get("world_size"),
            since=state.get("recorded"),
        )

    def save(self, step: int, workers: int, recorded: int | None) -> dict[str, Any]:
        """A checkpoint without tensors; its state."""
        path = self.layout.checkpoints / step_name(step)
        path.mkdir(parents=True, exist_ok=True)
        state = {"step": step, "world_size": workers, "recorded": recorded, "left_out": []}
        index = {"format": seal.FORMAT, "tensors": {}}
        contents = {seal.STATE: state, seal.METADATA: index}
        seal.seal(path, {name: seal.write_json(path / name, value) for name, value in contents.items()})
        self.saved_by[step] = workers
        return state

    def finish(self) -> None:
        """The result that says the stage is finished."""
        self.layout.result.write_text(json.dumps({"step": max(self.saved_by), "metrics": {}}))

    def rewrite_record(self, index: int, **fields: Any) -> None:
        """Change fields of one record of the ledger."""
        lines = self.layout.ledger.read_text().splitlines()
        lines[index] = json.dumps({**json.loads(lines[index]), **fields})
        self.layout.ledger.write_text("".join(line + "\n" for line in lines))

    def drop_record(self, index: int) -> None:
        """Remove one record of the ledger."""
        lines = self.layout.ledger.read_text().splitlines()
        del lines[index]
        self.layout.ledger.write_text("".join(line + "\n" for line in lines))


def make_stage(
    folder: Path, folders: Mapping[str, Path], weights: Mapping[str, float], **data: Any
) -> TrainedStage:
    """A stage that nobody has started."""
    stage = {
        "name": STAGE,
        "objective": {"name": "causal_lm"},
        "model": {"config": {"model_type": "gpt2"}},
        "data": {"mixture": dict(weights), "seq_len": 16, **data},
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "micro_batch_size": 1,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "schedule": {"name": "constant"},
        "limits": {"max_steps": 1000},
    }
    job = Job.model_validate(
        {
            "name": "run",
            "seed": 7,
            "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": list(weights)}},
            "datasets": {name: {"source": "text", "files": f"/data/{name}.txt"} for name in weights},
            "stages": [stage],
        }
    )
    trained = TrainedStage(RunLayout(folder / "run"), job, folders)
    trained.layout.root.mkdir(parents=True)
    trained.run.job.write_text(dump_resolved(job))
    trained.layout.job.write_text(dump_resolved(job))
    inputs = {"train": {name: str(path) for name, path in folders.items()}}
    trained.layout.inputs.write_text(json.dumps(inputs))
    return trained


def consumed_rows(trained: TrainedStage) -> np.ndarray:
    """Places of the cursor that all ranks read, step by step; int64."""
    ranges = [rows for step in sorted(trained.consumed) for rows in trained.consumed[step]]
    return np.concatenate([np.arange(rows.start, rows.stop) for rows in ranges])
