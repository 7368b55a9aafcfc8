"""The cluster that RAY_ADDRESS names: connected to and complete, or said within a minute not to be there.

Ray itself tries for a quarter of an hour to reach a head that is not there, and no signal ends that.
"""

from __future__ import annotations

import os
import socket
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import LaunchError, PlanError

# A head that is being started listens within this time; it is waited for with a plain connection.
LISTENING_SECONDS = 10
# Where one is refused at once, as by a head that begins to work, so long. An attempt that gets no answer from
# what listens, as from a dashboard, ends after 40 s (ray 2.60).
ATTEMPTS_SECONDS = 20
# Ray's own number of attempts, as seconds.
RAY_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
# A Ray node takes about 10 s to start; where Python comes from a slow shared file system, a multiple.
JOIN_SECONDS = 180


@contextmanager
def existing_cluster(address: str) -> Iterator[None]:
    """Connect to a cluster that somebody else runs, and leave it afterwards.

    Raises:
        LaunchError: It does not answer, or is not complete.
        PlanError: No driver can join there.
    """
    import ray

    if address.startswith(("http://", "https://")):
        raise PlanError(
            f"RAY_ADDRESS is '{address}', the address of a dashboard, and a driver joins a cluster where its"
            " nodes do: set it to HEAD:6379, or type 'orchestrator submit JOB --launcher ray"
            f" --address {address}', which runs the job there"
        )
    try:
        _wait_for_head(address)
        _connect(address)
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"no Ray cluster answers at RAY_ADDRESS '{address}': {str(error).splitlines()[0]}."
            " Start it, correct RAY_ADDRESS (HEAD:6379, where nodes join, and not the port of its dashboard),"
            " set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH if it asks for a token, or unset RAY_ADDRESS to"
            " run inside this machine."
        ) from error
    try:
        _wait_for_nodes(int(os.environ.get("ORCHESTRATOR_RAY_NODES") or 1))
        yield
    finally:
        ray.shutdown()


def _wait_for_head(address: str) -> None:
    """Wait until something listens where a host and a port are named; other addresses are Ray's to find.

    Raises:
        OSError: Nothing does.
        ValueError: No such address can be.
    """
    if "://" in address or address in ("auto", "local"):
        return
    from ray._private.services import canonicalize_bootstrap_address

    # For this machine Ray takes its outer address.
    parts = urllib.parse.urlsplit(f"//{canonicalize_bootstrap_address(address)}")
    target = parts.hostname or "", parts.port or 0
    deadline = time.monotonic() + LISTENING_SECONDS
    while True:
        try:
            socket.create_connection(target, timeout=LISTENING_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _connect(address: str) -> None:
    """Connect, also where the head has just begun to listen.

    Raises:
        ConnectionError: It does not answer.
    """
    import ray

    deadline = time.monotonic() + ATTEMPTS_SECONDS
    while True:
        try:
            with _one_attempt():
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


@contextmanager
def _one_attempt() -> Iterator[None]:
    """Have Ray try once instead of 20 times, unless the user has said otherwise."""
    if RAY_ATTEMPTS in os.environ:
        yield
        return
    os.environ[RAY_ATTEMPTS] = "1"
    try:
        yield
    finally:
        del os.environ[RAY_ATTEMPTS]


def _wait_for_nodes(num_nodes: int) -> None:
    """Wait until a cluster that starts together with this driver is complete.

    Raises:
        LaunchError: It is not within ``JOIN_SECONDS``.
    """
    import ray

    deadline = time.monotonic() + JOIN_SECONDS
    while (found := sum(node["Alive"] for node in ray.nodes())) < num_nodes:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{found} of {num_nodes} Ray nodes have joined {os.environ['RAY_ADDRESS']} within"
                f" {JOIN_SECONDS} s; the logs of the others, ray-<node>.log, lie beside the token in"
                f" {Path(os.environ.get('RAY_AUTH_TOKEN_PATH', '.')).parent}"
            )
        time.sleep(0.2)
