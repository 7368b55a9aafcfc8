"""A replay of consumed rows that finds the first one consumed twice or never.

Every source has one bitmap, of the epoch that it is in: a bit for each row, 125 MB for 10^9 rows. An
epoch may begin only when every bit of the one before is set, and no bit may be set twice. So each row
of a whole epoch was consumed exactly once, and each row of the last one at most once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.data.mixture import Mixture, group
from orchestrator.data.order import order_key, permute
from orchestrator.spec.plan import BatchPlan, micro_batch_rows

# 2^16: larger blocks leave the processor's caches.
BLOCK_ROWS = 2**16


@dataclass(frozen=True)
class Lapse:
    """A row that was consumed twice, or an epoch that ended without all of its rows."""

    global_row: int
    """Where on the cursor it shows."""
    source: str
    message: str


class Replay:
    """Which rows of each source were consumed so far."""

    def __init__(self, mixture: Mixture, *, seed: int) -> None:
        """Begin with nothing consumed but what was before this mixture.

        Args:
            seed: The job's seed, which decides the order of rows.
        """
        self._mixture = mixture
        self._seed = seed
        self._drawn = mixture.begun.copy()
        self._epochs = [self._begun(name, *divmod(int(drawn), mixture.size(name)))
                        for name, drawn in zip(mixture.names, self._drawn, strict=True)]  # fmt: skip

    def _begun(self, name: str, epoch: int, num_consumed: int) -> _Epoch:
        """An epoch of which the rows at the first ``num_consumed`` places are consumed."""
        found, key = _Epoch(epoch, self._mixture.size(name)), order_key(self._seed, name, epoch)
        for first in range(0, num_consumed, BLOCK_ROWS):
            places = np.arange(first, min(first + BLOCK_ROWS, num_consumed), dtype=np.int64)
            repeated = found.mark(permute(places, found.num_rows, key))
            assert repeated is None
        return found

    @property
    def drawn(self) -> dict[str, int]:
        """Rows that each source has given."""
        return dict(zip(self._mixture.names, self._drawn.tolist(), strict=True))

    def consume(self, global_rows: np.ndarray) -> Lapse | None:
        """Consume the rows at these places of the cursor; the first lapse among them.

        Args:
            global_rows: int64 ``(B,)``: all rows of some steps, so that no epoch is read on in a later
                call after another one has begun in this.
        """
        sources, rows, epochs = self._mixture.locate_rows(global_rows, seed=self._seed)
        lapses = []
        for source, in_source in group(sources):
            for epoch, in_epoch in group(epochs[in_source]):
                places = in_source[in_epoch]
                found = self._consume_epoch(source, epoch, rows[places])
                if found is not None:
                    place, message = found
                    name = self._mixture.names[source]
                    lapses.append(Lapse(int(global_rows[places[place]]), name, message))
                    break
        self._drawn += np.bincount(sources, minlength=len(self._drawn))
        return min(lapses, key=lambda lapse: lapse.global_row, default=None)

    def _consume_epoch(self, source: int, epoch: int, rows: np.ndarray) -> tuple[int, str] | None:
        """Consume rows of one epoch; the place of a lapse in ``rows`` and what it is."""
        current = self._epochs[source]
        if epoch > current.number:
            if current.num_missing or epoch > current.number + 1:
                return 0, (
                    f"epoch {epoch} begins while {current.num_missing} of {current.num_rows} rows of epoch"
                    f" {current.number} were never consumed, the first of them row {current.first_missing()}"
                )
            current = self._epochs[source] = _Epoch(epoch, current.num_rows)
        place = current.mark(rows) if epoch == current.number else 0
        return None if place is None else (place, f"row {rows[place]} of epoch {epoch} is consumed twice")


class _Epoch:
    """The rows of one epoch of one source, a bit each."""

    def __init__(self, number: int, num_rows: int) -> None:
        """Begin with no row consumed."""
        self.number = number
        self.num_rows = num_rows
        self.num_missing = num_rows
        self._bits = np.zeros(-(-num_rows // 8), dtype=np.uint8)

    def mark(self, rows: np.ndarray) -> int | None:
        """Set the bits of ``rows``; instead, the place of the first whose bit is set already."""
        # Sorted, so that the rows of a byte stand together and memory is walked in order.
        ordered = np.sort(rows)
        byte, bit = ordered >> 3, np.left_shift(1, ordered & 7).astype(np.uint8)
        is_set = (self._bits[byte] & bit) != 0
        is_set[1:] |= ordered[1:] == ordered[:-1]
        if is_set.any():
            return self._first_set(rows)
        starts = np.flatnonzero(np.diff(byte, prepend=-1))
        self._bits[byte[starts]] |= np.bitwise_or.reduceat(bit, starts)
        self.num_missing -= len(rows)
        return None

    def _first_set(self, rows: np.ndarray) -> int:
        """The place of the first of ``rows`` that was consumed before, or earlier in ``rows``."""
        _, firsts = np.unique(rows, return_index=True)
        is_first = np.zeros(len(rows), dtype=bool)
        is_first[firsts] = True
        is_set = (self._bits[rows >> 3] >> (rows & 7)) & 1
        return int(np.flatnonzero(~is_first | (is_set == 1))[0])

    def first_missing(self) -> int:
        """The lowest row that was not consumed; ``num_rows`` when there is none."""
        bits = np.unpackbits(self._bits, count=self.num_rows, bitorder="little")
        missing = np.flatnonzero(bits == 0)
        return int(missing[0]) if len(missing) else self.num_rows


def rows_of_steps(batch: BatchPlan, steps: range) -> np.ndarray:
    """Global rows that all ranks read in ``steps``, micro-batch by micro-batch; int64."""
    ranges = [
        micro_batch_rows(batch, step, accum_index, rank)
        for step in steps
        for accum_index in range(batch.grad_accum_steps)
        for rank in range(batch.world_size)
    ]
    return np.concatenate([np.arange(rows.start, rows.stop) for rows in ranges])
