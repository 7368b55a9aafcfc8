"""Pieces of data preparation as Ray tasks, on however many nodes there are."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from launchers.ray_session import ray_session
from orchestrator.errors import LaunchError, OrchestratorError
from orchestrator.nodes import complaint, describe

Item = TypeVar("Item")
Result = TypeVar("Result")

# One core for each task, and as many threads: the tokenizers library would else start one per core.
ENVIRONMENT = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Waiting tasks beyond the running ones: enough that no core idles, few enough that nothing piles up.
TASKS_PER_CORE = 2


@dataclass(frozen=True)
class Place:
    """What a node must be and see, to take a piece."""

    environment: dict[str, Any]
    """What the driver's node is (``describe``)."""
    folder: Path


def on_node(function: Callable[[Item], Result], item: Item, place: Place) -> Result:
    """One piece, on whatever node Ray has put it.

    Raises:
        LaunchError: The node has other versions than the driver's, or does not see the folder.
    """
    problem = complaint(place.environment, [place.folder])
    if problem is not None:
        raise LaunchError(problem)
    try:
        return function(item)
    except OrchestratorError as error:
        host = socket.gethostname()
        if host != place.environment["host"]:
            # A file that only the driver's node sees is missing here.
            error.args = (f"{error} (on node '{host}')", *error.args[1:])
        raise


class RayTasks:
    """Runs a single piece in this process and several on Ray, which starts when it is first needed."""

    def __init__(self, folder: Path, on_wait: Callable[[], None] = lambda: None) -> None:
        """Nothing is started yet.

        Args:
            folder: Pieces write into it.
            on_wait: Called every second while pieces are waited for, which others may leave no room for; it
                may raise.
        """
        self._folder = folder
        self._on_wait = on_wait
        self._session = ExitStack()
        self._is_connected = False

    def __enter__(self) -> Self:
        """Hold the connection until the block's end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave Ray, if it was needed."""
        self._session.close()

    def connect(self) -> None:
        """Connect to the Ray of this run, unless that is done.

        Raises:
            LaunchError: There is none at RAY_ADDRESS, or the run's own cannot start.
        """
        if not self._is_connected:
            self._session.enter_context(ray_session())
            self._is_connected = True

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the order of ``items``."""
        if len(items) < 2:
            yield from map(function, items)
            return
        self.connect()
        import ray

        remote = ray.remote(num_cpus=1, runtime_env={"env_vars": ENVIRONMENT})(on_node)
        self._folder.mkdir(parents=True, exist_ok=True)
        place = Place(describe(), self._folder)
        num_ahead = TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = [remote.remote(function, item, place) for item in items[:num_ahead]]
        for index in range(len(items)):
            while not ray.wait(waiting[:1], timeout=1)[0]:
                self._on_wait()
            try:
                result = ray.get(waiting.pop(0))
            except ray.exceptions.RayTaskError as error:
                # What the piece raised, with its own message instead of the other process's traceback.
                raise error.cause from None
            if index + num_ahead < len(items):
                waiting.append(remote.remote(function, items[index + num_ahead], place))
            yield result
