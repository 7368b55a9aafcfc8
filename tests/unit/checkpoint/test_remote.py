"""Copies in remote storage: the same commit rule, fetched where newer, and never a reason to lose a step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from orchestrator.checkpoint.manager import CheckpointManager, Damage
from orchestrator.checkpoint.remote import Mirror, RemoteSteps, stage_url
from orchestrator.checkpoint.retention import METRICS, Best, Retention
from orchestrator.checkpoint.saving import DirectSaver
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.errors import CheckpointError
from tests.unit.checkpoint.saved import FILES, assert_equal, load, make_tensors, save

RETENTION = Retention(2)


@pytest.fixture(params=["memory", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteSteps]:
    base = "memory://bucket" if request.param == "memory" else f"file://{tmp_path}/bucket"
    yield RemoteSteps(stage_url(f"{base}/prefix/", "run", "pretrain"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def put(
    folder: Path, remote: RemoteSteps, *steps: int, retention: Retention = RETENTION, **losses: float
) -> list[str]:
    """Save steps and copy each; what was told of failures."""
    told: list[str] = []
    saver = DirectSaver(folder, retention, Mirror(remote, retention, told.append))
    for step in steps:
        metrics = {"eval/loss": losses[f"loss{step}"]} if f"loss{step}" in losses else {}
        saver.save(step, make_tensors(step), {"step": step, METRICS: metrics}, lambda: None)
    return told


def names(remote: RemoteSteps, step: int) -> list[str]:
    return sorted(remote._names(remote._at(step)))


def test_every_file_is_copied_and_old_steps_go(remote: RemoteSteps, tmp_path: Path) -> None:
    assert remote.url.endswith("/bucket/prefix/run/pretrain")
    assert put(tmp_path / "here", remote, 1, 2, 3) == []
    assert remote.complete_steps() == [2, 3]
    assert names(remote, 3) == sorted(FILES)
    assert not remote._files.exists(remote._at(1))


def test_the_best_step_stays_there_too(remote: RemoteSteps, tmp_path: Path) -> None:
    retention = Retention(2, best=Best("eval/loss", "min"))
    put(tmp_path, remote, 1, 2, 3, 4, retention=retention, loss1=1.0, loss2=3.0, loss3=2.0, loss4=2.0)
    assert remote.complete_steps() == [1, 3, 4]


@pytest.mark.parametrize("damage", ["truncated", "deleted", "another metric"])
def test_a_damaged_state_there_stays_and_holds_nothing_up(
    damage: str, remote: RemoteSteps, tmp_path: Path
) -> None:
    retention = Retention(1, best=Best("eval/loss", "min"))
    put(tmp_path, remote, 1, retention=retention, loss1=1.0)
    path = f"{remote._at(1)}/state.json"
    content = remote._files.cat_file(path)
    remote._files.rm_file(path)
    if damage == "truncated":
        remote._files.pipe_file(path, b'{"step"')
    elif damage == "another metric":
        assert b"1.0" in content
        remote._files.pipe_file(path, content.replace(b"1.0", b"9.0"))
    assert put(tmp_path, remote, 2, 3, 4, retention=retention, loss2=3.0, loss3=2.0, loss4=2.5) == []
    assert remote.complete_steps() == [1, 3, 4]


def test_another_machine_goes_on_from_the_newest_remote_step(remote: RemoteSteps, tmp_path: Path) -> None:
    put(tmp_path / "here", remote, 1, 2)
    folder = tmp_path / "there"
    manager = CheckpointManager(folder, remote=remote)
    path = manager.newest()
    assert path == folder / step_name(2)
    tensors, state = load(manager, path)
    assert_equal(tensors, make_tensors(2))
    assert state["step"] == 2
    assert [item.name for item in folder.iterdir()] == [step_name(2)]
    assert put(folder, remote, 3) == []
    assert remote.complete_steps() == [2, 3]


def test_a_step_that_is_here_is_not_fetched(remote: RemoteSteps, tmp_path: Path) -> None:
    put(tmp_path / "here", remote, 1, 2)
    shutil.rmtree(tmp_path / "here" / step_name(2))
    save(tmp_path / "here", 4)
    assert CheckpointManager(tmp_path / "here", remote=remote).newest() == tmp_path / "here" / step_name(4)
    assert [found.step for found in list_steps(tmp_path / "here")] == [1, 4]


def test_a_damaged_step_here_is_set_aside_and_fetched(remote: RemoteSteps, tmp_path: Path) -> None:
    put(tmp_path, remote, 1, 2)
    (tmp_path / step_name(2) / "state.json").write_text("{}")
    told: list[Damage] = []
    manager = CheckpointManager(tmp_path, remote=remote, on_damage=told.append)
    assert manager.newest() == tmp_path / step_name(2)
    assert [damage.kept_as for damage in told] == [str(tmp_path / f"quarantine-{step_name(2)}")]
    assert_equal(load(manager, tmp_path / step_name(2))[0], make_tensors(2))


@pytest.mark.parametrize("name", FILES)
def test_damage_there_is_noticed_and_an_older_step_taken(
    name: str, remote: RemoteSteps, tmp_path: Path
) -> None:
    put(tmp_path / "here", remote, 1, 2)
    at = f"{remote._at(2)}/{name}"
    content = bytearray(remote._files.cat_file(at))
    content[len(content) // 2] ^= 1
    remote._files.pipe_file(at, bytes(content))
    assert content != (tmp_path / "here" / step_name(2) / name).read_bytes()
    told: list[Damage] = []
    manager = CheckpointManager(tmp_path / "there", remote=remote, on_damage=told.append)
    assert manager.newest() == tmp_path / "there" / step_name(1)
    kept = f"quarantine-{step_name(2)}"
    assert [(damage.step, damage.kept_as) for damage in told] == [(2, f"{remote.url}/{kept}")]
    assert not remote._files.exists(remote._at(2))
    # It stays when the same step is made again.
    put(tmp_path / "there", remote, 2, 3, 4)
    assert remote.complete_steps() == [3, 4]
    assert remote._names(f"{remote._root}/{kept}") == set(FILES)
    assert remote._files.cat_file(f"{remote._root}/{kept}/{name}") == content
    assert CheckpointManager(tmp_path / "else", remote=remote).newest() == tmp_path / "else" / step_name(4)


def test_all_that_is_damaged_there_is_kept_and_known_at_every_start(
    remote: RemoteSteps, tmp_path: Path
) -> None:
    put(tmp_path / "here", remote, 1, 2)
    for _ in range(2):
        for step in remote.complete_steps():
            remote._files.pipe_file(f"{remote._at(step)}/state.json", b"{}")
        manager = CheckpointManager(tmp_path / "there", remote=remote)
        assert manager.newest() is None
        assert manager.damaged == [f"{remote.url}/quarantine-{step_name(step)}" for step in (2, 1)]
    put(tmp_path / "else", remote, 2)
    remote._files.pipe_file(f"{remote._at(2)}/state.json", b"{}")
    assert manager.newest() is None
    assert manager.damaged[0] == f"{remote.url}/quarantine-{step_name(2)}-2"
    assert len(manager.damaged) == 3


def test_damage_where_nobody_may_write_costs_no_older_step(
    remote: RemoteSteps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "here", remote, 1, 2)
    remote._files.pipe_file(f"{remote._at(2)}/state.json", b"{}")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(type(remote._files), "mv", refuse)
    told: list[Damage] = []
    manager = CheckpointManager(tmp_path / "there", remote=remote, on_damage=told.append)
    assert manager.newest() == tmp_path / "there" / step_name(1)
    stays = f"{remote.url}/{step_name(2)}"
    assert ([damage.kept_as for damage in told], manager.damaged) == ([stays], [stays])
    # Nor is it overwritten.
    assert put(tmp_path / "there", remote, 2) == []
    assert remote._files.cat_file(f"{remote._at(2)}/state.json") == b"{}"


def test_a_copy_that_was_damaged_on_its_way_is_made_once_more(
    remote: RemoteSteps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "here", remote, 1)
    download, broken = RemoteSteps.download, [True, False]

    def download_badly(self: RemoteSteps, step: int, path: Path) -> None:
        download(self, step, path)
        if broken.pop(0):
            (path / "state.json").write_text("{}")

    monkeypatch.setattr(RemoteSteps, "download", download_badly)
    told: list[Damage] = []
    manager = CheckpointManager(tmp_path / "there", remote=remote, on_damage=told.append)
    assert manager.newest() == tmp_path / "there" / step_name(1)
    assert (told, broken) == ([], [])


def test_an_upload_that_was_interrupted_is_no_step_and_is_made_anew(
    remote: RemoteSteps, tmp_path: Path
) -> None:
    put(tmp_path / "here", remote, 1, 2)
    remote._files.rm_file(f"{remote._at(2)}/COMPLETE")
    remote._files.pipe_file(f"{remote._at(2)}/shard-00007.bin", b"of a larger world")
    assert remote.complete_steps() == [1]
    assert CheckpointManager(tmp_path / "there", remote=remote).newest() == tmp_path / "there" / step_name(1)
    put(tmp_path / "here", remote, 3)
    assert remote.complete_steps() == [2, 3]
    assert names(remote, 2) == sorted(FILES)


class Unreachable(RemoteSteps):
    """A remote that is away."""

    def complete_steps(self) -> list[int]:
        raise ConnectionError("no route to host")


def test_a_failed_copy_is_told_and_made_up_for(remote: RemoteSteps, tmp_path: Path) -> None:
    told = put(tmp_path, Unreachable(remote.url), 1, 2)
    assert told == [f"{remote.url}: ConnectionError: no route to host"] * 2
    assert [found.step for found in list_steps(tmp_path)] == [1, 2]
    assert put(tmp_path, remote, 3) == []
    assert remote.complete_steps() == [2, 3]


def test_a_start_that_cannot_ask_the_remote_is_refused(remote: RemoteSteps, tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError) as caught:
        CheckpointManager(tmp_path, remote=Unreachable(remote.url)).newest()
    assert str(caught.value) == (
        f"{remote.url} may hold newer checkpoints, and could not be read: ConnectionError: no route to host."
        " Mend that, or leave checkpoint.remote out to go on from what is here"
    )


class Dying(RemoteSteps):
    """Fails at the n-th file that is copied or removed."""

    def __init__(self, url: str, fatal_call: int) -> None:
        super().__init__(url)
        self.calls = 0
        files = self._files
        outer = self

        class Files:
            def __getattr__(self, name: str) -> Any:
                if name in ("put_file", "rm_file", "rm", "makedirs"):
                    outer.calls += 1
                    if outer.calls == fatal_call:
                        raise OSError("connection lost")
                return getattr(files, name)

        self._files = Files()


def test_a_copy_that_breaks_off_anywhere_leaves_a_whole_step_there(
    remote: RemoteSteps, tmp_path: Path
) -> None:
    for fatal_call in range(1, 50):
        here, there = tmp_path / f"here-{fatal_call}", tmp_path / f"there-{fatal_call}"
        if remote._files.exists(remote._root):
            remote._files.rm(remote._root, recursive=True)
        put(here, remote, 1, 2)
        dying = Dying(remote.url, fatal_call)
        told = put(here, dying, 3)
        manager = CheckpointManager(there, remote=remote)
        path = manager.newest()
        assert path is not None
        tensors, state = load(manager, path)
        assert state["step"] in (2, 3)
        assert_equal(tensors, make_tensors(state["step"]))
        if not told:
            assert dying.calls < fatal_call and state["step"] == 3
            return
    raise AssertionError("the copy never came to its end")
