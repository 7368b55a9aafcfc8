"""Every path under a run directory, and nothing else; importable without torch.

runs/<name>/
  job.yaml  submitted.yaml  submission.json  environment.json  events.jsonl  driver.lock  run_id  stop
  <stage>/
    inputs.json  metrics.jsonl  ledger.jsonl  result.json  worker.lock
    logs/rank-00000.log
    checkpoints/step-00000200/
    weights/
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class StageLayout:
    """Paths of one stage of a run."""

    root: Path

    @property
    def job(self) -> Path:
        """The resolved job that this stage was last started with; what a later start is compared to."""
        return self.root / "job.yaml"

    @property
    def inputs(self) -> Path:
        """What the stage reads: tokenizer, prepared rows, first weights."""
        return self.root / "inputs.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """Which global rows each committed range of steps consumed."""
        return self.root / "ledger.jsonl"

    @property
    def result(self) -> Path:
        """Fingerprint and final metrics; present only when the stage is finished."""
        return self.root / "result.json"

    @property
    def worker_lock(self) -> Path:
        """Held by rank 0 while it trains, so that two groups of workers never write one stage."""
        return self.root / "worker.lock"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def weights(self) -> Path:
        """What ``from_pretrained`` loads."""
        return self.root / "weights"

    def log(self, rank: int) -> Path:
        """Log file of one rank."""
        return self.root / "logs" / f"rank-{rank:05d}.log"

    def last_written(self) -> str | None:
        """When rank 0 last wrote metrics or its log, as in ``events.jsonl``: the last sign of killed workers.

        The other ranks of a new start may write before it looks.
        """
        written = [path.stat().st_mtime for path in (self.metrics, self.log(0)) if path.exists()]
        if not written:
            return None
        return datetime.fromtimestamp(max(written), UTC).isoformat(timespec="milliseconds")

    def stacks(self, rank: int) -> Path:
        """Stacks of all threads of one rank, whenever it hung or was sent SIGQUIT."""
        return self.root / "logs" / f"rank-{rank:05d}.stacks.txt"


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run."""

    root: Path

    @property
    def job(self) -> Path:
        """The resolved job: what every worker reads."""
        return self.root / "job.yaml"

    @property
    def submitted_job(self) -> Path:
        """The resolved job as it was handed to a launcher."""
        return self.root / "submitted.yaml"

    @property
    def submission(self) -> Path:
        """To which launcher the run was submitted last, and under which job id."""
        return self.root / "submission.json"

    @property
    def submission_lock(self) -> Path:
        """Held while the run is being submitted."""
        return self.root / "submission.lock"

    @property
    def environment(self) -> Path:
        """Versions and hardware of the latest start."""
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        """Append-only record of starts, restarts, checkpoints, faults and ends."""
        return self.root / "events.jsonl"

    @property
    def run_id(self) -> Path:
        """Random id made at the first start; trackers name their runs by it."""
        return self.root / "run_id"

    @property
    def pins(self) -> Path:
        """Commits of the hub entries that the run began with."""
        return self.root / "pins.json"

    @property
    def plan(self) -> Path:
        """What was planned at the latest start."""
        return self.root / "plan.json"

    @property
    def driver_lock(self) -> Path:
        """Held by the driver while it runs."""
        return self.root / "driver.lock"

    @property
    def stop_request(self) -> Path:
        """Exists while somebody wants the run to save and stop."""
        return self.root / "stop"

    @property
    def rehearsal(self) -> Path:
        """The fault that a rehearsal has in store for its workers; other runs have none."""
        return self.root / "rehearsal.json"

    @property
    def cache(self) -> Path:
        """Prepared data and tokenizers, shared by all runs of a runs folder."""
        return self.root.parent / ".cache"

    def stage(self, name: str) -> StageLayout:
        """Paths of the stage ``name``."""
        return StageLayout(self.root / name)
