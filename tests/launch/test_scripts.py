"""The scripts of slurm/ are sound shell, and refuse what they cannot use before anything starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.slurm_cluster import REQUIRED

SCRIPTS = Path(__file__).parents[2] / "slurm"
NAMES = sorted(path.name for path in SCRIPTS.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_bash_reads_every_script(name: str) -> None:
    done = subprocess.run(["bash", "-n", SCRIPTS / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        reason = "no shellcheck: apt-get install shellcheck"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    command = ["shellcheck", "--external-sources", *(f"slurm/{name}" for name in NAMES)]
    done = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", ["ray.sbatch", "torchrun.sbatch"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worker=1", "job.yaml"], "unknown option '--worker=1'; expected --scripts"),
        ([], "no job file given|expected one run directory, found 0"),
        (["--max-requeues=a[$(touch hacked)]", "{run}"], "expected a whole number"),
    ],
)
def test_wrong_arguments_end_a_script_at_once(
    script: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").touch()
    options = [argument.format(run=tmp_path) for argument in arguments]
    done = subprocess.run(
        ["bash", SCRIPTS / script, f"--scripts={SCRIPTS}", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo '   StartTime=2026-01-01T00:00:00 EndTime=2026-01-02T03:04:05 Deadline=N/A'", "1767323045"),
        ("echo '   StartTime=2026-01-01T00:00:00 EndTime=Unknown Deadline=N/A'", "0"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "0"),
    ],
)
def test_a_fake_scontrol_says_when_a_job_ends_or_nobody_knows(
    answer: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\n{answer}\n")
    (tmp_path / "scontrol").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"source {SCRIPTS}/common.sh; site_is_read 0; job_ends_at"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "TZ": "UTC"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")


@pytest.mark.parametrize(
    ("code", "expected"),
    [(0, "queued again"), (1, "but SLURM does not queue the job again, as under --no-requeue")],
)
def test_another_turn_is_told_once_a_fake_scontrol_has_given_it(
    code: int, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho asked; exit {code}\n")
    (tmp_path / "scontrol").chmod(0o755)
    # Until SLURM ends the script.
    waits = "read() { echo waited; }"
    done = subprocess.run(
        ["bash", "-c", f"source {SCRIPTS}/common.sh; {waits}; site_is_read 0; max_requeues=1; requeue"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, *rest = done.stdout.splitlines()
    assert first == "asked"
    assert expected in second
    assert rest == ([] if code else ["waited"])


@pytest.mark.parametrize("is_late", [True, False])
def test_a_script_that_waits_to_be_queued_again_ends_as_slurm_asks_it_to(
    is_late: bool, tmp_path: Path
) -> None:
    # SLURM ends a script with SIGTERM, and by force only after 30 s; before or after it has said so.
    told = "" if is_late else 'kill -TERM "$PPID"; '
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\n[[ $1 != requeue ]] || {{ {told}exit 0; }}\n")
    (tmp_path / "scontrol").chmod(0o755)
    script = f"source {SCRIPTS}/common.sh; site_is_read 0; max_requeues=1; trap is_cancelled=1 TERM; requeue"
    process = subprocess.Popen(
        ["bash", "-c", f"{script}; exit 75"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        assert "queued again" in process.stdout.readline()
        try:
            if is_late:
                time.sleep(0.5)
                process.terminate()
            assert process.wait(timeout=20) == 75
        finally:
            process.kill()


OUTER = {
    "SLURM_JOB_ID": "17",
    "SLURM_ARRAY_JOB_ID": "9",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_RESTART_COUNT": "10",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "64",
}
RECORD = (
    "JobName=x Requeue=1 Restarts={restarts} BatchFlag=1 NumCPUs=2 CPUs/Task={cpus} ReqB:S:C:T=0:0:*:* {gres}"
)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            f"JobId=17 {RECORD.format(restarts=0, cpus=1, gres='JOB_GRES=(null)   Nodes=n1 GRES= ')}",
            "17 0 - -",
        ),
        (
            "JobId=12 ArrayJobId=17 ArrayTaskId=1 JobName=x Restarts=7\n"
            "JobId=17 ArrayJobId=9 ArrayTaskId=3 "
            + RECORD.format(restarts=2, cpus=64, gres="JOB_GRES=gpu:8   Nodes=n1 GRES=gpu:8(IDX:0-7) "),
            "9_3 2 8 64",
        ),
        (f"JobId=17 {RECORD.format(restarts=1, cpus=1, gres='TresPerNode=gres:gpu:8 ')}", "17 1 8 -"),
        ("", "9_3 10 8 64"),
    ],
    ids=["of-none", "all-its-own", "gpus-its-own", "no-answer"],
)
def test_variables_are_believed_where_a_fake_scontrol_says_that_they_are_the_jobs_own(
    record: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "record").write_text(record)
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\ncat {tmp_path}/record\n")
    (tmp_path / "scontrol").chmod(0o755)
    shown = "$job_ref ${SLURM_RESTART_COUNT--} ${SLURM_GPUS_ON_NODE--} ${SLURM_CPUS_PER_TASK--}"
    done = subprocess.run(
        ["bash", "-uc", f'source {SCRIPTS}/common.sh; site_is_read 0; echo "{shown}"'],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **OUTER},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")


@pytest.mark.parametrize("script", ["ray.sbatch", "torchrun.sbatch"])
@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("[[ -n ${FOO-} ]] && export BAR=1", "the last command of {file} ended with 1; the job goes on"),
        ("load() { return 3; }\nload none", "the last command of {file} ended with 3; the job goes on"),
        ("echo $NOT_SET", ""),
        ("set -e\n[[ $NOT_SET ]] && true\ntrue", ""),
        ("[[ -d /no/such ]] || return 0\nfalse", ""),
        ("false || return 4", "{file} returned 4, so the job ends"),
        ("exit 5", "{file} ended the job with exit code 5"),
        ("exit 0", "{file} ended the job with exit code 0"),
        ("if true", "syntax error|{file} cannot be read: correct it"),
    ],
)  # fmt: skip
def test_a_false_last_line_of_env_sh_is_told_and_an_end_by_it_is_not_wordless(
    script: str, site: str, message: str, tmp_path: Path
) -> None:
    scripts = tmp_path / "slurm"
    shutil.copytree(SCRIPTS, scripts)
    (scripts / "env.sh").write_text(f"{site}\n")
    command = ["bash", scripts / script, f"--scripts={scripts}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout + done.stderr
    for part in message.format(file=scripts / "env.sh").split("|"):
        assert part in said
    goes_on = "goes on" in message or not message
    assert ("no job file given" in said or "expected one run directory, found 0" in said) == goes_on
    assert done.returncode == (2 if goes_on else 1)
    assert message or len(said.splitlines()) <= 2


@pytest.mark.parametrize("script", ["ray.sbatch", "torchrun.sbatch"])
def test_a_script_that_is_submitted_in_another_folder_says_how_it_finds_the_others(
    script: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", SCRIPTS / script, "job.yaml"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"there is no {tmp_path}/slurm/common.sh: type sbatch in the project's folder"
    )
    assert "--scripts=FOLDER before the" in done.stderr
