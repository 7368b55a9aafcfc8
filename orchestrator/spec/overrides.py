"""``--set KEY=VALUE``: change one key of a job that has been read, before it is checked.

``stages.pretrain.optimizer.lr=3e-4`` names list items by name; ``stages[0]...`` and ``stages.0...`` by
index, as error messages print them. Sections on the way are made where they are missing; whether the
key exists is for the check that follows. A key that chooses a section (``strategy.name``) drops the keys
that files gave to the section chosen before, as a file on top of another would.
"""

from __future__ import annotations

import re
from typing import Any

from orchestrator.errors import Problem
from orchestrator.spec.messages import shown, suggestion
from orchestrator.spec.tree import Items, KeyPath, Place, Table, excluded, is_another

FLAG = "--set"
PLACE = Place(FLAG, None)
INDEX = re.compile(r"\[(\d+)\]")


class OverrideError(ValueError):
    """An override that names nothing; carries the key as it was given."""

    def __init__(self, key: str, message: str) -> None:
        """Keep ``key`` for the problem."""
        super().__init__(message)
        self.problem = Problem(FLAG, None, key, message)


def split_override(text: str) -> tuple[str, str]:
    """The key and the value of ``KEY=VALUE``.

    Raises:
        OverrideError: There is no ``=``, or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip(". "):
        raise OverrideError("", f"expected KEY=VALUE, found '{key}'")
    return key.strip(), value


def set_key(root: Table, key: str, value: Any, place: Place = PLACE) -> None:
    """Set ``key`` of ``root`` to ``value``, which was given at ``place``.

    Raises:
        OverrideError: A list item on the way does not exist, or a value on the way has no keys.
    """
    parts = INDEX.sub(r".\1", key).split(".")
    node: Any = root
    path: KeyPath = ()
    for depth, part in enumerate(parts[:-1]):
        above = ".".join(parts[:depth])
        step = _index(node, part, key, above) if isinstance(node, Items) else part
        node = _enter(node, step, key, above, place)
        path = (*path, step)
    last = parts[-1]
    if isinstance(node, Items):
        index = _index(node, last, key, ".".join(parts[:-1]))
        node[index] = value
        node.places[index] = place
        return
    if not isinstance(node, Table):
        raise OverrideError(key, f"'{'.'.join(parts[:-1])}' is {shown(node)}, which has no keys")
    given = Table(place)
    given.put(last, value, place)
    for name in _displaced(node, given, path):
        del node[name]
    node.put(last, value, place)


def _displaced(node: Table, given: Table, path: KeyPath) -> list[str]:
    """Keys of ``node``, found at ``path``, that give way to the one in ``given``.

    When that chooses another section, keys set at the same place stay, in whatever order they come, and so
    does the name of a list item.
    """
    if is_another(given, node, path):
        is_item = isinstance(path[-1], int)
        kept = {name for name in node if node.places[name].file == given.place.file}
        return [name for name in node if name not in kept and not (is_item and name == "name")]
    section = str(path[-1]) if path else ""
    return [name for name in node if excluded(section, name, given)]


def _enter(node: Any, step: str | int, key: str, above: str, place: Place) -> Any:
    if isinstance(node, Items):
        return node[int(step)]
    if not isinstance(node, Table):
        raise OverrideError(key, f"'{above}' is {shown(node)}, which has no keys")
    if node.get(str(step)) is None:
        node.put(str(step), Table(place), place)
    return node[str(step)]


def _index(items: Items, part: str, key: str, above: str) -> int:
    names = [str(item.get("name")) for item in items if isinstance(item, Table) and "name" in item]
    for index, item in enumerate(items):
        if isinstance(item, Table) and item.get("name") == part:
            return index
    if part.isdigit() and int(part) < len(items):
        return int(part)
    hint = suggestion(part, names, plural="Names")
    raise OverrideError(key, f"'{above}' has no item '{part}'.{hint}")
