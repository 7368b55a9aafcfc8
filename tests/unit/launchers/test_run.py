"""What a driver's process does with signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launchers import run
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID, write_job

# Modules are torn down, and with them this object, after Python has put the default handlers back.
SIGNALLED_WHILE_IT_EXITS = """
import os, signal, sys
from launchers.run import stoppable

class Scheduler:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        print("was sent", flush=True)

def work():
    if "{end}" == "failed":
        raise SystemExit("out of memory")
    return 75

scheduler = Scheduler()
sys.exit(stoppable(work, lambda by: None, lambda: None))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
@pytest.mark.parametrize(("end", "code"), [("stopped", 75), ("failed", 1)])
def test_a_signal_while_the_process_exits_does_not_replace_its_exit_code(
    name: str, end: str, code: int
) -> None:
    program = SIGNALLED_WHILE_IT_EXITS.format(name=name, end=end)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (code, "was sent\n"), ended.stderr


def test_a_second_stage_to_start_over_is_refused(console: Console, tmp_path: Path) -> None:
    job = write_job(tmp_path, VALID)
    ended = console("run", job, "--runs-dir", tmp_path, "--redo", "pretrain", "--redo=classify")
    assert (ended.code, "--redo is given twice: it takes one" in ended.errors) == (2, True), ended.errors
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        ((), "the same command"),
        (("--fresh",), "the same command without --fresh"),
        (("--redo", "pretrain"), "the same command without --redo"),
    ],
)
def test_a_run_that_was_stopped_says_how_to_go_on(
    flags: tuple[str, ...],
    command: str,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_run_stoppable", lambda *arguments, **options: "stopped")
    ended = console("run", write_job(tmp_path, VALID), "--runs-dir", tmp_path, *flags)
    message = f"Stopped; {tmp_path}/tiny holds its work, and {command} goes on from there.\n"
    assert ended == (75, message, "")
