"""Optimizer state before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import PlanError
from orchestrator.strategies.optimizer_state import check_supported, materialized_state
from orchestrator.strategies.preparation import (
    enable_activation_checkpointing,
    fill_missing_gradients,
    require_compiler,
)

OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.SGD, {}),
    (torch.optim.Adafactor, {"weight_decay": 0.1}),
]


def train(kind: type[torch.optim.Optimizer], options: dict[str, Any], *, early: bool) -> list[Any]:
    """Weights and state after three steps, with or without state created before the first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = kind(model.parameters(), lr=1e-2, **options)  # type: ignore[call-arg]
    if early:
        for parameter in model.parameters():
            materialized_state(optimizer, optimizer.param_groups[0], parameter)
    for step in range(3):
        model(torch.full((2, 5), 0.1 * step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    states = [dict(optimizer.state[parameter]) for parameter in model.parameters()]
    return [*[p.detach() for p in model.parameters()], *[v for s in states for v in s.values()]]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_state_created_early_changes_no_bit(
    kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    found, expected = (train(kind, options, early=early) for early in (True, False))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(one, other)


def test_optimizer_that_checkpoints_do_not_know_is_refused_by_name() -> None:
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(PlanError, match=r"optimizer RMSprop: .*'AdamW', 'SGD', 'Adafactor'"):
        check_supported(torch.optim.RMSprop([parameter]))
    with pytest.raises(PlanError, match="AdamW with amsgrad"):
        check_supported(torch.optim.AdamW([parameter], amsgrad=True))


def test_missing_gradients_become_zero_and_others_stay() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    used.sum().backward()
    fill_missing_gradients([used, unused])
    assert used.grad is not None and used.grad.tolist() == [1.0, 1.0]
    assert unused.grad is not None and unused.grad.tolist() == [0.0, 0.0, 0.0]


def test_model_without_activation_checkpointing_is_named() -> None:
    with pytest.raises(PlanError, match=r"activation_checkpointing: true, but Linear has no"):
        enable_activation_checkpointing(nn.Linear(2, 2))


def test_compile_without_a_compiler_is_refused_on_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PlanError, match=r"'no-such-compiler' is not on PATH"):
        require_compiler(torch.device("cpu"))
    require_compiler(torch.device("cuda"))
