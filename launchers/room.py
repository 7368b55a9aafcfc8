"""Whether workers fit on the nodes of a cluster, and what a job can ask for where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.counts import counted
from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources

Node = Mapping[str, float]
"""What a Ray node holds: ``{"CPU": 8.0, "GPU": 2.0}``, without what it has none of."""

# Of the job, by what a node has.
KEYS = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}

# As exactly as Ray counts, in digits behind the point.
DIGITS = 4

# As long after its newest node has started, a cluster may have more to come.
SETTLED_SECONDS = 60


def check_nodes(
    resources: Resources, nodes: Sequence[Node], elsewhere: str, *, driver_cpus: float = 0.0
) -> None:
    """Refuse more workers than ``nodes`` hold.

    Args:
        elsewhere: What to do instead of asking for less, as in ``join a larger cluster``.
        driver_cpus: CPU cores of one node that the job's driver has for itself.

    Raises:
        PlanError: They do not fit; of a range, not even the fewest.
    """
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    left = _beside_driver(driver_cpus, nodes, wanted)
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


def _beside_driver(driver_cpus: float, nodes: Sequence[Node], wanted: Mapping[str, float]) -> Sequence[Node]:
    """What is left of nodes with a driver where it takes the least room."""
    if not driver_cpus:
        return nodes
    left = [
        [*nodes[:index], {**node, "CPU": round(node["CPU"] - driver_cpus, DIGITS)}, *nodes[index + 1 :]]
        for index, node in enumerate(nodes)
        if node.get("CPU", 0) >= driver_cpus
    ]
    return max(left, key=lambda rest: _room(rest, wanted), default=())


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
    most = {kind: int(max((node.get(kind, 0) for node in nodes), default=0)) for kind in wanted}
    if not most["CPU"]:
        return []
    # As much for each worker as all of them can have, and where they cannot, as one of them can.
    cpus = range(min(wanted["CPU"], most["CPU"]), 0, -1)
    given = {"CPU": cpus[0], "GPU": min(wanted["GPU"], most["GPU"])}
    fitting = ({**given, "CPU": count} for count in cpus)
    given = next((less for less in fitting if _room(nodes, less) >= num_workers), given)
    room = _room(nodes, given)
    if not room:
        return ["set fewer CPUs and GPUs for each worker"]
    lower = [f"resources.{KEYS[kind]} to {count}" for kind, count in given.items() if count < wanted[kind]]
    if room < num_workers:
        lower.append(f"resources.num_workers to {room} or less")
    return [f"set {' and '.join(lower)}"]
