"""What a driver's process does with signals."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
