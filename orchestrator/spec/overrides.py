"""``--set KEY=VALUE``: change one key of a job that has been read, before it is checked.

``stages.pretrain.optimizer.lr=3e-4`` names list items by name; ``stages[0]...`` and ``stages.0...`` by
index, as error messages print them. Sections on the way are made where they are missing; whether the
key exists is for the check that follows.
"""

from __future__ import annotations

import re
from typing import Any

from orchestrator.errors import Problem
from orchestrator.spec.messages import shown, suggestion
from orchestrator.spec.tree import Items, Place, Table, excluded

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


def set_key(root: Table, key: str, value: Any) -> None:
    """Set ``key`` of ``root`` to ``value``.

    Raises:
        OverrideError: A list item on the way does not exist, or a value on the way has no keys.
    """
    parts = INDEX.sub(r".\1", key).split(".")
    node: Any = root
    section = ""
    for depth, part in enumerate(parts[:-1]):
        node = _enter(node, part, key, ".".join(parts[:depth]))
        section = part
    last = parts[-1]
    if isinstance(node, Items):
        index = _index(node, last, key, ".".join(parts[:-1]))
        node[index] = value
        node.places[index] = PLACE
        return
    if not isinstance(node, Table):
        raise OverrideError(key, f"'{'.'.join(parts[:-1])}' is {shown(node)}, which has no keys")
    given = Table(PLACE)
    given.put(last, value, PLACE)
    for rival in [name for name in node if excluded(section, name, given)]:
        del node[rival]
    node.put(last, value, PLACE)


def _enter(node: Any, part: str, key: str, above: str) -> Any:
    if isinstance(node, Items):
        return node[_index(node, part, key, above)]
    if not isinstance(node, Table):
        raise OverrideError(key, f"'{above}' is {shown(node)}, which has no keys")
    if node.get(part) is None:
        node.put(part, Table(PLACE), PLACE)
    return node[part]


def _index(items: Items, part: str, key: str, above: str) -> int:
    names = [str(item.get("name")) for item in items if isinstance(item, Table) and "name" in item]
    for index, item in enumerate(items):
        if isinstance(item, Table) and item.get("name") == part:
            return index
    if part.isdigit() and int(part) < len(items):
        return int(part)
    hint = suggestion(part, names, plural="Names")
    raise OverrideError(key, f"'{above}' has no item '{part}'.{hint}")
