"""What float16 asks of a training stage: a scale of its loss."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.optimization import LossScale
from orchestrator.spec.tree import KeyPath


def loss_scale_of(stage: TrainStage) -> LossScale | None:
    """How the stage scales its loss, defaults filled in; ``None``: it does not compute in float16."""
    if getattr(stage.strategy, "param_dtype", None) != "float16":
        return None
    return stage.loss_scale or LossScale()


def check_loss_scale(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """A scale where nothing needs one."""
    if stage.loss_scale is not None and loss_scale_of(stage) is None:
        dtype = getattr(stage.strategy, "param_dtype", None)
        found = f"'{dtype}'" if dtype else f"your own strategy '{stage.strategy.name}'"
        yield (
            (*path, "loss_scale"),
            f"belongs to strategy.param_dtype 'float16', found {found}; leave it out, or set that dtype",
        )
