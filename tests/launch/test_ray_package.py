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
    assert "2.0 MB  mine/weights.bin" in message
    assert not (sent / "mine").exists()


def test_what_a_link_leads_to_is_sent_and_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "words.txt").write_text("12345")
    (folder / "mine" / "data").symlink_to(tmp_path / "data")
    (folder / "mine" / "again").symlink_to(tmp_path / "data")
    # An editor's lock is such a link.
    (folder / "mine" / ".#losses.py").symlink_to("nothing")
    sent = tmp_path / "sent"
    sent.mkdir()
    size = collect(write_job(tmp_path, PLUGIN), sent, max_bytes=1e6)
    assert names(sent) == ["job.yaml", "mine/__init__.py", "mine/again/words.txt", "mine/data/words.txt",
                           "mine/losses.py"]  # fmt: skip
    assert size == len(PLUGIN) + 12
    (tmp_path / "data" / "rows.bin").write_bytes(bytes(2_000_000))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RefusedJobError, match=r"is 4\.0 MB, more than the 1 MB") as caught:
        collect(write_job(tmp_path, PLUGIN), empty, max_bytes=1e6)
    assert "2.0 MB  mine/data/rows.bin" in str(caught.value)
    assert names(empty) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "is a link to nothing, which is not there, and would be sent"),
        ("link", "is a link to link, which is not there"),
        (".", "is a link to ., a folder that it lies in itself"),
        ("..", "is a link to .., a folder that it lies in itself"),
        ("../..", "is a link to ../.., a folder that it lies in itself"),
        ("/", "is a link to /, a folder that it lies in itself"),
    ],
)
def test_a_link_that_cannot_be_sent_is_refused_by_name(
    target: str, message: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "mine" / "sub").mkdir()
    (folder / "mine" / "sub" / "link").symlink_to(target)
    with pytest.raises(RefusedJobError) as caught:
        collect(write_job(tmp_path, PLUGIN), tmp_path / "sent", max_bytes=1e6)
    assert str(caught.value).startswith(f"{folder}/mine/sub/link {message}")
    assert len(str(caught.value)) < 400


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
