"""Why a stage failed, in one message: the rank, step and rows that a person must know.

A rank writes down what it raises. One that dies cannot, and what the others raise then says only that they
miss it: which one died is known to Ray, and where it was to what it left on record.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.errors import LaunchError
from orchestrator.spec.job import Stage, TrainStage
from orchestrator.tracking.events import read_events, read_json_lines

# What gloo and NCCL say on the ranks that were waiting for the one that failed.
LOST_PARTNER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")
# Of what Ray says of one death; its advice follows.
SHOWN_CHARACTERS = 360
AGAIN = "Mend the cause and run the same command again: it goes on from the newest checkpoint."


class WorkersDiedError(LaunchError):
    """Workers died, and no other failed but for missing them."""

    def __init__(self, message: str, deaths: Mapping[int, str], where: str | None) -> None:
        """Keep what is known of them.

        Args:
            deaths: What Ray says, by rank.
            where: The step in which the others missed them, and its rows; ``None``: none could say.
        """
        super().__init__(message)
        self.deaths = deaths
        self.where = where


def death_among(failures: Mapping[int, Exception], deaths: Mapping[int, str]) -> WorkersDiedError | None:
    """The error of a group of workers some of which died; ``None`` where another's own error says why.

    Args:
        failures: By rank, as Ray brought them.
        deaths: Those of them that are deaths, and what Ray says of each.
    """
    others = [failure for rank, failure in failures.items() if rank not in deaths]
    if not deaths or not all(_is_echo(str(failure)) for failure in others):
        return None
    notes = [note for failure in others for note in getattr(failure, "__notes__", [])]
    where = next((note for note in notes if re.match(r"in step \d+", note)), None)
    return WorkersDiedError(f"workers died: {dict(deaths)}", deaths, where)


def failure_message(error: LaunchError, layout: RunLayout, num_events: int, stage: Stage) -> str:
    """Why a stage failed.

    Args:
        error: How its workers ended.
        num_events: How many events there were before they started.
    """
    if isinstance(error, WorkersDiedError):
        return _death(error, layout, num_events, stage)
    failures = rank_failures(layout, num_events, stage.name)
    if not failures:
        again = "Run the same command again: it goes on from the newest checkpoint."
        return f"stage '{stage.name}' failed: {error}\n{again}"
    failure = failures[-1]
    rank, log = int(failure["rank"]), layout.stage(stage.name).log(int(failure["rank"]))
    missed = any(echo in failure["message"] for echo in LOST_PARTNER)
    others = f" Another rank may have ended first: see the other logs in {log.parent}." if missed else ""
    return (
        f"stage '{stage.name}' failed: rank {rank}: {failure['error']}: {failure['message']}\n"
        f"Its log is {log}.{others} {AGAIN}"
    )


def rank_failures(layout: RunLayout, num_events: int, stage: str) -> list[dict[str, Any]]:
    """Failures that ranks recorded since there were ``num_events`` events; the telling ones last."""
    failures = [record for record in _events(layout, num_events, stage) if record["event"] == "rank_failed"]
    return sorted(failures, key=lambda record: not _is_echo(record["message"]))


def _is_echo(message: str) -> bool:
    """Whether a rank says no more than that another failed."""
    from orchestrator.train.agreement import OTHER_RANK

    return any(echo in message for echo in (OTHER_RANK, *LOST_PARTNER))


def _events(layout: RunLayout, num_events: int, stage: str) -> list[dict[str, Any]]:
    return [event for event in list(read_events(layout.events))[num_events:] if event.get("stage") == stage]


def _death(error: WorkersDiedError, layout: RunLayout, num_events: int, stage: Stage) -> str:
    """Which ranks died and where; or, where they were ended because one hung, which did."""
    events, stage_layout = _events(layout, num_events, stage.name), layout.stage(stage.name)
    starts = [index for index, event in enumerate(events) if event["event"] == "stage_started"]
    events = events[starts[-1] :] if starts else []
    where = error.where or _last_on_record(stage, stage_layout, events)
    logs = stage_layout.log(0).parent
    for hang in (event for event in events if event["event"] == "hang"):
        return (
            f"stage '{stage.name}' failed: rank {hang['rank']} made no progress in {hang['seconds']:g} s"
            f" ({hang['phase']}) {where}, so the workers of its machine were ended\n"
            f"Stacks of all ranks are in {logs}. {AGAIN}"
        )
    ranks = sorted(error.deaths)
    who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    shown = textwrap.shorten(error.deaths[ranks[0]], SHOWN_CHARACTERS, placeholder=" ...")
    log = stage_layout.log(ranks[0]) if len(ranks) == 1 else logs
    return (
        f"stage '{stage.name}' failed: {who} died {where}. Ray says: {shown}\n"
        f"What was logged before is in {log}. {AGAIN}"
    )


def _last_on_record(stage: Stage, layout: StageLayout, events: Sequence[Mapping[str, Any]]) -> str:
    """Between which steps the last workers ended, whose events these are."""
    if not isinstance(stage, TrainStage):
        return "before the stage's end"
    begun = next((event for event in events if event["event"] == "training_started"), None)
    if begun is None:
        return "before its first step"
    saved = [int(event["step"]) for event in events if event["event"] == "checkpoint"]
    logged = [int(record.get("step", 0)) for record in read_json_lines(layout.metrics)]
    done, last = max([int(begun["step"]), *saved, *logged]), int(begun["max_steps"])
    if done >= last:
        return f"after its last step, {last}"
    every_steps, size = stage.logging.every_steps, stage.global_batch_size
    # The next step that is logged is not: the last whose rows the ranks can have had.
    end = min(last, (done // every_steps + 1) * every_steps)
    steps = f"step {end} reads" if end == done + 1 else f"steps {done + 1} to {end} read"
    rows = f"rows {done * size} to {end * size - 1} of the stage's order"
    return f"after step {done}, the last on record; {steps} {rows}"
