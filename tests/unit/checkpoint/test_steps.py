"""Names of checkpoint folders, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator.checkpoint.steps import list_steps, step_name


def test_steps_are_listed_by_number_with_what_is_complete(tmp_path: Path) -> None:
    for step in (200, 9, 123_456_789):
        (tmp_path / step_name(step)).mkdir()
    (tmp_path / step_name(9) / "COMPLETE").touch()
    for other in ("step-1", "quarantine-step-00000200", "step-00000001.tmp"):
        (tmp_path / other).mkdir()
    (tmp_path / step_name(5)).touch()
    found = list_steps(tmp_path)
    assert [(item.step, item.is_complete) for item in found] == [
        (9, True),
        (200, False),
        (123_456_789, False),
    ]
    assert found[1].path == tmp_path / "step-00000200"


def test_listing_and_verifying_import_no_torch() -> None:
    code = (
        "import sys, orchestrator.checkpoint.steps, orchestrator.checkpoint.seal;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
