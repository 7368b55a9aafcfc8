"""Seeds as pure functions of what they are for, so that nothing random depends on ranks or restarts."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed from the run's seed, a purpose and counters such as step and micro-batch index."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def derive_generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator seeded by ``derive_seed``."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *numbers)))
