"""What is sent to a Ray cluster with a job, and what is refused before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.base import RefusedJobError
from launchers.ray_package import collect
from tests.unit.launchers.commands import Console
from tests.unit.spec.jobs import VALID, changed, write_job

PLUGIN = changed("objective: {name: causal_lm}", "objective: {name: 'mine.losses:Contrastive'}")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is typed: two modules, data and a hidden folder."""
    here = tmp_path / "here"
    (here / "mine" / "__pycache__").mkdir(parents=True)
    (here / ".git").mkdir()
    for name in ("mine/__init__.py", "mine/losses.py", "mine/__pycache__/losses.pyc", "other.py", ".git/x"):
        (here / name).write_text("1")
    (here / "data.bin").write_bytes(bytes(3_000_000))
    monkeypatch.chdir(here)
    return here


def test_the_job_and_the_modules_that_it_names_are_sent(folder: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    size = collect(write_job(tmp_path, PLUGIN), sent, max_bytes=1e6)
    assert names(sent) == ["job.yaml", "mine/__init__.py", "mine/losses.py"]
    assert size == len(PLUGIN) + 2


def test_a_job_without_modules_is_sent_alone(folder: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.mkdir()
    collect(write_job(tmp_path, VALID), sent, max_bytes=1e6)
    assert names(sent) == ["job.yaml"]


def test_more_than_the_limit_is_refused_with_the_largest_files(folder: Path, tmp_path: Path) -> None:
    (folder / "mine" / "weights.bin").write_bytes(bytes(2_000_000))
    sent = tmp_path / "sent"
    sent.mkdir()
    with pytest.raises(RefusedJobError) as caught:
        collect(write_job(tmp_path, PLUGIN), sent, max_bytes=1e6)
    message = str(caught.value)
    assert "is 2.0 MB, more than the 1 MB of launcher.options.max_package_megabytes" in message
    assert "2.0 MB  weights.bin" in message
    assert not (sent / "mine").exists()


def test_an_unreachable_cluster_is_one_message_and_leaves_nothing(tmp_path: Path, console: Console) -> None:
    runs = tmp_path / "runs"
    command = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--runs-dir", runs)
    ended = console(*command, "--address", "http://127.0.0.1:1")
    assert ended.code == 1
    assert ended.errors.startswith("no Ray jobs service answers at http://127.0.0.1:1 (")
    assert "correct --address" in ended.errors
    assert list(runs.iterdir()) == []
    ended = console(*command, "--address", "head:8265")
    assert ended.code == 2
    assert "expected the cluster's jobs service such as 'http://HEAD:8265'" in ended.errors
