"""The local launcher: a submission is one once its driver holds the run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launchers.local import LocalLauncher
from launchers.runs import is_locked
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID, write_data, write_job

# A driver that outlives its submission is what this is for.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

DRIVER = """
import sys, time
from pathlib import Path
from launchers.run_directory import only_driver
from orchestrator.checkpoint.layout import RunLayout
layout = RunLayout(Path(sys.argv[1]))
time.sleep(0.5)
with only_driver(layout):
    # Not for ever, should the test fail.
    for _ in range(1200):
        if layout.stop_request.exists():
            break
        time.sleep(0.05)
"""
Drive = Callable[[str], None]


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Drive:
    """Has a program in the place of the driver, which is given the run directory."""

    def put(program: str) -> None:
        def render(launcher: LocalLauncher, job_file: Path, run_dir: Path) -> list[str]:
            return [sys.executable, "-c", program, str(run_dir)]

        monkeypatch.setattr(LocalLauncher, "render", render)

    return put


def test_a_second_submission_and_a_request_to_stop_find_the_driver_of_the_first(
    drive: Drive, console: Console, tmp_path: Path
) -> None:
    write_data(tmp_path)
    drive(DRIVER)
    runs = ("--runs-dir", tmp_path / "runs")
    submit = ("submit", write_job(tmp_path, VALID), *runs)
    first = console(*submit, "--json")
    assert (first.code, first.errors) == (0, "")
    process_id = int(first.json()["job_id"])
    try:
        second = console(*submit)
        assert (second.code, "/tiny is being run already; follow it" in second.errors) == (1, True), second
        cancelled = console("cancel", "tiny", *runs)
        assert (cancelled.code, cancelled.errors) == (0, "")
        assert cancelled.output == "tiny stops after this step, with its work saved\n"
        lock = RunLayout(tmp_path / "runs" / "tiny").driver_lock
        deadline = time.monotonic() + 20
        while is_locked(lock):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if psutil.pid_exists(process_id):
            os.kill(process_id, signal.SIGKILL)


def test_a_driver_that_takes_the_run_and_ends_at_once_was_submitted(drive: Drive, tmp_path: Path) -> None:
    drive(DRIVER.replace("range(1200)", "range(0)"))
    assert LocalLauncher({}).submit(tmp_path / "submitted.yaml", tmp_path / "tiny").isdecimal()


def test_a_driver_that_ends_before_it_holds_the_run_is_an_error_with_its_last_lines(
    drive: Drive, console: Console, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    submit = ("submit", write_job(tmp_path, VALID), "--runs-dir", runs)
    log = runs / "tiny" / "driver.log"
    for program, said in (
        ("print(*range(12), sep='\\n'); raise SystemExit(3)", "\n".join(map(str, range(2, 12)))),
        ("raise SystemExit(3)", None),
    ):
        drive(program)
        ended = console(*submit)
        assert ended.code == 1
        assert ended.errors.startswith(f"{runs}/tiny is not run: its driver, process ")
        last = (
            f"it printed nothing to {log}" if said is None else f"the last that it printed to {log}:\n{said}"
        )
        assert ended.errors.endswith(f", ended with exit code 3 before it began; {last}\n")
    assert [path.name for path in (runs / "tiny").iterdir()] == ["driver.log"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_driver_that_does_not_begin_in_time_is_ended(
    ignored: bool, drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.local.START_SECONDS", 2)
    monkeypatch.setattr("launchers.local.END_SECONDS", 0.5)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if ignored else ""
    drive(f"import signal, time; {ignore}print('importing', flush=True); time.sleep(60)")
    # Of an earlier driver.
    lock = RunLayout(tmp_path / "tiny").driver_lock
    lock.parent.mkdir()
    lock.write_text("process 1 on here")
    message = r"did not begin within 2 s and was ended; .*\nimporting$"
    with pytest.raises(LaunchError, match=message) as caught:
        LocalLauncher({}).submit(tmp_path / "submitted.yaml", tmp_path / "tiny")
    process_id = int(str(caught.value).partition("process ")[2].partition(",")[0])
    assert not psutil.pid_exists(process_id)
