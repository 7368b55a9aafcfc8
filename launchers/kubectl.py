"""Runs kubectl, and says what to do where it has no cluster."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from launchers.base import RefusedJobError
from orchestrator.errors import LaunchError

TIMEOUT_SECONDS = 60
# A line of kubectl's log, such as "E1130 10:20:03.123456 ...".
LOGGED = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d")
# In what it says where it knows or reaches no cluster.
NO_CLUSTER = (
    *("connection to the server", "Unable to connect to the server"),
    *("context was not found", "no context exists"),
)


def run_command(command: Sequence[str], text: str | None) -> str:
    """Output of a kubectl that must succeed.

    Args:
        text: What it reads.

    Raises:
        LaunchError: It is not there, does not answer, or failed.
    """
    try:
        done = subprocess.run(
            command,
            input=text or "",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            # A terminal's Ctrl-C is for the one who waits for the answer.
            process_group=0,
        )
    except FileNotFoundError as error:
        raise RefusedJobError(
            "there is no kubectl on PATH: install it and choose the cluster's context, or apply what"
            " '--dry-run' prints elsewhere"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"kubectl has not answered for {TIMEOUT_SECONDS} s: is the cluster there"
            " ('kubectl cluster-info')?"
        ) from error
    if done.returncode != 0:
        raise LaunchError(f"kubectl {' '.join(command[1:4])} failed: {_complaint(done.stderr)}")
    return done.stdout


def _complaint(errors: str) -> str:
    """What kubectl says, without its log of the attempts before; and what to do where it has no cluster."""
    said = "\n".join(line for line in errors.splitlines() if not LOGGED.match(line)).strip() or errors.strip()
    if not any(sign in said for sign in NO_CLUSTER):
        return said
    return (
        f"{said}\nChoose the cluster's context ('kubectl config get-contexts' lists them, 'kubectl config"
        " use-context NAME' takes one), or set KUBECONFIG to the file that has it; whether it answers,"
        " 'kubectl cluster-info' shows"
    )
