"""What ``submit --launcher slurm`` hands to sbatch, argument by argument; with a fake sbatch on PATH."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.slurm import SCRIPTS, SlurmLauncher
from launchers.submission_record import Submission, read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.job import Resources
from orchestrator.tracking.events import append_event
from tests.unit.launchers.commands import Console, FakeRun
from tests.unit.spec.jobs import VALID, write_job

HOSTILE = (
    "$(touch hacked)",
    "`touch hacked`",
    "; touch hacked",
    "a' b\" c",
    "../../etc",
    "*",
    "%j",
    "--wrap=touch hacked",
    "${HOME}",
    "a\nb",
    "a\x00b",
)
FAKE = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >>"$FAKE_LOG"
env -0 >"$FAKE_ANSWERS/${0##*/}.environment"
cat "$FAKE_ANSWERS/${0##*/}" 2>/dev/null
cat "$FAKE_ANSWERS/${0##*/}.errors" >&2 2>/dev/null
[[ ! -f $FAKE_ANSWERS/${0##*/}.slow ]] || exec sleep 20
exit "$(cat "$FAKE_ANSWERS/${0##*/}.code" 2>/dev/null || echo 0)"
"""


class FakeSlurm:
    """Programs by the names of SLURM's that note how they are called and answer as they are told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct"):
            (folder / name).write_text(FAKE)
            (folder / name).chmod(0o755)
        (folder / "sbatch.answers").mkdir()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setenv("FAKE_LOG", str(folder / "log"))
        monkeypatch.setenv("FAKE_ANSWERS", str(folder / "sbatch.answers"))
        self.answer("sbatch", "17\n")

    def answer(self, name: str, output: str = "", errors: str = "", code: int = 0) -> None:
        """What a program prints and ends with from here on."""
        answers = self._folder / "sbatch.answers"
        (answers / name).write_text(output)
        (answers / f"{name}.errors").write_text(errors)
        (answers / f"{name}.code").write_text(str(code))

    def no_answer(self, name: str, errors: str) -> None:
        """Let a program print something and never end."""
        self.answer(name, errors=errors)
        (self._folder / "sbatch.answers" / f"{name}.slow").touch()

    def environment(self, name: str) -> dict[str, str]:
        """What a program found in its environment when it was called last."""
        text = (self._folder / "sbatch.answers" / f"{name}.environment").read_text()
        return dict(entry.split("=", 1) for entry in text.split("\0")[:-1])

    def calls(self) -> list[str]:
        """Programs and arguments, in one list."""
        log = self._folder / "log"
        return log.read_text().split("\0")[:-1] if log.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A fake SLURM on PATH, and nothing else there that has its names."""
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path, VALID + "resources: {num_workers: 4, cpus_per_worker: 3}\n")


def test_a_dry_run_shows_exactly_what_a_fake_sbatch_receives(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "my runs"
    command = ("submit", job, "--launcher", "slurm", "--nodes", "2", "--partition", "gpu", "--time", "1-0")
    command = (*command, "--account", "lab", "--runs-dir", runs)
    shown = console(*command, "--dry-run", "--", "--qos=high", "--exclusive")
    assert slurm.calls() == []
    assert not runs.exists()
    ended = console(*command, "--json", "--", "--qos=high", "--exclusive")
    assert ended.json() == {"name": "tiny", "launcher": "slurm", "job_id": "17"}
    python = slurm.calls()[slurm.calls().index(f"--scripts={SCRIPTS}") + 1]
    assert python.startswith("--python=/")
    expected = [
        "sbatch",
        "--parsable",
        "--job-name=tiny",
        f"--output={runs}/tiny/%x-%j.out",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@120",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=6",
        "--partition=gpu",
        "--time=1-0",
        "--account=lab",
        "--qos=high",
        "--exclusive",
        f"{SCRIPTS}/ray.sbatch",
        f"--scripts={SCRIPTS}",
        python,
        f"--folder={runs}/tiny",
        "--max-requeues=10",
        f"{runs}/tiny/submitted.yaml",
        f"--runs-dir={runs}",
    ]
    assert slurm.calls()[: len(expected)] == expected
    assert shlex.split(shown.output) == expected


def test_sbatch_finds_no_variable_of_an_outer_job_and_those_of_the_site(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {
        "SLURM_JOB_ID": "90",
        "SLURM_ARRAY_JOB_ID": "88",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_RESTART_COUNT": "10",
        "SLURM_GPUS_ON_NODE": "8",
        "SBATCH_ARRAY_INX": "0-2",
        "SBATCH_WAIT": "1",
        "SBATCH_JOB_NAME": "other",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_ERROR": "elsewhere",
        "SQUEUE_STATES": "RUNNING",
        "SCANCEL_INTERACTIVE": "1",
    }
    kept = {
        "SLURM_CONF": "/etc/slurm/slurm.conf",
        "SLURM_CLUSTERS": "here",
        "SBATCH_ACCOUNT": "lab",
        "SBATCH_PARTITION": "gpu",
        "SBATCH_QOS": "high",
        "SBATCH_RESERVATION": "course",
        "HF_HOME": "/shared",
    }
    for name, value in {**foreign, **kept}.items():
        monkeypatch.setenv(name, value)
    assert console("submit", job, "--launcher", "slurm", "--runs-dir", tmp_path / "runs").code == 0
    for program in ("sbatch", "squeue"):
        found = slurm.environment(program)
        assert foreign.keys() & found.keys() == set()
        assert {name: found.get(name) for name in kept} == kept


def test_a_run_waits_for_those_that_come_first_and_are_not_finished(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    command = ("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    for name, job_id in (("first", 31), ("second", 32)):
        slurm.answer("sbatch", f"{job_id}\n")
        assert console(*command, "--set", f"name={name}").code == 0
    FakeRun(runs, "done").event("run_finished")
    after = ("--after", "first", "--after", "done", "--after", "second")
    refused = console(*command, *after, "--dry-run")
    assert (refused.code, refused.output) == (2, "")
    assert f"--after first: {runs}/first is not finished, and its job 31 is over" in refused.errors
    slurm.answer("squeue", "31|PENDING|Priority\n32|RUNNING|None\n")
    ended = console(*command, *after, "--dry-run")
    assert (ended.code, ended.errors) == (0, "")
    assert "--dependency=afterok:31:32 --kill-on-invalid-dep=yes" in ended.output
    alone = console(*command, "--after", "done", "--dry-run")
    assert "--dependency" not in alone.output
    FakeRun(runs, "by-hand")
    for name, said in (("by-hand", "was not submitted to SLURM"), ("none", "was not submitted to SLURM")):
        refused = console(*command, "--after", name)
        assert refused.code == 2
        assert said in refused.errors
    assert "expected the name of a run" in console(*command, "--after", "../first").errors
    assert not (runs / "tiny").exists()


def test_a_suspended_job_is_asked_to_save_before_it_ends(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    slurm.answer("sbatch", "31\n")
    assert console("submit", job, "--launcher", "slurm", "--runs-dir", runs).code == 0
    layout = RunLayout(runs / "tiny")
    append_event(layout.events, "run_started")
    slurm.answer("squeue", "31|SUSPENDED|None\n")
    assert console("cancel", "tiny", "--runs-dir", runs, "--json").json()["state"] == "stopping"
    assert layout.stop_request.is_file()
    assert "scancel" not in slurm.calls()


def test_a_run_waits_for_one_that_has_finished_once_and_is_queued_again(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    command = ("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    after = (*command, "--after", "first", "--dry-run")
    run = FakeRun(runs, "first")
    run.event("run_started")
    run.event("run_finished")
    assert "--dependency" not in console(*after).output
    assert console(*command, "--set", "name=first").code == 0
    refused = console(*after)
    assert (refused.code, f"{runs}/first is not finished, and its job 17 is over" in refused.errors) == (
        2, True,
    )  # fmt: skip
    slurm.answer("squeue", "17|PENDING|Priority\n")
    assert "--dependency=afterok:17 --kill-on-invalid-dep=yes" in console(*after).output
    run.event("run_started")
    assert "--dependency=afterok:17" in console(*after).output
    run.event("run_finished")
    assert "--dependency" not in console(*after).output


def test_a_run_waits_for_the_runs_of_a_sweep_that_are_not_finished(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    command = ("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    assert console(*command, "--set", "name=sw", "--set", "sweep.grid.seed=[1, 2, 3]").code == 0
    given = (*command, "--after", "sw")
    slurm.answer("squeue", "".join(f"17_{task}|PENDING|Priority\n" for task in range(3)))
    assert "--dependency=afterok:17 --kill-on-invalid-dep=yes" in console(*given, "--dry-run").output
    append_event(RunLayout(runs / "sw-1").events, "run_finished")
    assert "--dependency=afterok:17_0:17_2 --kill-on-invalid-dep=yes" in console(*given, "--dry-run").output
    slurm.answer("squeue", "17_0|PENDING|Priority\n")
    refused = console(*given)
    assert refused.code == 2
    assert f"--after sw: {runs}/sw-2 is not finished, and its job 17_2 is over" in refused.errors
    slurm.answer("squeue", "17_[0-2]|PENDING|Priority\n17_0|PENDING|Priority\n17_2|RUNNING|None\n")
    slurm.answer("sbatch", "18\n")
    # Of an earlier sweep of this name, which had more runs.
    left = RunLayout(runs / "sw-3")
    left.root.mkdir()
    left.submitted_job.write_text("name: sw-3\n")
    Submission("slurm", "5_3", {}, "2026-01-01T00:00:00.000+00:00").write(left)
    assert console(*given).code == 0
    assert "--dependency=afterok:17_0:17_2" in slurm.calls()


@pytest.mark.parametrize(
    ("resources", "options", "expected"),
    [
        ({}, {}, ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1"]),
        (
            {"num_workers": 8, "cpus_per_worker": 4, "gpus_per_worker": 1},
            {"nodes": 2},
            ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=16", "--gpus-per-node=4"],
        ),
        ({"num_workers": 3}, {"nodes": 2}, ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]),
        (
            {"num_workers": 2, "gpus_per_worker": 1},
            {"nodes": 2, "cpus_per_node": 32, "gpus_per_node": 8},
            ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=32", "--gpus-per-node=8"],
        ),
    ],
)
def test_workers_become_nodes_cores_and_gpus(
    resources: dict[str, int], options: dict[str, int], expected: list[str], tmp_path: Path
) -> None:
    launcher = SlurmLauncher.for_resources(options, Resources(**resources))
    arguments = launcher.render(tmp_path / "submitted.yaml", tmp_path)
    sizes = ("--nodes", "--ntasks", "--cpus", "--gpus")
    assert [argument for argument in arguments if argument.startswith(sizes)] == expected


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("field", ["partition", "time", "account", "python", "flags"])
def test_a_hostile_value_is_one_argument_of_a_fake_sbatch_or_refused(
    field: str, value: str, slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    text = f"--comment={value}" if field == "flags" else value
    given: tuple[str, ...] = ("--set", f"launcher.options.{field}={_yaml(text)}")
    if field in ("partition", "time", "account"):
        given = (f"--{field}={text}",)
    if field == "flags":
        given = ("--", text)
    ended = console("submit", job, "--launcher", "slurm", *given)
    assert not list(tmp_path.rglob("hacked"))
    if ended.code == 2:
        assert field in ended.errors
        assert slurm.calls() == []
        return
    received = slurm.calls()
    assert ended.code == 0
    whole = {"flags": text, "python": f"--python={tmp_path / text}"}.get(field, f"--{field}={text}")
    assert whole in received
    # What a dry run shows is safe to paste into a shell.
    shown = console("submit", job, "--launcher", "slurm", "--dry-run", *given)
    subprocess.run(["bash", "-c", shown.output], check=True, cwd=tmp_path)
    assert received[: received.index("squeue")] == slurm.calls()[len(received) :]
    assert not list(tmp_path.rglob("hacked"))


def _yaml(text: str) -> str:
    import json

    return json.dumps(text).replace("${", "$${")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_run_name_is_refused(name: str, slurm: FakeSlurm, job: Path, console: Console) -> None:
    ended = console("submit", job, "--launcher", "slurm", "--set", f"name={_yaml(name)}")
    assert ended.code == 2
    assert "name: expected a name of up to 64 lower-case letters" in ended.errors
    assert slurm.calls() == []


def test_a_runs_folder_that_sbatch_would_misread_is_refused(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    command = ("submit", job, "--launcher", "slurm", "--runs-dir")
    ended = console(*command, tmp_path / "a\\b")
    assert ended.code == 2
    assert "holds a backslash" in ended.errors
    assert console(*command, tmp_path / "100%j").code == 0
    assert f"--output={tmp_path}/100%%j/tiny/%x-%j.out" in slurm.calls()


def test_an_array_in_a_runs_folder_that_the_script_would_misread_is_refused(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    command = ("submit", job, "--launcher", "slurm", "--runs-dir", tmp_path / "a@ARRAY_TASK_ID@")
    refused = console(*command, "--set", "sweep.grid.seed=[1, 2]")
    assert refused.code == 2
    assert "holds @ARRAY_TASK_ID@, which stands for a run's number" in refused.errors
    assert slurm.calls() == []
    assert console(*command).code == 0, "one job is given its paths as they are"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("python3.x", "bin/python3.x"),
        ("~/v/bin/python", "home/v/bin/python"),
        ("v/bin/python", "v/bin/python"),
    ],
)
def test_an_interpreter_is_found_as_in_a_shell(
    given: str, expected: str, slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "bin" / "python3.x").touch(0o755)
    option = ("--set", f"launcher.options.python={given}")
    shown = console("submit", job, "--launcher", "slurm", "--dry-run", *option)
    assert f"--python={tmp_path / expected}" in shlex.split(shown.output)


def test_without_sbatch_the_message_says_where_to_submit(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    runs = tmp_path / "runs"
    ended = console("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    assert ended.code == 2
    assert ended.errors.startswith("there is no sbatch on PATH: type this on a login node of a SLURM cluster")
    assert list(runs.iterdir()) == [], "nothing is half-submitted"


@pytest.mark.parametrize(
    ("errors", "advice"),
    [
        ("error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, "
         "user's size and/or time limits)", "wait for other jobs to end, or ask for less"),
        ("error: Batch job submission failed: Invalid account or account/partition combination specified",
         "give one with --account"),
        ("error: Batch job submission failed: Disk quota exceeded",
         "type what '--dry-run' shows"),
    ],
)  # fmt: skip
def test_a_quota_error_of_a_fake_sbatch_is_shown_with_what_to_do(
    errors: str, advice: str, slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    slurm.answer("sbatch", errors=f"sbatch: {errors}\n", code=1)
    runs = tmp_path / "runs"
    ended = console("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    assert ended.code == 2
    assert f"sbatch refused the job: sbatch: {errors}\n" in ended.errors
    assert advice in ended.errors
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("sweep", [(), ("--set", "sweep.grid.seed=[1, 2]")], ids=["run", "array"])
@pytest.mark.parametrize("failing", ["squeue", "scancel"])
def test_a_job_that_sbatch_took_is_recorded_whatever_fails_after_it(
    failing: str, sweep: tuple[str, ...], slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    name, job_id = ("tiny-1", "17_1") if sweep else ("tiny", "17")
    slurm.answer("squeue", "17|PENDING|PartitionConfig\n17_0|PENDING|PartitionConfig\n")
    slurm.answer(failing, errors="Socket timed out", code=1)
    runs = tmp_path / "runs"
    ended = console("submit", job, "--launcher", "slurm", "--runs-dir", runs, "--json", *sweep)
    assert ended.code == 0
    assert job_id in str(ended.json())
    assert f"tiny is submitted as slurm job {'17_0' if sweep else '17'}; whether it" in ended.errors
    reason = "SLURM says PartitionConfig; 'sinfo -s' shows" if failing == "scancel" else "squeue failed"
    assert reason in ended.errors
    assert "Socket timed out" in ended.errors
    submission = read_submission(RunLayout(runs / name))
    assert submission is not None
    assert submission.job_id == job_id
    assert (runs / name / "submitted.yaml").is_file()


@pytest.mark.parametrize("signal", ["INT", "TERM", "HUP"])
def test_a_signal_while_sbatch_works_waits_until_the_job_is_recorded(
    signal: str, slurm: FakeSlurm, job: Path, tmp_path: Path
) -> None:
    # As from a terminal, or a time limit: to every process of the group.
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/bash\nkill -{signal} -- -$PPID\nsleep 0.5\necho 17\n")
    runs = tmp_path / "runs"
    command = ("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    # Whoever runs these tests may ignore it, as under nohup, and that is inherited.
    default = f"import signal as s, os, sys; s.signal(s.SIG{signal}, s.SIG_DFL)"
    default += "; os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", default, sys.executable, "-m", "launchers.cli", *command],
        capture_output=True, text=True, process_group=0,
    )  # fmt: skip
    assert done.returncode == {"INT": 130, "TERM": -15, "HUP": -1}[signal]
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("Stopping as soon as slurm has answered and its job id is written down; Ctrl-C")
    assert second.startswith(
        "tiny is submitted to slurm already, as 17; 'orchestrator cancel tiny --runs-dir"
    )
    submission = read_submission(RunLayout(runs / "tiny"))
    assert submission is not None
    assert submission.job_id == "17"


@pytest.mark.parametrize("printed", ["Welcome, news on Monday: 3 nodes\n17\n", "12 users\n17;east\n"])
def test_what_a_sites_sbatch_says_before_the_job_id_is_passed_over(
    printed: str, slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    slurm.answer("sbatch", printed)
    ended = console("submit", job, "--launcher", "slurm", "--runs-dir", tmp_path / "runs", "--json")
    assert ended.json()["job_id"] == "17"


def test_a_job_whose_id_sbatch_does_not_print_is_looked_up_in_the_queue(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    slurm.answer("sbatch", "Submitted\n")
    command = ("submit", job, "--launcher", "slurm", "--runs-dir", tmp_path / "runs", "--json")
    ended = console(*command)
    assert ended.code == 1
    assert "sbatch printed 'Submitted', expected a job id" in ended.json()["errors"][0]["message"]
    slurm.answer("squeue", "41\n")
    slurm.answer("scontrol", f"JobId=41 StdOut={tmp_path}/runs/tiny/tiny-41.out")
    assert console(*command).json()["job_id"] == "41"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("PartitionConfig", "ask for fewer of them"),
        ("PartitionNodeLimit", "ask for fewer of them"),
        ("PartitionTimeLimit", "lower --time"),
        ("InvalidAccount", "give one with --account"),
        ("InvalidQOS", "correct --qos"),
        ("QOSMaxWallDurationPerJobLimit", "ask for less"),
        ("AssocMaxCpuPerJobLimit", "ask for less"),
        ("QOSMaxGRESPerNode", "ask for less"),
        ("QOSMinGRES", "ask for more"),
        ("ReqNodeNotAvail, UnavailableNodes:n2", None),
        ("QOSMaxJobsPerUserLimit", None),
        ("AssocGrpCpuLimit", None),
        ("Resources", None),
    ],
)
def test_what_waits_for_other_jobs_stays_and_what_asks_for_too_much_is_taken_out(
    reason: str, advice: str | None, slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    slurm.answer("squeue", f"17|PENDING|{reason}\n")
    ended = console("submit", job, "--launcher", "slurm", "--runs-dir", tmp_path / "runs")
    assert ended.code == (0 if advice is None else 2)
    assert (slurm.calls()[-2:] == ["scancel", "17"]) == (advice is not None)
    if advice is not None:
        assert f"the cluster can never start this job ({reason})" in ended.errors
        assert advice in ended.errors
        assert list((tmp_path / "runs").iterdir()) == []


RETRYING = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"


@pytest.mark.parametrize(
    ("queued", "record", "said"),
    [
        ("", "", "The queue holds no job of this run: look once more with 'squeue --me --name=tiny'"),
        ("41\n", "JobId=41 StdOut=/elsewhere/tiny/tiny-41.out", "The queue holds no job of this run"),
        (
            None,
            "",
            "Nor does the queue answer (squeue failed: no controller), so the job may be queued under",
        ),
    ],
    ids=["not-queued", "another-runs", "no-queue"],
)
def test_a_fake_sbatch_that_does_not_answer_is_told_with_what_it_said_and_what_the_queue_holds(
    queued: str | None, record: str, said: str, slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("launchers.slurm_queue.TIMEOUT_SECONDS", 1)
    slurm.no_answer("sbatch", RETRYING)
    slurm.answer("scontrol", record)
    slurm.answer("squeue", queued or "", "no controller" if queued is None else "", int(queued is None))
    ended = console("submit", job, "--launcher", "slurm", "--runs-dir", tmp_path / "runs")
    assert ended.code == 1
    assert "sbatch has not answered for 1 s: is the SLURM controller up ('scontrol ping')?" in ended.errors
    assert f"It said: {RETRYING}" in ended.errors
    assert "(MaxJobCount): submit again when some of them have ended" in ended.errors
    assert said in ended.errors
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_ended_job_is_looked_up_in_a_fake_sacct_where_scontrol_has_forgotten_it(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    console("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    slurm.answer("scontrol", errors="slurm_load_jobs error: Invalid job id specified", code=1)
    slurm.answer("sacct", "NODE_FAIL|1:0\n")
    status = console("status", "tiny", "--runs-dir", runs, "--json").json()
    assert status["state"] == "failed"
    assert status["job"] == {"launcher": "slurm", "job_id": "17", "state": "NODE_FAIL, exit code 1"}
    assert "slurm job 17 ended before its driver began the run (NODE_FAIL, exit code 1)" in status["problem"]


def test_lines_of_a_fake_squeue_that_are_no_jobs_are_passed_over(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    runs = tmp_path / "runs"
    console("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    slurm.answer("squeue", "Welcome to the cluster\n\n17|PENDING|Priority\nsqueue: | is slow\n")
    status = console("status", "tiny", "--runs-dir", runs, "--json").json()
    assert (status["state"], status["job"]["state"]) == ("queued", "PENDING, Priority")


def test_where_the_queue_cannot_be_asked_status_shows_the_run_directory_and_says_so(
    slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    console("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    slurm.answer("squeue", errors="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    status = console("status", "tiny", "--runs-dir", runs, "--json")
    assert (status.code, status.json()["state"], status.json()["job"]) == (0, "waiting", None)
    assert "warning: tiny: squeue failed: slurm_load_jobs error: Unable to contact" in status.errors
    second = console("submit", job, "--launcher", "slurm", "--runs-dir", runs)
    assert second.code == 1
    assert f"If you know that it is, delete {runs}/tiny/submission.json" in second.errors
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    missing = console("status", "tiny", "--runs-dir", runs).errors
    assert "there is no squeue on PATH" in missing
    assert "--dry-run" not in missing


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--wrap=x", "'--wrap' cannot be given: the script is slurm/ray.sbatch"),
        ("--wait", "orchestrator logs"),
        ("--output=x", "'orchestrator logs RUN' reads it"),
        ("--open-mode=truncate", "each turn of a run adds to its output"),
        ("--arra=0-2", "'--arra', which sbatch takes for '--array', cannot be given: it is made of"),
        ("--job-nam=x", "it is the run's name"),
        ("--wai", "orchestrator logs"),
        ("--outp=x", "'orchestrator logs RUN' reads it"),
        ("--test", "use --dry-run"),
        ("--signal=B:USR2@300", "launcher.options.signal and grace_seconds say"),
        ("--sig=TERM", "'--sig', which sbatch takes for '--signal', cannot be given"),
        ("--no-requeue", "launcher.options.max_requeues: 0"),
        ("--no-req", "'--no-req', which sbatch takes for '--no-requeue',"),
        ("--clusters=east", "set SLURM_CLUSTERS for every command"),
        ("--cluster=east", "'--cluster', which sbatch takes for '--clusters',"),
        ("--quiet", "the launcher reads the job id"),
    ],
)
def test_flags_that_belong_to_the_launcher_are_refused_and_beginnings_of_them(
    flag: str, reason: str, job: Path, console: Console
) -> None:
    ended = console("submit", job, "--launcher", "slurm", "--dry-run", "--", flag)
    assert ended.code == 2
    assert reason in ended.errors


def test_flags_that_share_letters_with_those_of_the_launcher_are_passed_on(
    job: Path, console: Console
) -> None:
    given = ("--wait-all-nodes=1", "--overcommit", "--exclusive", "--hold", "--tmp=1G", "--uid=0")
    given = (*given, "--no-kill", "--cluster-constraint=x", "--qos=high")
    ended = console("submit", job, "--launcher", "slurm", "--dry-run", "--", *given)
    assert (ended.code, ended.errors) == (0, "")
    assert [flag for flag in shlex.split(ended.output) if flag in given] == list(given)


@pytest.mark.parametrize("flag", ["--dependency=afterany:9", "--dep=singleton"])
def test_a_dependency_of_ones_own_is_passed_on_and_refused_beside_that_of_another_run(
    flag: str, slurm: FakeSlurm, job: Path, tmp_path: Path, console: Console
) -> None:
    command = ("submit", job, "--launcher", "slurm", "--runs-dir", tmp_path / "runs", "--dry-run")
    assert flag in shlex.split(console(*command, "--", flag).output)
    refused = console(*command, "--after", "first", "--", flag)
    assert refused.code == 2
    assert "it would take the place of --after (launcher.options.after); give just one" in refused.errors


def test_the_signal_is_one_that_the_script_listens_to(job: Path, console: Console) -> None:
    command = ("submit", job, "--launcher", "slurm", "--dry-run", "--set")
    shown = console(*command, "launcher.options={signal: USR2, grace_seconds: 30}")
    assert "--signal=B:USR2@30" in shlex.split(shown.output)
    refused = console(*command, "launcher.options.signal=TERM")
    assert refused.code == 2
    assert "launcher.options.signal: expected one of 'USR1', 'USR2', found 'TERM'" in refused.errors


def test_more_nodes_than_workers_are_refused(job: Path, console: Console) -> None:
    ended = console("submit", job, "--launcher", "slurm", "--nodes", "5", "--dry-run")
    assert ended.code == 2
    assert "nodes is 5, and resources.num_workers is 4" in ended.errors


def test_flags_of_slurm_are_refused_by_the_local_launcher(job: Path, console: Console) -> None:
    ended = console("submit", job, "--nodes", "2", "--dry-run")
    assert ended.code == 2
    assert "launcher 'local' takes no options, found nodes" in ended.errors
