"""Ray's notice that nodes are taken away, given by the driver of a batch job for all nodes of the job's Ray.

The batch script writes when its nodes are gone into the file that ``NODES_GONE`` names, and sends the driver
SIGTERM. Where workers train, they learn of it from Ray (``get_preemption_info``) within seconds, however
slowly the shared file system shows them the run directory, and Ray places nothing more on these nodes. Where
none do, there is no notice: nobody would hear it, and tasks and workers to come would wait for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TypeVar

from orchestrator.errors import LaunchError

Answer = TypeVar("Answer")
NODES_GONE = "ORCHESTRATOR_NODES_GONE"
"""Names a file that holds, as soon as a job is asked to make room, when its nodes are gone: seconds since
1970, or 0 where nobody knows."""
# Of the reasons that Ray knows for a drain.
PREEMPTION = 2
# Ray Train's actor that hears of drained nodes; it lives as long as a group of workers.
LISTENER = "PreemptionWatcher"
# A GCS that lives answers in milliseconds.
ANSWER_SECONDS = 5.0
# Where nobody knows when nodes are gone. Without a deadline Ray Train ends workers after 120 s, saved or not.
UNKNOWN_SECONDS = 86400.0


def is_asked_to_make_room() -> bool:
    """Whether the batch job that this driver belongs to is about to lose its nodes."""
    return _gone_file().is_file()


def give_notice() -> tuple[int, float]:
    """Tell Ray, which tells the workers, that all of its nodes are taken away.

    Returns:
        The number of nodes, and the seconds until they are gone.

    Raises:
        LaunchError: No workers train, or Ray refuses or does not answer; some nodes may have got it.
    """
    gone_at = float(_gone_file().read_text(encoding="utf-8").strip() or 0) or time.time() + UNKNOWN_SECONDS
    num_nodes = answer_within(ANSWER_SECONDS, lambda: _drain(round(gone_at * 1000)))
    return num_nodes, gone_at - time.time()


def answer_within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What Ray answers; whoever asks a GCS that has ended waits for longer than a grace time.

    Raises:
        LaunchError: It answers with an error, or not in time.
    """
    answers: list[Answer] = []
    errors: list[Exception] = []

    def wait() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=wait, name="notice", daemon=True)
    thread.start()
    thread.join(timeout=seconds)
    if errors:
        raise LaunchError(str(errors[0])) from errors[0]
    if not answers:
        raise LaunchError(f"Ray did not answer within {seconds:g} s")
    return answers[0]


def _gone_file() -> Path:
    return Path(os.environ.get(NODES_GONE) or os.devnull)


def _drain(deadline_ms: int) -> int:
    """Drain every node; how many there are."""
    import ray
    from ray._private.state import state
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub leaves it out

    if not ray.is_initialized():
        raise LaunchError("the driver has not joined Ray yet")
    context = ray.get_runtime_context()
    own = ray.JobID.from_hex(context.get_job_id())
    actors = state.actor_table(None, job_id=own, actor_state_name="ALIVE").values()
    if not any(actor["ActorClassName"] == LISTENER for actor in actors):
        raise LaunchError("no workers train")
    gcs = GcsClient(address=context.gcs_address)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        accepted, why_not = gcs.drain_node(node["NodeID"], PREEMPTION, "the job makes room", deadline_ms)
        if not accepted:
            raise LaunchError(f"Ray refuses it for node {node['NodeManagerAddress']}: {why_not}")
    return len(nodes)
