"""Independent pieces of work, and where they run.

Preparation cuts its work into pieces and does not know whether they run here or all over a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Tasks(Protocol):
    """Where pieces of work run."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the order of ``items``; a piece's error is raised when its turn comes.

        Args:
            function: Of a module's top level, so that it can be named in another process.
            items: What it is called with; each can be pickled.
        """


class InProcess:
    """One piece after the other, in this process."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Each result as it is asked for."""
        return map(function, items)


IN_PROCESS = InProcess()
