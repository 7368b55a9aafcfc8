"""Digests of a finished stage's ``weights/``, kept in its ``result.json``; importable without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.seal import FileDigest, digest_file
from orchestrator.errors import CheckpointError

KEY = "weights"
"""Of ``result.json``."""


def weights_digests(folder: Path) -> dict[str, dict[str, object]]:
    """Size and digest of each file, by its path in ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): asdict(digest_file(path)) for path in files}


def weights_problem(layout: StageLayout) -> str | None:
    """How ``weights/`` differs from what the stage has written; ``None``: not at all, or it did not say.

    Files that were added are nobody's business here.
    """
    try:
        written = json.loads(layout.result.read_text(encoding="utf-8")).get(KEY) or {}
        files = {name: FileDigest(**entry) for name, entry in written.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    for name, expected in files.items():
        path = layout.weights / name
        if not path.is_file():
            return f"{path} is missing"
        found = digest_file(path)
        if found != expected:
            return (
                f"{path} has {found.bytes} bytes with digest {found.xxh3_128}, the stage wrote"
                f" {expected.bytes} bytes with digest {expected.xxh3_128}"
            )
    return None


def check_weights(layout: StageLayout) -> None:
    """Refuse weights that are not those that a finished stage has written.

    Raises:
        CheckpointError: Naming the file.
    """
    problem = weights_problem(layout)
    if problem is not None:
        raise CheckpointError(
            f"weights of stage '{layout.root.name}' are damaged: {problem}. Run the job again: they are"
            " written anew from the stage's last checkpoint"
        )
