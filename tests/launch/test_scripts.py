"""The scripts of slurm/ are sound shell, and refuse what they cannot use before anything starts."""

from __future__ import annotations

import os
import shutil
import subprocess
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
