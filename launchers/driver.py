"""The driver: walks a job's stages and leaves a run directory from which the same command goes on.

For each stage in dependency order:

1. prepare what it reads, and compute its fingerprint;
2. skip it when ``result.json`` has that fingerprint; set it aside when its inputs were made anew;
3. run its workers on Ray, which restarts them after a fault;
4. stop the walk when the stage stopped early or failed.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from launchers.ray_session import available_cpus, check_room, ray_session
from launchers.ray_stage import run_stage_on_ray
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.steps import list_steps
from orchestrator.errors import LaunchError, OrchestratorError, PlanError
from orchestrator.spec.fingerprint import (
    difference,
    limits_lowered,
    spec_fingerprint,
    stage_fingerprint,
    trajectory_keys,
)
from orchestrator.spec.job import ExportStage, Job, Stage, TrainStage
from orchestrator.spec.load import dump_resolved, load_resolved
from orchestrator.spec.plan import stage_order
from orchestrator.tracking.events import append_event, read_json_lines

State = Literal["finished", "stopped"]
PACKAGES = (
    "orchestrator",
    "torch",
    "transformers",
    "deepspeed",
    "ray",
    "datasets",
    "tokenizers",
    "numpy",
)


class Display(Protocol):
    """Shows a person how far a run is."""

    def prepare(self, stage: str, what: str, done: int, total: int) -> None:
        """Rows of a dataset are being tokenised."""

    def skip(self, stage: str) -> None:
        """A stage was finished before."""

    def note(self, stage: str, message: str) -> None:
        """Something a person should know."""

    def start(self, stage: str, layout: StageLayout) -> None:
        """A stage's workers start; follow its metrics."""

    def end(self, stage: str, outcome: str) -> None:
        """A stage's workers ended."""


class RefusedError(OrchestratorError):
    """What a worker refused, with its own message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Take over the worker's exit code."""
        super().__init__(message)
        self.exit_code = exit_code


def run_stages(job: Job, layout: RunLayout, display: Display, *, fresh: bool) -> State:
    """Run every stage that is not finished yet.

    Raises:
        OrchestratorError: The run cannot start, or a stage failed; ``events.jsonl`` says which.
    """
    if fresh:
        set_aside(layout.root)
    with _opened(job, layout) as run_id:
        layout.stop_request.unlink(missing_ok=True)
        append_event(layout.events, "run_started", pid=os.getpid(), host=socket.gethostname())
        try:
            state = _walk(job, layout, display, run_id)
        except BaseException as error:
            append_event(layout.events, "run_failed", error=type(error).__name__, message=str(error))
            raise
        append_event(layout.events, f"run_{state}")
        return state


def prepare_stages(job: Job, layout: RunLayout, display: Display) -> None:
    """Make what all stages read, for workers that somebody starts by hand.

    Raises:
        OrchestratorError: A source, tokenizer or model is unfit, or the run is being run.
    """
    with _opened(job, layout) as run_id:
        fingerprints: dict[str, str] = {}
        for stage in stage_order(job):
            prepare_stage(job, stage, layout, display, run_id, fingerprints)


@contextmanager
def _opened(job: Job, layout: RunLayout) -> Iterator[str]:
    """Hold the run directory, written for this job; gives the run's id."""
    layout.root.mkdir(parents=True, exist_ok=True)
    with _only_driver(layout):
        _refuse_changed(job, layout)
        yield _write_run(job, layout)


@contextmanager
def _only_driver(layout: RunLayout) -> Iterator[None]:
    """Hold the run's lock.

    Raises:
        LaunchError: Another driver holds it.
    """
    with layout.driver_lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise LaunchError(
                f"{layout.root}: already being run by {lock.read().strip() or 'another process'};"
                f" follow it with 'orchestrator logs {layout.root.name} -f',"
                f" or stop it with 'orchestrator cancel {layout.root.name}'"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def _write_run(job: Job, layout: RunLayout) -> str:
    """Write the resolved job and the environment; the run's id, made at its first start."""
    layout.job.write_text(dump_resolved(job), encoding="utf-8")
    layout.environment.write_text(json.dumps(_environment(), indent=1), encoding="utf-8")
    if not layout.run_id.exists():
        layout.run_id.write_text(secrets.token_hex(4), encoding="utf-8")
    return layout.run_id.read_text(encoding="utf-8").strip()


def _environment() -> dict[str, object]:
    """Versions and hardware of this machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": available_cpus(),
        "packages": versions,
    }


def set_aside(folder: Path) -> Path | None:
    """Rename a folder to the first free ``<name>.before-<n>``; nothing is deleted."""
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def _has_started(layout: StageLayout) -> bool:
    """Whether a training stage left anything that a changed job file would contradict."""
    return layout.result.exists() or bool(list_steps(layout.checkpoints))


def _refuse_changed(job: Job, layout: RunLayout) -> None:
    """Refuse a job whose training-relevant keys changed since a stage began.

    Raises:
        PlanError: With every difference.
    """
    if not layout.job.exists():
        return
    before = load_resolved(layout.job)
    known = {stage.name: stage for stage in before.stages if isinstance(stage, TrainStage)}
    changes: list[str] = []
    for stage in job.stages:
        old = known.get(stage.name)
        if old is None or not isinstance(stage, TrainStage):
            continue
        if _has_started(layout.stage(stage.name)):
            keys = trajectory_keys(old, before), trajectory_keys(stage, job)
            changes += [line for line in difference(*keys) if line not in changes]
            changes += limits_lowered(old, stage)
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        raise PlanError(
            f"{layout.root}: the job file changed since this run began:\n{listed}\n"
            "Set these back to go on, give the job another name,"
            " or start over with --fresh (the old run directory is kept, renamed)."
        )


def _walk(job: Job, layout: RunLayout, display: Display, run_id: str) -> State:
    """The stages in order; Ray starts when the first one needs it."""
    waiting = []
    fingerprints: dict[str, str] = {}
    for stage in stage_order(job):
        inputs_done = all(name not in waiting for name in input_stages(stage))
        prepared = prepare_stage(job, stage, layout, display, run_id, fingerprints)
        if inputs_done and _is_finished(layout.stage(stage.name), prepared):
            display.skip(stage.name)
        else:
            waiting.append(stage.name)
    if not waiting:
        return "finished"
    with ray_session():
        check_room(job.resources)
        for name in waiting:
            outcome = _run_stage(job, job.stage(name), layout, display)
            if outcome == "stopped":
                return "stopped"
    return "finished"


def input_stages(stage: Stage) -> list[str]:
    """Stages whose weights this one reads."""
    if isinstance(stage, TrainStage):
        return [stage.init.stage] if stage.init and stage.init.stage else []
    return [stage.from_]


def _is_finished(layout: StageLayout, fingerprint: str) -> bool:
    """Whether ``result.json`` holds this fingerprint."""
    try:
        record = json.loads(layout.result.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(record.get("fingerprint") == fingerprint)


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
    fingerprints[stage.name] = fingerprint
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

    if not stage_layout.inputs.exists() or not _has_started(stage_layout):
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


def _run_stage(job: Job, stage: Stage, layout: RunLayout, display: Display) -> State:
    """Run one stage's workers and turn how they ended into an outcome or an error."""
    stage_layout = layout.stage(stage.name)
    if stage_layout.result.exists():
        stage_layout.result.unlink()
    began = time.time()
    num_events = sum(1 for _ in read_json_lines(layout.events))
    append_event(layout.events, "stage_started", stage=stage.name)
    display.start(stage.name, stage_layout)
    num_workers = 1 if isinstance(stage, ExportStage) else job.resources.num_workers
    outcome = "failed"
    try:
        outcome = run_stage_on_ray(job, stage.name, layout.root, num_workers=num_workers)
    except LaunchError as error:
        raise LaunchError(_first_failure(layout, num_events, stage.name) or str(error)) from error
    finally:
        display.end(stage.name, outcome)
        if outcome != "finished":
            event = "stage_stopped" if outcome == "stopped" else "stage_failed"
            append_event(layout.events, event, stage=stage.name)
    if outcome == "refused":
        failure = _failures(layout, num_events, stage.name)[-1]
        raise RefusedError(str(failure["message"]), int(failure["exit_code"]))
    if outcome == "stopped":
        return "stopped"
    append_event(layout.events, "stage_finished", stage=stage.name, seconds=round(time.time() - began, 1))
    return "finished"


def _failures(layout: RunLayout, num_events: int, stage: str) -> list[dict[str, Any]]:
    """Failures that ranks recorded since this driver started the stage; the telling ones last."""
    from orchestrator.train.agreement import OTHER_RANK

    failures = [
        record
        for index, record in enumerate(read_json_lines(layout.events))
        if index >= num_events and record["event"] == "rank_failed" and record["stage"] == stage
    ]
    return sorted(failures, key=lambda record: OTHER_RANK not in str(record["message"]))


def _first_failure(layout: RunLayout, num_events: int, stage: str) -> str | None:
    """One message about why a stage failed."""
    failures = _failures(layout, num_events, stage)
    if not failures:
        return None
    failure = failures[-1]
    rank = int(failure["rank"])
    return (
        f"stage '{stage}' failed: rank {rank}: {failure['error']}: {failure['message']}\n"
        f"Its log is {layout.stage(stage).log(rank)}."
        " Mend the cause and run the same command again: it goes on from the newest checkpoint."
    )
