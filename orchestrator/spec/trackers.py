"""Sections of experiment trackers."""

from typing import Annotated, Literal

from orchestrator.spec.section import Must, Section


class Wandb(Section):
    """Weights & Biases; the key comes from ``WANDB_API_KEY`` in the environment."""

    project: Annotated[str, Must(min_length=1, max_length=128)]
    """W&B project."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` writes local files for ``wandb sync``."""
    entity: str | None = None
    """W&B team or user."""
    group: Annotated[str, Must(min_length=1, max_length=128)] | None = None
    """Group of the job's runs; absent: the job's name, or the sweep's, whose runs share it."""
    tags: tuple[str, ...] = ()
    """Tags of every run."""
