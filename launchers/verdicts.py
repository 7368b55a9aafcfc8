"""What early stopping decided about a run, as the run's events have it.

The sweep writes an event ``compared`` for each comparison: the rule, the step, the value, among how many
runs, and whether the run ends there. Starting such a run again, by whatever command, takes the decision back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

COMPARED = "compared"
STOPPED_EARLY = "stopped early"
"""State of a run that lost."""
# Each means that the run has gone on since.
TAKEN_BACK = ("run_started", "run_finished")


def comparisons(events: Iterable[Mapping[str, Any]], rule: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A run's comparisons by this very rule; none from before its stage was started over."""
    found: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("event") == COMPARED and event["rule"] == rule:
            found.append(event)
        elif event.get("event") == "stage_set_aside" and event.get("stage") == rule["stage"]:
            found = []
    return found


def lost_by(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The comparison by which a run ended; ``None``: there is none, or it has gone on since."""
    found = None
    for event in events:
        if event.get("event") == COMPARED and event["stop"]:
            found = event
        elif event.get("event") in TAKEN_BACK:
            found = None
    return found


def lost_under(events: Iterable[Mapping[str, Any]], rule: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same where it was by this very rule: another one decides anew."""
    found = lost_by(events)
    return found if found is not None and found["rule"] == rule else None


def verdict_text(comparison: Mapping[str, Any]) -> str:
    """Why a run ended early, in words."""
    rule, value = comparison["rule"], comparison["value"]
    found = "not finite" if value is None else f"{value:.6g}"
    return (
        f"{rule['metric']} {found} at step {comparison['step']} of '{rule['stage']}', not among the best"
        f" 1/{rule['reduction_factor']} of {comparison['among']} runs"
    )
