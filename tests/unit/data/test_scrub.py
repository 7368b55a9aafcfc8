"""What is scrubbed holds none of what was looked for, and nothing else is touched."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phonenumbers import SUPPORTED_REGIONS, Leniency, PhoneMetadata, PhoneNumberMatcher

from orchestrator.data.scrub import scrub

ALL = ("email", "phone", "card")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+news@mail.example.co.uk, please.", "Write to <email>, please."),
        ("<bob@x.org> and (al@y.de)", "<<email>> and (<email>)"),
        ("a&b@x.org, _me@host.co_ and a@b.xn--p1ai", "<email>, <email>_ and <email>"),
        ("pay 4111 1111 1111 1111 now", "pay <card> now"),
        ("4111-1111-1111-1111,378282246310005", "<card>,<card>"),
        ("order 7 4111 1111 1111 1111 4", "order 7 <card> 4"),
        ("4111.1111.1111.1111 or 4111  1111  1111  1111", "<card> or <card>"),
        ("3782\u2013822463\u201310005, 4111\u00a01111\u00a01111\u00a01111", "<card>, <card>"),
        ("4111\u20091111\u20091111\u20091111, 4111\u20071111\u2003\u20031111\u200b1111", "<card>, <card>"),
        ("2223003122003222 and 6200000000000005", "<card> and <card>"),
        ("call (650) 253-0000 or +49 30 123456", "call <phone> or <phone>"),
        ("call +44 20 7031 3000.", "call <phone>."),
    ],
)
def test_personal_data_is_replaced(text: str, expected: str) -> None:
    scrubbed, counts = scrub(text, ALL, ("US",))
    assert scrubbed == expected
    assert sum(counts.values()) == expected.count("<email>") + expected.count("<card>") + expected.count(
        "<phone>"
    )


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 fails the check",
        # Luhn's check alone would take each of these for a card.
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "41\u200911\u200911\u200911\u200911\u200911\u200911\u200911",
        "4111\t1111\t1111\t1111\n4111\n1111\n1111\n1111, 4111/1111/1111/1111",
        "41 11 11 11 11 11 11 11",
        "2016 2017 2018 2019",
        "0000000000000000",
        "on 2024-01-02, from 1939 to 1945, for 1 000 000 dollars",
        "ISBN 978-3-16-148410-0, 192.168.178.21, 3.14159265358979",
        "a @ b, @someone, me@localhost",
        "lodash@4.17.21, price 3@4.50 each, a@b.c3",
    ],
)
def test_other_numbers_and_signs_stay(text: str) -> None:
    assert scrub(text, ALL, ("US",)) == (text, {})


def test_only_what_is_asked_for_is_replaced() -> None:
    text = "a@b.org 4111111111111111 +1 650-253-0000"
    assert scrub(text, ("card",), ()) == ("a@b.org <card> +1 650-253-0000", {"card": 1})
    assert scrub("030 123456", ("phone",), ("US",))[1] == {}
    assert scrub("030 123456", ("phone",), ("US", "DE")) == ("<phone>", {"phone": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # An accent apart from its letter (NFD), vowels that are marks of their own.
        ("mu\u0308ller@bu\u0308cher.de", "<email>"),
        ("ravi@\u0909\u0926\u093e\u0939\u0930\u0923.\u092d\u093e\u0930\u0924", "<email>"),
        ("u!ser@x.org o'brien@x.org a#b$c%d*e^f~g@x.org", "<email> <email> <email>"),
        ("bounce-123-joe=example.org@lists.net", "<email>"),
        ("(joe@x.org) 'joe@x.org' mailto:joe@x.org", "(<email>) '<email>' mailto:<email>"),
        ("a/b joe@x.org, **joe@x.org** or -joe@x.org!", "a/b <email>, **<email>** or -<email>!"),
        ("?to=joe@x.org&cc=ann@y.org x='joe@x.org'", "?to=<email>&cc=<email> x='<email>'"),
        ("joe|joe@x.org|{name}@x.org|/joe@x.org", "joe|<email>|{name}@x.org|/<email>"),
        ("\u2709\ufe0fjoe@x.org", "\u2709\ufe0f<email>"),
    ],
)
def test_an_address_is_replaced_whole_and_without_what_is_around_it(text: str, expected: str) -> None:
    assert scrub(text, ("email",), ()) == (expected, {"email": expected.count("<email>")})


@pytest.mark.parametrize(
    "piece", ["a.a.a.", "@@@@", "x@a", "a@b.cc.", "a=a.a", "=a.a", "''a", "u\u0308", "-", "a@a."]
)
@pytest.mark.parametrize("ends", [("", ""), ("x@", ""), ("", "@b.c1")], ids=str)
def test_addresses_are_looked_for_in_linear_time(piece: str, ends: tuple[str, str]) -> None:
    # A pattern that reads a run again from each of its places would take minutes.
    begin, end = ends
    scrub(begin + piece * (80_000 // len(piece)) + end, ("email",), ())


def luhn(digits: str) -> bool:
    total = 0
    for position, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + position % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def is_issued(digits: str) -> bool:
    """Whether an issuer's numbers begin so (ISO/IEC 7812 ranges, from lists of issuers)."""
    first = int(digits[:4])
    return (
        digits[0] in "456"
        or first in range(2200, 2205)
        or first in range(2220, 2721)
        or first in range(3000, 3060)
        or first in range(3090, 3100)
        or first in range(3400, 4000)
    )


def cards(text: str) -> list[str]:
    """Neighbouring groups of digits that are card numbers, the plain way."""
    found = []
    for run in re.findall(r"[0-9]+(?:[ .-]{1,2}[0-9]+)*", text):
        groups = re.split("[ .-]{1,2}", run)
        for start in range(len(groups)):
            for end in range(start + 1, len(groups) + 1):
                digits = "".join(groups[start:end])
                is_grouped = all(len(group) >= 3 for group in groups[start : end - 1])
                if 13 <= len(digits) <= 19 and is_grouped and is_issued(digits) and luhn(digits):
                    found.append(digits)
    return found


PIECES = st.sampled_from(
    [
        "jane@example.org",
        "a.b+c@d-e.fr",
        "@",
        ".",
        "-",
        " ",
        "+",
        "4111111111111111",
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "5500.0000.0000.0004",
        "2223 0031",
        "2003 222",
        "+1 650-253-0000",
        "(650) 253-0000",
        "+493012345678",
        "7",
        "12",
        "word",
        "\u00e9",
        "\n",
    ]
)


@given(st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join))
def test_scrubbed_text_holds_none(text: str) -> None:
    scrubbed, counts = scrub(text, ALL, ("US",))
    assert scrub(scrubbed, ALL, ("US",)) == (scrubbed, {})
    assert not re.search(r"\w[.%+'-]*@([\w-]+\.)+[a-z]{2,}(\W|$)", scrubbed)
    assert cards(scrubbed) == []
    if not counts:
        assert scrubbed == text


@given(st.text(alphabet=st.characters(exclude_categories=["Nd", "Cs"], exclude_characters="@")))
def test_a_text_without_digits_and_at_signs_stays(text: str) -> None:
    assert scrub(text, ALL, ("US",)) == (text, {})


def test_a_long_run_without_a_sign_is_read_once() -> None:
    # A pattern that tried every start of the run would take hours.
    text = "a" * 3_000_000
    assert scrub(text + " @", ALL, ("US",)) == (text + " @", {})


def test_many_cards_in_one_run_take_no_longer_each() -> None:
    text, counts = scrub("4111 1111 1111 1111 " * 3000, ("card",), ("US",))
    assert counts == {"card": 3000}
    assert not any(character.isdigit() for character in text)


def phones(text: str, region: str = "US") -> int:
    """How many phone numbers the library finds by itself."""
    return sum(1 for _ in PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=sys.maxsize))


def num_scrubbed(text: str, region: str = "US") -> int:
    """How many phone numbers are replaced in ``text``."""
    return scrub(text, ("phone",), (region,))[1].get("phone", 0)


def test_phone_numbers_are_found_with_every_sign_with_which_the_library_finds_them() -> None:
    # Without surrogates and private use.
    signs = map(chr, [*range(0xD800), *range(0xF900, 0x10000)])
    texts = {sign: f"650{sign}253{sign}0000" for sign in signs if sign.isascii() or not sign.isalnum()}
    found = {sign for sign, text in texts.items() if num_scrubbed(text)}
    assert {sign for sign, text in texts.items() if phones(text)} == found
    assert found > set("\u00a0\u00ad\u2010\u2011\u2012\u2013\u2014\u2015\u200b\u2060\u2212\u3000\uff0d")


PHONE_PIECES = [
    "1",
    "49",
    "650",
    "253",
    "0000",
    "171",
    "2345678",
    "\u0666\u0665\u0660",
    "0",
    "462 1234",
    ";ext=",
]
PHONE_PIECES += "+()xX \u2013\u2011\u00a0\u200b\uff0b\uff0d,/a\n"


@given(
    st.lists(st.sampled_from(PHONE_PIECES), max_size=14).map("".join),
    st.sampled_from(["US", "DE", "AG", "AT"]),
)
def test_a_text_in_which_the_library_finds_a_number_is_scrubbed(text: str, region: str) -> None:
    assert (num_scrubbed(text, region) > 0) == (phones(text, region) > 0)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("62889", "AC"),
        ("462 1234", "AG"),
        ("\u0660\u0663\u0660 123456", "DE"),
        ("+1 212\u20135550123", "DE"),
        ("\uff0b1\u200b212\u200b555\u200b0123", "DE"),
    ],
)
def test_phone_numbers_may_be_short_and_of_other_digits(text: str, region: str) -> None:
    assert scrub(text, ("phone",), (region,)) == ("<phone>", {"phone": 1})


def test_numbers_of_every_country_are_found_as_the_library_finds_them() -> None:
    kinds = ("fixed_line", "mobile", "toll_free", "premium_rate", "uan", "voip")
    for region in SUPPORTED_REGIONS:
        metadata = PhoneMetadata.metadata_for_region(region)
        assert metadata is not None and metadata.general_desc is not None
        # What is looked for has at least 6 digits where a + is.
        assert len(f"{metadata.country_code}") + min(metadata.general_desc.possible_length) >= 6
        for kind in kinds:
            number = getattr(getattr(metadata, kind), "example_number", None)
            for prefix in (metadata.national_prefix or "", f"+{metadata.country_code}") if number else ():
                text = f"{prefix}{number}"
                assert num_scrubbed(text, region) == phones(text, region), (region, text)
