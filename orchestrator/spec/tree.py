"""What was read from files, with the place of every key: mappings and lists that remember.

A path is a tuple of keys and list indexes, ``("stages", 0, "optimizer", "lr")``; messages write it
``stages[0].optimizer.lr``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

KeyPath = tuple[str | int, ...]

EXCLUSIVE = {
    "limits": ("max_steps", "max_tokens", "max_epochs"),
    "init": ("stage", "pretrained", "checkpoint"),
    "tokenizer": ("train", "from"),
}
"""Keys of which a section has exactly one: giving one drops another that was inherited."""
NAMED = ("objective", "strategy", "optimizer", "schedule", "launcher")
"""Sections of which ``name`` says which is meant: keys inherited from another would not fit."""


class Place(NamedTuple):
    """Where a key stands; ``inherited`` marks what came to a stage from ``defaults``."""

    file: str
    line: int | None
    inherited: bool = False


class Table(dict[str, Any]):
    """A mapping, its own place and the place of each key."""

    def __init__(self, place: Place) -> None:
        """Begin empty at ``place``."""
        super().__init__()
        self.place = place
        self.places: dict[str, Place] = {}

    def put(self, key: str, value: Any, place: Place) -> None:
        """Set ``key`` and remember where it was given."""
        self[key] = value
        self.places[key] = place


class Items(list[Any]):
    """A list, its own place and the place of each item."""

    def __init__(self, place: Place) -> None:
        """Begin empty at ``place``."""
        super().__init__()
        self.place = place
        self.places: list[Place] = []

    def put(self, value: Any, place: Place) -> None:
        """Append ``value`` and remember where it was given."""
        self.append(value)
        self.places.append(place)


def place_of(root: Table, path: KeyPath) -> Place:
    """The place of the deepest part of ``path`` that exists."""
    node: Any = root
    place = root.place
    for part in path:
        if isinstance(node, Table) and part in node:
            place = node.places[str(part)]
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node):
            place = node.places[part]
        else:
            break
        node = node[part]
    return place


def key_text(path: KeyPath) -> str:
    """``path`` as a message writes it."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def plain(node: Any) -> Any:
    """``node`` as ordinary dictionaries and lists."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    return node


def inherited(node: Any) -> Any:
    """A copy of ``node`` whose places are marked as inherited."""
    if isinstance(node, Table):
        table = Table(node.place._replace(inherited=True))
        for key, value in node.items():
            table.put(key, inherited(value), node.places[key]._replace(inherited=True))
        return table
    if isinstance(node, Items):
        items = Items(node.place._replace(inherited=True))
        for value, place in zip(node, node.places, strict=True):
            items.put(inherited(value), place._replace(inherited=True))
        return items
    return node


def merge(base: Any, over: Any, path: KeyPath = ()) -> Any:
    """``over`` on top of ``base``, both found at ``path``.

    Mappings merge, lists of named items merge by name, everything else replaces. A section of
    another kind (``optimizer.name``, ``model.config.model_type``, a dataset's ``source``, a stage's
    ``kind``) replaces too, and so does a mixture: its weights are of one another.
    """
    if isinstance(base, Items) and isinstance(over, Items) and _named(base) and _named(over):
        return _merge_items(base, over, path)
    if not isinstance(base, Table) or not isinstance(over, Table):
        return over
    if is_another(over, base, path) or path[-2:] == ("data", "mixture"):
        return over
    merged = Table(over.place)
    for name, value in base.items():
        if not (path and excluded(str(path[-1]), name, over)):
            merged.put(name, value, base.places[name])
    for name, value in over.items():
        merged.put(name, merge(merged.get(name), value, (*path, name)), over.places[name])
    return merged


def is_another(over: Table, base: Table, path: KeyPath) -> bool:
    """Whether ``over`` chooses another section at ``path`` than ``base``, whose keys would not fit it."""
    chooser = _chooser(path)
    if chooser is None or chooser not in over:
        return False
    default = "train" if chooser == "kind" else over[chooser]
    return bool(base.get(chooser, default) != over[chooser])


def _chooser(path: KeyPath) -> str | None:
    """The key that says which section stands at ``path``, where there are several."""
    if len(path) == 2 and path[0] == "datasets":
        return "source"
    if len(path) == 2 and path[0] == "stages":
        return "kind"
    if path[-2:] == ("model", "config"):
        return "model_type"
    return "name" if path and path[-1] in NAMED else None


def excluded(section: str, key: str, given: Table) -> bool:
    """Whether ``key`` of ``section`` gives way to another key that ``given`` has."""
    rivals = EXCLUSIVE.get(section, ())
    return key in rivals and key not in given and any(rival in given for rival in rivals)


def _named(items: Items) -> bool:
    return bool(items) and all(isinstance(item, Table) and "name" in item for item in items)


def _merge_items(base: Items, over: Items, path: KeyPath) -> Items:
    """Items of ``base`` in their order, each with its namesake of ``over`` on top; then new ones."""
    changes = {item["name"]: (item, place) for item, place in zip(over, over.places, strict=True)}
    merged = Items(over.place)
    for index, (item, place) in enumerate(zip(base, base.places, strict=True)):
        change, changed_place = changes.pop(item["name"], (None, place))
        merged.put(merge(item, change, (*path, index)) if change else item, changed_place)
    for item, place in changes.values():
        merged.put(item, place)
    return merged
