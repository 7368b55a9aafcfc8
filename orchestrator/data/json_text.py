"""JSON text that is read value by value; what is wrong inside one does not keep others from being read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from orchestrator.data.record import repeated, undecodable

WHITE_SPACE = re.compile(r"[ \t\n\r]*")
# Strings, in which nothing ends a value, and the marks that may end one.
MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {repeated(names)!r} is there twice")
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
"""Takes ``NaN`` and ``Infinity``, which Python writes: in a column that nobody reads they do no harm."""


class JSONText:
    """JSON text and the place up to which it is read."""

    def __init__(self, text: str) -> None:
        """Before the first value."""
        self.text = text
        self._at = 0
        self._line, self._counted = 1, 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        self._skip(WHITE_SPACE)
        return self.text[self._at : self._at + 1]

    def line(self) -> int:
        """The line of that character, counted from 1."""
        self.peek()
        self._line += self.text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def error(self, expected: str) -> json.JSONDecodeError:
        """What to raise of the place that was reached."""
        return json.JSONDecodeError(expected, self.text, self._at)

    def parts(self, begin: str, end: str) -> Iterator[None]:
        """Stop before each part of a list or an object; whoever is given the turn reads it.

        Raises:
            json.JSONDecodeError: It is neither ended nor goes on.
        """
        self._take(begin)
        if self.peek() != end:
            yield
            while self.peek() == ",":
                self._take(",")
                yield
        if self.peek() != end:
            raise self.error("Expecting ',' delimiter")
        self._take(end)

    def members(self) -> Iterator[str]:
        """The keys of an object; whoever is given one reads its value.

        Raises:
            json.JSONDecodeError: There is no object, or a key is no text.
        """
        for _ in self.parts("{", "}"):
            if self.peek() != '"':
                raise self.error("Expecting property name enclosed in double quotes")
            name, problem = self.value()
            if problem is not None:
                raise self.error(problem)
            if self.peek() != ":":
                raise self.error("Expecting ':' delimiter")
            self._take(":")
            yield name

    def value(self) -> tuple[Any, str | None]:
        """The next value, or what is wrong with it where its end can be told all the same.

        Raises:
            json.JSONDecodeError: It is no JSON.
        """
        self.peek()
        begin = self._at
        try:
            value, self._at = DECODER.raw_decode(self.text, begin)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            self._skip_value()
            return None, f"no JSON: {error}"
        return value, undecodable(self.text[begin : self._at])

    def _take(self, mark: str) -> None:
        assert self.peek() == mark
        self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self._at)
        assert found is not None
        self._at = found.end()

    def _skip_value(self) -> None:
        """Go to the comma or bracket after a value."""
        depth = 0
        for found in MARKS.finditer(self.text, self._at):
            mark = found[0]
            if depth == 0 and mark in (",", "]", "}"):
                self._at = found.start()
                return
            depth += (mark in ("[", "{")) - (mark in ("]", "}"))
        self._at = len(self.text)
