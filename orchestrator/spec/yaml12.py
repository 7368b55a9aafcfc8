"""YAML as a person means it, both ways: version 1.2's scalars, bounded, with a line for every key.

``1e-4`` and ``20_000_000`` are numbers; ``on``, ``no``, ``12:30`` and ``2024-01-31`` are words.
Duplicate keys, tags, merge keys, documents that explode through aliases and files that are not text
are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import yaml

from orchestrator.errors import Problem, SpecError
from orchestrator.spec.tree import Items, KeyPath, Place, Table, key_text
from orchestrator.spec.yaml_typos import likely_typo

MAX_BYTES = 2**20
MAX_DEPTH = 64
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
# The largest job in jobs/ has some hundred values; an exploding document has billions.
MAX_VALUES = 100_000
TAG = "tag:yaml.org,2002:"
UNTAGGED = "untagged"
WORDS: dict[str, bool | None] = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
INTEGER = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# What should have been a key and a value.
UNSPACED = re.compile(r"(\w+):[^\s:/]+")
# Beyond this a number is a mistake, and Python refuses to convert it.
MAX_NUMBER_LENGTH = 400

UNREADABLE: Any = "<unreadable>"
"""Stands for a value that already has its own problem."""
Read = Callable[[str], Any]
"""Turns a scalar's text into its value; ``ValueError`` says why it cannot."""


def scalar(text: str) -> Any:
    """The value of an unquoted scalar."""
    if text in WORDS:
        return WORDS[text]
    if text[0] not in "0123456789+-." or len(text) > MAX_NUMBER_LENGTH:
        return text
    if INTEGER.fullmatch(text):
        return int(text)
    if PREFIXED.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text):
        return float(text)
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Leaves every scalar a string; ``scalar`` types it."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    DEFAULT_SCALAR_TAG = UNTAGGED


class _Builder:
    """From the nodes of one document to tables and items; collects what is wrong."""

    def __init__(self, file: str, quoted: Read, problems: list[Problem]) -> None:
        self._file = file
        self._quoted = quoted
        self._problems = problems
        self._num_values = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """The value of ``node``, found at ``path``."""
        self._num_values += 1
        if len(path) > MAX_DEPTH:
            raise self._fatal(node, f"{TOO_DEEP}, aliases written out")
        if self._num_values > MAX_VALUES:
            raise self._fatal(node, f"more than {MAX_VALUES} values, aliases written out")
        if isinstance(node, yaml.MappingNode):
            return self._table(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = Items(self._place(node))
            for index, item in enumerate(node.value):
                items.put(self.build(item, (*path, index)), self._place(item))
            return items
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _table(self, node: yaml.MappingNode, path: KeyPath) -> Table:
        table = Table(self._place(node))
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(key_node, path, "a key must be one word, found a list or a section")
                continue
            key = key_node.value
            here = (*path, key)
            if key == "<<":
                hint = "merge key '<<' is not YAML 1.2; use 'defaults:' or 'extends:'"
                self._report(key_node, path, hint)
            elif (unspaced := UNSPACED.fullmatch(key)) and not key_node.style and not value_node.value:
                # The value may be a secret.
                hint = f"expected a space after the colon of '{unspaced[1]}:'"
                self._report(key_node, path, hint)
            elif key in table:
                first = table.places[key].line
                self._report(key_node, here, f"duplicate key, first given in line {first}")
            else:
                table.put(key, self.build(value_node, here), place)
        return table

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.removeprefix(TAG)
        if kind not in (UNTAGGED, "str", "int", "float", "bool", "null"):
            tag = node.tag.replace(TAG, "!!")
            self._report(node, path, f"tag '{tag}' is not allowed; give a plain value")
            return UNREADABLE
        try:
            value = self._quoted(node.value)
        except ValueError as error:
            self._report(node, path, str(error))
            return UNREADABLE
        is_typed = kind != "str" and (not node.style or value is not node.value)
        return scalar(value) if is_typed else value

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._file, node.start_mark.line + 1)

    def _report(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        line = node.start_mark.line + 1
        self._problems.append(Problem(self._file, line, key_text(path), message))

    def _fatal(self, node: yaml.Node, message: str) -> SpecError:
        return SpecError([Problem(self._file, node.start_mark.line + 1, "", message)])


def parse(text: str, file: str, *, quoted: Read, problems: list[Problem]) -> Any:
    """The one document of ``text``; ``None`` when it holds nothing.

    Args:
        file: Name for messages.
        quoted: Interpolates a scalar's text; a changed text is typed again.
        problems: Receives what is wrong but leaves the rest readable.

    Raises:
        SpecError: ``text`` is not YAML, or larger than the bounds.
    """
    loader = None
    try:
        _check_depth(text, file)
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise SpecError([_syntax_problem(error, text, file)]) from error
    finally:
        if loader is not None:
            loader.dispose()
    return None if node is None else _Builder(file, quoted, problems).build(node, ())


def _check_depth(text: str, file: str) -> None:
    """Refuse deep nesting before libyaml's binding recurses into it and overflows the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else None
                raise SpecError([Problem(file, line, "", TOO_DEEP)])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _syntax_problem(error: yaml.YAMLError, text: str, file: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        reason = getattr(error, "reason", error)
        return Problem(file, None, "", f"not a text file: {reason}")
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    message = "not valid YAML: " + ", ".join(part for part in parts if part)
    if "nesting depth" in message:
        return Problem(file, mark.line + 1, "", TOO_DEEP)
    lines = text.splitlines()
    if "flow" in message and mark.line < len(lines) and "${" in lines[mark.line]:
        message += ". Inside '{...}' and '[...]' a variable stands in quotes: '${NAME}'"
    else:
        begun = getattr(error, "context_mark", None)
        line = None if begun is None else begun.line
        typo = likely_typo(text, mark.line, line, in_flow="flow" in message)
        message += f".{typo}" if typo else ""
    return Problem(file, mark.line + 1, "", message)


class _Dumper(yaml.SafeDumper):
    """Quotes what ``scalar`` would not read back as the same text."""

    # The library declares it on instances and reads it from the class.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if scalar(text) is text and text.isprintable() else '"'
    return dumper.represent_scalar(TAG + "str", text, style=style)


def _represent_value(dumper: yaml.SafeDumper, value: float | None) -> yaml.Node:
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    else:
        text = repr(value).replace("inf", ".inf").replace("nan", ".nan")
    # Tagged as text, since without implicit resolvers the emitter would write any other tag out.
    return dumper.represent_scalar(TAG + "str", text)


_Dumper.add_representer(str, _represent_text)
for _kind in (int, float, bool, type(None)):
    _Dumper.add_representer(_kind, _represent_value)


def dump(values: dict[str, Any]) -> str:
    """``values`` as YAML that ``parse`` reads back as they are."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
