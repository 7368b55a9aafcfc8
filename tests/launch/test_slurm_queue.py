"""Jobs that a real SLURM holds in its queue, refuses, or ends before a driver starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchers.slurm import SCRIPTS
from tests.launch.slurm_cluster import Cluster, cluster_in_environment
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID, write_data, write_job

LATER = ("--", "--begin=now+1hour")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in_environment(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        yield found


@pytest.fixture
def command(cluster: Cluster, tmp_path: Path) -> tuple[str | Path, ...]:
    """``submit`` of a job on two nodes."""
    job = write_job(tmp_path, VALID + "resources: {num_workers: 2}\n")
    write_data(tmp_path)
    return ("submit", job, "--launcher", "slurm", "--nodes", "2", "--runs-dir", tmp_path / "runs")


def test_a_queued_job_is_shown_and_a_second_submission_refused_by_name(
    command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    job_id = console(*command, "--json", *LATER).json()["job_id"]
    status = console("status", "tiny", "--runs-dir", runs, "--json").json()
    assert status["state"] == "queued"
    assert status["job"] == {"launcher": "slurm", "job_id": job_id, "state": "PENDING, BeginTime"}
    assert [stage["name"] for stage in status["stages"]] == ["pretrain"]
    listed = console("status", "--runs-dir", runs)
    assert "tiny  queued" in listed.output
    assert f"slurm job {job_id}: PENDING, BeginTime" in console("status", "tiny", "--runs-dir", runs).output

    for launcher in ("slurm", "local"):
        second = console("submit", command[1], "--launcher", launcher, "--runs-dir", runs)
        assert second.code == 1
        assert f"{runs}/tiny is queued already as slurm job {job_id} (PENDING, BeginTime)" in second.errors
        assert "orchestrator cancel tiny" in second.errors
    assert len(cluster.command("squeue", "--noheader").splitlines()) == 1

    assert console("cancel", "tiny", "--runs-dir", runs, "--json").json()["state"] == "cancelled"
    assert cluster.ended(job_id)["JobState"] == "CANCELLED"
    status = console("status", "tiny", "--runs-dir", runs, "--json").json()
    assert status["state"] == "cancelled"
    again = console("cancel", "tiny", "--runs-dir", runs)
    assert (again.code, again.output) == (0, "tiny is cancelled before it started\n")

    third = console(*command, "--json", *LATER).json()["job_id"]
    assert third != job_id, "after its end it may be submitted again"
    cluster.command("scancel", third)


def test_a_run_that_is_submitted_from_a_task_of_an_array_is_one_job_of_its_own(
    command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path, console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_GPUS_ON_NODE"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SBATCH_ARRAY_INX", "0-2")
    monkeypatch.setenv("SBATCH_WAIT", "1")
    scripts = tmp_path / "slurm"
    scripts.mkdir()
    (scripts / "ray.sbatch").write_text("#!/bin/bash\nenv | grep ^SLURM_\n")
    job_id = console(*command, "--json", "--set", f"launcher.options.scripts={scripts}").json()["job_id"]
    cluster.ended(job_id)
    assert cluster.command("squeue", "--noheader") == ""
    found = (tmp_path / "runs" / "tiny" / f"tiny-{job_id}.out").read_text()
    assert f"SLURM_JOB_ID={job_id}\n" in found
    assert not any(name in found for name in ("SLURM_ARRAY", "SLURM_RESTART_COUNT", "SLURM_GPUS"))


def test_a_script_by_hand_in_a_task_of_an_array_leaves_the_other_job_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    sleep = "trap 'exit 9' TERM; sleep 60 & wait"
    array = cluster.command(
        "sbatch", "--parsable", "--array=3", "--output=/dev/null", f"--wrap={sleep}"
    ).strip()
    cluster.wait(f"{array}_3", lambda job: job["JobState"] == "RUNNING")
    # A Ray that does not start: the job ends the way all do, by a signal to its own steps.
    outer = (f"SLURM_ARRAY_JOB_ID={array}", "SLURM_ARRAY_TASK_ID=3", "SLURM_RESTART_COUNT=10")
    flags = ("--parsable", f"--output={tmp_path}/out")
    given = (f"--scripts={SCRIPTS}", "--python=/bin/false", f"--folder={tmp_path}", "job.yaml")
    job_id = cluster.command("env", *outer, "sbatch", *flags, str(SCRIPTS / "ray.sbatch"), *given).strip()
    assert cluster.ended(job_id)["JobState"] == "FAILED"
    assert f"job {job_id}, start 0: the Ray head ended" in (tmp_path / "out").read_text()
    assert cluster.job(f"{array}_3")["JobState"] == "RUNNING"
    cluster.command("scancel", array)


def test_a_run_waits_for_the_one_before_it_and_goes_when_that_is_cancelled(
    command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    first = console(*command, "--json", *LATER).json()["job_id"]
    second = console(*command, "--json", "--set", "name=second", "--after", "tiny").json()["job_id"]
    status = console("status", "second", "--runs-dir", runs, "--json").json()
    assert status["job"] == {"launcher": "slurm", "job_id": second, "state": "PENDING, Dependency"}
    assert f"afterok:{first}" in cluster.command("squeue", "--noheader", "--format=%E", f"--jobs={second}")
    assert console("cancel", "tiny", "--runs-dir", runs).code == 0
    assert cluster.ended(second)["JobState"] == "CANCELLED", "what can never start does not wait for ever"
    swept = ("--set", "name=third", "--set", "sweep.grid.seed=[1, 2]")
    for given in (("--set", "name=third"), swept):
        ended = console(*command, *given, "--after", "tiny")
        assert ended.code == 2
        assert f"--after tiny: {runs}/tiny is not finished, and its job {first} is over" in ended.errors
        assert "(CANCELLED, exit code 0), so it cannot be waited for; submit it again first" in ended.errors
    assert not list(runs.glob("third*"))
    again = console(*command, "--json", *LATER).json()["job_id"]
    assert console(*command, "--set", "name=third", "--after", "tiny").code == 0
    cluster.command("scancel", again)


def test_a_run_waits_for_all_runs_of_a_sweep_and_goes_when_one_of_them_is_cancelled(
    command: tuple[str | Path, ...], cluster: Cluster, console: Console
) -> None:
    swept = (*command, "--set", "name=sw", "--set", "sweep.grid.seed=[1, 2]")
    ids = console(*swept, "--json", *LATER).json()["job_ids"]
    array = ids[0].partition("_")[0]
    job_id = console(*command, "--json", "--after", "sw").json()["job_id"]
    assert f"afterok:{array}_*" in cluster.command("squeue", "--noheader", "--format=%E", f"--jobs={job_id}")
    cluster.command("scancel", ids[1])
    cluster.command("scancel", ids[0])
    assert cluster.ended(job_id)["JobState"] == "CANCELLED"


def test_a_run_of_an_array_is_shown_and_cancelled_alone(
    command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    swept = (*command, "--set", "sweep.grid.seed=[1, 2, 3]", "--set", "sweep.at_once=2")
    ids = console(*swept, "--json", *LATER).json()["job_ids"]
    array = ids[0].partition("_")[0]
    assert ids == [f"{array}_{task}" for task in range(3)]
    status = console("status", "tiny-1", "--runs-dir", runs, "--json").json()
    assert (status["state"], status["job"]["job_id"]) == ("queued", ids[1])
    assert console("cancel", "tiny-1", "--runs-dir", runs, "--json").json()["state"] == "cancelled"
    listed = console("status", "--runs-dir", runs).output
    assert [line.split()[:2] for line in listed.splitlines() if "tiny-" in line] == [
        ["tiny-0", "queued"],
        ["tiny-1", "cancelled"],
        ["tiny-2", "queued"],
    ]
    assert console("status", "tiny-1", "--runs-dir", runs, "--json").json()["state"] == "cancelled"
    second = console(*swept, *LATER)
    assert second.code == 1
    assert f"{runs}/tiny-0 is queued already as slurm job {ids[0]}" in second.errors
    # One that is alive refuses all, and those before it leave nothing.
    cluster.command("scancel", ids[0])
    shutil.rmtree(runs / "tiny-0")
    third = console(*swept, *LATER)
    assert third.code == 1
    assert f"{runs}/tiny-2 is queued already as slurm job {ids[2]}" in third.errors
    assert not (runs / "tiny-0").exists()
    cluster.command("scancel", array)


@pytest.mark.parametrize("sweep", [(), ("--set", "sweep.grid.seed=[1, 2]")], ids=["run", "array"])
def test_a_job_that_is_queued_although_sbatch_does_not_answer_is_that_of_the_run(
    sweep: tuple[str, ...], command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path,
    console: Console, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = (*command[:-1], tmp_path / "other", *sweep, *LATER)
    assert console(*other).code == 0, "of the same name, in another folder"
    slow, real = tmp_path / "bin" / "sbatch", shutil.which("sbatch")
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/bash\n{real} "$@" >/dev/null\nexec sleep 60\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("launchers.slurm_queue.TIMEOUT_SECONDS", 3)
    ended = console(*command, "--json", *sweep, *LATER)
    assert (ended.code, ended.errors) == (0, "")
    monkeypatch.setattr("launchers.slurm_queue.TIMEOUT_SECONDS", 60)
    name = "tiny-1" if sweep else "tiny"
    job_id = ended.json()["job_ids"][1] if sweep else ended.json()["job_id"]
    status = console("status", name, "--runs-dir", tmp_path / "runs", "--json").json()
    assert (status["state"], status["job"]["job_id"]) == ("queued", job_id)
    assert f"StdOut={tmp_path}/runs/{name}/" in cluster.command("scontrol", "show", "job", job_id)
    cluster.command("scancel", "--me")


def test_an_array_is_cancelled_by_the_name_of_its_sweep(
    command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    ids = console(*command, "--set", "sweep.grid.seed=[1, 2, 3]", "--json", *LATER).json()["job_ids"]
    ended = console("cancel", "tiny", "--runs-dir", runs)
    assert (ended.code, ended.errors) == (0, "")
    assert ended.output.splitlines() == [f"tiny-{task} is cancelled before it started" for task in (2, 1, 0)]
    assert cluster.command("squeue", "--noheader") == ""
    status = console("status", "tiny-2", "--runs-dir", runs, "--json").json()
    assert (status["state"], status["job"]["job_id"]) == ("cancelled", ids[2])
    # A refusal leaves the sweep as it was.
    refused = console(*command, "--set", "sweep.grid.seed=[1, 2, 3]", "--partition", "nope")
    assert refused.code == 2
    listed = console("status", "tiny", "--runs-dir", runs)
    assert listed.output.splitlines()[0] == "runs of the sweep tiny"


def test_an_array_that_sbatch_refuses_leaves_nothing(
    command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path, console: Console
) -> None:
    swept = (*command, "--set", "sweep.grid.seed=[1, 2]")
    for flags, found in (
        (("--partition", "nope"), "invalid partition"),
        (("--nodes", "2"), "PartitionConfig"),
    ):
        wide = ("--set", "resources.cpus_per_worker=64") if found == "PartitionConfig" else ()
        ended = console(*swept, *flags, *wide)
        assert ended.code == 2
        assert found in ended.errors
    assert not list((tmp_path / "runs").glob("*"))
    assert cluster.command("squeue", "--noheader") == ""


@pytest.mark.parametrize(
    ("flags", "found", "advice"),
    [
        (("--partition", "nope"), "invalid partition specified: nope", "'sinfo -s' lists the partitions"),
        (
            ("--set", "resources.cpus_per_worker=64"),
            "never start this job (PartitionConfig)",
            "ask for fewer",
        ),
        (
            # PartitionNodeLimit once SLURM's scheduler, which looks every two seconds, has looked at it.
            ("--nodes", "4", "--set", "resources.num_workers=4"),
            "never start this job (Partition",
            "ask for fewer",
        ),
        (("--time", "soon"), "time: expected minutes", "found 'soon'"),
        (("--time", "3"), "time: '3' is a limit of 180 s", "raise time or lower grace_seconds"),
        (("--", "--no-such-flag"), "unrecognized option '--no-such-flag'", "it came after '--'"),
    ],
    ids=["partition", "too-large-nodes", "too-many-nodes", "time", "no-time", "flag"],
)
def test_what_sbatch_refuses_is_one_message_and_leaves_nothing(
    flags: tuple[str, ...], found: str, advice: str, command: tuple[str | Path, ...], cluster: Cluster,
    tmp_path: Path, console: Console,
) -> None:  # fmt: skip
    ended = console(*command, *flags)
    assert ended.code == 2
    assert found in ended.errors
    assert advice in ended.errors
    assert not (tmp_path / "runs" / "tiny").exists()
    assert cluster.command("squeue", "--noheader") == ""


def test_a_ray_head_that_does_not_start_fails_the_job(
    command: tuple[str | Path, ...], cluster: Cluster, tmp_path: Path, console: Console
) -> None:
    scripts, runs = tmp_path / "slurm", tmp_path / "runs"
    shutil.copytree(SCRIPTS, scripts)
    # As where the site's module or container is not there.
    (scripts / "env.sh").write_text("CONTAINER=(/no/such/apptainer exec)\n")
    job_id = console(*command, "--json", "--set", f"launcher.options.scripts={scripts}").json()["job_id"]
    job = cluster.ended(job_id)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")
    output = (runs / "tiny" / f"tiny-{job_id}.out").read_text()
    assert "the Ray head ended:" in output
    assert console("logs", "tiny", "--runs-dir", runs).output == output
    assert console("logs", "tiny", "-f", "--runs-dir", runs).output == output
    assert "/no/such/apptainer: No such file or directory" in output
    assert cluster.processes(job_id) == []
    status = console("status", "tiny", "--runs-dir", runs, "--json").json()
    assert status["state"] == "failed"
    shown = f"'orchestrator logs tiny --runs-dir {runs}' shows its output"
    assert f"ended before its driver began the run (FAILED, exit code 1); {shown}" in status["problem"]
