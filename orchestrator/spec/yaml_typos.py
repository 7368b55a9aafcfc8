"""What was probably mistyped in text that is not YAML, and in which line.

The parser notices a mistake where it cannot go on: at the line, or at one after it. Looked at are that line,
the one where what it was reading began, and the last one before it; the first that looks mistyped is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from orchestrator.counts import counted

TAB = re.compile(r"^ *\t")
NO_SPACE_AFTER_DASH = re.compile(r"^\s*(-\w+):")
NO_SPACE_AFTER_COLON = re.compile(r"^\s*(?:- +)?(\w+:)(?!//)[^\s:]")
NO_COLON = re.compile(r"^\s*(\w+)\s*(=\s*\S|[^:=]*$)")
# What no text may begin with without quotes; an alias has a name.
MARK = re.compile(r":\s+([%@`]|\*(?!\w))")
COLON_IN_TEXT = re.compile(r"""^\s*(?:- +)?\w+: +[^\s\[{"'#&*!|>][^"'#]*: """)
KEY = re.compile(r"^( *)(- +)?")
PAIRS = {"[": "]", "{": "}"}
NO_COMMA = re.compile(r"""[\w"'}\].] +(\w+):\s""")
# Of a line under which deeper ones may stand.
OPEN_ENDS = (":", "|", ">", "-", ",", "{", "[")

Look = Callable[[Sequence[str], int], Iterator[str]]
"""What is wrong with one of the lines, the surest first."""


def likely_typo(text: str, number: int, begun: int | None, *, in_flow: bool) -> str:
    """`` Line 7 ...``: the likeliest mistake; empty where nothing looks like one, or the text is one line.

    Args:
        number: Of the line at which the parser gave up, counted from 0.
        begun: Of the one where it began what it did not understand.
        in_flow: It was reading ``{...}`` or ``[...]``, in which lines may be indented as one likes.
    """
    lines = text.splitlines()
    if len(lines) < 2:
        return ""
    before = next((n for n in range(min(number, len(lines)) - 1, -1, -1) if _is_told(lines[n])), None)
    suspects = [
        suspect
        for suspect in dict.fromkeys((number, begun, before))
        if suspect is not None and suspect < len(lines) and _is_told(lines[suspect])
    ]
    looks: list[Look] = [partial(_mistakes, in_flow=in_flow), *([] if in_flow else [_misplaced])]
    found = (
        f" Line {suspect + 1} {mistake}"
        for look in looks
        for suspect in suspects
        for mistake in look(lines, suspect)
    )
    return next(found, "")


def _is_told(line: str) -> bool:
    """Whether a line is more than a comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _mistakes(lines: Sequence[str], number: int, *, in_flow: bool) -> Iterator[str]:
    """What looks mistyped in a line by itself, the surest first."""
    line = lines[number]
    if TAB.match(line):
        yield "is indented with a tab; YAML indents with spaces."
    if found := NO_SPACE_AFTER_DASH.match(line):
        yield f"lacks a space after the dash of '{found[1]}'."
    if found := NO_SPACE_AFTER_COLON.match(line):
        yield f"lacks a space after the colon of '{found[1]}'."
    if found := MARK.search(line):
        yield f"has a text that begins with '{found[1]}', a mark of YAML's own; put it in quotes."
    if in_flow and (found := NO_COMMA.search(line)):
        yield f"lacks a comma before '{found[1]}'."
    if (opened := _left_open(line)) is not None and not _goes_on(lines, number):
        yield f"opens {opened} and does not close it."
    if COLON_IN_TEXT.match(line):
        yield "has ': ' in a text; put the text in quotes."
    if not in_flow and (found := NO_COLON.match(line)):
        yield f"has no colon after '{found[1]}'."


def _goes_on(lines: Sequence[str], number: int) -> bool:
    """Whether the line after this one is deeper, as those of brackets over several lines are."""
    after = next((line for line in lines[number + 1 :] if _is_told(line)), "")
    return _begins_at(after)[0] > _begins_at(lines[number])[0]


def _left_open(line: str) -> str | None:
    """A bracket or quote of the line that nothing closes, or closes otherwise."""
    open_brackets: list[str] = []
    quote = None
    for before, character in zip(f" {line}", line, strict=False):
        if quote is not None:
            quote = None if character == quote else quote
        elif character in "\"'" and before in " [{,":
            quote = character
        elif character == "#" and before == " ":
            break
        elif character in PAIRS:
            open_brackets.append(character)
        elif open_brackets and character in PAIRS.values():
            opened = open_brackets.pop()
            if PAIRS[opened] != character:
                return f"'{opened}'"
    if quote is not None:
        return f"a quote ({quote})"
    return f"'{open_brackets[-1]}'" if open_brackets else None


def _misplaced(lines: Sequence[str], number: int) -> Iterator[str]:
    """Why a line cannot be indented as it is: what begins there belongs to nothing."""
    columns: list[int] = []
    last = None
    for index in range(number):
        if _is_told(lines[index]):
            columns = _columns_after(columns, lines[index])
            last = index
    if last is None:
        return
    indent, column = _begins_at(lines[number])
    spaces = f"is indented by {counted(indent, 'space')}"
    if indent > columns[-1]:
        # Only what stands under a key without a value may be deeper.
        if not lines[last].split(" #")[0].rstrip().endswith(OPEN_ENDS):
            above = f"line {last + 1} ({_begins_at(lines[last])[0]})"
            yield f"{spaces}, deeper than {above}, which has a value: one of them is indented wrongly."
    elif column == indent and indent not in columns:
        fitting = [above for above in columns if above < indent][-1:] + [c for c in columns if c > indent][:1]
        yield f"{spaces}, where {' or '.join(map(str, fitting))} would fit."


def _columns_after(columns: Sequence[int], line: str) -> list[int]:
    """Where keys may begin after a line: those of the sections that it is in, and its own."""
    indent, column = _begins_at(line)
    return [*(above for above in columns if above < indent), *([indent] if column == indent else [column])]


def _begins_at(line: str) -> tuple[int, int]:
    """Spaces before a line's text, and before its key, which may follow a dash."""
    found = KEY.match(line)
    assert found is not None
    return len(found[1]), len(found[0])
