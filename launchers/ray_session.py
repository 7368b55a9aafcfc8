"""The Ray that a run uses: the cluster that RAY_ADDRESS names, or one of its own inside this machine.

The run's own Ray talks to itself over loopback, asks for a private token, keeps its files in one temporary
folder that is removed afterwards, and writes nothing in the user's home.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launchers.ray_cluster import existing_cluster
from launchers.room import (
    SETTLED_SECONDS,
    Node,
    beside_driver,
    check_nodes,
    driver_cpus_given,
    workers_that_fit,
)
from orchestrator.errors import LaunchError, PlanError
from orchestrator.spec.job import Job, Resources
from orchestrator.spec.plan import fewest_workers

# The store holds no training data: rows are memory-mapped files. Ray refuses less than 75 MB.
OBJECT_STORE_BYTES = 100_000_000
FOLDER_PREFIX = "orc-"
# Ray puts the machine's outer address in the place of 127.0.0.1, so that its agents would listen there.
# All of 127.0.0.0/8 is loopback on Linux, and 127.0.0.1 alone elsewhere.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
# A driver holds its folder's lock within milliseconds of making it.
ABANDONED_SECONDS = 60

ELSEWHERE = "join a larger cluster through RAY_ADDRESS"

# Seconds between two looks of Ray Train's controller at its workers; its default of 2 delays every end.
HEALTH_CHECK_SECONDS = "0.5"


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the Ray this run uses, and leave it afterwards.

    Raises:
        LaunchError: No Ray at RAY_ADDRESS, or the run's own cannot start.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_SECONDS)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Workers keep the driver's folder, so that relative paths in the user's own plug-ins mean what they say.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    with existing_cluster(address) if address else _embedded():
        yield


def connected_address() -> str:
    """The Ray that this process is connected to, as RAY_ADDRESS names it to others on this machine."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def is_own_ray() -> bool:
    """Whether a run starts a Ray of its own, inside this machine."""
    return not os.environ.get("RAY_ADDRESS")


@contextmanager
def _embedded() -> Iterator[None]:
    """Start a Ray of this run's own."""
    # Short: Unix socket paths below it must fit in 107 bytes.
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    token = folder / "auth_token"
    descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, os.urandom(32).hex().encode())
    os.close(descriptor)
    # Nothing preempts a Ray inside one machine, and nobody scrapes its metrics; each of the two
    # would be one more process that imports Ray Train before a stage's first step. Processes that Ray
    # starts ahead have none of the environment that workers are given, and end unused.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    try:
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=available_cpus(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder / "ray"),
                _node_ip_address=LOOPBACK,
            )
        except Exception as error:
            ray.shutdown()
            raise LaunchError(
                f"Ray did not start inside this machine (load {os.getloadavg()[0]:.1f}):"
                f" {str(error).splitlines()[0]} Run the same command again when the machine is less busy;"
                " what was prepared is kept."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        # The lock last: what is left of a removal that is cut short is found by it.
        shutil.rmtree(folder / "ray", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _remove_abandoned(parent: Path) -> None:
    """Remove what drivers left behind that were killed before they could remove it themselves."""
    for lock_file in parent.glob(f"{FOLDER_PREFIX}*/lock"):
        folder = lock_file.parent
        try:
            age = time.time() - folder.stat().st_mtime
            if folder.stat().st_uid != os.getuid() or age < ABANDONED_SECONDS:
                continue
            with lock_file.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # Its driver lives, or another one is removing it.


def available_cpus() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def check_this_machine(resources: Resources) -> None:
    """Refuse, before any data is prepared, a job that a Ray inside this machine could not place.

    Raises:
        PlanError: Too few CPUs.
    """
    if is_own_ray():
        # Ray counts the GPUs itself when it starts.
        gpus = resources.num_workers * resources.gpus_per_worker
        check_nodes(resources, [{"CPU": available_cpus(), "GPU": gpus}], ELSEWHERE)


def check_room(resources: Resources, on_wait: Callable[[str], None], on_look: Callable[[], None]) -> None:
    """Refuse a job that the connected cluster can never place; Ray would wait for ever.

    Args:
        on_wait: Told once that a cluster is waited for that has just been started and is too small so far.
        on_look: Called at every look at it; it may raise.

    Raises:
        PlanError: Too few CPUs or GPUs.
    """
    deadline, is_told = time.monotonic() + SETTLED_SECONDS, False
    while True:
        try:
            nodes = _living_nodes()
            held, here = list(nodes.values()), _driver_node(nodes)
            check_nodes(resources, held, ELSEWHERE, driver_cpus=driver_cpus_given(), driver_node=here)
            return
        except PlanError as error:
            # A Ray of its own has one node, and for the nodes of a batch job was waited already.
            is_complete = is_own_ray() or "ORCHESTRATOR_RAY_NODES" in os.environ
            if is_complete or time.monotonic() > deadline or _newest_node_age() > SETTLED_SECONDS:
                raise
            if not is_told:
                on_wait(f"waits up to {SETTLED_SECONDS} s for more Ray nodes to join: {error}")
        is_told = True
        on_look()
        time.sleep(0.5)


def _newest_node_age() -> float:
    """Seconds since the connected cluster's newest node has started, by that node's clock."""
    from ray._private.worker import global_worker

    nodes = global_worker.gcs_client.get_all_node_info().values()
    return float(time.time() - max(node.start_time_ms for node in nodes) / 1000)


def count_runs(job: Job, on_wait: Callable[[str], None], on_look: Callable[[], None]) -> int:
    """How many runs of such a job have room in the connected cluster at the same time.

    Args:
        on_wait: As for ``check_room``.
        on_look: As for ``check_room``.

    Raises:
        PlanError: Not even one has.
    """
    check_room(fewest_workers(job), on_wait, on_look)
    resources = job.resources
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return max(1, count_workers(wanted) // resources.num_workers)


def count_workers(wanted: Mapping[str, float], *, only_free: bool = False) -> int:
    """How many workers of these resources have room on the nodes of the connected cluster that stay.

    Args:
        only_free: Beside what others use now; else as if nobody were there but the driver, on this node.
    """
    from ray._private.state import available_resources_per_node, state

    leaving = state.get_draining_nodes()
    if only_free:
        nodes = available_resources_per_node()
    else:
        nodes = _living_nodes()
        left = beside_driver(driver_cpus_given(), list(nodes.values()), wanted, _driver_node(nodes))
        nodes = dict(zip(nodes, left, strict=False))
    return sum(workers_that_fit(found, wanted) for node, found in nodes.items() if node not in leaving)


def _living_nodes() -> dict[str, Node]:
    """Those of the connected cluster, by their ids."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _driver_node(nodes: Mapping[str, Node]) -> int | None:
    """Which one of these this run's driver is on, and with it whoever asks for it."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return list(nodes).index(here) if here in nodes else None


def is_taken_away(resources: Resources) -> bool:
    """Whether the connected cluster has no room for a worker but on nodes that it has given notice to."""
    from ray._private.state import state

    leaving = state.get_draining_nodes()
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    living = _living_nodes()
    staying = [held for node, held in living.items() if node not in leaving]
    # A node that has been given notice ends as soon as nothing runs on it.
    return (bool(leaving) or not living) and not any(workers_that_fit(held, wanted) for held in staying)
