"""Optimizers, their parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from orchestrator.spec.optimization import (
    SGD,
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    Linear,
    Optimizer,
    Schedule,
    UndecayedKind,
)


def make_optimizer(model: nn.Module, section: Optimizer) -> torch.optim.Optimizer:
    """The job's optimizer over the trainable parameters of ``model``."""
    groups = group_parameters(model, section.weight_decay, section.no_decay)
    if isinstance(section, AdamW):
        kernel = {"fused": True} if section.fused else {"foreach": True}
        return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, **kernel)
    if isinstance(section, SGD):
        return torch.optim.SGD(
            groups,
            lr=section.lr,
            momentum=section.momentum,
            nesterov=section.nesterov,
            foreach=True,
        )
    assert isinstance(section, Adafactor)
    return torch.optim.Adafactor(
        groups,
        lr=section.lr,
        beta2_decay=section.beta2_decay,
        d=section.clip_threshold,
        foreach=False,
    )


def group_parameters(
    model: nn.Module, weight_decay: float, no_decay: Sequence[UndecayedKind]
) -> list[dict[str, Any]]:
    """Two parameter groups, with and without weight decay; tied parameters count where they appear first."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            kind = parameter_kind(module, name)
            (undecayed if kind in no_decay else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameter_kind(module: nn.Module, name: str) -> str:
    """``norm``, ``bias``, ``embedding`` or ``weight``: what a parameter is, from its module and name."""
    if "Norm" in type(module).__name__:
        return "norm"
    if name.endswith("bias"):
        return "bias"
    return "embedding" if isinstance(module, nn.Embedding) else "weight"


def learning_rate(schedule: Schedule, peak: float, step: int, max_steps: int) -> float:
    """Learning rate of the update that makes ``step`` + 1 steps completed.

    Args:
        step: Optimizer steps completed so far, from 0.
        max_steps: Length of the stage.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if isinstance(schedule, Constant):
        return peak
    floor = schedule.min_lr_ratio
    if isinstance(schedule, Cosine | Linear):
        begin = schedule.warmup_steps
    else:
        begin = max(schedule.warmup_steps, max_steps - schedule.decay_steps)
    if step < begin:
        return peak
    fraction = min(1.0, (step - begin) / max(1, max_steps - begin))
    if isinstance(schedule, Cosine):
        # Loshchilov and Hutter 2017, equation 5, one cycle without restarts.
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fraction)))
    return peak * (1 - (1 - floor) * fraction)
