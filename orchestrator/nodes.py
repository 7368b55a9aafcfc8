"""What a machine is to a run, and why it may not take part in one.

Everything is read from the machine itself, without torch, so that the driver can tell it in no time.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

# Another version of any of these may make other tokens, other batches or other sums.
PACKAGES = (
    "orchestrator",
    "torch",
    "transformers",
    "deepspeed",
    "ray",
    "datasets",
    "tokenizers",
    "numpy",
)
NOT_INSTALLED = "not installed"
DIRTY = "-dirty"
NVIDIA_VERSION = Path("/proc/driver/nvidia/version")
# Of a git that waits for a slow file system.
GIT_SECONDS = 10


def describe() -> dict[str, Any]:
    """Versions and hardware of this machine, as ``environment.json`` has them."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "nvidia_driver": _nvidia_driver(),
    }


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In what a machine differs from the driver's so that it matters, one text each.

    Args:
        expected: ``describe()`` of the driver's machine.
        found: Of the other one.
    """
    pairs = [("Python", expected["python"], found["python"])]
    pairs += [(name, version, found["packages"][name]) for name, version in expected["packages"].items()]
    # A file that differs from the commit is the same one on a shared file system, and may be any.
    here, there = (node["commit"] and node["commit"].removesuffix(DIRTY) for node in (expected, found))
    if here and there:
        # Where git is missing, as on many compute nodes, nobody knows it, and the versions must do.
        pairs += [("orchestrator at commit", here, there)]
    return [f"{name} {there} where the driver has {here}" for name, here, there in pairs if here != there]


def complaint(expected: Mapping[str, Any], paths: Iterable[str | Path]) -> str | None:
    """Why this machine may not take part in a run; ``None``: it may.

    Args:
        expected: ``describe()`` of the driver's machine.
        paths: Files and folders of the run that it must see.
    """
    found = describe()
    problems = differences(expected, found)
    unseen = [str(path) for path in paths if not Path(path).exists()]
    if unseen:
        problems.append(f"no {', no '.join(unseen)}")
    if not problems:
        return None
    return (
        f"node '{found['host']}' has {'; '.join(problems)}. Install the same versions on all nodes, and put"
        f" what a run reads and writes where all of them see it as the driver on '{expected['host']}' does."
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _commit() -> str | None:
    """The commit of this code, with ``-dirty`` where files differ from it; ``None``: nobody knows it."""
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        command = [
            "git",
            "-C",
            str(root),
            "describe",
            "--always",
            f"--dirty={DIRTY}",
            "--abbrev=40",
            "--exclude=*",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None
    try:
        installed = metadata.distribution("orchestrator").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit = json.loads(installed or "{}").get("vcs_info", {}).get("commit_id")
    return None if commit is None else str(commit)


def _nvidia_driver() -> str | None:
    """The first line of the kernel module's version; ``None``: there is none."""
    try:
        return NVIDIA_VERSION.read_text("utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None
