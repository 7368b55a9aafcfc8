"""Workers that were paused while others took their stage over change nothing when they wake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from launchers.rehearsed_run import kill_tree
from launchers.verification import verify_run
from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.seal import digest_file
from orchestrator.checkpoint.steps import list_steps
from orchestrator.tracking.events import read_json_lines
from tests.distributed.test_anomalies import STAGE, prepare
from tests.distributed.training import different, end_of
from tests.e2e.commands import environment, free_port, last_step

WORKERS = 2
CHANGES = {
    "objective": {"name": "causal_lm"},
    "limits": {"max_steps": 300},
    "checkpoint": {"every_steps": 10, "keep_last": 2},
}
SECONDS = 120


@contextmanager
def workers(
    layout: StageLayout, home: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A group of workers of a prepared stage, gone afterwards; what they say is in their logs, too."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(WORKERS), "--master-addr", "127.0.0.1",
               "--master-port", str(free_port()), "-m", "orchestrator.train.worker", str(layout.root.parent),
               "--stage", STAGE]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**environment(home), **(variables or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


def said(layout: StageLayout) -> list[str]:
    """The log of each rank."""
    return [layout.log(rank).read_text() for rank in range(WORKERS)]


def signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and all its descendants."""
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        os.kill(one.pid, number)


def _has_saved(layout: StageLayout) -> bool:
    return any(step.is_complete for step in list_steps(layout.checkpoints))


def content(layout: StageLayout) -> dict[str, str]:
    """What a stage has come to: its files, but for the logs, where a group may say why it ended."""
    files = [path for path in layout.root.rglob("*") if path.is_file() and "logs" not in path.parts]
    return {str(path.relative_to(layout.root)): digest_file(path).xxh3_128 for path in files}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("asynchronous", [True, False], ids=["background", "direct"])
def test_a_paused_owner_that_wakes_is_fenced_off(asynchronous: bool, tmp_path: Path) -> None:
    # It is paused between two saves: in one, it could be past its last look at who owns the run.
    checkpoint = {"every_steps": 100, "keep_last": 2, "asynchronous": asynchronous}
    changes = {**CHANGES, "checkpoint": checkpoint}
    paused, whole = (prepare(tmp_path, name, num_workers=WORKERS, **changes) for name in ("paused", "whole"))
    with workers(paused, tmp_path / "home") as first:
        deadline = time.monotonic() + SECONDS
        while last_step(paused.metrics) < 110 or not _has_saved(paused):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.01)
        signal_all(first, signal.SIGSTOP)
        assert last_step(paused.metrics) < 200
        # As where locks do not reach the other nodes.
        paused.worker_lock.unlink()
        with workers(paused, tmp_path / "home") as second:
            assert second.wait(SECONDS) == 0, said(paused)
        came_to = content(paused)
        signal_all(first, signal.SIGCONT)
        assert first.wait(SECONDS) != 0
    assert all("taken over by process" in log for log in said(paused)), said(paused)
    changed = {name for name, digest in content(paused).items() if came_to.get(name) != digest}
    # Losses between the wake and the next save; a start of the stage cuts them off.
    assert changed <= {"metrics.jsonl"}
    assert content(paused).keys() == came_to.keys()

    with workers(whole, tmp_path / "home") as process:
        assert process.wait(SECONDS) == 0, said(whole)
    assert different(*map(end_of, (paused, whole))) == []
    assert verify_run(paused.root.parent, None)["ok"]
    ends = [event["event"] for event in read_json_lines(paused.root.parent / "events.jsonl")]
    assert ends.count("stage_finished") == 1
