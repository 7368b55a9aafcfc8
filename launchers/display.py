"""What a driver tells whoever watches a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Display(Protocol):
    """Shows a person how far a run is."""

    def prepare(self, stage: str, what: str, done: int, total: int) -> None:
        """Rows of a dataset are being tokenised."""

    def skip(self, stage: str) -> None:
        """A stage was finished before."""

    def note(self, stage: str, message: str) -> None:
        """Something a person should know."""

    def start(self, stages: Sequence[str]) -> None:
        """Workers start that will run these stages; follow events and metrics."""

    def end(self, outcome: str) -> None:
        """The workers ended with this outcome of the stage that they were at."""
