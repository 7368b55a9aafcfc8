"""Whether workers fit on the nodes of a cluster, and what a job can ask for where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.counts import counted
from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources

Node = Mapping[str, float]
"""What a Ray node holds: ``{"CPU": 8.0, "GPU": 2.0}``, without what it has none of."""


def check_nodes(resources: Resources, nodes: Sequence[Node], elsewhere: str) -> None:
    """Refuse more workers than ``nodes`` hold.

    Args:
        elsewhere: What to do instead of asking for less, as in ``join a larger cluster``.

    Raises:
        PlanError: Not even the fewest workers that the job takes fit.
    """
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    room = sum(workers_that_fit(node, wanted) for node in nodes)
    if room < resources.min_workers:
        found = {kind: sum(node.get(kind, 0) for node in nodes) for kind in wanted}
        raise PlanError(
            f"resources: {counted(resources.min_workers, 'worker')} x {wanted['CPU']} CPU"
            f" and {wanted['GPU']} GPU each do not fit: found {counted(len(nodes), 'node')} with"
            f" {found['CPU']:g} CPU and {found['GPU']:g} GPU, room for {room}."
            f" {_way_out(room, nodes, wanted)}, or {elsewhere}."
        )


def _way_out(room: int, nodes: Sequence[Node], wanted: Mapping[str, int]) -> str:
    """What the job can ask for instead."""
    if room:
        return f"Set resources.num_workers to {room} or less"
    keys = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}
    most = {kind: max([int(node.get(kind, 0)) for node in nodes], default=0) for kind in wanted}
    lower = [f"resources.{keys[kind]} to {most[kind]}" for kind in wanted if most[kind] < wanted[kind]]
    return "Set " + " and ".join(lower) if lower else "Set fewer CPUs and GPUs for each worker"


def workers_that_fit(node: Node, wanted: Mapping[str, float]) -> int:
    """Workers that one node can hold."""
    return min(int(node.get(kind, 0) // count) for kind, count in wanted.items() if count)
