"""What the engine found wrong with a job, in words: key path, what was expected, what was found.

pydantic's own messages speak of inputs, tags and keyword arguments; these speak of the job file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic_core import ErrorDetails

from orchestrator.spec.compile import (
    PLUGIN,
    ChosenBy,
    fields_of,
    is_section,
    members_of,
    unwrap,
    words,
)
from orchestrator.spec.tree import KeyPath

# As many keys as a job has.
MAX_CHOICES = 12
MAX_SHOWN = 60


def nearest(word: str, choices: list[str]) -> str | None:
    """The choice that ``word`` was probably meant to be."""
    import difflib

    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return found[0] if found else None


# Keys of a job file that are used up while it is read.
FILE_KEYS = ("defaults", "extends")


def suggestion(word: str, choices: list[str], *, plural: str) -> str:
    """`` Did you mean 'x'?``, or the choices where there are few, or nothing."""
    near = nearest(word, choices)
    if near:
        return f" Did you mean '{near}'?"
    if 0 < len(choices) <= MAX_CHOICES:
        return f" {plural}: {', '.join(choices)}."
    return ""


def which_stage(name: str, stages: Sequence[str], *, plural: str = "Its stages") -> str:
    """`` Did you mean 'x'?``, where one is near, and all stages there are."""
    near = nearest(name, list(stages))
    hint = f" Did you mean '{near}'?" if near else ""
    return f"{hint} {plural}: {', '.join(stages) or 'none'}."


def shown(value: Any) -> str:
    """``value`` as a person would write it in the file, and what kind of thing it is."""
    if isinstance(value, dict):
        return "a section of keys" if value else "an empty section"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= MAX_SHOWN else f"'{value[:MAX_SHOWN]}...'"
    return str(value)


def _bound(limit: float) -> str:
    """A limit as a person writes it: whole where it is whole."""
    return str(int(limit) if float(limit).is_integer() else limit)


def explain(error: ErrorDetails, root: Any) -> tuple[KeyPath, str]:
    """The key path and the message of one error of the engine, found while checking ``root``."""
    path, parent, annotation = _follow(root, error["loc"])
    kind, value = error["type"], error["input"]
    if kind == "unexpected_keyword_argument":
        keys = [*fields_of(parent), *(FILE_KEYS if len(path) == 1 else ())]
        return path, f"unknown key.{suggestion(str(path[-1]), keys, plural='Valid keys')}"
    if kind == "missing":
        return path, f"required, but missing; expected {words(annotation)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_choice(path, annotation, value)
    if kind == "value_error":
        return path, str(error["ctx"]["error"])
    hint = ""
    if kind == "literal_error" and isinstance(value, str):
        near = nearest(value, [str(choice) for choice in get_args(unwrap(annotation)[0])])
        hint = f". Did you mean '{near}'?" if near else ""
    return path, f"expected {_expected(error, annotation)}, found {shown(value)}{hint}"


def is_echo(error: ErrorDetails) -> bool:
    """Whether a list is called too short only because items of it were refused."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _expected(error: ErrorDetails, annotation: Any) -> str:
    """What the engine wanted, from the kind of error and the rule it broke."""
    rule: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "expected":
            return error["msg"]
        case "greater_than_equal":
            return f"at least {_bound(rule['ge'])}"
        case "greater_than":
            return f"a number above {_bound(rule['gt'])}"
        case "less_than_equal":
            return f"at most {_bound(rule['le'])}"
        case "less_than":
            return f"a number below {_bound(rule['lt'])}"
        case "too_short" | "string_too_short":
            return f"a length of at least {rule['min_length']}"
        case "too_long" | "string_too_long":
            return f"a length of at most {rule['max_length']}"
        case "finite_number":
            return "a finite number"
        case _:
            return words(annotation)


def _explain_choice(path: KeyPath, annotation: Any, value: Any) -> tuple[KeyPath, str]:
    """A section whose ``name`` (or ``source``, or ``kind``) is missing or not a known one."""
    union, chosen, _ = unwrap(annotation)
    assert isinstance(chosen, ChosenBy)
    members = members_of(union, chosen.key)
    if not isinstance(value, dict):
        return path, f"expected a section with the key '{chosen.key}', found {shown(value)}"
    choices = [name for name in members if name != PLUGIN]
    expected = f"one of {', '.join(repr(name) for name in choices)}"
    if PLUGIN in members:
        expected += " or your own 'package.module:Name'"
    path = (*path, chosen.key)
    if chosen.key not in value:
        near = nearest(chosen.key, list(value))
        hint = f". Did you mean it by '{near}'?" if near else ""
        return path, f"required, but missing; expected {expected}{hint}"
    found = value[chosen.key]
    near = nearest(found, choices) if isinstance(found, str) else None
    hint = f". Did you mean '{near}'?" if near else ""
    return path, f"expected {expected}, found {shown(found)}{hint}"


def _follow(annotation: Any, location: KeyPath) -> tuple[KeyPath, Any, Any]:
    """``location`` without the engine's own parts, the section around its end, and the type there."""
    path: KeyPath = ()
    parent: Any = None
    for part in location:
        if part == "[key]":
            continue
        annotation, chosen, _ = unwrap(annotation)
        if isinstance(chosen, ChosenBy):
            annotation = members_of(annotation, chosen.key)[str(part)]
            continue
        path = (*path, part)
        if is_section(annotation):
            parent = annotation
            known = fields_of(annotation).get(str(part))
            annotation = known.type if known else Any
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif get_origin(annotation) is tuple:
            arguments = get_args(annotation)
            index = part if arguments[-1] is not Ellipsis and isinstance(part, int) else 0
            annotation = arguments[min(index, len(arguments) - 1)]
        else:
            annotation = Any
    return path, parent, annotation
