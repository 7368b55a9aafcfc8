"""Runs the real command line as a user does, in processes that are all gone afterwards."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launchers.rehearsed_run import kill_tree

ROOT = Path(__file__).parents[2]
ORCHESTRATOR = Path(sys.executable).with_name("orchestrator")
# One start of a run on a loaded 2-core machine, Ray included.
RUN_SECONDS = 240
_ports_given: set[int] = set()


def environment(home: Path) -> dict[str, str]:
    """A user's environment with an empty home and no Ray or tracker settings."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RAY_", "WANDB_", "HF_", "ORCHESTRATOR_", "RANK", "WORLD_SIZE"))
    }
    home.mkdir(exist_ok=True)
    return {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1"}


def orchestrator(
    *arguments: str | Path,
    home: Path,
    cwd: Path = ROOT,
    seconds: float = RUN_SECONDS,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    with started(*arguments, home=home, cwd=cwd, variables=variables) as process:
        output, errors = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def succeed(
    *arguments: str | Path,
    home: Path,
    cwd: Path = ROOT,
    variables: Mapping[str, str] | None = None,
    seconds: float = RUN_SECONDS,
) -> str:
    """Standard output of a command that must end with 0."""
    done = orchestrator(*arguments, home=home, cwd=cwd, seconds=seconds, variables=variables)
    assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def started(
    *arguments: str | Path, home: Path, cwd: Path = ROOT, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command that runs, and is gone with all its descendants afterwards."""
    process = subprocess.Popen(
        [ORCHESTRATOR, *map(str, arguments)],
        cwd=cwd,
        env={**environment(home), **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def kill_when(condition: Callable[[], bool], *arguments: str | Path, home: Path, cwd: Path = ROOT) -> None:
    """Start a command and SIGKILL it with all its descendants as soon as ``condition`` holds."""
    with started(*arguments, home=home, cwd=cwd) as process:
        deadline = time.monotonic() + RUN_SECONDS
        while not condition():
            assert process.poll() is None, f"ended before the kill: {process.communicate()}"
            assert time.monotonic() < deadline, "the condition for the kill never came"
            time.sleep(0.05)


def last_step(metrics: Path) -> int:
    """Last complete logged step, 0 when there is none."""
    if not metrics.exists():
        return 0
    complete, _, _ = metrics.read_text().rpartition("\n")
    lines = complete.splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0


def events(run: Path) -> list[dict[str, Any]]:
    """The run's events."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def free_port() -> int:
    """A port on loopback that nobody listens on, and that no server is given which asks for any.

    It is bound seconds later, when many of those have been started. Ray's own are below 20000, those of
    jobs under SLURM below 30000, and Linux gives out those from 32768 on.
    """
    while True:
        port = random.SystemRandom().randrange(30000, 32768)
        if port in _ports_given:
            continue
        _ports_given.add(port)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
