"""Rows that repeat most of an earlier row, found by MinHash and locality-sensitive hashing.

1. a signature of each row: for each of many hash functions the least hash of its n-grams of words; the
   fraction of places where two signatures agree estimates the Jaccard similarity of the rows' n-grams
   (Broder 1997). Computed in parts, a task for each, by the library ``datasketch``
2. candidates: rows whose signatures agree in a whole band (Leskovec et al., Mining of Massive Datasets,
   section 3.4); the library chooses the bands for the threshold, in favour of finding too many
3. a pair is near if its signatures agree in at least ``threshold`` of all places; of all rows that such
   pairs connect the earliest stays

On the disk a signature takes ``4 x num_hashes`` bytes a row (512 at the default), gone once the rows are
chosen. In memory 40 bytes a row, and 16 for each near pair. The hash functions are fixed by a seed, so the
same rows always lose the same ones. Rows without a word are nobody's duplicates.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.data.cache import make_folder
from orchestrator.data.ngrams import ngram_hashes
from orchestrator.data.sources import Source
from orchestrator.data.tasks import Tasks
from orchestrator.data.texts import TextPart, cut_rows
from orchestrator.spec.cleaning import NearDuplicates

# 100,000 reviews are signed in under a minute on one core: little to lose, and worth a process.
PART_ROWS = 100_000
SEED = 1
# The bands' number and width minimise 0.05 x false candidates + 0.95 x missed pairs: a false candidate costs
# a comparison, a missed pair stays. At threshold 0.8 and 128 hashes: 16 bands of 8, which miss 5% at 0.8,
# 0.6% at 0.85 and none at 0.9.
BAND_WEIGHTS = (0.05, 0.95)
# Pairs compared at once: 64 MB of signatures on either side.
PAIRS_AT_ONCE = 1 << 17
_EMPTY = np.uint32(0xFFFFFFFF)


def distinct_rows(source: Source, numbers: np.ndarray, near: NearDuplicates, tasks: Tasks) -> np.ndarray:
    """Positions in ``numbers`` of rows that nearly repeat no earlier one, int64 and rising."""
    folder = source.cache_dir / "signatures" / source.digest
    parts = cut_rows(source, numbers, PART_ROWS)
    work = [_Part(part, near, folder / f"{index:06d}") for index, part in enumerate(parts)]
    for _ in tasks.map(_sign_part, work):
        pass
    files = [part.folder / "signatures.npy" for part in work]
    kept = earliest_of_clusters(Signatures(files, len(numbers), near.num_hashes), near.threshold)
    shutil.rmtree(folder, ignore_errors=True)
    return kept


@dataclass(frozen=True)
class _Part:
    """Rows that one task signs."""

    rows: TextPart
    near: NearDuplicates
    folder: Path


def _sign_part(part: _Part) -> None:
    """Make a part's folder, unless it is there."""

    def build(folder: Path) -> None:
        np.save(folder / "signatures.npy", sign(part.rows.texts(), part.near))

    make_folder(part.folder, build)


def sign(texts: Iterable[str], near: NearDuplicates) -> np.ndarray:
    """Signatures of ``texts``, uint32 ``(texts, num_hashes)``; all ones without a word."""
    from datasketch import MinHash

    # The low half of a 64-bit hash is as good a hash; lists of numbers are what the library reads.
    ngrams = (np.unique(ngram_hashes(text, near.ngram).astype(np.uint32)).tolist() for text in texts)
    made = MinHash.generator(ngrams, num_perm=near.num_hashes, seed=SEED, hashfunc=_itself, scheme="affine32")
    signatures = [signature.hashvalues for signature in made]
    return np.array(signatures, np.uint32).reshape(len(signatures), near.num_hashes)


def _itself(value: int) -> int:
    return value


class Signatures:
    """Signatures of many rows, memory-mapped from the files of their parts."""

    def __init__(self, files: list[Path], num_rows: int, num_hashes: int) -> None:
        """Map the files; all but the last hold ``PART_ROWS`` rows."""
        self.num_rows = num_rows
        self.num_hashes = num_hashes
        self._parts = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]

    def columns(self, start: int, end: int) -> np.ndarray:
        """Places ``start`` to ``end`` of every signature, uint32 ``(rows, end - start)``."""
        return np.concatenate([part[:, start:end] for part in self._parts])

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Whole signatures of some rows, uint32 ``(len(rows), num_hashes)``."""
        found = np.empty((len(rows), self.num_hashes), np.uint32)
        numbers = rows // PART_ROWS
        for number in np.unique(numbers):
            is_here = numbers == number
            found[is_here] = self._parts[number][rows[is_here] - number * PART_ROWS]
        return found


def earliest_of_clusters(signatures: Signatures, threshold: float) -> np.ndarray:
    """The first row of each cluster of near duplicates, int64 and rising."""
    if signatures.num_rows == 0:
        return np.empty(0, np.int64)
    from datasketch import MinHashLSH
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    bands = MinHashLSH(threshold, signatures.num_hashes, weights=BAND_WEIGHTS)
    pairs = [
        near_pairs(signatures, band * bands.r, (band + 1) * bands.r, threshold) for band in range(bands.b)
    ]
    first, second = np.concatenate(pairs, axis=1)
    shape = (signatures.num_rows, signatures.num_rows)
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape)
    _, clusters = connected_components(graph, directed=False)
    return np.sort(np.unique(clusters, return_index=True)[1]).astype(np.int64)


def near_pairs(signatures: Signatures, start: int, end: int, threshold: float) -> np.ndarray:
    """Pairs of rows that agree in places ``start`` to ``end`` and are near, int64 ``(2, pairs)``.

    Within a bucket, rows that agree there, all are compared with the earliest; those that are not near it
    with the earliest of them, and so on. So a pair may be missing whose rows are both near a third one.
    """
    rows, buckets = _buckets(signatures.columns(start, end))
    found = [np.empty((2, 0), np.int64)]
    while len(rows):
        is_first = np.append(True, buckets[1:] != buckets[:-1])
        first = rows[is_first][np.cumsum(is_first) - 1]
        is_near = _agreement(signatures, first[~is_first], rows[~is_first]) >= threshold
        pairs = np.stack([first[~is_first], rows[~is_first]])
        found.append(pairs[:, is_near])
        rows, buckets = rows[~is_first][~is_near], buckets[~is_first][~is_near]
        is_shared = _is_shared(buckets)
        rows, buckets = rows[is_shared], buckets[is_shared]
    return np.concatenate(found, axis=1)


def _buckets(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose band others share, by bucket and rising within one, and the bucket of each.

    Args:
        band: uint32 ``(rows, places)``.
    """
    keys = np.zeros(len(band), np.uint64)
    for place in range(band.shape[1]):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + band[:, place]
        keys ^= keys >> np.uint64(29)
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    # Rows without a word have the greatest hash in every place; others have it by a chance of 2^-32.
    is_shared = _is_shared(in_order) & (band[order, 0] != _EMPTY)
    return order[is_shared], in_order[is_shared]


def _is_shared(buckets: np.ndarray) -> np.ndarray:
    """Whether a row has its bucket in common with the one before or after, bool ``(rows,)``."""
    is_same = buckets[1:] == buckets[:-1]
    is_shared = np.zeros(len(buckets), bool)
    is_shared[1:] = is_same
    is_shared[:-1] |= is_same
    return is_shared


def _agreement(signatures: Signatures, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The fraction of places where pairs of rows agree, float64."""
    agreement = np.empty(len(first))
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        agreement[part] = (signatures.of(first[part]) == signatures.of(second[part])).mean(axis=1)
    return agreement
