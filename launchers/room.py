"""Whether workers fit on the nodes of a cluster, and what a job can ask for where they do not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from orchestrator.counts import counted
from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources

Node = Mapping[str, float]
"""What a Ray node holds: ``{"CPU": 8.0, "GPU": 2.0}``, without what it has none of."""

# Names the cores that a submitted driver has for itself.
DRIVER_CPUS = "ORCHESTRATOR_DRIVER_CPUS"

# Of the job, by what a node has.
KEYS = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}

# As exactly as Ray counts, in digits behind the point.
DIGITS = 4

# As long after its newest node has started, a cluster may have more to come.
SETTLED_SECONDS = 60


def check_nodes(
    resources: Resources,
    nodes: Sequence[Node],
    elsewhere: str,
    *,
    driver_cpus: float = 0.0,
    driver_node: int | None = None,
) -> None:
    """Refuse more workers than ``nodes`` hold.

    Args:
        elsewhere: What to do instead of asking for less, as in ``join a larger cluster``.
        driver_cpus: CPU cores of one node that the job's driver has for itself.
        driver_node: As for ``beside_driver``.

    Raises:
        PlanError: They do not fit; of a range, not even the fewest.
    """
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    left = beside_driver(driver_cpus, nodes, wanted, driver_node)
    room = _room(left, wanted)
    if room < resources.min_workers:
        found = {kind: sum(node.get(kind, 0) for node in nodes) for kind in wanted}
        beside, ways = "", _smaller_wishes(room, left, wanted, resources.min_workers)
        if driver_cpus:
            beside = f" beside the driver's {driver_cpus:g} CPU"
            if _room(nodes, wanted) >= resources.min_workers:
                ways.append("set launcher.options.entrypoint_cpus to 0")
        advice = ", or ".join([*ways, elsewhere])
        raise PlanError(
            f"resources: {counted(resources.min_workers, 'worker')} x {wanted['CPU']} CPU"
            f" and {wanted['GPU']} GPU each do not fit: found {counted(len(nodes), 'node')} with"
            f" {found['CPU']:g} CPU and {found['GPU']:g} GPU, room for {room}{beside}."
            f" {advice[0].upper()}{advice[1:]}."
        )


def driver_cpus_given() -> float:
    """CPU cores that this process, a driver, was given for itself by the place that it was submitted to."""
    return float(os.environ.get(DRIVER_CPUS) or 0)


def check_driver(driver_cpus: float, nodes: Sequence[Node], elsewhere: str) -> None:
    """Refuse a driver that no node holds.

    Args:
        driver_cpus: CPU cores that it has for itself.
        elsewhere: As for ``check_nodes``.

    Raises:
        PlanError: There is none.
    """
    most = max((node.get("CPU", 0) for node in nodes), default=0)
    if most < driver_cpus:
        raise PlanError(
            f"launcher.options.entrypoint_cpus is {driver_cpus:g}, and no node has more than {most:g} CPU:"
            f" the driver would not start. Set it to {most:g} or less, or {elsewhere}."
        )


def beside_driver(
    driver_cpus: float, nodes: Sequence[Node], wanted: Mapping[str, float], driver_node: int | None
) -> Sequence[Node]:
    """What is left of nodes with a driver on one of them, in their order; nothing where none holds it.

    Args:
        driver_cpus: CPU cores that it has for itself.
        wanted: Of each worker.
        driver_node: Which one of ``nodes`` it is on; None where it may still come to any. It is taken to
            leave as many workers room as it can then, and where that one cannot hold it: of several nodes
            on one machine, Ray tells a driver the first.
    """
    if not driver_cpus:
        return nodes
    left = {
        index: {**node, "CPU": round(node["CPU"] - driver_cpus, DIGITS)}
        for index, node in enumerate(nodes)
        if node.get("CPU", 0) >= driver_cpus
    }
    if not left:
        return ()
    best = max(left, key=lambda index: _room([left[index]], wanted) - _room([nodes[index]], wanted))
    chosen = driver_node if driver_node in left else best
    return [*nodes[:chosen], left[chosen], *nodes[chosen + 1 :]]


def _room(nodes: Sequence[Node], wanted: Mapping[str, float]) -> int:
    return sum(workers_that_fit(node, wanted) for node in nodes)


def workers_that_fit(node: Node, wanted: Mapping[str, float]) -> int:
    """Workers that one node can hold."""
    return min(int(node.get(kind, 0) // count) for kind, count in wanted.items() if count)


def _smaller_wishes(
    room: int, nodes: Sequence[Node], wanted: Mapping[str, int], num_workers: int
) -> list[str]:
    """What to set so that the job asks for less, where that can help."""
    if room:
        return [f"set resources.num_workers to {room} or less"]
    # As much for each worker as one node can give, and of that as many CPUs as all of them can have.
    able = [{kind: min(count, int(node.get(kind, 0))) for kind, count in wanted.items()} for node in nodes]
    given = max(able, key=lambda less: (less["CPU"] > 0, less["GPU"], less["CPU"]), default={"CPU": 0})
    if not given["CPU"]:
        return []
    fitting = ({**given, "CPU": count} for count in range(given["CPU"], 0, -1))
    given = next((less for less in fitting if _room(nodes, less) >= num_workers), given)
    lower = [f"resources.{KEYS[kind]} to {count}" for kind, count in given.items() if count < wanted[kind]]
    if (room := _room(nodes, given)) < num_workers:
        lower.append(f"resources.num_workers to {room} or less")
    return [f"set {' and '.join(lower)}"]
