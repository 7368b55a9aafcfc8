"""Words and n-grams: what counts as the same text."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.ngrams import ngram_hashes, words_of


def test_case_punctuation_and_space_make_no_difference() -> None:
    assert words_of("The  Cat's\n(old) hat!") == ["the", "cat", "s", "old", "hat"]
    assert words_of("Stra\u00dfe \u00c9t\u00e9") == ["strasse", "\u00e9t\u00e9"]
    assert words_of("\u732b\u304c3\u5339 cats") == ["\u732b", "\u304c", "3", "\u5339", "cats"]
    assert words_of("?! ...") == []


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 6))
def test_ngrams_are_equal_where_their_words_are(words: list[str], size: int) -> None:
    hashes = ngram_hashes(" ".join(words), size)
    size = min(size, len(words))
    ngrams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)] if size else []
    assert len(hashes) == len(ngrams)
    assert len(set(hashes.tolist())) == len(set(ngrams))
    assert len(set(zip(hashes.tolist(), ngrams, strict=True))) == len(set(ngrams))


def test_hashes_do_not_depend_on_the_process() -> None:
    # Parts are hashed by processes elsewhere, and kept for later runs.
    assert ngram_hashes("one two", 1).tolist() == [0x911FABA7321FE1A0, 0x6C0560BDCB29998B]
    assert ngram_hashes("one two", 9).dtype == np.uint64
