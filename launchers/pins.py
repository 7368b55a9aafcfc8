"""Commits of hub datasets, tokenizers and models, looked up at a run's first start and kept.

A branch such as ``main`` moves while a run lasts weeks. The resolved job names the commit that the run began
with, and a later start uses that one, as long as the job file still asks for the same entry and branch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.spec.datasets import COMMIT, HubDataset
from orchestrator.spec.job import Job, TrainStage
from orchestrator.tracking.events import replace_text

TIMEOUT_SECONDS = 10.0
RepoType = Literal["dataset", "model"]
Entry = tuple[str, RepoType, str, str | None]
"""Key in the job, kind, hub id, and the revision that the job file asks for."""


def read_pins(path: Path) -> dict[str, dict[str, Any]]:
    """Pins by their key in the job; none where the file is missing or damaged."""
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return pins if isinstance(pins, dict) else {}


def pinned(job: Job, pins: Mapping[str, Mapping[str, Any]]) -> Job:
    """``job`` with the commits that ``pins`` knows of the entries it asks for."""
    commits = {
        key: pins[key]["commit"]
        for key, _, repo, asked in hub_entries(job)
        if key in pins and (pins[key]["repo"], pins[key]["asked"]) == (repo, asked)
    }
    datasets = {
        name: _with_revision(dataset, commits.get(f"datasets.{name}"))
        for name, dataset in job.datasets.items()
    }
    tokenizer = _with_revision(job.tokenizer, commits.get("tokenizer"))
    stages = []
    for stage in job.stages:
        commit = commits.get(f"stages.{stage.name}.init")
        if commit is not None and isinstance(stage, TrainStage):
            stage = stage.model_copy(update={"init": _with_revision(stage.init, commit)})
        stages.append(stage)
    return job.model_copy(update={"datasets": datasets, "tokenizer": tokenizer, "stages": tuple(stages)})


def look_up_pins(job: Job, path: Path) -> tuple[Job, list[str]]:
    """``job`` with every hub entry pinned, and a line for each whose commit could not be asked for.

    Args:
        path: Where pins are kept; new ones are added.
    """
    pins = read_pins(path)
    pinned_job, notes, known = pinned(job, pins), list[str](), len(pins)
    for key, kind, repo, asked in hub_entries(pinned_job):
        try:
            pins[key] = {"repo": repo, "asked": asked, "commit": find_commit(repo, kind, asked)}
        except Exception as error:  # whatever the hub or the network says, the entry may be in a local cache
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            notes.append(f"{key}: the commit of '{repo}' was not pinned: {problem}")
    if len(pins) > known:
        replace_text(path, json.dumps(pins, indent=1))
    return pinned(job, pins), notes


def hub_entries(job: Job) -> Iterator[Entry]:
    """Everything that a job takes from the hub and whose revision is not a commit."""
    for name, dataset in job.datasets.items():
        if isinstance(dataset, HubDataset) and not dataset.is_pinned:
            yield f"datasets.{name}", "dataset", dataset.path, dataset.revision
    tokenizer = job.tokenizer
    if tokenizer and tokenizer.from_ and _is_hub_id(tokenizer.from_) and not _is_commit(tokenizer.revision):
        yield "tokenizer", "model", tokenizer.from_, tokenizer.revision
    for stage in job.stages:
        init = stage.init if isinstance(stage, TrainStage) else None
        if init and init.pretrained and _is_hub_id(init.pretrained) and not _is_commit(init.revision):
            yield f"stages.{stage.name}.init", "model", init.pretrained, init.revision


def find_commit(repo: str, kind: RepoType, revision: str | None) -> str:
    """The commit that a revision of a hub entry stands for today."""
    # Here and not above: it takes a third of a second, and most jobs take nothing from the hub.
    from huggingface_hub import HfApi

    info = HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
    return str(info.sha)


def _with_revision(section: Any, commit: str | None) -> Any:
    """``section`` at a commit; as it is where there is none."""
    return section if commit is None else section.model_copy(update={"revision": commit})


def _is_commit(revision: str | None) -> bool:
    return revision is not None and COMMIT.fullmatch(revision) is not None


def _is_hub_id(origin: str) -> bool:
    """Whether ``origin`` is no folder of this machine; loading the job has made paths absolute."""
    return not os.path.isabs(origin) and not Path(origin).exists()
