"""The JSON Schema of the job file, for editors that complete and check it as it is typed.

Keys, types, ranges and defaults come from the sections' annotations, descriptions (with their units)
from the docstrings below them. Where another file or ``defaults`` may hold a key, none is required;
a ``${NAME}`` may stand for any value.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from typing import Any, Literal, get_args, get_origin

from orchestrator.spec.compile import (
    ABSENT,
    PLUGIN,
    ChosenBy,
    Known,
    fields_of,
    is_section,
    is_union,
    members_of,
    unwrap,
)
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.section import Section

Schema = dict[str, Any]
RULES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}
VARIABLE: Schema = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}|^[-+]?[0-9]+(_[0-9]+)+$",
    "description": "An environment variable, ${NAME} or ${NAME:-default}; or digits in groups, 20_000_000.",
}
SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def job_schema() -> Schema:
    """The schema of a whole job file (JSON Schema, draft 2020-12)."""
    complete, partial = _Writer(requires=True), _Writer(requires=False)
    root = partial.section(Job)
    root["properties"] |= {
        "extends": {
            "type": "string",
            "description": "Another job file, relative to this one, on top of which this one is read.",
        },
        "defaults": partial.section(TrainStage)
        | {"description": "Keys that all training stages share; a stage's own keys win."},
    }
    complete_job = complete.reference(Job)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "orchestrator job",
        **root,
        # What is missing here may stand in the other file, or in defaults.
        "if": {"not": {"anyOf": [{"required": ["extends"]}, {"required": ["defaults"]}]}},
        "then": complete_job,
        "$defs": {"Variable": VARIABLE, **partial.definitions, **complete.definitions},
    }


@functools.cache
def descriptions(section: Any) -> dict[str, str]:
    """The docstring below each attribute of a section, inherited ones included."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if isinstance(owner, type) and issubclass(owner, Section) and owner is not Section:
            found |= _documented(owner.__module__).get(owner.__name__, {})
    return found


@functools.cache
def _documented(module: str) -> dict[str, dict[str, str]]:
    """Attribute docstrings of every class of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {
            attribute.target.id: " ".join(str(text.value.value).split())
            for attribute, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


class _Writer:
    """Writes sections as definitions, with or without the keys they require."""

    def __init__(self, *, requires: bool) -> None:
        self.definitions: dict[str, Schema] = {}
        self._requires = requires

    def reference(self, section: Any) -> Schema:
        """A reference to the definition of ``section``, which is written once."""
        name = section.__name__ if self._requires else f"Partial{section.__name__}"
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] |= self.section(section)
        return {"$ref": f"#/$defs/{name}"}

    def section(self, section: Any) -> Schema:
        """The schema of one section."""
        fields = fields_of(section)
        schema: Schema = {
            "type": "object",
            "description": inspect.getdoc(section),
            "properties": {key: self._key(section, known) for key, known in fields.items()},
            "additionalProperties": False,
        }
        required = [key for key, known in fields.items() if _default(known) is ABSENT]
        if self._requires and required:
            schema["required"] = required
        return schema

    def _key(self, section: Any, known: Known) -> Schema:
        schema = self._value(known.type)
        described = {"description": descriptions(section)[known.name]}
        default = _default(known)
        if default is ABSENT:
            return {**schema, **described}
        return {**schema, **described, "default": _plain(default)}

    def _value(self, annotation: Any) -> Schema:
        annotation, marker, nullable = unwrap(annotation)
        if isinstance(marker, ChosenBy):
            choices = [self._member(annotation, marker, tag) for tag in members_of(annotation, marker.key)]
        elif is_union(annotation):
            choices = [self._value(member) for member in get_args(annotation)]
        else:
            choices = [self._plain_type(annotation, marker.rules if marker else {})]
        if choices == [{}]:
            return {}
        if nullable:
            choices.append({"type": "null"})
        takes_variable = not is_section(annotation) and get_origin(annotation) not in (dict, tuple)
        if takes_variable and not isinstance(marker, ChosenBy) and choices != [{"type": "string"}]:
            choices.append({"$ref": "#/$defs/Variable"})
        return choices[0] if len(choices) == 1 else {"anyOf": choices}

    def _member(self, union: Any, chosen: ChosenBy, tag: Any) -> Schema:
        """One section of a union; where keys are required, only under its own name."""
        reference = self.reference(members_of(union, chosen.key)[tag])
        if not self._requires or tag == PLUGIN:
            return reference
        needed = [] if tag == chosen.default else [chosen.key]
        return {**reference, "properties": {chosen.key: {"const": tag}}, "required": needed}

    def _plain_type(self, annotation: Any, rules: Schema) -> Schema:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if annotation is Any:
            return {}
        if is_section(annotation):
            return self.reference(annotation)
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin is dict:
            schema: Schema = {"type": "object", "additionalProperties": self._value(arguments[1])}
            if arguments[0] is not str:
                schema["propertyNames"] = self._value(arguments[0])
        elif origin is tuple:
            schema = {"type": "array", "items": self._value(arguments[0])}
            if arguments[-1] is not Ellipsis:
                schema |= {"minItems": len(arguments), "maxItems": len(arguments)}
        else:
            schema = {"type": SCALARS[annotation]}
        return schema | dict(_rule(schema["type"], rule, limit) for rule, limit in rules.items())


def _rule(kind: str, rule: str, limit: Any) -> tuple[str, Any]:
    """One constraint in JSON Schema's words."""
    if rule in ("min_length", "max_length"):
        return rule[:3] + LENGTHS[kind], limit
    return RULES.get(rule, rule), limit


def _default(known: Known) -> Any:
    factory = known.declared.factory
    return factory() if factory else known.declared.default


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json", by_alias=True)
    return list(value) if isinstance(value, tuple) else value
