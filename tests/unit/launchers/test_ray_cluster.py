"""A cluster that is not there ends a run with one message, and not in Ray's own endless attempts."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from launchers import ray_cluster
from launchers.ray_cluster import RAY_ATTEMPTS, existing_cluster
from orchestrator.errors import LaunchError, PlanError


def free_address() -> str:
    with socket.create_server(("", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def refusal(address: str) -> str:
    """What is said of this address."""
    with pytest.raises(LaunchError) as refused, existing_cluster(address):
        pass
    return str(refused.value)


def test_an_address_where_nothing_listens_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "LISTENING_SECONDS", 0.1)
    address = free_address()
    said = refusal(address)
    assert said.startswith(f"no Ray cluster answers at RAY_ADDRESS '{address}': ")
    assert "Connection refused. Start it, correct RAY_ADDRESS (HEAD:6379, where nodes join" in said
    assert said.endswith("or unset RAY_ADDRESS to run inside this machine.")


@pytest.mark.parametrize("address", ["head", "127.0.0.1:port", "127.0.0.1:99999", ":6379"])
def test_what_is_no_address_is_refused_at_once(address: str) -> None:
    assert refusal(address).startswith(f"no Ray cluster answers at RAY_ADDRESS '{address}': ")


def test_the_address_of_a_dashboard_is_refused_with_the_command_that_takes_it() -> None:
    with pytest.raises(PlanError) as refused, existing_cluster("http://head:8265"):
        pass
    assert "set it to HEAD:6379" in str(refused.value)
    assert "'orchestrator submit JOB --launcher ray --address http://head:8265'" in str(refused.value)


def test_a_head_that_is_being_started_is_waited_for() -> None:
    address = free_address()

    def start() -> None:
        time.sleep(0.7)
        with socket.create_server(("", int(address.partition(":")[2]))) as listening:
            listening.accept()[0].close()

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    ray_cluster._wait_for_head(address)
    starting.join(timeout=10)
    assert not starting.is_alive()


def test_rays_own_attempts_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_ATTEMPTS, raising=False)
    with ray_cluster._one_attempt():
        assert os.environ[RAY_ATTEMPTS] == "1"
    assert RAY_ATTEMPTS not in os.environ
    monkeypatch.setenv(RAY_ATTEMPTS, "60")
    with ray_cluster._one_attempt():
        assert os.environ[RAY_ATTEMPTS] == "60"
    assert os.environ[RAY_ATTEMPTS] == "60"
