"""A Ray cluster of several nodes on this machine, each with a loopback address of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from launchers.rehearsed_run import kill_tree
from tests.e2e.commands import free_port

RAY = Path(sys.executable).with_name("ray")
START_SECONDS = 90
# Arguments: address of the cluster, milliseconds since 1970 at which the nodes are gone, and their addresses.
DRAIN = """
import sys

from ray._raylet import GcsClient

cluster, deadline, *addresses = sys.argv[1:]
gcs = GcsClient(address=cluster)
ALIVE, PREEMPTION = 0, 2
nodes = gcs.get_all_node_info().items()
alive = {info.node_manager_address: node.hex() for node, info in nodes if info.state == ALIVE}
for address in addresses:
    accepted, why_not = gcs.drain_node(alive[address], PREEMPTION, "taken away", int(deadline))
    assert accepted, why_not
"""
OBJECT_STORE_BYTES = 100_000_000


class RayCluster:
    """Nodes by name; ``environment`` is what a command needs to reach them."""

    def __init__(self, folder: Path) -> None:
        """Files of all nodes lie in ``folder``, whose path must be short."""
        self._folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"127.0.0.11:{free_port()}"
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A lost node is noticed after about 5 s, and not waited for longer than 20 s.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        }

    def start(
        self,
        name: str,
        *,
        num_cpus: int = 1,
        wrapper: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start a node; the first is the head.

        Args:
            wrapper: Command that runs its processes, such as one with a view of its own on the machine.
            variables: Of its environment.
        """
        index = len(self._nodes)
        address = f"127.0.0.{11 + index}"
        place = (
            ["--head", f"--port={self.address.split(':')[1]}"]
            if index == 0
            else [f"--address={self.address}"]
        )
        command = [str(RAY), "start", *place, f"--node-ip-address={address}", f"--num-cpus={num_cpus}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--block"]
        if index == 0:
            command += [f"--temp-dir={self._folder / 'ray'}", "--include-dashboard=false"]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._nodes[name] = subprocess.Popen(
                [*wrapper, *command],
                env={**os.environ, **self.environment, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_for(name)

    def _wait_for(self, name: str) -> None:
        log, deadline = self._folder / f"{name}.log", time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            assert self._nodes[name].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """Kill a node with everything that runs on it."""
        kill_tree(self._nodes[name].pid)
        self._nodes[name].wait()

    def worker(self, name: str) -> psutil.Process:
        """A worker that trains on a node."""
        processes = psutil.Process(self._nodes[name].pid).children(recursive=True)
        return next(process for process in processes if "ray::RayTrainWorker" in " ".join(process.cmdline()))

    def drain(self, *names: str, seconds: float) -> None:
        """Give notice that nodes are taken away after some seconds: of all before a worker asks again."""
        addresses = [f"127.0.0.{11 + list(self._nodes).index(name)}" for name in names]
        deadline = str(int((time.time() + seconds) * 1000))
        subprocess.run(
            [sys.executable, "-c", DRAIN, self.address, deadline, *addresses],
            env={**os.environ, **self.environment},
            check=True,
        )

    def stop(self) -> None:
        """Kill all nodes."""
        for name, process in self._nodes.items():
            if process.poll() is None:
                self.kill(name)


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A cluster without nodes; gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rc-"))
    cluster = RayCluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
