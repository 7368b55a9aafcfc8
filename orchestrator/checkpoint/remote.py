"""A stage's checkpoints in remote storage, named by an fsspec URL, under the commit rule of the local ones.

1. after a local commit every file of the step is copied, its ``COMPLETE`` last; a step that could not be
   copied is tried again at the next save;
2. then remote steps go that nothing keeps, their ``COMPLETE`` first;
3. a start that finds a newer complete step there than in its own folder copies it to a temporary name,
   compares digests, and only then gives it its name.

The remote is never the only place of a step that is being written. What is damaged there, twice in a row, is
renamed to ``quarantine-...`` as it is locally, and stays as it is where nobody may rename it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.steps import COMPLETE, QUARANTINE, STEP_PATTERN, list_steps, step_name
from orchestrator.errors import CheckpointError

logger = logging.getLogger(__name__)


def stage_url(remote: str, run: str, stage: str) -> str:
    """Where the checkpoints of one stage are."""
    return f"{remote.rstrip('/')}/{run}/{stage}"


class RemoteSteps:
    """The steps under one URL. Every method raises whatever the file system of the URL raises."""

    def __init__(self, url: str) -> None:
        """Look at ``url`` without touching it."""
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        self._files: Any
        self._files, self._root = url_to_fs(self.url)

    def complete_steps(self) -> list[int]:
        """Steps with a ``COMPLETE``, rising."""
        steps = [int(match[1]) for name in self._listed() if (match := STEP_PATTERN.fullmatch(name))]
        return sorted(step for step in steps if self._files.exists(f"{self._at(step)}/{COMPLETE}"))

    def damaged(self) -> list[str]:
        """URLs of those that were set aside, newest first."""
        names = sorted(
            (name for name in self._listed() if name.startswith(f"{QUARANTINE}step-")), reverse=True
        )
        # Without it a rename by copying was interrupted, and the step is where it was, too.
        whole = [name for name in names if self._files.exists(f"{self._root}/{name}/{COMPLETE}")]
        return [f"{self.url}/{name}" for name in whole]

    def upload(self, step: int, path: Path) -> None:
        """Copy the complete step in ``path``; what an interrupted copy left is replaced."""
        target = self._at(step)
        if self._files.exists(target):
            self._files.rm(target, recursive=True)
        self._files.makedirs(target, exist_ok=True)
        names = [item.name for item in path.iterdir() if item.name != COMPLETE]
        for name in [*sorted(names), COMPLETE]:
            self._files.put_file(str(path / name), f"{target}/{name}")

    def download(self, step: int, path: Path) -> None:
        """Copy a step into ``path``, which is made anew, its ``COMPLETE`` last."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        source = self._at(step)
        for name in [*sorted(self._names(source) - {COMPLETE}), COMPLETE]:
            self._files.get_file(f"{source}/{name}", str(path / name))

    def state(self, step: int) -> Any:
        """What ``state.json`` of a step holds, once its digest is compared.

        Raises:
            CheckpointError: It is damaged or not there.
        """
        folder = self._at(step)
        try:
            sealed, manifest, state = (
                self._files.cat_file(f"{folder}/{name}") for name in (COMPLETE, seal.MANIFEST, seal.STATE)
            )
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        return seal.sealed_state(folder, sealed, manifest, state)

    def set_aside(self, step: int) -> str:
        """Rename a damaged step, so that a good one may take its place; its URL.

        A store that renames by copying, and is interrupted, removes nothing that it has not copied.
        """
        name, count = f"{QUARANTINE}{step_name(step)}", 1
        while self._files.exists(f"{self._root}/{name}"):
            count += 1
            name = f"{QUARANTINE}{step_name(step)}-{count}"
        self._files.mv(self._at(step), f"{self._root}/{name}", recursive=True)
        return f"{self.url}/{name}"

    def remove(self, step: int) -> None:
        """Remove a step."""
        self._files.rm_file(f"{self._at(step)}/{COMPLETE}")
        self._files.rm(self._at(step), recursive=True)

    def _listed(self) -> set[str]:
        """Names under the URL; none where it does not exist."""
        # Listings are remembered by some file systems, and another machine may have written.
        self._files.invalidate_cache()
        try:
            return self._names(self._root)
        except FileNotFoundError:
            return set()

    def _names(self, folder: str) -> set[str]:
        """Names in a folder of the file system."""
        found = self._files.ls(folder, detail=False)
        return {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found} - {""}

    def _at(self, step: int) -> str:
        """Where a step is."""
        return f"{self._root}/{step_name(step)}"


@dataclass(frozen=True)
class Mirror:
    """Keeps remote steps like those of a local folder; used by one process."""

    remote: RemoteSteps
    retention: Retention | None
    on_failure: Callable[[str], None]
    """Told why the remote could not be brought up to date; the next save tries again."""

    def push(self, folder: Path) -> None:
        """Copy what is complete in ``folder`` and not there, newest first; remove what nothing keeps."""
        try:
            local = {found.step: found.path for found in list_steps(folder) if found.is_complete}
            there = self.remote.complete_steps()
            for step in sorted(local.keys() - set(there), reverse=True):
                self.remote.upload(step, local[step])
            self._remove_old()
        except Exception as error:
            # Whatever the remote's library raises: training has its local checkpoint and goes on.
            logger.warning("%s could not be brought up to date", self.remote.url, exc_info=True)
            self.on_failure(f"{self.remote.url}: {type(error).__name__}: {error}")

    def _remove_old(self) -> None:
        """Remove remote steps by the same rule as local ones."""
        if self.retention is not None:
            for step in self.retention.removable(self.remote.complete_steps(), self.remote.state):
                self.remote.remove(step)


def fetch_newer(
    remote: RemoteSteps, folder: Path, here: Path | None
) -> tuple[Path | None, list[tuple[int, str, str]]]:
    """Bring the newest good remote step into ``folder``.

    Args:
        here: The newest good step of ``folder``; only a newer one is worth fetching.

    Returns:
        Its path, ``None`` where none is newer; and step, problem and URL of each damaged one that was met.
    """
    damaged: list[tuple[int, str, str]] = []
    for step in reversed(remote.complete_steps()):
        path = folder / step_name(step)
        # Names sort as numbers do.
        if here is not None and path.name <= here.name:
            break
        temporary = folder / f"fetched-{path.name}"
        problem = _download(remote, step, temporary)
        if problem is not None:
            shutil.rmtree(temporary)
            kept_as = f"{remote.url}/{step_name(step)}"
            try:
                kept_as = remote.set_aside(step)
            except Exception:
                # Whatever its library raises, as where nobody may write: an older step may still be good.
                logger.warning("%s: step %d stays there as it is", remote.url, step, exc_info=True)
            damaged.append((step, problem, kept_as))
            continue
        # What a save of this step that was interrupted has left.
        shutil.rmtree(path, ignore_errors=True)
        os.rename(temporary, path)
        seal.sync_folder(folder)
        logger.info("%s was fetched from %s", path, remote.url)
        return path, damaged
    return None, damaged


def _download(remote: RemoteSteps, step: int, path: Path) -> str | None:
    """Copy a step, once more if it is damaged, for that may be the way's fault; what is wrong with it."""
    problem = None
    for _ in range(2):
        remote.download(step, path)
        problem = seal.verify(path)
        if problem is None:
            break
    return problem
