"""Which jobs have room on the nodes of a cluster."""

from __future__ import annotations

import pytest

from launchers.room import check_nodes
from orchestrator.errors import PlanError
from orchestrator.spec.job import Resources


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ({"num_workers": 5}, "room for 4. Set resources.num_workers to 4 or less, or join a larger cluster."),
        ({"cpus_per_worker": 9}, "room for 0. Set resources.cpus_per_worker to 2, or join a larger cluster."),
        ({"gpus_per_worker": 1}, "room for 0. Set resources.gpus_per_worker to 0, or join a larger cluster."),
    ],
)
def test_a_job_without_room_is_told_what_would_fit(asked: dict[str, int], advice: str) -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 0.0}]
    with pytest.raises(PlanError) as refused:
        check_nodes(Resources.model_validate(asked), nodes, "join a larger cluster")
    assert advice in str(refused.value)


def test_a_range_of_workers_has_room_where_the_fewest_have() -> None:
    check_nodes(Resources.model_validate({"num_workers": {"min": 2, "max": 9}}), [{"CPU": 2.0}], "")
