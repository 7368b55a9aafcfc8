"""Runs the command line in this process, and makes run directories as a driver leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from launchers.cli import main
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.fingerprint import spec_fingerprint
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved, load_job
from orchestrator.tracking.events import append_event
from tests.unit.spec.jobs import VALID, write_job

TEXT = VALID + "  - {name: test, kind: evaluate, from: pretrain, datasets: [rfc], split: validation}\n"


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str

    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.output)


class Console:
    """Runs commands and gives what they printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: str | Path) -> Ended:
        code = main([str(argument) for argument in arguments])
        return Ended(code, *self._capfd.readouterr())


class FakeRun:
    """A run directory with the files of a driver and its workers."""

    def __init__(self, runs_dir: Path, name: str = "tiny") -> None:
        self.layout = RunLayout(runs_dir / name)
        self.layout.root.mkdir(parents=True)
        text = TEXT.replace("name: tiny", f"name: {name}")
        self.job: Job = load_job(write_job(self.layout.root, text, "source.yaml"))
        self.layout.job.write_text(dump_resolved(self.job))

    def event(self, event: str, **fields: object) -> None:
        """Append an event."""
        append_event(self.layout.events, event, **fields)

    def log(self, stage: str, text: str, rank: int = 0) -> Path:
        """Append to a rank's log."""
        path = self.layout.stage(stage).log(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)
        return path

    def metrics(self, stage: str, text: str) -> None:
        """Write a stage's metrics.jsonl."""
        self.layout.stage(stage).root.mkdir(exist_ok=True)
        self.layout.stage(stage).metrics.write_text(text)

    def finish(self, stage: str, **metrics: float) -> None:
        """Write a stage's result.json."""
        self.layout.stage(stage).root.mkdir(exist_ok=True)
        record = {
            "stage": stage,
            "fingerprint": "f",
            "spec_fingerprint": spec_fingerprint(self.job, self.job.stage(stage)),
            "step": 10,
            "metrics": metrics,
        }
        self.layout.stage(stage).job.write_text(dump_resolved(self.job))
        self.layout.stage(stage).result.write_text(json.dumps(record))
