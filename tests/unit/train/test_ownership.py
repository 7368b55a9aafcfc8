"""Who is told to hold a stage that another start wants to train."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.errors import LaunchError
from orchestrator.train import ownership
from orchestrator.train.ownership import only_writer


def test_a_start_that_finds_the_stage_held_names_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LOCK_WAIT_SECONDS", 0.0)
    layout = StageLayout(tmp_path / "pretrain")
    with only_writer(layout, 0) as held:
        with pytest.raises(LaunchError) as refused, only_writer(layout, 0):
            pass
        held.check()
    assert str(refused.value).startswith(
        f"{layout.worker_lock}: still held after 0 s by process {os.getpid()}"
    )
    assert f"on {socket.gethostname()}" in str(refused.value)
    with only_writer(layout, 0) as ours:
        ours.check()
