"""The benchmark that drives the training loop by hand still fits it; its figures are for ``make bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
from tests.benchmarks.step_loop import measure_step_loop
print(json.dumps(measure_step_loop(turns=1)))
"""


@pytest.mark.slow
def test_the_step_loop_can_be_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"ours", "plain", "ratio"}
