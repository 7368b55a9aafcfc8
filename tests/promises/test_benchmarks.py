"""Benchmarks that drive parts of a worker by hand still fit them; their figures are for ``make bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
from tests.benchmarks.{module} import {function}
print(json.dumps({function}({arguments})))
"""
MEASURED = {
    ("step_loop", "measure_step_loop", "turns=1"): {"ours", "plain", "ratio", "data_wait", "step"},
    ("saving", "measure_saving", "turns=1, rows=8"): {"first_stall", "stall", "digest", "slowdown"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("module", "function", "arguments"), MEASURED)
def test_it_can_be_measured(module: str, function: str, arguments: str) -> None:
    program = PROGRAM.format(module=module, function=function, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() >= MEASURED[module, function, arguments]
