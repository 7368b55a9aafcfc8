"""A model of everything that is awkward to shard, and the optimizers that checkpoints know."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.contracts import Engine
from tests.distributed.training import build_engine


def spoil(model: nn.Module) -> nn.Module:
    """``model`` with weights from which nothing right can come."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


class Block(nn.Module):
    """A block with a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.frozen = nn.Parameter(torch.linspace(0.1, 0.3, 18).view(3, 6), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(x)) * self.frozen.mean(dim=0)


class Odd(nn.Module):
    """Tied and frozen parameters, one of a single element, and one that takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.block = Block()
        self.scale = nn.Parameter(torch.ones(1))
        self.outside = nn.Parameter(torch.linspace(0.0, 1.0, 3), requires_grad=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.block(self.embedding(ids)) * self.scale + self.outside.sum()
        logits = self.head(hidden)
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")


def make_adamw(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, foreach=True)


def make_sgd(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=1e-2, momentum=0.9, foreach=True)


def make_plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2, foreach=True)


def make_adafactor(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adafactor(trained, lr=1e-2, foreach=False)


OPTIMIZERS = {
    "adamw": make_adamw,
    "sgd": make_sgd,
    "plain sgd": make_plain_sgd,
    "adafactor": make_adafactor,
}


def build_odd(strategy: dict[str, Any], optimizer: str, *, spoiled: bool = False) -> Engine:
    torch.manual_seed(5)
    model = Odd()
    return build_engine(
        spoil(model) if spoiled else model,
        strategy,
        make_optimizer=OPTIMIZERS[optimizer],
        blocks=[model.block],
    )


def step_odd(engine: Engine, step: int) -> None:
    generator = torch.Generator().manual_seed(step * 2 + dist.get_rank())
    with engine.micro_step(last=True):
        engine.backward(engine.model(torch.randint(0, 11, (2, 5), generator=generator)) / 20)
    engine.step(1e-2, engine.gradient_norm())
