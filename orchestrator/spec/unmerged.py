"""Stages of an extending file that merge with none of the file it builds on: new ones, or misspelt ones.

Stages merge by name, so a misspelt one becomes a stage of its own, of which only what was to be changed is
there. Instead of each key that it lacks, its name is complained about.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic_core import ErrorDetails

from orchestrator.spec.messages import which_stage
from orchestrator.spec.tree import Items, KeyPath, Table, key_text

Unmerged = dict[str, tuple[str, tuple[str, ...]]]
"""By a stage's name: the file that has no such stage, and the stages that it has."""


def unmerged_stages(base: Table, over: Table) -> Unmerged:
    """Stages of ``over`` that are none of ``base``, which it extends."""
    there = tuple(_names(base))
    return {name: (base.place.file, there) for name in _names(over) if there and name not in there}


def _names(root: Table) -> list[str]:
    stages = root.get("stages")
    listed = stages if isinstance(stages, Items) else []
    return [str(stage["name"]) for stage in listed if isinstance(stage, Table) and "name" in stage]


def lacked_key(error: ErrorDetails, path: KeyPath) -> str | None:
    """The key of a stage that this error, at ``path``, finds missing."""
    if path[:1] != ("stages",) or len(path) == 1:
        return None
    if error["type"] == "missing":
        return f"'{key_text(path[2:])}'"
    given = error["input"]
    if error["type"] == "value_error" and len(path) == 2 and not {"init", "model"} & set(given):
        return "'model' or 'init'"
    return None


def name_complaints(
    root: Table, explained: Iterable[tuple[KeyPath, str, ErrorDetails]], unmerged: Unmerged
) -> dict[str | int, tuple[KeyPath, str]]:
    """By index, what to say of stages that merged with nothing and lack some keys.

    Args:
        explained: Errors of the whole job, each with its path and message.
    """
    lacking: dict[str | int, list[str]] = {}
    for path, _, error in explained:
        key = lacked_key(error, path)
        if key is not None:
            lacking.setdefault(path[1], []).append(key)
    found: dict[str | int, tuple[KeyPath, str]] = {}
    for index, keys in lacking.items():
        name = str(root["stages"][index].get("name"))
        if name in unmerged:
            file, there = unmerged[name]
            found[index] = (
                ("stages", index, "name"),
                f"no stage of '{file}' is called '{name}', so it merges with none, and alone it lacks"
                f" {', '.join(keys)}.{which_stage(name, there)}",
            )
    return found
