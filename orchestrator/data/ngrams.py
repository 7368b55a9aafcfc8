"""Words of a text and hashes of its n-grams, for questions of what texts share.

A word is a run of letters and digits in lower case; a character of Chinese or Japanese is a word of its
own, since no spaces part them. Punctuation, case and white space make no difference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# Kana, ideographs and their compatibility forms.
_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
# An odd multiplier of 64 bits (the golden ratio), so that the order of words matters.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# A million words are about 100 MB; most texts use a tenth of them.
_MAX_KNOWN_WORDS = 1_000_000


class _WordHashes(dict[str, int]):
    """xxh3 of each word, computed when it is first met."""

    def __missing__(self, word: str) -> int:
        import xxhash

        found = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8"))
        return found


_known = _WordHashes()


def words_of(text: str) -> list[str]:
    """The words of ``text``, in order."""
    text = text.casefold()
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def ngram_hashes(text: str, ngram: int) -> np.ndarray:
    """Hashes of all n-grams of ``text``, uint64 in their order.

    A text of fewer words is one n-gram; one without words has none. Two different n-grams have the same
    hash once in 2^64 pairs.
    """
    words = hash_words(words_of(text))
    hashes = words
    for size in range(2, min(ngram, len(words)) + 1):
        hashes = lengthen(hashes, words, size)
    return hashes


def hash_words(words: Sequence[str]) -> np.ndarray:
    """A hash of each word, uint64."""
    if len(_known) > _MAX_KNOWN_WORDS:
        _known.clear()
    return np.fromiter(map(_known.__getitem__, words), np.uint64, len(words))


def lengthen(hashes: np.ndarray, words: np.ndarray, size: int) -> np.ndarray:
    """Hashes of all n-grams of ``size`` words, from those of one word less.

    Args:
        hashes: uint64 hashes of the n-grams of ``size - 1`` words, at least one.
        words: uint64 hashes of all words.
        size: At least 2.
    """
    longer: np.ndarray = hashes[:-1] * _MULTIPLIER + words[size - 1 :]
    # Without it a hash would be linear in those of its words.
    longer ^= longer >> np.uint64(29)
    return longer
