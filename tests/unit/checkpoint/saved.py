"""Tensors of a small state, and saving and loading them in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.retention import Retention

FILES = ("shard-00000.bin", "metadata.json", "state.json", "manifest.json", "COMPLETE")


def make_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Shapes and dtypes that a neutral state has, and an empty one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(7, 5, generator=generator),
        "model.bias": torch.randn(3, generator=generator),
        "optim.exp_avg.weight": torch.randn(7, 5, generator=generator).t(),
        "optim.step.weight": torch.tensor(float(seed)),
        "model.empty": torch.empty(0, 4),
        "model.half": torch.randn(9, generator=generator).bfloat16(),
        "model.negative_zero": torch.tensor([-0.0, 0.0]),
    }


def save(folder: Path, *steps: int, retention: Retention | None = None) -> CheckpointManager:
    manager = CheckpointManager(folder, retention)
    for step in steps:
        manager.save(step, make_tensors(step), {"step": step, "name": "a"})
    return manager


def load(manager: CheckpointManager, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {name: torch.full_like(value, 9) for name, value in make_tensors().items()}
    state = manager.load(path, tensors)
    return tensors, state


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
        assert torch.equal(torch.signbit(found[name]), torch.signbit(value)), name


def reseal(path: Path) -> None:
    """Make whatever is in ``path`` verify."""
    names = [item.name for item in path.iterdir() if item.name not in ("manifest.json", "COMPLETE")]
    seal.seal(path, {name: seal.digest_file(path / name) for name in names})
