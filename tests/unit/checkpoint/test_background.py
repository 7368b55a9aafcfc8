"""Saving in a thread: the same files, nothing that training does meanwhile, and no error lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from orchestrator.checkpoint.background import BackgroundSaver
from orchestrator.checkpoint.finite import is_finite
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.retention import METRICS, Best, Retention
from orchestrator.checkpoint.saving import StepWriter
from orchestrator.checkpoint.shard_file import HostBuffer
from orchestrator.checkpoint.shard_plan import plan_shards
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.errors import CheckpointError, TrainingError
from tests.unit.checkpoint.saved import FILES, assert_equal, load, make_tensors, save


@pytest.fixture(autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@dataclass(frozen=True)
class GatedWriter(StepWriter):
    """Writes once the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)

    def write(self, *arguments: Any) -> None:
        assert self.gate.wait(60)
        super().write(*arguments)


def gated(folder: Path, retention: Retention | None = None) -> tuple[BackgroundSaver, threading.Event]:
    plan = plan_shards(make_tensors())
    writer = GatedWriter(folder, retention)
    return BackgroundSaver(writer, plan, HostBuffer(plan, torch.device("cpu"))), writer.gate


def start(folder: Path, retention: Retention | None = None) -> BackgroundSaver:
    return BackgroundSaver.start(folder, retention, make_tensors(), torch.device("cpu"))


def nothing() -> None:
    """Nobody wants to know."""


def test_files_are_those_of_a_save_that_training_waits_for(tmp_path: Path) -> None:
    save(tmp_path / "direct", 1, 2)
    saver = start(tmp_path / "background")
    for step in (1, 2):
        saver.save(step, make_tensors(step), {"step": step, "name": "a"}, nothing)
    saver.wait()
    saver.close()
    for step in (1, 2):
        for name in FILES:
            found, expected = (tmp_path / kind / step_name(step) / name for kind in ("background", "direct"))
            assert found.read_bytes() == expected.read_bytes(), name


def test_training_goes_on_while_the_state_of_its_step_is_written(tmp_path: Path) -> None:
    saver, gate = gated(tmp_path)
    tensors, state = make_tensors(5), {"step": 5, METRICS: {"eval/loss": 1.0}}
    recorded = []

    def record() -> None:
        recorded.append((tmp_path / step_name(5) / "COMPLETE").is_file())

    saver.save(5, tensors, state, record)
    for tensor in tensors.values():
        tensor.fill_(0)
    state["step"] = 6
    assert list_steps(tmp_path) == [] and recorded == []
    gate.set()
    saver.wait()
    assert recorded == [True]
    found, state = load(CheckpointManager(tmp_path), tmp_path / step_name(5))
    assert_equal(found, make_tensors(5))
    assert state["step"] == 5


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    saver, gate = gated(tmp_path)
    saver.save(1, make_tensors(1), {"step": 1}, nothing)
    second = threading.Thread(target=saver.save, args=(2, make_tensors(2), {"step": 2}, nothing))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join(60)
    saver.wait()
    for step in (1, 2):
        assert_equal(load(CheckpointManager(tmp_path), tmp_path / step_name(step))[0], make_tensors(step))


def test_old_steps_go_and_the_best_stays(tmp_path: Path) -> None:
    saver = start(tmp_path, Retention(2, best=Best("eval/loss", "min")))
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.7], start=1):
        saver.save(step, make_tensors(step), {"step": step, METRICS: {"eval/loss": loss}}, nothing)
    saver.wait()
    assert [found.step for found in list_steps(tmp_path)] == [2, 4, 5]


def failing(saver: BackgroundSaver) -> None:
    """Wait, in the middle of training, for a save that fails."""
    deadline = time.monotonic() + 60
    while not saver.has_failed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("call", ["save", "wait"])
def test_an_error_is_known_at_once_and_raised_by_the_next_call(call: str, tmp_path: Path) -> None:
    saver = start(tmp_path)
    saver.save(1, make_tensors(1), {"step": 1}, nothing)
    saver.wait()
    saver.save(2, make_tensors(2), {"rows": {1}}, nothing)
    failing(saver)
    with pytest.raises(
        CheckpointError, match="step-00000002: could not be saved: rank 0: Object of type set"
    ):
        if call == "save":
            saver.save(3, make_tensors(3), {"step": 3}, nothing)
        else:
            saver.wait()
    assert [found.step for found in list_steps(tmp_path)] == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(value: float, tmp_path: Path) -> None:
    tensors = make_tensors(2)
    tensors["model.half"][3] = value
    tensors["optim.exp_avg.weight"][1, 2] = value
    expected = (
        "rank 0: 2 tensors of weights or optimizer state hold NaN or infinity: model.half, optim.exp_avg"
    )
    saver = start(tmp_path)
    saver.save(2, tensors, {"step": 2}, nothing)
    with pytest.raises(TrainingError, match=expected):
        saver.wait()
    with pytest.raises(TrainingError, match=expected):
        CheckpointManager(tmp_path).save(2, tensors, {"step": 2})
    assert list_steps(tmp_path) == []


def test_values_whose_sum_overflows_are_finite() -> None:
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([float("inf"), -float("inf")]))
    assert is_finite(torch.empty(0))


def test_a_record_that_cannot_be_written_ends_the_run_with_its_checkpoint_whole(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "ledger.jsonl")

    saver = start(tmp_path)
    saver.save(1, make_tensors(1), {"step": 1}, full)
    with pytest.raises(CheckpointError, match=r"is complete, but could not be recorded: rank 0: .*ledger"):
        saver.wait()
    assert CheckpointManager(tmp_path).newest() == tmp_path / step_name(1)


def test_too_little_memory_is_refused_with_what_to_set(tmp_path: Path) -> None:
    # 2^48 bytes are more than any process can address; as a view of one element they are no trouble.
    huge = {"model.weight": torch.zeros(1).expand(2**46)}
    with pytest.raises(CheckpointError) as caught:
        BackgroundSaver.start(tmp_path, None, huge, torch.device("cpu"))
    assert f"rank 0 has no {2**48:,} bytes of host memory" in str(caught.value)
    assert "Set checkpoint.asynchronous: false" in str(caught.value)
