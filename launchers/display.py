"""What a driver tells whoever watches a run."""

from __future__ import annotations

from typing import Protocol

from orchestrator.checkpoint.layout import StageLayout


class Display(Protocol):
    """Shows a person how far a run is."""

    def prepare(self, stage: str, what: str, done: int, total: int) -> None:
        """Rows of a dataset are being tokenised."""

    def skip(self, stage: str) -> None:
        """A stage was finished before."""

    def note(self, stage: str, message: str) -> None:
        """Something a person should know."""

    def start(self, stage: str, layout: StageLayout) -> None:
        """A stage's workers start; follow its metrics."""

    def end(self, stage: str, outcome: str) -> None:
        """A stage's workers ended."""
