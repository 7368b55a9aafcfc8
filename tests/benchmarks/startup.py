"""Start-up of the commands that only look, beside ``import yaml, pydantic``, in turn.

Every command runs in a new process, as a user starts it, on a job file of the repository; the
yardstick is a new Python that imports the two libraries a job file needs. All find their modules
compiled, as they do from the second start on: whoever keeps Python from writing bytecode compiles this
project's modules, which no wheel brings compiled, at every start.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORCHESTRATOR = str(Path(sys.executable).with_name("orchestrator"))
JOB = "jobs/demo.yaml"
REPEATS = 11
YARDSTICK = "import yaml, pydantic"
COMMANDS: dict[str, list[str]] = {
    YARDSTICK: [sys.executable, "-c", YARDSTICK],
    "--help": [ORCHESTRATOR, "--help"],
    "validate": [ORCHESTRATOR, "validate", JOB],
    "status": [ORCHESTRATOR, "status"],
    "plan --no-model": [ORCHESTRATOR, "plan", "--no-model", JOB],
}


def measure_startup(repeats: int = REPEATS) -> dict[str, dict[str, float]]:
    """Seconds of each command and their ratio to the yardstick's.

    Args:
        repeats: Turns; each runs every command once, so that a busy moment slows all alike.

    Returns:
        By command: ``best_seconds``, ``median_seconds``, ``best_ratio`` and ``median_ratio``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as bytecode:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = bytecode
        for command in COMMANDS.values():
            _seconds(command, env)
        for _ in range(repeats):
            for name, command in COMMANDS.items():
                seconds[name].append(_seconds(command, env))
    best = {name: min(times) for name, times in seconds.items()}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        name: {
            "best_seconds": best[name],
            "median_seconds": median[name],
            "best_ratio": best[name] / best[YARDSTICK],
            "median_ratio": median[name] / median[YARDSTICK],
        }
        for name in COMMANDS
    }


def _seconds(command: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    for name, measured in measure_startup().items():
        print(f"{name:24} " + "  ".join(f"{key} {value:.3f}" for key, value in measured.items()))
