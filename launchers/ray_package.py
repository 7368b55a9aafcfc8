"""What is sent to a Ray cluster with a job: its file, and the user's own modules that it names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launchers.base import RefusedJobError
from orchestrator.registry import is_plugin
from orchestrator.spec.yaml12 import parse

JOB_NAME = "job.yaml"
NUM_NAMED = 5
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")


def collect(job_file: Path, folder: Path, *, max_bytes: float) -> int:
    """Copy a job and its modules into ``folder``; their size in bytes.

    Raises:
        RefusedJobError: They are larger than ``max_bytes``; the largest files are named.
    """
    shutil.copyfile(job_file, folder / JOB_NAME)
    job = parse(job_file.read_text(encoding="utf-8"), str(job_file), quoted=str, problems=[])
    for module in sorted({name.partition(":")[0].partition(".")[0] for name in _plugins(job)}):
        source = _local_source(module)
        if source is None:
            continue
        if source.is_dir():
            _refuse_large(source, max_bytes)
            shutil.copytree(source, folder / source.name, ignore=LEFT_OUT)
        else:
            shutil.copyfile(source, folder / source.name)
    return _refuse_large(folder, max_bytes)


def _plugins(node: Any) -> Iterator[str]:
    """Every ``package.module:Name`` under ``node``."""
    if isinstance(node, dict):
        for value in node.values():
            yield from _plugins(value)
    elif isinstance(node, list):
        for value in node:
            yield from _plugins(value)
    elif isinstance(node, str) and is_plugin(node):
        yield node


def _local_source(module: str) -> Path | None:
    """File or folder of a module that lies where the command is typed; others must be on the cluster."""
    for source in (Path.cwd() / module, Path.cwd() / f"{module}.py"):
        if source.is_file() or (source.is_dir() and any(source.rglob("*.py"))):
            return source
    return None


def _refuse_large(folder: Path, max_bytes: float) -> int:
    sizes = {
        path: path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
    }
    total = sum(sizes.values())
    if total > max_bytes:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:NUM_NAMED]
        listed = "\n".join(
            f"  {sizes[path] / 1e6:.1f} MB  {os.path.relpath(path, folder)}" for path in largest
        )
        raise RefusedJobError(
            f"what the job needs of '{folder.name}' is {total / 1e6:.1f} MB, more than the"
            f" {max_bytes / 1e6:g} MB of launcher.options.max_package_megabytes; the largest files:\n{listed}"
            "\nMove them to the file system that the cluster shares, or raise the limit."
        )
    return total
