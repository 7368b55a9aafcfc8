from __future__ import annotations

import pytest

from tests.unit.launchers.commands import Console


@pytest.fixture
def console(capfd: pytest.CaptureFixture[str]) -> Console:
    """Runs commands of ``orchestrator`` in this process."""
    return Console(capfd)
