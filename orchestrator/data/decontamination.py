"""Training rows that share text with evaluation rows: found by common n-grams of words, and dropped.

As Brown et al. 2020, appendix C, with 13 words at the default; there the surroundings of a match are cut
out of the training text, here the whole row goes. Words are compared in lower case and without
punctuation. A training row is compared as a whole; of an evaluation row count the whole and each of its
fields by itself, which are the texts of a pair, prompt and completion, or every message. What has fewer words
counts as one n-gram of all its words, so it is found where a training row has these words and no others.
Evaluation rows are scrubbed as the training rows are, whatever their own section says: a copy is one, whether
or not an address in it has become a placeholder.

The hashes of all distinct n-grams of the evaluation rows are kept sorted, 8 bytes each: a million rows of
230 words take 1.8 GB. Two n-grams are confused once in 2^64 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.data.cache import make_folder
from orchestrator.data.ngrams import ngram_hashes
from orchestrator.data.scrub import scrub
from orchestrator.data.sources import Source
from orchestrator.data.tasks import Tasks
from orchestrator.data.texts import TextPart, cut_rows
from orchestrator.spec.cleaning import Decontamination
from orchestrator.spec.datasets import Dataset

# 100,000 reviews are compared in about half a minute on one core.
PART_ROWS = 100_000
# N-grams that wait to be sorted, at least: 32 MB.
AT_ONCE = 1 << 22


def clean_rows(
    source: Source,
    numbers: np.ndarray,
    held_out: Callable[[], list[TextPart]],
    settings: Decontamination,
    tasks: Tasks,
) -> np.ndarray:
    """Positions in ``numbers`` of rows that share no n-gram with evaluation rows, int64 and rising.

    Args:
        source: Its digest includes the evaluation rows' sources.
        numbers: int64 numbers of its training rows.
        held_out: Gives the evaluation rows; called unless the answer is known.
        settings: The section's ``decontaminate``.
        tasks: Runs parts of the work.
    """

    def build(folder: Path) -> None:
        parts = [part for rows in held_out() for part in cut_rows(rows.source, rows.numbers, PART_ROWS)]
        known = [np.empty(0, np.uint64)]
        known += tasks.map(_distinct_ngrams, [(part, source.dataset, settings.ngram) for part in parts])
        ngrams = folder / "ngrams.npy"
        np.save(ngrams, np.unique(np.concatenate(known)))
        work = [_Comparison(part, settings.ngram, ngrams) for part in cut_rows(source, numbers, PART_ROWS)]
        flags = [np.empty(0, bool), *tasks.map(_is_clean, work)]
        np.save(folder / "kept.npy", np.flatnonzero(np.concatenate(flags)))
        ngrams.unlink()

    folder = make_folder(source.cache_dir / "decontaminated" / source.digest, build)
    kept: np.ndarray = np.load(folder / "kept.npy", allow_pickle=False)
    return kept


@dataclass(frozen=True)
class _Comparison:
    """Rows that one task compares with known n-grams."""

    rows: TextPart
    ngram: int
    ngrams: Path
    """File with the sorted hashes of the evaluation rows' n-grams, uint64."""


def _distinct_ngrams(work: tuple[TextPart, Dataset, int]) -> np.ndarray:
    """Those of evaluation rows, scrubbed as the training rows' section says."""
    rows, trained, ngram = work
    passages = rows.unscrubbed().passages()
    return distinct_ngrams((scrub(text, trained.scrub, trained.phone_regions)[0] for text in passages), ngram)


def _is_clean(work: _Comparison) -> np.ndarray:
    """Whether each row shares no n-gram, bool ``(rows,)``."""
    known = np.load(work.ngrams, mmap_mode="r", allow_pickle=False)
    return np.array([not shares_ngram(text, work.ngram, known) for text in work.rows.texts()], bool)


def distinct_ngrams(texts: Iterable[str], ngram: int) -> np.ndarray:
    """Hashes of all n-grams of ``texts``, uint64, sorted, each once."""
    found, waiting, num_waiting = np.empty(0, np.uint64), list[np.ndarray](), 0
    for text in texts:
        waiting.append(ngram_hashes(text, ngram))
        num_waiting += len(waiting[-1])
        if num_waiting > max(AT_ONCE, len(found)):
            found, waiting, num_waiting = np.unique(np.concatenate([found, *waiting])), [], 0
    return np.unique(np.concatenate([found, *waiting]))


def shares_ngram(text: str, ngram: int, known: np.ndarray) -> bool:
    """Whether an n-gram of ``text`` is among ``known``, which ``distinct_ngrams`` made."""
    if not len(known):
        return False
    hashes = ngram_hashes(text, ngram)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return bool((known[places] == hashes).any())
