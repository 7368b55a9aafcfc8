"""Every published rule drops what it is meant to drop, and keeps prose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.quality import violated_rule, why_dropped
from orchestrator.spec.cleaning import Quality
from tests.unit.data.corpus import make_texts, section

PROSE = (
    "The harbour was quiet when we arrived, and only two boats lay at the long pier.\n"
    "An old man sat on a crate mending nets, his fingers quick despite the cold wind.\n"
    "He told us that most families had left for the city after the cannery closed.\n"
    "We walked along the shore until dusk, counting gulls and talking about nothing much."
)
NO_RULE = Quality.model_validate(
    {
        **dict.fromkeys(Quality().model_dump()),
        "max_top_ngram_character_fractions": [],
        "max_duplicate_ngram_character_fractions": [],
        "banned_texts": [],
    }
)


def alone(key: str) -> Quality:
    """The rule ``key`` with its default, and no other."""
    return NO_RULE.model_copy(update={key: getattr(Quality(), key)})


VIOLATIONS = {
    "min_words": "Too short.",
    "max_words": "word " * 100_001,
    "min_mean_word_length": "a b c d e f g " * 10,
    "max_mean_word_length": "incomprehensibilities counterrevolutionaries " * 30,
    "max_symbol_to_word_ratio": "word #tag " * 30,
    "min_alphabetic_word_fraction": "word 1234 " * 30,
    "max_bullet_line_fraction": "\u2022 one item of a list\n" * 20,
    "max_ellipsis_line_fraction": "read more...\nand so on\u2026\nthe end of it.\n",
    "max_duplicate_line_fraction": "one.\none.\ntwo.",
    "max_duplicate_line_character_fraction": "a long line twice.\na long line twice.\nb\nc\nd\ne",
    "max_duplicate_paragraph_fraction": "one.\n\none.\n \ntwo.",
    "max_duplicate_paragraph_character_fraction": "long and twice.\n\nlong and twice.\n\nb\n\nc\n\nd",
    "max_top_ngram_character_fractions": "buy now and " * 10 + "leave the shop",
    "max_duplicate_ngram_character_fractions": PROSE + " Then again: " + PROSE[:150],
    "banned_texts": PROSE + " Lorem Ipsum",
    "min_punctuated_line_fraction": "home\nabout us\ncontact\n" * 5,
    "max_short_line_fraction": "Home.\nAbout.\nContact.\nThis line is the only one that is longer than that.",
}


def test_every_rule_has_a_violation_here() -> None:
    assert VIOLATIONS.keys() == Quality().model_dump().keys()


@pytest.mark.parametrize("key", VIOLATIONS)
def test_a_rule_drops_its_violation_and_keeps_prose(key: str) -> None:
    assert violated_rule(VIOLATIONS[key], alone(key)) == key
    assert violated_rule(VIOLATIONS[key], NO_RULE) is None
    assert violated_rule(PROSE, alone(key)) is None
    assert violated_rule(PROSE, Quality()) is None


def repeated_fraction(words: list[str], size: int) -> float:
    """Characters in n-grams that occurred before, the plain way."""
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for start in range(len(words) - size + 1):
        ngram = tuple(words[start : start + size])
        if ngram in seen:
            covered |= set(range(start, start + size))
        seen.add(ngram)
    return sum(len(words[position]) for position in covered) / max(1, sum(map(len, words)))


def top_fraction(words: list[str], size: int) -> float:
    """Characters in the most frequent n-gram, the plain way."""
    ngrams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    counts = {ngram: ngrams.count(ngram) for ngram in ngrams}
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(len("".join(ngram)) for ngram, count in counts.items() if count == most)
    return most * longest / sum(map(len, words))


@given(st.lists(st.sampled_from(["a", "bb", "cccc", "dd"]), max_size=40), st.floats(0.0, 1.0))
def test_repeated_ngrams_are_measured_exactly(words: list[str], limit: float) -> None:
    text = " ".join(words)
    duplicates = NO_RULE.model_copy(update={"max_duplicate_ngram_character_fractions": (limit,) * 6})
    expected = any(repeated_fraction(words, size) > limit for size in range(5, 11))
    assert (violated_rule(text, duplicates) is not None) == expected
    tops = NO_RULE.model_copy(update={"max_top_ngram_character_fractions": (limit,) * 3})
    expected = any(top_fraction(words, size) > limit for size in (2, 3, 4))
    assert (violated_rule(text, tops) is not None) == expected


@given(st.text())
def test_any_text_has_a_verdict(text: str) -> None:
    assert violated_rule(text, Quality()) in {None, *VIOLATIONS}


@pytest.mark.parametrize(
    ("keys", "text", "expected"),
    [
        ({}, "", None),
        ({"min_chars": 3}, "ab", "min_chars"),
        ({"min_chars": 3}, "abc", None),
        ({"max_chars": 3}, "abc", None),
        ({"max_chars": 3}, "abcd", "max_chars"),
        ({"quality": {}}, "abcd", "quality.min_words"),
        ({"quality": {"min_words": 1, "max_short_line_fraction": None}}, "Abcd, efgh.", None),
    ],
)
def test_the_reason_is_the_key_of_the_section(keys: dict[str, Any], text: str, expected: str | None) -> None:
    assert why_dropped(text, section(source="text", files="a", **keys)) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"min_chars": 3, "max_chars": 2}, "min_chars 3 is above max_chars 2"),
        ({"quality": {"min_words": 9, "max_words": 8}}, "min_words 9 is above max_words 8"),
        ({"quality": {"max_top_ngram_character_fractions": [0.1]}}, "has 1 number, expected 3"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(source="text", files="a", **keys)


def test_generated_sentences_are_too_short_for_prose() -> None:
    assert {violated_rule(text, Quality()) for text in make_texts(20, longest=10)} == {"min_words"}
