"""The controller that was started before data is prepared is the one that controls the workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import RunLayout
from tests.e2e.commands import ROOT, environment
from tests.e2e.test_kill_and_resume import write_job

# Arguments: what becomes of the first controller, the run's events, and the command. It says of each that was
# started whether data was prepared before.
STARTED = """
import os, signal, sys, time
from contextlib import suppress
from pathlib import Path

import psutil
import launchers.controller

started = []

def start_controller(start=launchers.controller.start_controller):
    started.append("late" if "stage_preparing" in Path(sys.argv[2]).read_text() else "ahead")
    controller = start()
    while sys.argv[1] == "dies" and len(started) == 1:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "".join(process.cmdline()).startswith("ray::StageController"):
                    os.kill(process.pid, signal.SIGKILL)
                    return controller
        time.sleep(0.05)
    return controller

launchers.controller.start_controller = start_controller

from launchers.cli import main

code = main(sys.argv[3:])
print("started", *started, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("fate", "started"), [("lives", "started ahead"), ("dies", "started ahead late")])
def test_one_controller_is_started_ahead_and_another_only_where_it_has_died(
    tmp_path: Path, fate: str, started: str
) -> None:
    path, run = write_job(tmp_path, "job", ["ddp"]), RunLayout(tmp_path / "runs" / "job")
    short = ("--set", "stages.ddp.limits.max_steps=4")
    command = ("run", path, "--runs-dir", run.root.parent, "--json", *short)
    done = subprocess.run(
        [sys.executable, "-c", STARTED, fate, run.events, *command],
        cwd=ROOT,
        env=environment(tmp_path / "home"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == started
    assert run.stage("ddp").result.exists()
    # Ray's own word on a process that died is not in it.
    assert json.loads(done.stdout)["state"] == "finished"
