"""Names of checkpoint folders, and which of them a folder holds; importable without torch."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import CheckpointError

COMPLETE = "COMPLETE"
QUARANTINE = "quarantine-"
"""Before the name of a damaged one that was set aside."""
STEP_PATTERN = re.compile(r"step-(\d{8,})")


class InTheWayError(CheckpointError):
    """Something that no save has made has the name of a step."""


@dataclass(frozen=True)
class StepFolder:
    """One checkpoint on disk."""

    step: int
    """Optimizer steps completed."""
    path: Path
    is_complete: bool
    """Everything was written; whether it still is what was written, ``seal.verify`` tells."""


def step_name(step: int) -> str:
    """Name of the folder of ``step``, such that names sort as numbers do."""
    return f"step-{step:08d}"


def make_empty(path: Path) -> None:
    """Make the folder of a step, clearing what an interrupted save has left.

    Raises:
        InTheWayError: Its name is another thing's, which nobody clears.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        found = f"a link to {path.readlink()}" if path.is_symlink() else "a file"
        raise InTheWayError(f"found {found}, expected no such name, or a folder: move it away")
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def newest_step(folder: Path) -> int | None:
    """The step of the newest complete checkpoint in ``folder``, unverified; ``None``: there is none."""
    return max((found.step for found in list_steps(folder) if found.is_complete), default=None)


def list_steps(folder: Path) -> list[StepFolder]:
    """Checkpoints in ``folder`` by rising step; none where it does not exist."""
    if not folder.is_dir():
        return []
    found = [
        StepFolder(int(match[1]), path, (path / COMPLETE).is_file())
        for path in folder.iterdir()
        if (match := STEP_PATTERN.fullmatch(path.name)) and path.is_dir()
    ]
    return sorted(found, key=lambda step: step.step)
