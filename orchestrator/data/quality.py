"""Whether a text is fit to train on, by its length and by published rules for prose.

Pure functions from a text to the key of the job file that it violates. Words are what white space parts;
rules that need a word list or a language are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.data.ngrams import hash_words, lengthen
from orchestrator.spec.cleaning import Quality
from orchestrator.spec.datasets import DatasetSection

BULLETS = ("\u2022", "\u2023", "\u25b6", "\u25c0", "\u25e6", "\u25a0", "\u25a1", "\u25aa", "\u25ab", "-", "*")
ELLIPSES = ("...", "\u2026")
# Sentence ends of Latin, Greek, Arabic, Indic and East Asian scripts, and marks that close them.
SENTENCE_ENDS = tuple(
    ".!?\"';:)\u2026\u201d\u2019\u00bb\u037e\u061f\u06d4\u0964\u3002\uff01\uff1f\u300d\uff09"
)
# Characters of a short line (Penedo et al. 2024).
SHORT_LINE = 30
TOP_NGRAMS, DUPLICATE_NGRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")

Measure = tuple[str, float]
"""Key of a limit, which begins with ``min_`` or ``max_``, and what it limits."""


def why_dropped(text: str, dataset: DatasetSection) -> str | None:
    """The key of ``dataset`` that ``text`` violates, such as ``quality.min_words``; ``None``: it is fit."""
    if dataset.min_chars is not None and len(text) < dataset.min_chars:
        return "min_chars"
    if dataset.max_chars is not None and len(text) > dataset.max_chars:
        return "max_chars"
    violated = None if dataset.quality is None else violated_rule(text, dataset.quality)
    return None if violated is None else f"quality.{violated}"


def violated_rule(text: str, quality: Quality) -> str | None:
    """The first key of ``quality`` that ``text`` violates; rules that cost little are looked at first."""
    words = text.split()
    for measures in (_of_words(text, words), _of_lines(text), _of_repeated_lines(text)):
        for key, value in measures:
            limit = getattr(quality, key)
            if limit is not None and (value > limit if key.startswith("max_") else value < limit):
                return key
    if quality.banned_texts:
        lowered = text.lower()
        if any(banned.lower() in lowered for banned in quality.banned_texts):
            return "banned_texts"
    return _repeated_ngrams(words, quality)


def _of_words(text: str, words: Sequence[str]) -> Iterator[Measure]:
    count = max(1, len(words))
    mean = sum(map(len, words)) / count
    yield "min_words", len(words)
    yield "max_words", len(words)
    yield "min_mean_word_length", mean
    yield "max_mean_word_length", mean
    ellipses = sum(text.count(ellipsis) for ellipsis in ELLIPSES)
    yield "max_symbol_to_word_ratio", max(text.count("#"), ellipses) / count
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words)
    yield "min_alphabetic_word_fraction", alphabetic / count


def _of_lines(text: str) -> Iterator[Measure]:
    lines = _stripped(text.splitlines())
    count = max(1, len(lines))
    yield "max_bullet_line_fraction", sum(line.startswith(BULLETS) for line in lines) / count
    yield "max_ellipsis_line_fraction", sum(line.endswith(ELLIPSES) for line in lines) / count
    yield "min_punctuated_line_fraction", sum(line.endswith(SENTENCE_ENDS) for line in lines) / count
    yield "max_short_line_fraction", sum(len(line) <= SHORT_LINE for line in lines) / count


def _of_repeated_lines(text: str) -> Iterator[Measure]:
    units = {"line": text.splitlines(), "paragraph": _PARAGRAPH_BREAK.split(text)}
    for unit, found in units.items():
        parts = _stripped(found)
        unique = set(parts)
        num_chars = sum(map(len, parts))
        yield f"max_duplicate_{unit}_fraction", 1 - len(unique) / max(1, len(parts))
        repeated = num_chars - sum(map(len, unique))
        yield f"max_duplicate_{unit}_character_fraction", repeated / max(1, num_chars)


def _stripped(parts: Sequence[str]) -> list[str]:
    """Parts that hold more than white space."""
    return [part for part in map(str.strip, parts) if part]


def _repeated_ngrams(words: Sequence[str], quality: Quality) -> str | None:
    """Rae et al. 2021, table A1: characters in the top n-gram, and in n-grams that occurred before.

    Characters are those of words; one in several repeated n-grams counts once.
    """
    top, duplicate = (
        quality.max_top_ngram_character_fractions,
        quality.max_duplicate_ngram_character_fractions,
    )
    limits = dict(zip(TOP_NGRAMS, top, strict=False)) | dict(zip(DUPLICATE_NGRAMS, duplicate, strict=False))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    most_chars = np.cumsum(np.sort(lengths)[::-1])
    hashes = known = hash_words(words)
    for size in range(2, min(max(limits, default=0), len(words)) + 1):
        hashes = lengthen(hashes, known, size)
        in_order = np.sort(hashes)
        num_repeated = np.count_nonzero(in_order[1:] == in_order[:-1])
        if not num_repeated:
            # A longer n-gram that is repeated would repeat one of these.
            return None
        if size not in limits:
            continue
        limit = limits[size]
        # Most texts are done with this bound, at a tenth of the cost of the exact fraction.
        if (num_repeated + 1) * most_chars[size - 1] <= limit * most_chars[-1]:
            continue
        if size in TOP_NGRAMS and _top_fraction(hashes, lengths, size) > limit:
            return "max_top_ngram_character_fractions"
        if size in DUPLICATE_NGRAMS and _duplicate_fraction(hashes, lengths, size) > limit:
            return "max_duplicate_ngram_character_fractions"
    return None


def _top_fraction(hashes: np.ndarray, lengths: np.ndarray, size: int) -> float:
    """Fraction of characters in the most frequent n-gram, the longest of several, that occurs twice."""
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    if counts.max() < 2:
        return 0.0
    ends = np.concatenate([[0], np.cumsum(lengths)])
    tops = first[counts == counts.max()]
    longest = (ends[tops + size] - ends[tops]).max()
    return float(longest * counts.max() / ends[-1])


def _duplicate_fraction(hashes: np.ndarray, lengths: np.ndarray, size: int) -> float:
    """Fraction of characters in n-grams that occurred earlier in the text."""
    is_repeated = np.ones(len(hashes), bool)
    is_repeated[np.unique(hashes, return_index=True)[1]] = False
    is_covered = np.convolve(is_repeated, np.ones(size, np.int64)) > 0
    return float(lengths[is_covered].sum() / lengths.sum())
