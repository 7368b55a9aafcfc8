"""The order of rows: a keyed permutation of ``[0, n)`` that is computed, never stored.

A row's place is found in constant time and memory at any size, so seeking costs nothing and a run
that resumes on another number of workers reads the same rows in the same order.

The permutation is a Feistel network over pairs ``(left, right)`` of digits in bases ``a`` and
``b``, with ``a * b >= n`` as tight as square roots allow. A result outside ``[0, n)`` is permuted
again until it falls inside ("cycle walking"), which keeps the whole a bijection.

How likely a row is at a place, counted over 200,000 epochs: of 5 rows up to 3% more or less than at others,
7 times the standard deviation; of 3, 4 and 6 to 11 rows at most 2.1%, which chance gives as well. A row is
equally likely next to every other one from 13 rows on; for fewer, the network cannot reach all orders alike.

Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, section 5 (generalized
Feistel) and section 4 (cycle walking). The round function is the finalizer of SplitMix64 (Steele,
Lea and Flood 2014).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np

# Four rounds make a Feistel network pseudorandom for large n (Luby and Rackoff 1988); small n need
# more.
NUM_ROUNDS = 8
MAX_ROWS = 2**62

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def order_key(seed: int, source: str, epoch: int) -> int:
    """64-bit key of the order of ``source``'s rows in ``epoch``."""
    text = f"{seed}\0{epoch}\0{source}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where the keyed permutation of ``[0, n)`` sends each index.

    Args:
        indices: int64, each in ``[0, n)``, any shape.
        n: Size of the domain, from 1 to 2**62.
        key: As ``order_key`` returns it.

    Returns:
        int64 array of the same shape.
    """
    assert 1 <= n <= MAX_ROWS
    flat = np.ravel(indices).astype(np.uint64)
    assert flat.size == 0 or int(flat.max()) < n
    left_base = math.isqrt(n - 1) + 1
    bases = np.uint64(left_base), np.uint64(-(-n // left_base))
    round_keys = _round_keys(key)
    permuted: np.ndarray = _feistel(flat, bases, round_keys)
    while (outside := permuted >= np.uint64(n)).any():
        permuted[outside] = _feistel(permuted[outside], bases, round_keys)
    ordered: np.ndarray = permuted.astype(np.int64).reshape(np.shape(indices))
    return ordered


def mix(values: np.ndarray) -> np.ndarray:
    """Spread every bit of uint64 ``values`` over all bits; a bijection of 64-bit words."""
    mixed: np.ndarray = (values ^ (values >> _SHIFT_1)) * _MIX_1
    mixed = (mixed ^ (mixed >> _SHIFT_2)) * _MIX_2
    mixed ^= mixed >> _SHIFT_3
    return mixed


@lru_cache(maxsize=64)
def _round_keys(key: int) -> np.ndarray:
    """uint64 ``(NUM_ROUNDS,)``: the first outputs of SplitMix64 seeded with ``key``."""
    steps = np.arange(1, NUM_ROUNDS + 1, dtype=np.uint64) * _GOLDEN
    return mix(steps + np.uint64(key))


def _feistel(values: np.ndarray, bases: tuple[np.uint64, np.uint64], round_keys: np.ndarray) -> np.ndarray:
    """One pass of the network over ``[0, bases[0] * bases[1])``."""
    left_base, right_base = bases
    left: np.ndarray = values % left_base
    right: np.ndarray = values // left_base
    for number in range(0, NUM_ROUNDS, 2):
        left = (left + mix(right + round_keys[number]) % left_base) % left_base
        right = (right + mix(left + round_keys[number + 1]) % right_base) % right_base
    joined: np.ndarray = right * left_base + left
    return joined
