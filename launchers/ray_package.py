"""What is sent to a Ray cluster with a job: its file, and the user's own modules that it names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from launchers.base import RefusedJobError
from orchestrator.registry import is_plugin
from orchestrator.spec.yaml12 import parse

JOB_NAME = "job.yaml"
NUM_NAMED = 5
LEFT_OUT = ("__pycache__", ".*", "*.pyc")


def collect(job_file: Path, folder: Path, *, max_bytes: float) -> int:
    """Copy a job and its modules into ``folder``; their size in bytes.

    Symbolic links are followed, as an import follows them here.

    Raises:
        RefusedJobError: They are larger than ``max_bytes``; the largest files are named. Or one cannot be
            read, or is a link to nothing or to a folder that it lies in.
    """
    job = parse(job_file.read_text(encoding="utf-8"), str(job_file), quoted=str, problems=[])
    sent = {JOB_NAME: job_file}
    for module in sorted({name.partition(":")[0].partition(".")[0] for name in _plugins(job)}):
        source = _local_source(module)
        if source is not None:
            sent.update({str(path.relative_to(source.parent)): path for path in _files(source)})
    # Before anything is copied: a link may lead to data that fills the disk.
    total = _refuse_large(sent, max_bytes)
    for name, path in sent.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, folder / name)
        except OSError as error:
            raise _unreadable(path, error) from error
    return total


def _files(source: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of a module, without those that it does not need.

    Args:
        source: A file or folder.
        above: The folders that it lies in, as they are without links.
    """
    if source.is_symlink() and not os.path.exists(source):
        raise RefusedJobError(
            f"{source} is a link to {os.readlink(source)}, which is not there, and would be sent with the"
            " job: delete the link, or mend it"
        )
    if source.is_file():
        yield source
    if not source.is_dir():
        return
    real = source.resolve()
    if any(real == folder or real in folder.parents for folder in above):
        raise RefusedJobError(
            f"{source} is a link to {os.readlink(source)}, a folder that it lies in itself, and what is sent"
            " with the job would have no end: delete the link"
        )
    try:
        found = sorted(source.iterdir())
    except OSError as error:
        raise _unreadable(source, error) from error
    for path in found:
        if not any(fnmatch(path.name, pattern) for pattern in LEFT_OUT):
            yield from _files(path, (*above, real))


def _unreadable(path: Path, error: OSError) -> RefusedJobError:
    return RefusedJobError(
        f"{path} cannot be read ({error.strerror}) and would be sent with the job: make it readable, or move"
        " it elsewhere"
    )


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


def _refuse_large(sent: Mapping[str, Path], max_bytes: float) -> int:
    sizes = {name: path.stat().st_size for name, path in sent.items()}
    total = sum(sizes.values())
    if total > max_bytes:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:NUM_NAMED]
        listed = "\n".join(f"  {sizes[name] / 1e6:.1f} MB  {name}" for name in largest)
        raise RefusedJobError(
            f"what is sent with the job is {total / 1e6:.1f} MB, more than the"
            f" {max_bytes / 1e6:g} MB of launcher.options.max_package_megabytes; the largest files of"
            f" {Path.cwd()}:\n{listed}\nMove them to the file system that the cluster shares, or raise the"
            " limit."
        )
    return total
