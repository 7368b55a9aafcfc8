"""Where a run's time went, from its events alone.

Workers write into ``checkpoint`` and ``training_ended`` how many seconds of the interval went where. An
interval whose steps were trained again is lost, whatever it was spent on; so is the time between a
checkpoint and a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.tracking.events import read_event

KINDS = ("compute", "data", "evaluation", "save", "startup", "restart", "lost", "other")
"""compute: first steps and others; data: waiting for it; save: steps stalled by one; startup, restart: from
a command or a fault to the first step; lost: what was trained again; other: weights, and between stages."""
COMPUTE = ("compute", "first_step")
SAVING = ("save", "save_wait")
ENDS = ("run_finished", "run_stopped", "run_failed")
STAGE_ENDS = ("stage_finished", "stage_stopped", "stage_preempted")
FAULTS = ("rank_failed", "hang")
MADE = ("checkpoint", "training_ended")
"""Events of workers that have made steps."""


def account(events: Iterable[Mapping[str, Any]], *, last_written: str | None = None) -> dict[str, float]:
    """Seconds of each of ``KINDS``, their sum ``total``, and ``goodput``, the part of it that is compute.

    Time in which no driver ran is not counted; empty before the first step.

    Args:
        last_written: When the workers of a run that was killed wrote something last; absent: it is not known,
            or they are at work.
    """
    book = _Book()
    for event in events:
        book.enter(event)
    book.end(last_written)
    return book.shown()


class GoodputMeter:
    """The account of a run that goes on, for its metrics: up to the newest checkpoint."""

    def __init__(self, events: Path) -> None:
        """Nothing is read yet of the file."""
        self._path = events
        self._num_bytes = 0
        self._book = _Book()

    def read(self) -> dict[str, float]:
        """``goodput/fraction`` and ``goodput/<kind>_seconds``; empty where no interval ended since then."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._num_bytes)
                written = file.read()
        except OSError:
            # What a run has spent must not end it.
            return {}
        # A line that is being written is read the next time.
        lines = written[: written.rfind(b"\n") + 1]
        self._num_bytes += len(lines)
        has_ended = False
        for line in lines.splitlines():
            event = read_event(line)
            if event is not None:
                self._book.enter(event)
                has_ended |= event["event"] == "checkpoint"
        shown = self._book.shown() if has_ended else {}
        fraction = {"goodput/fraction": shown["goodput"]} if shown else {}
        return fraction | {f"goodput/{kind}_seconds": shown[kind] for kind in KINDS if kind in shown}


class _Book:
    """Adds up events in their order."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.has_trained = False
        self._mark = 0.0
        """Everything before is accounted for."""
        self._is_open = False
        """A driver, or workers without one, are at work."""
        self._is_driven = False
        """A driver is: what lies between the stages is its time."""
        self._gone: tuple[str, float, dict[str, float]] | None = None
        """Stage of workers that are taken for gone, with the mark and the seconds before that."""
        self._silent_since: float | None = None
        """Up to when workers are accounted for whose driver was killed with them."""
        self._training: str | None = None
        """The stage in which steps are being made."""
        self._started: set[str] = set()
        self._intervals: dict[str, list[tuple[int, dict[str, float]]]] = {}
        """By stage: where each interval went, by the step at its end."""

    def shown(self) -> dict[str, float]:
        """What ``account`` gives."""
        total = sum(self.seconds.values())
        if not self.has_trained or round(total, 1) <= 0:
            return {}
        shown = {kind: round(self.seconds[kind], 1) for kind in KINDS}
        return {**shown, "total": round(total, 1), "goodput": round(self.seconds["compute"] / total, 4)}

    def enter(self, event: Mapping[str, Any]) -> None:
        """Account for the time up to an event."""
        # A checkpoint is written beside the steps that follow it; its interval ended before.
        now = datetime.fromisoformat(event.get("counted_until", event["time"])).timestamp()
        kind = str(event["event"])
        if kind in MADE and self._training is None and self._gone is not None:
            self._take_back()
        is_first = kind == "run_started" or (kind == "stage_started" and not self._is_driven)
        if is_first or not self._is_open:
            # What was open before ended without a word: workers that trained say when with the next start.
            if self._training is not None:
                self._silent_since = self._mark
            self._give_up(self._mark)
            self._is_open, self._is_driven, self._mark = True, kind == "run_started", now
        if kind == "stage_started":
            self._close_silent_end(event.get("last_written"), now)
        elif kind == "training_started":
            self._begin(str(event["stage"]), int(event["step"]), now)
        elif kind in MADE and self._training is not None:
            self._end_interval(int(event["step"]), event.get("seconds", {}), now)
            self._training = None if kind == "training_ended" else self._training
        elif kind in FAULTS:
            self._give_up(now)
        elif kind in ENDS or (kind in STAGE_ENDS and not self._is_driven):
            if self._training is None:
                self._spend("other", now)
            self._give_up(now)
            self._is_open = self._is_driven = False

    def _give_up(self, now: float) -> None:
        """Take workers that train for gone, and what they did since the last mark for lost."""
        if self._training is not None:
            self._gone = (self._training, self._mark, dict(self.seconds))
            self._spend("lost", now)
            self._training = None

    def _take_back(self) -> None:
        """Workers that were taken for gone go on: who failed or began was another start, and was refused."""
        assert self._gone is not None
        self._training, self._mark, self.seconds = self._gone
        self._gone, self._silent_since, self._is_open = None, None, True

    def _spend(self, kind: str, now: float) -> None:
        self.seconds[kind] += max(0.0, now - self._mark)
        self._mark = max(now, self._mark)

    def _close_silent_end(self, last_written: str | None, now: float) -> None:
        """Workers that were killed left no event: they were at work until the last thing they wrote."""
        silent_since, self._silent_since = self._silent_since, None
        if last_written is None:
            return
        last = datetime.fromisoformat(last_written).timestamp()
        if silent_since is not None:
            # With their driver: the mark is at the start of the newest one.
            self.seconds["lost"] += max(0.0, min(last, self._mark) - silent_since)
        else:
            self._give_up(min(now, last))

    def end(self, last_written: str | None) -> None:
        """Account for what was at work when nothing was heard of it any more."""
        if last_written is None:
            return
        if self._training is not None:
            self._spend("lost", datetime.fromisoformat(last_written).timestamp())
        else:
            self._close_silent_end(last_written, self._mark)

    def _begin(self, stage: str, step: int, now: float) -> None:
        """First step of a start: what was trained beyond ``step`` before was in vain."""
        self._spend("restart" if stage in self._started else "startup", now)
        self._started.add(stage)
        self._training, self.has_trained, self._gone = stage, True, None
        kept = []
        for end, spent in self._intervals.get(stage, []):
            if end <= step:
                kept.append((end, spent))
                continue
            for kind, seconds in spent.items():
                self.seconds[kind] -= seconds
                self.seconds["lost"] += seconds
        self._intervals[stage] = kept

    def _end_interval(self, step: int, measured: Mapping[str, float], now: float) -> None:
        """Split the time since the last mark as the worker measured it."""
        assert self._training is not None
        before = dict(self.seconds)
        left = max(0.0, now - self._mark)
        for phase, seconds in measured.items():
            kind = "compute" if phase in COMPUTE else "save" if phase in SAVING else phase
            kind = kind if kind in KINDS else "other"
            spent = min(left, seconds)
            self.seconds[kind] += spent
            left -= spent
        self.seconds["other"] += left
        self._mark = now
        spent_on = {kind: self.seconds[kind] - before[kind] for kind in KINDS}
        self._intervals.setdefault(self._training, []).append((step, spent_on))
