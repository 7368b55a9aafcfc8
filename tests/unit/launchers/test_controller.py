"""The controller that was started while data is prepared is the one that controls the workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import RunLayout
from tests.e2e.commands import ROOT, environment
from tests.e2e.test_kill_and_resume import write_job

# Arguments: what becomes of the first controller, and the command. It prints how many were started.
COUNTED = """
import sys
import launchers.controller

started = []

def start_controller(start=launchers.controller.start_controller):
    controller = start()
    started.append(controller)
    if sys.argv[1] == "dies" and len(started) == 1:
        import ray
        ray.kill(controller)
    return controller

launchers.controller.start_controller = start_controller

from launchers.cli import main

code = main(sys.argv[2:])
print("started", len(started))
sys.exit(code)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("fate", "started"), [("lives", "started 1"), ("dies", "started 2")])
def test_one_controller_is_started_ahead_and_another_only_where_it_has_died(
    tmp_path: Path, fate: str, started: str
) -> None:
    path = write_job(tmp_path, "job", ["ddp"])
    short = ("--set", "stages.ddp.limits.max_steps=4")
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, fate, "run", path, "--runs-dir", tmp_path / "runs", *short],
        cwd=ROOT,
        env=environment(tmp_path / "home"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == started
    assert RunLayout(tmp_path / "runs" / "job").stage("ddp").result.exists()
