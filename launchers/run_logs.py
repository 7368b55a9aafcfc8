"""Logs of a run's workers: which file it is, and its text as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launchers.runs import UnknownRunError, run_state, stage_names
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_events

POLL_SECONDS = 0.2


def find_log(run_dir: Path, stage: str | None, rank: int) -> tuple[str, Path]:
    """The stage and the log file asked for; without a stage, the one that started last.

    Raises:
        UnknownRunError: There is no such log; the message lists the stages or ranks that have one.
    """
    layout = RunLayout(run_dir)
    events = list(read_events(layout.events))
    started = [event["stage"] for event in events if event.get("event") == "stage_started"]
    if stage is None:
        if not started:
            raise UnknownRunError(f"{run_dir} has no log yet: no stage of it has started")
        stage = str(started[-1])
    path = layout.stage(stage).log(rank)
    if path.is_file():
        return stage, path
    logs = sorted(path.parent.glob("rank-*.log"))
    if logs:
        ranks = ", ".join(str(int(log.stem.removeprefix("rank-"))) for log in logs[:10])
        raise UnknownRunError(f"stage '{stage}' has no log of rank {rank}; it has {ranks}")
    from orchestrator.spec.messages import which_stage

    names = stage_names(layout, events)
    if stage not in names:
        raise UnknownRunError(f"{run_dir} has no stage '{stage}'.{which_stage(stage, names)}")
    known = ", ".join(dict.fromkeys(map(str, started))) or "none yet"
    raise UnknownRunError(f"{run_dir} has no log of stage '{stage}'; stages with a log: {known}")


def has_stage_log(run_dir: Path) -> bool:
    """Whether a worker of the run has begun to log."""
    try:
        find_log(run_dir, None, 0)
    except UnknownRunError:
        return False
    return True


def follow_log(run_dir: Path, stage: str | None, rank: int, write: Callable[[bytes], object]) -> None:
    """Pass on the log as it grows, and the next stage's after it, until the run is not running.

    Args:
        write: Receives the bytes of the log.
    """
    layout = RunLayout(run_dir)
    current, path = find_log(run_dir, stage, rank)
    offset = 0
    while True:
        # Asked before reading, so that what was written before the end is still read.
        events = list(read_events(layout.events))
        is_running = run_state(layout, events) == "running"
        with path.open("rb") as log:
            log.seek(offset)
            content = log.read()
        offset += len(content)
        write(content)
        if stage is None and (later := _next_log(layout, events, current, rank)):
            current, path = later
            offset = 0
            write(f"==> {current} <==\n".encode())
        elif not is_running:
            return
        else:
            time.sleep(POLL_SECONDS)


def _next_log(
    layout: RunLayout, events: list[dict[str, Any]], current: str, rank: int
) -> tuple[str, Path] | None:
    """The log of the stage that started after ``current``, once it exists."""
    started = [str(event["stage"]) for event in events if event.get("event") == "stage_started"]
    if not started or started[-1] == current:
        return None
    path = layout.stage(started[-1]).log(rank)
    return (started[-1], path) if path.is_file() else None
