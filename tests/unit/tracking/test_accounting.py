"""Where a run's time went: kept work, lost work, and what a fault cost."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking.accounting import KINDS, GoodputMeter, account
from orchestrator.tracking.events import read_events


def at(seconds: float) -> str:
    return datetime.fromtimestamp(1_000_000 + seconds, UTC).isoformat(timespec="milliseconds")


def event(seconds: float, kind: str, /, **fields: Any) -> dict[str, Any]:
    return {"time": at(seconds), "event": kind, **fields}


def begun(seconds: float, step: int = 0, stage: str = "pretrain") -> dict[str, Any]:
    return event(seconds, "training_started", stage=stage, step=step, max_steps=99)


def saved(seconds: float, step: int, /, stage: str = "pretrain", **spent: float) -> dict[str, Any]:
    return event(seconds, "checkpoint", stage=stage, step=step, seconds=spent)


STARTED = event(0, "run_started")
FAILED = event(0, "rank_failed", stage="pretrain", rank=1, error="ValueError", message="no")


def seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    """The kinds that took any time; they add up to the total."""
    found = account(events)
    assert sum(found[kind] for kind in KINDS) == pytest.approx(found["total"], abs=0.5)
    assert found["goodput"] == pytest.approx(found["compute"] / found["total"], abs=1e-3)
    return {kind: found[kind] for kind in (*KINDS, "total") if found[kind]}


def test_a_run_without_faults_is_what_its_workers_measured() -> None:
    events = [
        STARTED,
        begun(20),
        saved(60, 4, first_step=10, compute=20, data=4, save=5),
        event(100, "training_ended", stage="pretrain", step=8, seconds={"compute": 30, "evaluation": 8}),
        event(102, "run_finished"),
    ]
    assert seconds(events) == {
        "compute": 60,
        "data": 4,
        "save": 5,
        "evaluation": 8,
        "startup": 20,
        "other": 1 + 2 + 2,
        "total": 102,
    }


def test_what_came_after_the_checkpoint_that_was_gone_back_to_is_lost() -> None:
    events = [
        STARTED,
        begun(10),
        saved(30, 4, compute=20),
        saved(50, 8, compute=18, save=2),
        event(60, "rank_failed", stage="pretrain"),
        # The checkpoint of step 8 was damaged.
        begun(75, step=4),
        saved(95, 8, compute=20),
        event(95, "run_finished"),
    ]
    assert seconds(events) == {"compute": 40, "startup": 10, "lost": 20 + 10, "restart": 15, "total": 95}


def test_workers_killed_without_a_word_worked_until_they_last_wrote() -> None:
    events = [
        STARTED,
        begun(10),
        saved(30, 4, compute=20),
        event(58, "stage_started", stage="pretrain", last_written=at(37)),
        begun(60, step=4),
        saved(80, 8, compute=20),
        event(80, "run_finished"),
    ]
    assert seconds(events) == {"compute": 40, "startup": 10, "lost": 7, "restart": 23, "total": 80}


def test_time_in_which_no_driver_ran_is_not_counted() -> None:
    events = [
        STARTED,
        begun(10),
        saved(30, 4, compute=20),
        event(30, "run_stopped"),
        event(5000, "run_started"),
        begun(5012, step=4),
        saved(5032, 8, compute=20),
        event(5032, "run_finished"),
    ]
    assert seconds(events) == {"compute": 40, "startup": 10, "restart": 12, "total": 62}


def test_a_driver_that_was_killed_ended_with_its_last_event() -> None:
    events = [STARTED, begun(10), saved(30, 4, compute=20), event(900, "run_started"), begun(920, step=4)]
    assert seconds(events) == {"compute": 20, "startup": 10, "restart": 20, "total": 50}


def test_what_a_driver_was_killed_with_is_lost() -> None:
    events = [
        STARTED,
        begun(10),
        saved(30, 4, compute=20),
        event(900, "run_started"),
        event(915, "stage_started", stage="pretrain", last_written=at(63)),
        begun(920, step=4),
        saved(940, 8, compute=20),
        event(940, "run_finished"),
    ]
    assert seconds(events) == {"compute": 40, "startup": 10, "restart": 20, "lost": 33, "total": 103}
    found = account(events[:3], last_written=at(63))
    assert {kind: found[kind] for kind in KINDS if found[kind]} == {"compute": 20, "startup": 10, "lost": 33}
    assert account(events[:3])["lost"] == 0


def test_starts_that_were_killed_before_their_workers_lose_nothing_from_the_account() -> None:
    events = [
        STARTED,
        begun(10),
        saved(30, 4, compute=20),
        event(900, "run_started"),
        event(1800, "run_started"),
    ]
    for some in (events[:4], events):
        found = account(some, last_written=at(63))
        assert {kind: found[kind] for kind in (*KINDS, "total") if found[kind]} == {
            "compute": 20,
            "startup": 10,
            "lost": 33,
            "total": 63,
        }
    for end in ("run_failed", "run_stopped"):
        found = account([*events, event(1830, end)], last_written=at(63))
        assert (found["lost"], found["other"], found["total"]) == (33, 30, 93)
    events += [
        event(1815, "stage_started", stage="pretrain", last_written=at(63)),
        begun(1820, step=4),
        saved(1840, 8, compute=20),
        event(1840, "run_finished"),
    ]
    assert seconds(events) == {"compute": 40, "startup": 10, "restart": 20, "lost": 33, "total": 103}


def test_a_stage_that_starts_over_asks_for_nothing_that_its_old_folder_says() -> None:
    events = [
        STARTED,
        begun(10),
        saved(30, 4, compute=20),
        event(900, "run_started"),
        event(915, "stage_started", stage="pretrain", last_written=None),
        event(930, "stage_started", stage="pretrain", last_written=at(925)),
        begun(935),
        saved(955, 4, compute=20),
        event(955, "run_finished"),
    ]
    assert seconds(events) == {"compute": 20, "startup": 10, "restart": 35, "lost": 20, "total": 85}


def test_the_next_stage_is_started_up_and_the_one_before_stays_as_it_is() -> None:
    events = [
        STARTED,
        begun(10),
        event(30, "training_ended", stage="pretrain", step=8, seconds={"compute": 20}),
        begun(33, stage="classify"),
        saved(53, 2, stage="classify", compute=20),
        event(54, "rank_failed", stage="classify"),
        begun(60, step=0, stage="classify"),
    ]
    assert seconds(events) == {"compute": 20, "startup": 13, "lost": 21, "restart": 6, "total": 60}


def test_a_run_that_has_not_trained_has_no_account() -> None:
    assert account([]) == {}
    assert account([STARTED, event(5, "run_failed")]) == {}


def test_the_metrics_of_a_run_that_goes_on_are_what_its_events_say_so_far(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    happened = [
        STARTED, begun(10), saved(30, 10, compute=18, data=2), FAILED | {"time": at(35)}, begun(50, 10),
        saved(70, 20, compute=20),
    ]  # fmt: skip
    lines = [json.dumps(record) + "\n" for record in happened]
    path.write_text("".join(lines[:2]))
    meter = GoodputMeter(path)
    assert meter.read() == {}, "no interval has ended"
    with path.open("a") as file:
        file.write(lines[2] + lines[3][:20])
    expected = account(happened[:3])
    found = meter.read()
    assert found == {
        "goodput/fraction": expected["goodput"],
        **{f"goodput/{kind}_seconds": expected[kind] for kind in KINDS},
    }
    assert (found["goodput/fraction"], found["goodput/startup_seconds"]) == (0.6, 10)
    assert meter.read() == {}, "the rest of a line is not there yet"
    with path.open("a") as file:
        file.write(lines[3][20:] + "no JSON\n" + lines[4])
    assert meter.read() == {}
    with path.open("a") as file:
        file.write(lines[5])
    found = meter.read()
    assert found["goodput/fraction"] == account(happened)["goodput"] == round(38 / 70, 4)
    assert (found["goodput/lost_seconds"], found["goodput/restart_seconds"]) == (5, 15)


def alone(seconds_: float, last_written: float | None = None) -> dict[str, Any]:
    """The start of workers; without ``run_started`` before it, of workers that have no driver."""
    last = None if last_written is None else at(last_written)
    return event(seconds_, "stage_started", stage="pretrain", last_written=last)


HOURS = 3600


@pytest.mark.parametrize(
    "end",
    [
        [event(21, "training_ended", stage="pretrain", step=10, seconds={}), event(21, "stage_stopped")],
        [],
        [event(20, "rank_failed")],
    ],
    ids=["stopped", "killed", "failed"],
)
def test_time_between_starts_without_a_driver_is_not_counted(end: list[dict[str, Any]]) -> None:
    later = 10 * HOURS
    again = [alone(later, last_written=20), begun(later + 3, 10), saved(later + 13, 20, compute=10)]
    found = seconds([alone(0), begun(2), saved(20, 10, compute=18), *end, *again])
    other = {"other": 1} if len(end) == 2 else {}
    assert found == {"startup": 2, "compute": 28, "restart": 3, "total": 33 + sum(other.values()), **other}


def test_a_start_that_is_refused_takes_nothing_from_the_one_that_goes_on() -> None:
    first = [alone(0), begun(2), saved(20, 10, compute=18)]
    refused = [alone(25, last_written=24), event(30, "rank_failed")]
    driven = [
        event(25, "run_started"),
        alone(26, last_written=24),
        event(30, "rank_failed"),
        event(31, "run_failed"),
    ]
    for other in (refused, driven):
        found = seconds([*first, *other, saved(40, 20, compute=20), saved(60, 30, compute=20)])
        assert found == {"startup": 2, "compute": 58, "total": 60}


def test_whichever_bit_of_the_events_flips_the_rest_is_accounted_for(tmp_path: Path) -> None:
    happened = [
        STARTED, alone(1), begun(10), saved(30, 10, compute=18, data=2), event(35, "rank_failed"),
        alone(40), begun(50, 10), {**saved(70, 20, compute=20), "event": "training_ended"},
    ]  # fmt: skip
    content = "".join(json.dumps(record) + "\n" for record in happened).encode()
    path = tmp_path / "events.jsonl"
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        account(read_events(path))
        GoodputMeter(path).read()


def test_a_meter_without_its_file_says_nothing(tmp_path: Path) -> None:
    assert GoodputMeter(tmp_path / "events.jsonl").read() == {}
    assert GoodputMeter(tmp_path).read() == {}
