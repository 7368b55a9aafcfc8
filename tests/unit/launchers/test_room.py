"""Which jobs have room on the nodes of a cluster."""

from __future__ import annotations

import pytest

from launchers.room import beside_driver, check_driver, check_nodes
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


NODES = [{"CPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("asked", "driver_cpus", "said"),
    [
        (
            {"num_workers": 5},
            1.0,
            "found 2 nodes with 5 CPU and 1 GPU, room for 4 beside the driver's 1 CPU."
            " Set resources.num_workers to 4 or less, or set launcher.options.entrypoint_cpus to 0,"
            " or go elsewhere.",
        ),
        # The driver would leave no such worker room on the one node that has a GPU.
        (
            {"gpus_per_worker": 1, "cpus_per_worker": 4},
            2.0,
            "room for 0 beside the driver's 2 CPU. Set resources.cpus_per_worker to 2, or"
            " set launcher.options.entrypoint_cpus to 0, or go elsewhere.",
        ),
        (
            {"num_workers": 9},
            1.0,
            "room for 4 beside the driver's 1 CPU. Set resources.num_workers to 4 or less, or go elsewhere.",
        ),
    ],
)
def test_a_driver_with_cores_of_its_own_needs_room_beside_the_workers(
    asked: dict[str, int], driver_cpus: float, said: str
) -> None:
    with pytest.raises(PlanError) as refused:
        check_nodes(Resources.model_validate(asked), NODES, "go elsewhere", driver_cpus=driver_cpus)
    assert str(refused.value).endswith(said)


@pytest.mark.parametrize("nodes", [NODES, NODES[::-1], [{"CPU": 2.3}, {"CPU": 2.0}]])
@pytest.mark.parametrize("driver_cpus", [0.0, 0.3])
def test_a_driver_stands_where_it_takes_the_least_room(
    driver_cpus: float, nodes: list[dict[str, float]]
) -> None:
    resources = Resources.model_validate({"num_workers": 2, "cpus_per_worker": 2})
    check_nodes(resources, nodes, "", driver_cpus=driver_cpus)


@pytest.mark.parametrize(("driver_node", "room"), [(None, 2), (0, 2), (1, 1)])
def test_a_driver_that_is_there_takes_room_on_its_own_node(driver_node: int | None, room: int) -> None:
    resources = Resources.model_validate({"num_workers": 3, "cpus_per_worker": 2})
    with pytest.raises(PlanError, match=f"room for {room} beside the driver's 1 CPU"):
        check_nodes(resources, NODES, "go elsewhere", driver_cpus=1.0, driver_node=driver_node)


def test_a_driver_is_not_on_a_node_that_cannot_hold_it() -> None:
    wanted = {"CPU": 1, "GPU": 0}
    assert beside_driver(2.0, NODES, wanted, 0) == [{"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert beside_driver(5.0, NODES, wanted, 0) == ()


def test_where_no_node_has_a_core_for_workers_nothing_smaller_would_fit() -> None:
    with pytest.raises(PlanError, match=r"found 1 node with 0 CPU and 0 GPU, room for 0\. Go elsewhere\.$"):
        check_nodes(Resources(), [{"CPU": 0.0, "GPU": 0.0}], "go elsewhere")


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ({"num_workers": 2, "cpus_per_worker": 9}, "Set resources.cpus_per_worker to 2, or"),
        ({"num_workers": 3, "cpus_per_worker": 9}, "Set resources.cpus_per_worker to 1, or"),
        (
            {"num_workers": 8, "cpus_per_worker": 9},
            "Set resources.cpus_per_worker to 4 and resources.num_workers to 1 or less, or",
        ),
        # The one GPU is on a node that has 4 cores.
        (
            {"num_workers": 1, "cpus_per_worker": 5, "gpus_per_worker": 1},
            "Set resources.cpus_per_worker to 4, or",
        ),
        (
            {"num_workers": 2, "cpus_per_worker": 5, "gpus_per_worker": 1},
            "Set resources.cpus_per_worker to 4 and resources.num_workers to 1 or less, or",
        ),
    ],
)
def test_what_is_advised_fits(asked: dict[str, int], advice: str) -> None:
    with pytest.raises(PlanError) as refused:
        check_nodes(Resources.model_validate(asked), NODES, "go elsewhere")
    assert f" room for 0. {advice} go elsewhere." in str(refused.value)


def test_the_one_node_with_a_gpu_is_what_a_worker_can_have() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]
    resources = Resources.model_validate({"num_workers": 4, "cpus_per_worker": 8, "gpus_per_worker": 1})
    advice = "Set resources.cpus_per_worker to 4 and resources.num_workers to 2 or less, or go elsewhere."
    with pytest.raises(PlanError, match=advice):
        check_nodes(resources, nodes, "go elsewhere")


def test_a_driver_that_no_node_holds_is_refused() -> None:
    check_driver(4.0, NODES, "go elsewhere")
    with pytest.raises(PlanError) as refused:
        check_driver(4.5, NODES, "go elsewhere")
    assert str(refused.value) == (
        "launcher.options.entrypoint_cpus is 4.5, and no node has more than 4 CPU: the driver would not"
        " start. Set it to 4 or less, or go elsewhere."
    )
