"""A sweep that stops runs early, in one allocation of a real SLURM: what ``submit`` says to do instead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launchers.runs import run_status
from launchers.slurm import SCRIPTS
from tests.e2e.commands import ROOT, environment
from tests.e2e.test_early_stopping import STATES, write_sweep
from tests.launch.slurm_cluster import cluster_in_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.timeout(1800)]


def test_a_sweep_in_one_allocation_stops_its_hopeless_run(tmp_path: Path) -> None:
    runs, job = tmp_path / "runs", write_sweep(tmp_path)
    with cluster_in_environment(tmp_path / "cluster") as cluster:
        done = subprocess.run(
            ["sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", f"--output={tmp_path}/sweep-%j.out",
             SCRIPTS / "ray.sbatch", f"--python={sys.executable}", f"--folder={tmp_path}",
             job, "--runs-dir", runs],
            cwd=ROOT, env=environment(tmp_path / "home"), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        job_id = done.stdout.strip()
        ended = cluster.ended(job_id, seconds=1200)
        output = (tmp_path / f"sweep-{job_id}.out").read_text()
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), output
    assert [run_status(runs / f"swept-{number}")["state"] for number in range(3)] == STATES
    assert "swept-1 was stopped early: eval/loss" in output
