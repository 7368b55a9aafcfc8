"""Jobs on a real SLURM, each with a real Ray on two nodes: to the end, preempted, cancelled, refused.

The uninterrupted run of the first test is what the others' weights are compared with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launchers.slurm import SCRIPTS
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import append_event
from tests.distributed.training import different, end_of
from tests.e2e.commands import ROOT, environment, events, last_step, succeed
from tests.e2e.test_kill_and_resume import write_job
from tests.launch.slurm_cluster import KILL_WAIT_SECONDS, OVER, Cluster, cluster_in_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

# Some 35 steps a second on two idle cores; Ray's notice is answered within 4 s.
MAX_STEPS = 300
NEAR_END = MAX_STEPS - 20


def short_job(folder: Path, name: str, **limits: int) -> Path:
    """A job file of one stage that trains for some seconds on two workers."""
    path = write_job(folder, name, ["ddp"])
    job = yaml.safe_load(path.read_text())
    job["defaults"]["limits"] = {"max_steps": MAX_STEPS} | limits
    job["defaults"]["checkpoint"] = {"every_steps": 10, "keep_last": 2}
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


class Runs:
    """A folder of runs on a cluster, and the jobs that are submitted to it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self._home = folder / "home"

    def job(self, name: str) -> Path:
        """A job file of one short stage."""
        return short_job(self.folder, name)

    def submit(self, job: Path, *flags: str) -> str:
        """The job id of a job submitted on two nodes."""
        command = ("submit", job, "--launcher", "slurm", "--nodes", "2", "--json", *flags)
        return str(json.loads(self.call(*command))["job_id"])

    def call(self, *command: str | Path) -> str:
        """Output of a command that must succeed."""
        return succeed(*command, "--runs-dir", self.folder / "runs", home=self._home)

    def layout(self, name: str) -> RunLayout:
        return RunLayout(self.folder / "runs" / name)

    def output(self, name: str, job_id: str) -> str:
        """What the batch job printed."""
        return (self.layout(name).root / f"{name}-{job_id}.out").read_text()

    def training(self, name: str, job_id: str, step: int = 3) -> None:
        """Wait until a run has done some steps, and has many to go."""
        metrics = self.layout(name).stage("ddp").metrics
        self.cluster.wait(job_id, lambda job: job["JobState"] in OVER or last_step(metrics) >= step)
        assert step <= last_step(metrics) < NEAR_END, self.output(name, job_id)

    def next_turn(self, job_id: str) -> None:
        """Wait until a job is queued again, and let it start."""
        self.cluster.wait(job_id, lambda job: job["JobState"] == "PENDING")
        self.cluster.start_again(job_id)

    def expect_nothing_left(self, job_id: str) -> None:
        """Processes and temporary files of a job are gone, at the latest after SLURM's KillWait.

        SLURM calls a job ended while the last processes of its steps still go.
        """
        deadline = time.monotonic() + KILL_WAIT_SECONDS + 15
        while found := [*self.cluster.processes(job_id), *Path("/tmp").glob(f"orc-{job_id}-*")]:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("slurm")
    with cluster_in_environment(folder / "cluster") as cluster:
        yield Runs(cluster, folder)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> RunLayout:
    """A run that nothing interrupted."""
    job_id = runs.submit(runs.job("whole"))
    job = runs.cluster.ended(job_id)
    output = runs.output("whole", job_id)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), output
    assert "Ray on 2 node(s), n1 n2" in output
    layout = runs.layout("whole")
    logs = layout.root / f"slurm-{job_id}.0"
    assert sorted(path.name for path in logs.iterdir()) == ["ray-n1.log", "ray-n2.log"], "and no token"
    runs.expect_nothing_left(job_id)
    assert json.loads(runs.call("status", "whole", "--json"))["state"] == "finished"
    return layout


def ends_equal(found: RunLayout, expected: RunLayout) -> bool:
    return not different(*(end_of(layout.stage("ddp")) for layout in (found, expected)))


def starts(layout: RunLayout) -> list[int]:
    """Steps from which training began, one for each start."""
    return [event["step"] for event in events(layout.root) if event["event"] == "training_started"]


def test_a_job_that_is_requeued_loses_a_node_and_reaches_its_limit_ends_with_the_same_weights(
    runs: Runs, whole: RunLayout
) -> None:
    # Evaluations leave the weights as they are; SLURM looks at time limits every 30 s.
    corpus = runs.folder / "corpus.txt"
    unseen = f"datasets.unseen={{source: text, files: {corpus}, validation_fraction: 1.0}}"
    slow = "defaults.evaluation={every_steps: 1, datasets: [unseen]}"
    limit = ("--time", "15", "--set", "launcher.options.grace_seconds=180")
    job_id = runs.submit(runs.job("moved"), *limit, "--set", unseen, "--set", slow)
    layout = runs.layout("moved")

    runs.training("moved", job_id, step=12)
    runs.cluster.command("scontrol", "requeue", job_id)
    runs.next_turn(job_id)

    runs.training("moved", job_id, last_step(layout.stage("ddp").metrics) + 12)
    # What slurmctld does of a node that does not answer (SlurmdTimeout). It registers again and is back.
    runs.cluster.command("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=lost")
    runs.next_turn(job_id)

    runs.training("moved", job_id, last_step(layout.stage("ddp").metrics) + 12)
    # From 2 to 3 minutes from now: within the grace time, so that SLURM's next look is the signal.
    minutes = -(-runs.cluster.run_seconds(job_id) // 60) + 2
    runs.cluster.command("scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}")
    runs.cluster.wait(job_id, lambda job: job["JobState"] == "PENDING")
    recorded = events(layout.root)
    named = {event["event"]: event for event in recorded}
    assert recorded[-1]["event"] == "run_stopped"
    assert named["notice_given"]["nodes"] == 2
    # Ray is told of one node after the other, and its workers may ask in between.
    assert named["notice_seen"]["leaving"] in ("some", "all")
    assert 0 < named["notice_given"]["seconds_left"] <= 180, "SLURM's own end of the job"
    saved = named["checkpoint"]["step"]
    assert saved == last_step(layout.stage("ddp").metrics), "every step that was done is in the checkpoint"

    runs.cluster.command("scontrol", "update", f"JobId={job_id}", "TimeLimit=15")
    runs.cluster.start_again(job_id)
    # Most of its steps, with an evaluation after each: minutes.
    ended = runs.cluster.ended(job_id, seconds=900)
    output = runs.output("moved", job_id)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), output
    begun = starts(layout)
    assert 0 == begun[0] < begun[1] < begun[2] < begun[3] == saved < MAX_STEPS, "from a checkpoint each"
    assert ends_equal(layout, whole)
    assert json.loads(runs.call("verify", "moved", "--json"))["ok"]
    runs.expect_nothing_left(job_id)


@pytest.mark.exhaustive
def test_an_elastic_run_that_was_asked_to_make_room_goes_on_to_the_same_weights(
    runs: Runs, whole: RunLayout
) -> None:
    job_id = runs.submit(runs.job("elastic"), "--set", "resources.num_workers={min: 1, max: 2}")
    runs.training("elastic", job_id)
    # What SLURM sends ahead of a time limit or a preemption: --signal=B:USR1@120.
    runs.cluster.command("scancel", "--signal=USR1", "--batch", job_id)
    job = runs.cluster.wait(job_id, lambda job: job["JobState"] == "PENDING")
    assert job["Restarts"] == "1"
    assert "Ray gives notice that all 2 nodes are taken away" in runs.output("elastic", job_id)
    assert "the driver ended with exit code 75" in runs.output("elastic", job_id)
    runs.expect_nothing_left(job_id)
    assert json.loads(runs.call("status", "elastic", "--json"))["state"] == "queued"
    saved = last_step(runs.layout("elastic").stage("ddp").metrics)
    runs.next_turn(job_id)
    ended = runs.cluster.ended(job_id)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), runs.output("elastic", job_id)
    assert starts(runs.layout("elastic")) == [0, saved]
    assert ends_equal(runs.layout("elastic"), whole)
    assert json.loads(runs.call("verify", "elastic", "--json"))["ok"]


@pytest.mark.exhaustive
def test_a_run_without_workers_makes_room_at_once_and_is_queued_again(runs: Runs, whole: RunLayout) -> None:
    job_id = runs.submit(runs.job("early"))
    layout = runs.layout("early")
    runs.cluster.wait(job_id, lambda job: job["JobState"] in OVER or layout.events.exists())
    for _ in range(2):  # A second one changes nothing.
        runs.cluster.command("scancel", "--signal=USR2", "--batch", job_id)
        time.sleep(1)
    runs.cluster.wait(job_id, lambda job: job["JobState"] == "PENDING", seconds=90)
    names = [event["event"] for event in events(layout.root)]
    assert (names[-1], "notice_given" in names) == ("run_stopped", False)
    for said in ("No notice by Ray: ", "the driver ended with exit code 75"):
        assert said in runs.output("early", job_id)
    runs.cluster.start_again(job_id)
    assert runs.cluster.ended(job_id)["JobState"] == "COMPLETED", runs.output("early", job_id)
    assert ends_equal(layout, whole)


@pytest.mark.exhaustive
def test_turns_are_bounded_and_a_later_submission_goes_on(runs: Runs, whole: RunLayout) -> None:
    job = runs.job("bounded")
    job_id = runs.submit(job, "--set", "launcher.options.max_requeues=1")
    for turn in range(2):
        wanted = last_step(runs.layout("bounded").stage("ddp").metrics) + 3
        runs.training("bounded", job_id, wanted)
        runs.cluster.command("scancel", "--signal=USR1", "--batch", job_id)
        if turn == 0:
            runs.cluster.wait(job_id, lambda job: job["JobState"] == "PENDING")
            runs.cluster.start_again(job_id)
    ended = runs.cluster.ended(job_id)
    output = runs.output("bounded", job_id)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "1"), output
    assert "the work is saved; not queued again after 1 times (--max-requeues=1)" in output
    runs.expect_nothing_left(job_id)
    again = runs.submit(job)
    assert runs.cluster.ended(again)["JobState"] == "COMPLETED", runs.output("bounded", again)
    assert ends_equal(runs.layout("bounded"), whole)


def test_scancel_leaves_no_process(runs: Runs) -> None:
    job_id = runs.submit(runs.job("killed"))
    # Ray's processes are all there, and the driver is among them.
    runs.cluster.wait(job_id, lambda job: job["JobState"] in OVER or runs.layout("killed").events.exists())
    assert runs.cluster.processes(job_id)
    runs.cluster.command("scancel", job_id)
    assert runs.cluster.ended(job_id)["JobState"] == "CANCELLED"
    runs.expect_nothing_left(job_id)


def test_the_runs_of_a_sweep_are_an_array_and_each_ends_as_a_run_of_its_own(
    runs: Runs, whole: RunLayout
) -> None:
    # A node each, both at once; the bits of two micro-batches are those of two workers.
    sweep = ("--set", "sweep.grid.seed=[11, 12]", "--set", "resources.num_workers=1")
    command = ("submit", runs.job("swept"), "--launcher", "slurm", "--nodes", "1", *sweep)
    array, _ = str(json.loads(runs.call(*command, "--json"))["job_ids"][0]).split("_")
    for task in range(2):
        name, job_id = f"swept-{task}", f"{array}_{task}"
        assert json.loads(runs.call("status", name, "--json"))["job"]["job_id"] == job_id
        ended = runs.cluster.ended(job_id)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), runs.output(name, job_id)
        assert json.loads(runs.call("status", name, "--json"))["state"] == "finished"
        runs.expect_nothing_left(ended["JobId"])
    # The seed of the one is that of the run which nothing interrupted.
    assert ends_equal(runs.layout("swept-0"), whole)
    assert not ends_equal(runs.layout("swept-1"), whole)


@pytest.mark.exhaustive
def test_cancel_saves_and_the_job_is_not_queued_again(runs: Runs) -> None:
    job_id = runs.submit(runs.job("cancelled"))
    runs.training("cancelled", job_id)
    runs.call("cancel", "cancelled")
    # Its time is up meanwhile, for which it would be queued again.
    runs.cluster.command("scancel", "--signal=USR1", "--batch", job_id)
    ended = runs.cluster.ended(job_id)
    output = runs.output("cancelled", job_id)
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "0"), output
    assert "the work is saved; not queued again, since the run was cancelled" in output
    runs.expect_nothing_left(job_id)
    assert json.loads(runs.call("status", "cancelled", "--json"))["state"] == "stopped"


@pytest.mark.exhaustive
def test_cancel_holds_where_the_next_driver_has_not_started(runs: Runs) -> None:
    job_id = runs.submit(runs.job("late"))
    layout = runs.layout("late")
    runs.training("late", job_id)
    runs.cluster.command("scontrol", "requeue", job_id)
    runs.cluster.wait(job_id, lambda job: job["JobState"] == "PENDING")
    # As the driver of a lost node leaves it.
    append_event(layout.events, "run_started")
    done = last_step(layout.stage("ddp").metrics)
    runs.cluster.start_again(job_id)
    runs.cluster.wait(job_id, lambda job: job["JobState"] == "RUNNING")
    runs.call("cancel", "late")
    ended = runs.cluster.ended(job_id)
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "1"), runs.output("late", job_id)
    assert "late was cancelled before its driver started: nothing is run" in runs.output("late", job_id)
    assert last_step(layout.stage("ddp").metrics) == done
    runs.expect_nothing_left(job_id)
    assert json.loads(runs.call("status", "late", "--json"))["state"] == "stopped"


def test_a_job_ends_with_the_exit_code_of_its_driver(runs: Runs) -> None:
    job = runs.job("unfit")
    job_id = runs.submit(job, "--set", "datasets.corpus.files=missing.txt")
    ended = runs.cluster.ended(job_id)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "missing.txt" in runs.output("unfit", job_id)
    runs.expect_nothing_left(job_id)


@pytest.mark.exhaustive
def test_torchrun_without_ray_stops_for_a_signal_and_ends_with_the_same_weights(
    runs: Runs, whole: RunLayout
) -> None:
    runs.call("prepare", runs.job("bare"))
    layout = runs.layout("bare")
    home = environment(runs.folder / "home")
    done = subprocess.run(
        ["sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", f"--output={layout.root}/bare-%j.out",
         SCRIPTS / "torchrun.sbatch", f"--python={sys.executable}", layout.root],
        cwd=ROOT, env=home, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    runs.training("bare", job_id)
    runs.cluster.command("scancel", "--signal=USR1", "--batch", job_id)
    runs.cluster.wait(job_id, lambda job: job["JobState"] == "PENDING")
    runs.cluster.start_again(job_id)
    job = runs.cluster.ended(job_id)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), runs.output("bare", job_id)
    assert starts(layout)[1] > 0
    assert ends_equal(layout, whole)
    runs.expect_nothing_left(job_id)
