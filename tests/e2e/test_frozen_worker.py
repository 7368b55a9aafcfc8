"""The only worker of a run is frozen as a whole, its watchdog inside it: Ray notices, and the run goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines
from tests.distributed.training import different, end_of
from tests.e2e.commands import last_step, started, succeed
from tests.e2e.test_kill_and_resume import write_job

SETTINGS = (
    *("--set", "resources.num_workers=1"),
    *("--set", "resources.hang_timeout_seconds=5"),
    *("--set", "stages.ddp.limits.max_steps=400"),
)


def worker_of(driver: int) -> int:
    """Process id of the one worker of a run."""
    found = [
        process.pid
        for process in psutil.Process(driver).children(recursive=True)
        if process.cmdline()[:1] == ["ray::RayTrainWorker"]
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_only_worker_is_ended_where_it_answers_nothing_and_the_run_ends_as_if_undisturbed(
    tmp_path: Path,
) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    succeed("run", write_job(tmp_path, "whole", ["ddp"]), "--runs-dir", runs, *SETTINGS, home=home)
    frozen = RunLayout(runs / "frozen")
    path = write_job(tmp_path, "frozen", ["ddp"])
    with started("run", path, "--runs-dir", runs, *SETTINGS, home=home) as process:
        while last_step(frozen.stage("ddp").metrics) < 30:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.kill(worker_of(process.pid), signal.SIGSTOP)
        output = process.communicate(timeout=400)
        assert process.returncode == 0, output
    starts = [
        event["step"] for event in read_json_lines(frozen.events) if event["event"] == "training_started"
    ]
    assert len(starts) == 2
    assert 25 <= starts[1] < 400
    assert different(end_of(frozen.stage("ddp")), end_of(RunLayout(runs / "whole").stage("ddp"))) == []
