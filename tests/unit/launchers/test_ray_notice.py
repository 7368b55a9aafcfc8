"""A batch job is asked to make room: when Ray is told, and what is done where it cannot be."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launchers.ray_notice import NODES_GONE, answer_within, give_notice, is_asked_to_make_room
from launchers.run import _ask_to_stop
from launchers.run_directory import StopWish
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError


@pytest.fixture
def gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file by which a batch script says when its nodes are gone."""
    monkeypatch.setenv(NODES_GONE, str(tmp_path / "nodes_gone"))
    return tmp_path / "nodes_gone"


def test_only_the_batch_scripts_file_asks_to_make_room(gone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_asked_to_make_room()
    gone.write_text("0\n")
    assert is_asked_to_make_room()
    monkeypatch.delenv(NODES_GONE)
    assert not is_asked_to_make_room()


@pytest.mark.parametrize("content", ["", "0\n", "1767323045\n"])
def test_a_driver_without_ray_asks_through_the_run_directory_at_once(
    content: str, gone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone.write_text(content)
    layout = RunLayout(tmp_path / "run")
    layout.root.mkdir()
    stop = StopWish(layout)
    stop.open()
    _ask_to_stop(stop, "SIGTERM", layout)
    assert layout.stop_request.read_text() == "SIGTERM"
    said = "No notice by Ray: the driver has not joined Ray yet; workers are asked through the run directory."
    assert said in capsys.readouterr().err
    with pytest.raises(LaunchError, match="has not joined Ray yet"):
        give_notice()


def test_a_ray_that_does_not_answer_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(LaunchError, match=r"Ray did not answer within 0\.1 s"):
        answer_within(0.1, lambda: time.sleep(30))
    assert time.monotonic() - began < 10


def test_what_ray_refuses_is_told_and_what_it_answers_comes_back() -> None:
    def refuse() -> int:
        raise ValueError("node 127.0.0.12 is idle")

    with pytest.raises(LaunchError, match=r"node 127\.0\.0\.12 is idle"):
        answer_within(5, refuse)
    assert answer_within(5, lambda: 2) == 2
