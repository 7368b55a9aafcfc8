"""Relative paths in a job file start at the folder of the file that names them.

They become absolute when the job is read, so that the resolved job means the same everywhere. What
may also be a hub id (``gpt2``) is a path only when it is written as one or such a path exists.
"""

from __future__ import annotations

import glob
import os
from typing import Any

from orchestrator.spec.overrides import FLAG
from orchestrator.spec.tree import Items, Place, Table


def make_paths_absolute(root: Table) -> None:
    """Rewrite every path under ``root`` in place; values of the wrong kind are left to the check."""
    for dataset in _values(root.get("datasets")):
        if dataset.get("source") != "package":
            _rewrite(dataset, "files", is_pattern=True)
        _rewrite(dataset, "path", hub_id=dataset.get("source") != "saved")
    _rewrite(root.get("tokenizer"), "from", hub_id=True)
    for stage in [root.get("defaults"), *_values(root.get("stages"))]:
        if not isinstance(stage, Table):
            continue
        _rewrite(stage.get("init"), "pretrained", hub_id=True)
        _rewrite(stage.get("init"), "checkpoint")
        # What is no file may be the name of a template.
        _rewrite(stage.get("objective"), "chat_template", hub_id=True)
        strategy = stage.get("strategy")
        _rewrite(strategy, "config")
        if isinstance(strategy, Table):
            _rewrite(strategy.get("offload_optimizer"), "nvme_path")
            _rewrite(strategy.get("offload_param"), "nvme_path")


def _values(node: Any) -> list[Table]:
    values = node.values() if isinstance(node, Table) else node if isinstance(node, Items) else ()
    return [value for value in values if isinstance(value, Table)]


def _rewrite(section: Any, key: str, *, hub_id: bool = False, is_pattern: bool = False) -> None:
    if not isinstance(section, Table) or key not in section:
        return
    value, place = section[key], section.places[key]
    if isinstance(value, Items):
        for index, item in enumerate(value):
            value[index] = _absolute(item, value.places[index], hub_id, is_pattern)
    else:
        section[key] = _absolute(value, place, hub_id, is_pattern)


def _absolute(value: Any, place: Place, hub_id: bool, is_pattern: bool) -> Any:
    if not isinstance(value, str) or not value:
        return value
    folder = os.path.abspath("" if place.file == FLAG else os.path.dirname(place.file))
    path = os.path.abspath(os.path.join(folder, os.path.expanduser(value)))
    if is_pattern and glob.has_magic(folder) and not os.path.isabs(os.path.expanduser(value)):
        # The folder's name is no pattern, even where it looks like one.
        is_file = not glob.has_magic(value) or os.path.exists(path)
        path = glob.escape(path) if is_file else os.path.abspath(os.path.join(glob.escape(folder), value))
    is_path = value.startswith(("./", "../", "~", "/")) or os.path.exists(path)
    return path if is_path or not hub_id else value
