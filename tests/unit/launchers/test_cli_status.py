"""status of a sweep: by its name, which is no run's."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from launchers.runs import run_status
from launchers.submission import write_submitted
from launchers.sweep_record import SweepRecord
from tests.unit.launchers.commands import Console, FakeRun
from tests.unit.launchers.test_sweep_record import submitted


def swept(runs_dir: Path, number: int) -> FakeRun:
    """A run of the sweep ``tiny``, as its driver is started."""
    run = FakeRun(runs_dir, f"tiny-{number}")
    write_submitted(run.job, run.layout)
    return run


def test_a_sweep_shows_its_runs_in_order(console: Console, tmp_path: Path) -> None:
    for number in (10, 9, 0):
        swept(tmp_path, number).event("run_started")
    swept(tmp_path, 2).finish("pretrain")
    # Neither a copy nor another sweep's run.
    FakeRun(tmp_path, "tiny-11")
    swept(tmp_path / "other", 3)
    (tmp_path / "tiny-0.old").mkdir()
    status = ("status", "tiny", "--runs-dir", tmp_path)
    assert console(*status).output.splitlines() == [
        "runs of the sweep tiny",
        "  run      state        stage",
        "  tiny-0   interrupted  -",
        "  tiny-2   waiting      pretrain (step 10)",
        "  tiny-9   interrupted  -",
        "  tiny-10  interrupted  -",
    ]
    document = console(*status, "--json").json()
    assert (document["name"], [run["name"] for run in document["runs"]]) == (
        "tiny",
        ["tiny-0", "tiny-2", "tiny-9", "tiny-10"],
    )
    assert console("status", tmp_path / "tiny").output == console(*status).output


def test_runs_with_a_number_in_their_names_are_no_sweep(console: Console, tmp_path: Path) -> None:
    swept(tmp_path, 2)
    ended = console("status", "tiny", "--runs-dir", tmp_path)
    message = f"no run is called 'tiny' under '{tmp_path}'. Did you mean 'tiny-2'?\n"
    assert (ended.code, ended.errors) == (2, message)


def test_a_sweep_that_was_submitted_shows_itself_and_its_runs(console: Console, tmp_path: Path) -> None:
    SweepRecord(submitted(tmp_path)).run(lambda: 75)
    swept(tmp_path, 0)
    status = ("status", "tiny", "--runs-dir", tmp_path)
    first, *rest = console(*status).output.splitlines()
    assert first == "tiny: stopped"
    assert rest[-3:] == ["its runs", "  run     state    stage", "  tiny-0  waiting  -"]
    document = console(*status, "--json").json()
    assert (document["state"], [run["name"] for run in document["runs"]]) == ("stopped", ["tiny-0"])


def test_whichever_bit_of_its_events_flips_a_run_has_a_status(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path, "tiny")
    run.event("run_started")
    run.event("stage_started", stage="pretrain", last_written=None)
    run.event("training_started", stage="pretrain", step=0, max_steps=20)
    run.event("checkpoint_damaged", stage="pretrain", step=3, problem="a bit", kept_as="quarantine-3")
    run.event("checkpoint", stage="pretrain", step=10, seconds={"compute": 1.5})
    run.event("anomaly", stage="pretrain", step=11, what="loss is nan", action="skip", rows=[0, 8], ranks=[1])
    run.event("rank_failed", stage="pretrain", rank=1, error="ValueError", message="no", exit_code=1)
    content = run.layout.events.read_bytes()
    # A prime: every bit of a byte has its turn, at one place or another.
    for bit in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        run.layout.events.write_bytes(flipped)
        run_status(run.layout.root)
    assert console("status", "tiny", "--runs-dir", tmp_path).code == 0


@pytest.mark.parametrize("end", [None, "run_failed", "run_stopped"])
def test_what_a_killed_start_lost_is_told_however_the_next_one_ended(
    end: str | None, console: Console, tmp_path: Path
) -> None:
    run = FakeRun(tmp_path, "tiny")
    trains = {"stage": "pretrain", "step": 0, "max_steps": 20}
    saved = {"stage": "pretrain", "step": 4, "seconds": {"compute": 20}}
    events = [
        {"time": "2026-01-01T00:00:00+00:00", "event": "run_started"},
        {"time": "2026-01-01T00:00:05+00:00", "event": "stage_started", "stage": "pretrain"},
        {"time": "2026-01-01T00:00:10+00:00", "event": "training_started", **trains},
        {"time": "2026-01-01T00:00:30+00:00", "event": "checkpoint", **saved},
        {"time": "2026-01-01T01:00:00+00:00", "event": "run_started"},
        *([{"time": "2026-01-01T01:00:07+00:00", "event": end, "message": "no room"}] if end else []),
    ]
    run.layout.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    written = datetime.fromisoformat("2026-01-01T00:01:03+00:00").timestamp()
    os.utime(run.log("pretrain", "step 7\n"), (written, written))
    status = ("status", "tiny", "--runs-dir", tmp_path, "--json")
    spent = console(*status).json()["seconds"]
    assert (spent["lost"], spent["total"]) == (33, 63 + (7 if end else 0))
    with run.layout.stage("pretrain").worker_lock.open("w") as lock:
        # Workers that are at work, as without Ray, have lost nothing yet.
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert console(*status).json()["seconds"]["lost"] == 0
