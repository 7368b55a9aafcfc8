"""Ray Train's ``TorchTrainer`` as stages need it: as many workers as fit the batches, no actor too many.

Each actor is a process that imports Ray Train, two seconds of one core, while the workers want to start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as cluster
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle

from launchers.controller import start_controller
from launchers.ray_session import count_workers
from launchers.stage_news import WAITING
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from orchestrator.tracking.events import append_event, read_events

# What Ray finds of a worker that is gone, or frozen, and could not say why.
DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, WorkerHealthCheckTimeoutError)
# Between two looks at whether there is room.
LOOK_SECONDS = 0.5
# Where there is room, it is mostly had sooner.
TOLD_SECONDS = 5


class NotStartedError(LaunchError):
    """New workers are needed and cannot be had, or are not wanted any more; what was saved is on the disk."""


def deaths(failures: Mapping[int, Exception]) -> dict[int, str]:
    """What Ray says of each rank that died; the other failures were raised by the ranks themselves."""
    found = {}
    for rank, failure in failures.items():
        cause = getattr(failure, "health_check_failure", failure)
        if isinstance(cause, DEATHS):
            found[rank] = str(cause).partition("The actor is dead because ")[2] or str(cause)
    return found


def _refuse_to_start(stop_request: Path) -> None:
    """Refuse to start workers that nobody wants, or where Ray places nothing more and would wait for ever.

    Raises:
        NotStartedError: The run is to stop, or all nodes are about to be taken away.
    """
    if stop_request.exists():
        raise NotStartedError("no workers are started: the run is to stop")
    leaving = cluster.get_draining_nodes()
    if leaving and all(node["NodeID"] in leaving for node in ray.nodes() if node["Alive"]):
        raise NotStartedError(f"no workers are started: all nodes ({len(leaving)}) are taken away")


def _tell_of_waiting(run: RunLayout) -> None:
    """Write down that the stage at hand waits for room, unless that is the last that was written of it."""
    # On a full disk nobody is told, and the run waits all the same.
    with suppress(OSError):
        last = next((event for event in reversed(list(read_events(run.events))) if "stage" in event), None)
        if last is not None and last["event"] != WAITING:
            append_event(run.events, WAITING, stage=last["stage"])


class LastingPolicy(FixedScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """A fixed number of workers, on nodes that stay."""

    def __init__(self, scaling_config: Any, stop_request: Path) -> None:
        """``stop_request``: the file by which somebody wants the run to stop."""
        super().__init__(scaling_config)
        self._stop_request = stop_request

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start them."""
        _refuse_to_start(self._stop_request)
        return super().make_decision_for_non_running_worker_group()


class FittingScalingPolicy(ElasticScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """As many workers as there is room for, rounded down to a number that fits."""

    def __init__(self, scaling_config: Any, fitting: Sequence[int], stop_request: Path) -> None:
        """The numbers of workers that fit, and the file by which somebody wants the run to stop."""
        super().__init__(scaling_config)
        self._fitting = tuple(fitting)
        self._stop_request = stop_request
        self._has_asked = False
        self._held: int | None = None
        self._waits_since: float | None = None

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        """0 where not even the lowest number has room: Ray waits then.

        Ray counts what nodes have, and not what the driver and others use of it.
        """
        wanted, held = self.scaling_config.resources_per_worker, self._held
        free = count_workers(wanted) if held is None else held + count_workers(wanted, only_free=True)
        room = min(super()._count_possible_workers(reserved_resources), free)
        return max((workers for workers in self._fitting if workers <= room), default=0)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many as fit, on nodes that stay; where that room did not come, as many as are free."""
        _refuse_to_start(self._stop_request)
        # At first not: the room of workers that have just ended is not free yet.
        self._held = 0 if self._has_asked else None
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            self._waits_since = self._waits_since or time.monotonic()
            if time.monotonic() - self._waits_since > TOLD_SECONDS:
                _tell_of_waiting(RunLayout(self._stop_request.parent))
                self._waits_since = math.inf
            # Ray asks again at once.
            time.sleep(LOOK_SECONDS)
        else:
            self._has_asked, self._waits_since = True, None
        return decision

    def make_decision_for_running_worker_group(self, **group: Any) -> ScalingDecision:
        """Resize, unless nodes leave or the run is to stop: workers save then, and a resize would not."""
        self._has_asked = False
        if self._stop_request.exists() or cluster.get_draining_nodes():
            return NoopDecision()
        self._held = group["worker_group_state"].num_workers
        decision = super().make_decision_for_running_worker_group(**group)
        self._has_asked = not isinstance(decision, NoopDecision)
        return decision


class UnscaledPolicy(FixedScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """A fixed number of workers in a cluster that does not grow, so nobody is asked to make it grow."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""


class PatientPolicy(DefaultFailurePolicy):  # type: ignore[misc]  # Ray has no types
    """Waiting for room that others use is no failure, however long it takes."""

    def __init__(self, failure_config: Any, wanted: Mapping[str, float], num_workers: int) -> None:
        """What a worker needs, and how many there have to be."""
        super().__init__(failure_config)
        self._wanted = wanted
        self._num_workers = num_workers

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Look again where the room was not free in time."""
        failure = getattr(training_failed_error, "controller_failure", None)
        is_late = isinstance(failure, WorkerGroupStartupTimeoutError)
        if is_late and count_workers(self._wanted) >= self._num_workers:
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)


class _Room(DefaultPlacementGroupHandle):  # type: ignore[misc]  # Ray has no types
    """Room for workers, which is waited for as long as they are wanted."""

    def __init__(self, group: Any, run: RunLayout) -> None:
        """``run``: whose workers need it."""
        super().__init__(group)
        self._run = run

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether there is room within the time, or before somebody wants the run to stop."""
        began, is_told = time.monotonic(), False
        while not super().wait(1):
            waited = time.monotonic() - began
            if self._run.stop_request.exists() or waited > timeout_seconds:
                return False
            if waited > TOLD_SECONDS and not is_told:
                _tell_of_waiting(self._run)
                is_told = True
            time.sleep(LOOK_SECONDS)
        return True


class _WaitingGroup(WorkerGroup):  # type: ignore[misc]  # Ray has no types
    """Workers that wait for room."""

    def _create_placement_group(self, *arguments: Any) -> Any:
        """Ask for room."""
        run = RunLayout(Path(self._train_run_context.train_loop_config["run_dir"]))
        return _Room(super()._create_placement_group(*arguments).placement_group, run)


class WaitingController(TrainController):  # type: ignore[misc]  # Ray has no types
    """Ray Train's controller, whose wait for room ends when the run is to stop."""

    worker_group_cls = _WaitingGroup


class StageTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """A ``TorchTrainer`` for stages; the tests would notice a Ray that calls these methods by other names."""

    def __init__(
        self, *arguments: Any, controller: Any, fitting: Sequence[int], is_own_ray: bool, **settings: Any
    ) -> None:
        """The rest is ``TorchTrainer``'s.

        Args:
            controller: What ``start_controller`` started already, or None.
            fitting: Numbers of workers that fit; one, where the number is no range.
            is_own_ray: The cluster is this run's own, ends with it, and does not grow.
        """
        super().__init__(*arguments, **settings)
        self._controller = controller
        self._fitting = fitting
        self._run_dir = Path(self.train_loop_config["run_dir"])
        self._is_own_ray = is_own_ray

    def _create_default_callbacks(self) -> list[Any]:
        """Without Ray's datasets, which no stage reads.

        Where all of Ray ends with the run, also without the actor that cleans up after a dead controller.
        """
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if self._is_own_ray else DatasetsCallback
        return [call for call in super()._create_default_callbacks() if not isinstance(call, unused)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        """Put the policies above in the place of Ray's own, and hand all to a process that has started."""
        scaling, stop_request = self.scaling_config, RunLayout(self._run_dir).stop_request
        if scaling.elasticity_enabled:
            settings["scaling_policy"] = FittingScalingPolicy(scaling, self._fitting, stop_request)
        elif self._is_own_ray:
            settings["scaling_policy"] = UnscaledPolicy(scaling)
        else:
            settings["scaling_policy"] = LastingPolicy(scaling, stop_request)
        if not self._is_own_ray:
            settings["failure_policy"] = PatientPolicy(
                self.run_config.failure_config, scaling.resources_per_worker, min(self._fitting, default=1)
            )
        controller = self._begin(settings)
        result = ray.get(controller.run.remote())
        # Its end would take most of a second.
        ray.kill(controller)
        return result

    def _begin(self, settings: Mapping[str, Any]) -> Any:
        """The controller at work."""
        # It waits for Ray in its event loop, which Ray would warn of.
        environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        if self._controller is not None:
            # It may have died while data was prepared.
            with suppress(RayActorError):
                ray.get(self._controller.begin.remote(environment, settings))
                return self._controller
            ray.kill(self._controller)
        controller = start_controller()
        ray.get(controller.begin.remote(environment, settings))
        return controller
