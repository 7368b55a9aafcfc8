"""The wall clock jumps under workers, by days, both ways: steps, rows and weights know of no day."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launchers.runs import run_status
from launchers.verification import verify_run
from orchestrator.tracking.events import read_json_lines
from tests.distributed.test_anomalies import prepare
from tests.distributed.test_paused_owner import CHANGES, SECONDS, WORKERS, said, workers
from tests.distributed.training import different, end_of
from tests.e2e.commands import last_step

CLOCK = """
import datetime
import pathlib
import time

OFFSET = pathlib.Path(__file__).with_name("days")
real_now = time.time


def off():
    return real_now() + 86400 * float(OFFSET.read_text() or 0)


class Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(off(), tz)


time.time, datetime.datetime = off, Datetime
"""
# By the step from which on the clock is off: ahead, far behind, right again.
JUMPS = ((40, "40"), (100, "-500"), (160, "0"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_jumps_of_a_stand_in_for_the_clock_change_nothing(tmp_path: Path) -> None:
    clock = tmp_path / "clock" / "days"
    clock.parent.mkdir()
    clock.write_text("0")
    # Python imports a module of this name before anything else.
    clock.with_name("sitecustomize.py").write_text(CLOCK)
    path = f"{clock.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    jumping, whole = (
        prepare(tmp_path, name, num_workers=WORKERS, **CHANGES) for name in ("jumping", "whole")
    )
    with workers(jumping, tmp_path / "home", {"PYTHONPATH": path}) as process:
        deadline = time.monotonic() + SECONDS
        for step, offset in JUMPS:
            while last_step(jumping.metrics) < step:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
            clock.write_text(offset)
        assert process.wait(SECONDS) == 0, said(jumping)
    events = list(read_json_lines(jumping.root.parent / "events.jsonl"))
    days = {event["time"][:10] for event in events if event["event"] == "checkpoint"}
    assert len(days) == len(JUMPS), "the clock must have jumped while it saved"

    with workers(whole, tmp_path / "home") as process:
        assert process.wait(SECONDS) == 0, said(whole)
    assert different(*map(end_of, (jumping, whole))) == []
    assert verify_run(jumping.root.parent, None)["ok"]
    assert run_status(jumping.root.parent)["stages"][0]["state"] == "finished"
    kinds = [event["event"] for event in events]
    assert kinds.count("training_started") == 1
    assert "hang" not in kinds
