"""``orchestrator rehearse``: a short copy of a job's stage, run with faults and compared with one without.

1. a copy of the job: one training stage, cut to some steps, and what it builds on, cut to one step;
2. a reference run of it, and for each fault a run that meets it, each by ``orchestrator run``;
3. for each fault: what was noticed, what was lost, and whether data and state are those of the reference.

Runs lie beside the job's own, so that prepared data is shared, and are removed when all is well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from launchers.rehearsed_faults import FAULTS, SAVE_EVERY, NotPossibleError
from launchers.rehearsed_job import STEPS, shortened
from launchers.rehearsed_run import OverdueError, RehearsedRun
from launchers.run_directory import held
from launchers.verification import verify_run
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.counts import counted
from orchestrator.errors import PlanError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.promise import agreement
from orchestrator.tracking.events import read_events, read_json_lines
from orchestrator.train.rehearsed import EVENT

# A watchdog waits for 5 times the slowest step, which the whole reference is longer than, and what is left
# to be done then is as long as the reference; the rest is for a machine that has become busier.
PATIENCE = 10
NOTICED = ("rank_failed", "hang", "stage_stopped", "quarantine", "stage_started")
"""Events that show that a fault was noticed."""


@dataclass(frozen=True)
class Finding:
    """What became of a run that met a fault."""

    fault: str
    noticed_after_seconds: float | None
    resumed_at_step: int | None
    steps_lost: int | None
    rows_exactly_once: bool | None
    state_equal: str
    """``yes``, bit for bit; ``losses within ...``, where no bits are promised; or ``no`` and what differs."""
    ok: bool
    note: str = ""


def rehearse(
    job: Job, stage_name: str | None, faults: Iterable[str], runs_dir: Path, say: Callable[[str], None]
) -> list[Finding]:
    """Run a copy of ``job`` with each of ``faults``.

    Args:
        stage_name: The training stage; absent: the first.
        say: Takes a line about what is being done.

    Raises:
        PlanError: There is no such stage, the copy does not run even without faults, or ``runs_dir`` cannot
            be made.
        LaunchError: Somebody else is rehearsing a job of this name here.
    """
    copy = shortened(job, stage_name)
    with _only_rehearsal(job.name, runs_dir):
        return _rehearse_all(copy, faults, runs_dir, say)


@contextmanager
def _only_rehearsal(job_name: str, runs_dir: Path) -> Iterator[None]:
    """Hold the lock of the job's rehearsals, whose runs have the same folders."""
    root = runs_dir.resolve() / job_name
    # Not in a folder that a rehearsal removes.
    locks = RunLayout(root).cache / "rehearsals"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(
            f"the folder {locks} cannot be made: {error.strerror}. Name a folder that can be written with"
            " --runs-dir"
        ) from error
    advice = "wait for its end, or give this one another --runs-dir or another name (--set name=NAME)"
    with held(
        locks / f"{job_name}.lock", lambda owner: f"{root}: already being rehearsed by {owner}; {advice}"
    ):
        yield


def _rehearse_all(
    copy: Job, faults: Iterable[str], runs_dir: Path, say: Callable[[str], None]
) -> list[Finding]:
    """Run ``copy`` without a fault and with each of ``faults``."""
    stage = copy.stages[-1]
    assert isinstance(stage, TrainStage)
    say(f"rehearsing stage '{stage.name}': {STEPS} steps, a checkpoint every {SAVE_EVERY}")
    reference = RehearsedRun(copy, "reference", runs_dir)
    reference.remove()
    say("reference: running without a fault")
    began = time.monotonic()
    if reference.run() != 0:
        raise PlanError(
            f"the job does not run even without a fault: {reference.last_words()}\nIts files are in"
            f" {reference.layout.root}"
        )
    # An elastic job has as many as there is room for.
    job_as_run = copy.model_copy(
        update={"resources": copy.resources.with_workers(_num_workers(reference.layout, stage.name)[-1])}
    )
    # Ray ends a worker that is frozen alone after twice the timeout.
    seconds = PATIENCE * (time.monotonic() - began) + 2 * (copy.resources.hang_timeout_seconds or 0.0)
    findings = []
    for fault in faults:
        say(f"{fault}: {FAULTS[fault].summary}; running")
        run = RehearsedRun(copy, fault, runs_dir, seconds)
        finding = _rehearse_one(fault, job_as_run, stage, reference, run)
        findings.append(finding)
        say(f"{fault}: {'as it should be' if finding.ok else finding.note or finding.state_equal}")
    if all(finding.ok for finding in findings):
        reference.remove()
    return findings


def _num_workers(run: RunLayout, stage: str) -> list[int]:
    """Numbers of workers of a stage, one for each range of steps."""
    return [line["world_size"] for line in read_json_lines(run.stage(stage).ledger)]


def _rehearse_one(
    fault: str, job: Job, stage: TrainStage, reference: RehearsedRun, run: RehearsedRun
) -> Finding:
    """One fault; its run is removed where all is well.

    Args:
        job: With the reference's number of workers.
    """
    run.remove()
    try:
        changed = FAULTS[fault].changes(job)
    except NotPossibleError as reason:
        return Finding(fault, None, None, None, None, "-", ok=True, note=f"not possible: {reason}")
    try:
        exit_code = FAULTS[fault].meet(run, job, changed)
    except OverdueError as limit:
        events = list(read_events(run.layout.events))
        note = f"{_undone(events)} within {limit} of a start (files in {run.layout.root})"
        return Finding(fault, None, None, None, None, "no", ok=False, note=note)
    if exit_code != 0:
        note = f"ended with exit code {exit_code}: {run.last_words()} (files in {run.layout.root})"
        return Finding(fault, None, None, None, None, "no", ok=False, note=note)
    if _happened(list(read_events(run.layout.events))) is None:
        note = f"the fault did not happen before the run was at its end (files in {run.layout.root})"
        return Finding(fault, None, None, None, None, "no", ok=False, note=note)
    promised = _promised(job, run.layout, changed)
    finding = _judge(fault, run, reference, stage, promised=promised)
    if finding.ok:
        run.remove()
    return finding


def _happened(events: Sequence[Mapping[str, Any]]) -> int | None:
    """Which of a run's events is the fault."""
    return next((i for i, event in enumerate(events) if event["event"] in (EVENT, "run_stopped")), None)


def _undone(events: Sequence[Mapping[str, Any]]) -> str:
    """What a run that was ended before its end has not done."""
    happened = _happened(events)
    if happened is None:
        return "the fault did not happen"
    if any(event["event"] in NOTICED for event in events[happened + 1 :]):
        return "noticed, but not at its end"
    return "not noticed"


def _judge(
    fault: str, run: RehearsedRun, reference: RehearsedRun, stage: TrainStage, *, promised: float | None
) -> Finding:
    """Compare a finished run with the reference."""
    events = list(read_events(run.layout.events))
    happened = _happened(events)
    assert happened is not None
    is_stop = events[happened]["event"] == "run_stopped"
    before, after = events[: happened + 1], events[happened + 1 :]
    noticed = next((event for event in after if event["event"] in NOTICED), None)
    resumed = next(
        (e["step"] for e in after if e["event"] == "training_started" and e["stage"] == stage.name), None
    )
    reached = max(
        [e["step"] for e in before if e["event"] in (EVENT, "checkpoint") and e["stage"] == stage.name]
    )
    seconds = None if noticed is None or is_stop else _seconds_between(events[happened], noticed)
    lost = None if resumed is None else reached - resumed
    rows = bool(verify_run(run.layout.root, stage.name)["ledger"]["ok"])
    equal = compare(run.layout, reference.layout, stage.name, promised=promised)
    most = FAULTS[fault].max_steps_lost
    what = ""
    if lost is None:
        what = "the run was never started anew; "
    elif lost > most:
        what = f"it lost {counted(lost, 'step')}, expected at most {most}; "
    ok = rows and not equal.startswith("no") and not what
    note = "" if ok else f"{what}files in {run.layout.root}"
    return Finding(fault, seconds, resumed, lost, rows, equal, ok=ok, note=note)


def _seconds_between(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    times = [datetime.fromisoformat(event["time"]) for event in (first, second)]
    return round((times[1] - times[0]).total_seconds(), 1)


def compare(run: RunLayout, reference: RunLayout, stage: str, *, promised: float | None) -> str:
    """Whether two runs of a stage ended in the same state: ``yes``, ``losses within ...`` or ``no: ...``.

    Args:
        promised: Largest difference of a loss, relative to it; 0: all bits are equal; ``None``: nothing is.
    """
    import torch

    from orchestrator.checkpoint.manager import CheckpointManager
    from orchestrator.checkpoint.steps import list_steps
    from orchestrator.checkpoint.storage import read_tensors

    newest = [list_steps(layout.stage(stage).checkpoints)[-1].path for layout in (run, reference)]
    damaged = [problem for path in newest if (problem := CheckpointManager.verify(path))]
    if damaged:
        return f"no: {damaged[0]}"
    found, expected = (read_tensors(path) for path in newest)
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    if not different:
        return "yes"
    if promised == 0.0:
        return f"no: {len(different)} of {len(expected)} tensors differ, such as {different[0]}"
    gap = _largest_loss_gap(run, reference, stage)
    if math.isinf(gap):
        return "no: a step has a loss in one of the two runs alone"
    if promised is None:
        return f"losses within {gap:.1e} (nothing is promised)"
    if gap <= promised:
        return f"losses within {gap:.1e}"
    return f"no: losses differ by {gap:.1e}, expected at most {promised:.1e}"


def _largest_loss_gap(run: RunLayout, reference: RunLayout, stage: str) -> float:
    """The largest difference of a step's loss, relative to the loss."""
    found, expected = (
        {line["step"]: _loss(line) for line in read_json_lines(layout.stage(stage).metrics)}
        for layout in (run, reference)
    )
    # Steps that are left out have no loss, in either.
    gaps: list[float] = [
        abs(found.get(step, 0.0) - loss) / abs(loss)
        for step, loss in expected.items()
        if not math.isnan(loss) or not math.isnan(found.get(step, 0.0))
    ]
    return max((math.inf if math.isnan(gap) else gap for gap in gaps), default=0.0)


def _loss(line: Mapping[str, Any]) -> float:
    """The loss of a step; null where it made no update."""
    loss: float | None = line["train/loss"]
    return math.nan if loss is None else loss


def _promised(job: Job, run: RunLayout, changed: Mapping[str, Any]) -> float | None:
    """By how much the losses of a run may differ from the reference's; as ``agreement`` says it."""
    stage = job.stages[-1]
    assert isinstance(stage, TrainStage)
    other = changed.get("strategy", stage.strategy)
    promised = [
        agreement(stage, other, (job.resources.num_workers, num_workers), job.reproducibility)
        for num_workers in _num_workers(run, stage.name)
    ]
    return None if None in promised else max(found for found in promised if found is not None)
