"""The Arrow copy of a hub dataset, with the digests that its files had when they were fetched.

The library ``datasets`` does not look at a copy that is there: a byte that changed since would be trained on.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from orchestrator.data.cache import is_whole, make_folder
from orchestrator.data.files import digest_file, digest_values
from orchestrator.data.readers import hub_text, open_hub
from orchestrator.spec.datasets import HubDataset

log = logging.getLogger(__name__)

FILES = "files.json"


def fetch_hub(name: str, dataset: HubDataset, cache_dir: Path) -> list[str]:
    """Digests of the copy's files, in order; it is fetched unless it is there as it was.

    Raises:
        DataError: It cannot be loaded.
    """
    what = [dataset.path, dataset.config_name, dataset.split, dataset.revision]
    record = cache_dir / "hub-digests" / digest_values({"hub": what})
    # Without a revision the same words may mean another dataset tomorrow.
    if dataset.revision is not None and is_whole(record):
        known: dict[str, str] = json.loads((record / FILES).read_text("utf-8"))
        problems = {path: _problem(cache_dir / path, digest) for path, digest in known.items()}
        if not any(problems.values()):
            return list(known.values())
        for path, problem in problems.items():
            if problem is not None:
                log.warning(
                    "%s: its copy %s %s; it is made again", hub_text(name, dataset), cache_dir / path, problem
                )
                # The library takes a folder that is there for a whole one.
                shutil.rmtree((cache_dir / path).parent, ignore_errors=True)
        shutil.rmtree(record)
    paths = [Path(part["filename"]) for part in open_hub(name, dataset, cache_dir).cache_files]
    found = {str(path.relative_to(cache_dir)): digest_file(path) for path in paths}
    if dataset.revision is not None:
        make_folder(record, lambda made: _write(found, made))
    return list(found.values())


def _problem(path: Path, digest: str) -> str | None:
    """What became of a file since it was fetched."""
    if not path.is_file():
        return "is gone"
    return None if digest_file(path) == digest else "holds other bytes than when it was fetched"


def _write(digests: dict[str, str], folder: Path) -> None:
    (folder / FILES).write_text(json.dumps(digests), "utf-8")
