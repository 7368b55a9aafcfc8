"""Personal data in a text, replaced by placeholders: ``<email>``, ``<phone>``, ``<card>``.

E-mail addresses are found by a pattern. Payment card numbers are 13 to 19 digits, in one piece or in groups
of at least 3 (the last may be shorter), that pass Luhn's check (ISO/IEC 7812-1) and begin as issuers' numbers
do. Phone numbers are those that the library ``phonenumbers`` calls valid: with a + of any country, else as
the given countries write them. What is scrubbed holds none of what was looked for: it is looked through again
until nothing is found.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from unicodedata import category

# One or two of them stand between groups: spaces, full stops, hyphens and dashes of any width. Tabs, line
# ends and slashes part numbers of their own.
_SEPARATORS = r"[ .\u00a0\u00ad\u2000-\u200b\u2010-\u2015\u202f\u205f\u2060\u2212\u3000\uff0d-]{1,2}"
_CARD_DIGITS = re.compile(rf"(?<![0-9])[0-9](?:(?:{_SEPARATORS})?[0-9]){{12,}}+")
_CARD_LENGTHS = range(13, 20)
# Of all groups but the last: numbers in a table, of one digit or two each, are no card.
_CARD_GROUP = 3
# Mir, Mastercard (2), Diners, American Express, JCB (3), Visa (4), Mastercard, Maestro, Discover, UnionPay.
_CARD_STARTS = re.compile(r"220[0-4]|22[2-9]|2[3-6]|27[01]|2720|30[0-59]|3[4-9]|4|5|6")
# What phonenumbers takes between two digits: spaces and dashes of any width, full stops, slashes, brackets.
_PHONE_PUNCTUATION = (
    r"xX ./()\[\]~\u00a0\u00ad\u200b\u2010-\u2015\u2053\u2060\u2212\u223c\u3000\u30fc"
    r"\uff08\uff09\uff0d-\uff0f\uff3b\uff3d\uff5e-"
)
# Of numbers with a +: a code of two, as of Germany, and four more.
_FEWEST_DIGITS = 6


def scrub(text: str, kinds: Sequence[str], phone_regions: Sequence[str]) -> tuple[str, Mapping[str, int]]:
    """``text`` with placeholders for personal data, and how many of each kind were put in.

    Args:
        kinds: Of ``email``, ``phone`` and ``card``.
        phone_regions: Two-letter codes of countries whose national notation of phone numbers is known.
    """
    counts: Counter[str] = Counter()
    while True:
        num_before = counts.total()
        # Cards before phones: part of a card's digits may look like a phone number.
        for kind in ("email", "card", "phone"):
            if kind in kinds:
                text, found = _SCRUBBERS[kind](text, phone_regions)
                counts[kind] += found
        if counts.total() == num_before:
            return text, +counts


class Scrubbed:
    """A transform of ``datasets`` that scrubs the column ``text`` as it is read."""

    def __init__(self, kinds: Sequence[str], phone_regions: Sequence[str]) -> None:
        """Scrub ``kinds``, as ``scrub`` takes them."""
        self._kinds = tuple(kinds)
        self._phone_regions = tuple(phone_regions)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The batch with its texts scrubbed."""
        if "text" not in batch:
            return batch
        return {**batch, "text": [scrub(text, self._kinds, self._phone_regions)[0] for text in batch["text"]]}


@cache
def _email() -> re.Pattern[str]:
    """An address without quotes in it, and before it signs that begin none, such as an opening quote.

    Of RFC 5322's signs those are left out that part or enclose what is no address, such as paths, queries,
    cells and templates: / ? | ` { }. An equals sign belongs to bounce-joe=x.org@y.org, not to to=joe@x.org.
    """
    # \w lacks combining marks, such as vowels of Hindi and accents apart from their letters, and joiners of
    # letters. Of those above 0xffff, in historic scripts, a pattern would be fifteen times slower.
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if category(chr(code)).startswith("M"))
    marks += "\u200c\u200d"
    signs = rf"{marks}.!#$%&'*+^~-"
    # Possessive and at the beginning of a run alone, so that a long run without @ is read once.
    local = rf"(?<![\w{signs}])([{signs}]*+)\w[\w{signs}]*+(?:=[\w{marks}-]++(?:\.[\w{marks}-]++)++)?+"
    # The last part of a domain has letters alone: pkg@4.17.21 is a version.
    last = rf"(?:xn--[\w-]+|(?:[^\W\d_]|[{marks}]){{2,}})(?![^\W_]|[{marks}])"
    return re.compile(rf"{local}@(?:[\w{marks}-]++\.)+{last}")


def _scrub_emails(text: str, phone_regions: Sequence[str]) -> tuple[str, int]:
    if "@" not in text:
        return text, 0
    return _email().subn(r"\1<email>", text)


def _scrub_cards(text: str, phone_regions: Sequence[str]) -> tuple[str, int]:
    count = 0

    def replace(run: re.Match[str]) -> str:
        nonlocal count
        scrubbed, found = _scrub_run(run.group())
        count += found
        return scrubbed

    return _CARD_DIGITS.sub(replace, text), count


def _scrub_run(run: str) -> tuple[str, int]:
    """A run of digit groups with its card numbers replaced: groups next to each other, the longest first."""
    groups = re.split(f"({_SEPARATORS})", run)
    found = {length: _cards(groups, length) for length in reversed(_CARD_LENGTHS)}
    parts: list[str] = []
    place = count = 0
    while True:
        following = (_next_from(starts, place) for starts in found.values())
        start, end = next((card for card in following if card is not None), (len(groups), None))
        # What separates a card from the one right before it goes with it.
        parts += groups[place:start] if count == 0 or start > place + 1 else []
        if end is None:
            return "".join(parts), count
        parts.append("<card>")
        place, count = end, count + 1


def _cards(groups: Sequence[str], length: int) -> tuple[list[int], list[int]]:
    """First group and end of each card number of this length, rising."""
    starts, ends = [], []
    for start in range(0, len(groups), 2):
        digits, end = "", start
        while len(digits) < length and end < len(groups):
            if end > start and len(groups[end - 2]) < _CARD_GROUP:
                break
            digits, end = digits + groups[end], end + 2
        if len(digits) == length and _is_card(digits):
            starts.append(start)
            ends.append(end - 1)
    return starts, ends


def _next_from(cards: tuple[list[int], list[int]], place: int) -> tuple[int, int] | None:
    """The first card that begins at a group or later; ``None``: there is none."""
    starts, ends = cards
    index = bisect_left(starts, place)
    return (starts[index], ends[index]) if index < len(starts) else None


def _is_card(digits: str) -> bool:
    """Luhn's check: every second digit from the right doubled, the digits of the results add up to tens."""
    if _CARD_STARTS.match(digits) is None:
        return False
    doubled = (str(2 * int(digit)) for digit in digits[-2::-2])
    total = sum(map(int, digits[-1::-2])) + sum(int(digit) for number in doubled for digit in number)
    return total % 10 == 0


@cache
def _maybe_phone(phone_regions: tuple[str, ...]) -> re.Pattern[str]:
    """As many digits as the shortest number of these countries has, so that the library reads few texts."""
    from phonenumbers import PhoneMetadata

    fewest = _FEWEST_DIGITS
    for region in phone_regions:
        metadata = PhoneMetadata.metadata_for_region(region)
        assert metadata is not None and metadata.general_desc is not None
        # Where an area code may be left out, the rule puts it in: 462 1234 of Antigua has ten digits.
        added = re.sub(r"\\\d", "", metadata.national_prefix_transform_rule or "")
        fewest = min(fewest, min(metadata.general_desc.possible_length) - len(added))
    return re.compile(rf"\d(?:[{_PHONE_PUNCTUATION}]{{0,4}}\d){{{fewest - 1}}}")


def _scrub_phones(text: str, phone_regions: Sequence[str]) -> tuple[str, int]:
    if _maybe_phone(tuple(phone_regions)).search(text) is None:
        return text, 0
    from phonenumbers import Leniency, PhoneNumberMatcher

    count = 0
    for region in phone_regions or (None,):
        matches = PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=sys.maxsize)
        parts, end = [], 0
        for match in matches:
            parts += [text[end : match.start], "<phone>"]
            end = match.end
            count += 1
        text = "".join([*parts, text[end:]])
    return text, count


_SCRUBBERS: dict[str, Callable[[str, Sequence[str]], tuple[str, int]]] = {
    "email": _scrub_emails,
    "card": _scrub_cards,
    "phone": _scrub_phones,
}
