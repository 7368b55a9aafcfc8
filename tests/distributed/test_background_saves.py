"""Saves beside training on two ranks: the files of a save that training waits for, under every strategy."""

from __future__ import annotations

import functools
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.checkpoint.background import BackgroundSaver
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.contracts import Engine
from orchestrator.errors import CheckpointError
from tests.distributed.odd_model import build_odd, step_odd
from tests.support import run_ranks
from tests.unit.checkpoint.test_verification import damages

pytestmark = pytest.mark.slow

BF16 = {"param_dtype": "bfloat16"}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
STRATEGIES: list[tuple[dict[str, Any], str]] = [
    ({"name": "ddp"}, "adamw"),
    ({"name": "ddp"}, "adafactor"),
    ({"name": "fsdp2"}, "adamw"),
    ({"name": "fsdp2"}, "adafactor"),
    ({"name": "fsdp2", "replicate_degree": 2}, "sgd"),
    ({"name": "fsdp2", "cpu_offload": True}, "adamw"),
    ({"name": "zero", "stage": 0}, "adamw"),
    ({"name": "zero", "stage": 1}, "adamw"),
    ({"name": "zero", "stage": 2, **BF16}, "sgd"),
    ({"name": "zero", "stage": 2, **OFFLOADED}, "adamw"),
    ({"name": "zero", "stage": 3}, "adamw"),
    ({"name": "zero", "stage": 3, **BF16}, "adamw"),
    ({"name": "zero", "stage": 3, **OFFLOADED}, "adamw"),
]


@dataclass
class Saved:
    """What one rank saw."""

    root: Path
    recorded: list[tuple[int, bool]]
    """Steps that were said to be committed, and whether they were."""
    message: str
    names: list[str]
    noticed: tuple[int, int]
    """Damages to a checkpoint of two ranks, and how many of them were noticed."""


def start(engine: Engine, folder: Path) -> BackgroundSaver:
    return BackgroundSaver.start(folder, None, engine.neutral_state(), torch.device("cpu"))


def run_all(root: str) -> Saved:
    recorded: list[tuple[int, bool]] = []
    for number, (strategy, optimizer) in enumerate(STRATEGIES):
        engine = build_odd(strategy, optimizer)
        folder = Path(root, str(number))
        direct = CheckpointManager(folder / "direct")
        saver = start(engine, folder / "background")
        for step in range(3):
            step_odd(engine, step)
            direct.save(step, engine.neutral_state(), {"step": step})
            complete = folder / "background" / step_name(step) / "COMPLETE"
            saver.save(
                step,
                engine.neutral_state(),
                {"step": step},
                lambda step=step, complete=complete: recorded.append((step, complete.is_file())),
            )
        # Weights move on while the last save is written.
        for step in range(3, 6):
            step_odd(engine, step)
        saver.wait()
        saver.close()
    message, names = save_without_room(Path(root, "full disk"))
    return Saved(Path(root), recorded, message, names, damage_all(Path(root)))


def save_without_room(folder: Path) -> tuple[str, list[str]]:
    """What the save after one for which rank 1 has no room says, and what the folder holds then."""
    engine = build_odd({"name": "fsdp2"}, "adamw")
    saver = start(engine, folder)
    saver.save(1, engine.neutral_state(), {"step": 1}, lambda: None)
    saver.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    saver.save(2, engine.neutral_state(), {"step": 2}, lambda: None)
    deadline = time.monotonic() + 60
    while not saver.has_failed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Training goes on in the meantime: no collective of it meets one of the threads.
    step_odd(engine, 1)
    with pytest.raises(CheckpointError) as caught:
        saver.save(3, engine.neutral_state(), {"step": 3}, lambda: None)
    return str(caught.value), sorted(path.name for path in folder.iterdir())


def damage_all(root: Path) -> tuple[int, int]:
    """Damage each file of a checkpoint of two ranks in every way, and look for the newest good one."""
    source, folder = root / "1" / "background", root / "damaged"
    done = noticed = 0
    for path in sorted((source / step_name(2)).iterdir()):
        for _, damage in damages(path):
            if dist.get_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder)
                damage(folder / step_name(2) / path.name)
            newest = CheckpointManager(folder).newest()
            done += 1
            noticed += newest == folder / step_name(1)
    return done, noticed


@functools.cache
def saved(root: Path) -> list[Saved]:
    return run_ranks(run_all, 2, str(root))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("background")


@pytest.mark.parametrize("number", range(len(STRATEGIES)))
def test_files_are_those_of_a_save_that_training_waits_for(root: Path, number: int) -> None:
    saved(root)
    for step in range(3):
        direct, background = (
            root / str(number) / kind / step_name(step) for kind in ("direct", "background")
        )
        names = sorted(path.name for path in direct.iterdir())
        assert names == sorted(path.name for path in background.iterdir())
        assert {"shard-00000.bin", "shard-00001.bin"} <= set(names)
        for name in names:
            assert (background / name).read_bytes() == (direct / name).read_bytes(), (step, name)


def test_rank_0_is_told_of_each_step_once_it_is_complete(root: Path) -> None:
    first, second = saved(root)
    assert first.recorded == [(step, True) for step in range(3)] * len(STRATEGIES)
    assert second.recorded == []


def test_no_room_on_one_rank_is_raised_on_all_by_the_next_save(root: Path) -> None:
    for rank in saved(root):
        assert "step-00000002: could not be saved: rank 1: [Errno 27]" in rank.message
        assert rank.names == ["step-00000001"]
    assert [found.step for found in list_steps(root / "full disk")] == [1]


def test_every_damage_to_any_file_of_two_ranks_is_noticed(root: Path) -> None:
    for rank in saved(root):
        done, noticed = rank.noticed
        assert done == noticed >= 6 * 20
