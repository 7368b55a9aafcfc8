from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.launchers.commands import Console
from tests.unit.launchers.jobs_service import Serve, serving


@pytest.fixture
def console(capfd: pytest.CaptureFixture[str]) -> Console:
    """Runs commands of ``orchestrator`` in this process."""
    return Console(capfd)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers each path as it is told; the server's address."""
    yield from serving()
