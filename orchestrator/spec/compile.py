"""From a section's annotations to pydantic's engine, and the questions others ask of them.

Understood are ``Any``, text, numbers, booleans, ``Literal``, ``X | None``, unions, ``tuple``,
``dict``, sections, and unions of sections marked with ``ChosenBy``. Scalars are strict, since a job
file says ``8`` or ``"8"`` and means it; only whole floats (``1e6``) pass for whole numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)

from pydantic_core import CoreSchema, SchemaValidator
from pydantic_core import core_schema as cs

ABSENT: Any = object()


class Must:
    """A constraint in an ``Annotated``, in pydantic's words; ``hint`` says it in a person's."""

    def __init__(self, *, hint: str | None = None, **rules: float | str) -> None:
        """Keep ``rules`` (``ge``, ``gt``, ``le``, ``lt``, ``pattern``, ``min_length`` ...)."""
        self.hint = hint
        self.rules = rules


class ChosenBy:
    """Marks a union of sections: the value of ``key`` says which one is meant."""

    def __init__(self, key: str, *, default: str | None = None) -> None:
        """``default`` stands for a missing key."""
        self.key = key
        self.default = default


class Declared:
    """How an attribute was declared: its default, or what makes it, and a key that differs."""

    def __init__(
        self, default: Any, factory: Callable[[], Any] | None = None, alias: str | None = None
    ) -> None:
        """``default`` is ``ABSENT`` for a required key, or where ``factory`` makes the default."""
        self.default = default
        self.factory = factory
        self.alias = alias


def field(
    *,
    default: Any = ABSENT,
    default_factory: Callable[[], Any] | None = None,
    alias: str | None = None,
) -> Any:
    """Declare an attribute whose default is made anew, or whose key is a Python keyword."""
    return Declared(default, default_factory, alias)


PLUGIN = "plugin"
"""Tag of the member of a union that stands for every ``package.module:Name``."""


_F = TypeVar("_F", bound=Callable[..., Any])


def _once(function: _F) -> _F:
    """``functools.cache`` that keeps the function's signature."""
    return cast(_F, functools.cache(function))


class Known(NamedTuple):
    """One key of a section: its attribute, its annotation and how its default is made."""

    name: str
    type: Any
    declared: Declared


@_once
def fields_of(section: type[Any]) -> dict[str, Known]:
    """The keys of ``section`` as a job file writes them, in order of declaration."""
    fields = {}
    for owner in reversed(section.__mro__[:-1]):
        # Modules of sections do without ``from __future__ import annotations``: evaluating two
        # hundred strings would take a tenth of the time of ``orchestrator validate``.
        for name, annotation in owner.__annotations__.items():
            declared = getattr(section, name, ABSENT)
            if not isinstance(declared, Declared):
                declared = Declared(declared)
            fields[declared.alias or name] = Known(name, annotation, declared)
    return fields


@_once
def validator(section: type[Any]) -> SchemaValidator:
    """The compiled checker of ``section``."""
    return SchemaValidator(section_schema(section))


@_once
def section_schema(section: type[Any]) -> CoreSchema:
    """The engine's schema of ``section``."""
    fields = [_field_schema(known) for known in fields_of(section).values()]
    return cs.dataclass_schema(
        section,
        cs.dataclass_args_schema(section.__name__, fields),
        [known.name for known in fields_of(section).values()],
        post_init=True,
        frozen=True,
        config=cs.CoreConfig(
            extra_fields_behavior="forbid",
            validate_by_name=True,
            validate_by_alias=True,
            allow_inf_nan=False,
        ),
    )


def unwrap(annotation: Any) -> tuple[Any, Must | ChosenBy | None, bool]:
    """The type without ``Annotated`` and ``None``, its marker, and whether it may be null."""
    nullable, marker = False, None
    while True:
        if get_origin(annotation) is Annotated:
            annotation, marker = get_args(annotation)[:2]
        elif is_union(annotation) and NoneType in get_args(annotation):
            nullable = True
            members = tuple(member for member in get_args(annotation) if member is not NoneType)
            # Members are a tuple made here, which "X | Y" cannot be written for.
            annotation = Union[members]  # noqa: UP007
        else:
            return annotation, marker, nullable


def is_union(annotation: Any) -> bool:
    """Whether ``annotation`` is a union."""
    return get_origin(annotation) in (Union, UnionType)


def is_section(annotation: Any) -> bool:
    """Whether ``annotation`` is a section's class."""
    return isinstance(annotation, type) and hasattr(annotation, "model_validate")


@_once
def members_of(union: Any, key: str) -> dict[str, type[Any]]:
    """The sections of a union by the value of ``key`` that chooses each."""
    members = {}
    for member in get_args(union):
        annotation, _, _ = unwrap(fields_of(member)[key].type)
        tags = get_args(annotation) if get_origin(annotation) is Literal else (PLUGIN,)
        members.update(dict.fromkeys(tags, member))
    return members


def words(annotation: Any) -> str:
    """What a value of this type is called in a message."""
    annotation, marker, _ = unwrap(annotation)
    if isinstance(marker, Must) and marker.hint:
        return marker.hint
    if isinstance(marker, ChosenBy):
        return f"a section with the key '{marker.key}'"
    if is_union(annotation):
        return " or ".join(dict.fromkeys(words(member) for member in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        items = {str: " of text", int: " of whole numbers", float: " of numbers"}
        return "a list" + items.get(unwrap(get_args(annotation)[0])[0], "")
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return plain.get(annotation, "a section of keys")


def _field_schema(known: Known) -> cs.DataclassField:
    schema, declared = _schema(known.type), known.declared
    if is_section(declared.factory):
        # Its own checker would cost more to compile than the keys cost to check here.
        schema = cs.with_default_schema(schema, default_factory=dict, validate_default=True)
    elif declared.factory is not None:
        schema = cs.with_default_schema(schema, default_factory=declared.factory)
    elif declared.default is not ABSENT:
        schema = cs.with_default_schema(schema, default=declared.default)
    return cs.dataclass_field(known.name, schema, kw_only=True, validation_alias=declared.alias)


def _schema(annotation: Any) -> CoreSchema:
    annotation, marker, nullable = unwrap(annotation)
    if isinstance(marker, ChosenBy):
        schema = _choice(annotation, marker)
    else:
        schema = _plain(annotation, marker.rules if marker else {})
        if marker and marker.hint:
            schema = cs.custom_error_schema(schema, "expected", custom_error_message=marker.hint)
    return cs.nullable_schema(schema) if nullable else schema


def _choice(union: Any, chosen: ChosenBy) -> CoreSchema:
    members = members_of(union, chosen.key)

    def tag(value: Any) -> str | None:
        if isinstance(value, dict):
            found = value.get(chosen.key, chosen.default)
        else:
            found = getattr(value, chosen.key, None)
        if PLUGIN in members and isinstance(found, str) and ":" in found:
            return PLUGIN
        return found if isinstance(found, str) else None

    return cs.tagged_union_schema({name: section_schema(member) for name, member in members.items()}, tag)


def _plain(annotation: Any, rules: Any) -> CoreSchema:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_section(annotation):
        return section_schema(annotation)
    if is_union(annotation):
        return cs.custom_error_schema(
            cs.union_schema([_plain(member, rules) for member in arguments]),
            "expected",
            custom_error_message=words(annotation),
        )
    if origin is Literal:
        return cs.literal_schema(list(arguments))
    if origin is dict:
        return cs.dict_schema(_schema(arguments[0]), _schema(arguments[1]), **rules)
    if origin is tuple and arguments[-1] is Ellipsis:
        return cs.tuple_variable_schema(_schema(arguments[0]), **rules)
    if origin is tuple:
        return cs.tuple_positional_schema([_schema(item) for item in arguments], **rules)
    return _scalar(annotation, rules)


def _scalar(annotation: Any, rules: Any) -> CoreSchema:
    if annotation is str:
        return cs.str_schema(strict=True, **rules)
    if annotation is int:
        return cs.no_info_before_validator_function(_whole, cs.int_schema(strict=True, **rules))
    if annotation is float:
        return cs.float_schema(strict=True, allow_inf_nan=False, **rules)
    if annotation is bool:
        return cs.bool_schema(strict=True)
    if annotation is Any:
        return cs.any_schema()
    raise TypeError(f"no section may hold {annotation!r}")


def _whole(value: Any) -> Any:
    """``1e6`` as a person means it: a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
