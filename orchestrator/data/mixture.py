"""Which row of which source a global row is: a pure function in constant time.

Weights become whole shares of a period of 10,000 rows, spread evenly over it, and the period
repeats. Any 10,000 consecutive rows hold every source exactly as often as its share says. A source
that runs out starts its next epoch; ``exhaustion`` says when the first one does.

Weights in tokens become weights in rows by each source's mean tokens per row. Which row comes next
does not depend on how long it is, so shares of tokens are exact in the mean over an epoch. Where rows
differ so much in length that whole shares of 10,000 rows miss a weight by more than one part in a
thousand of all tokens, the period is ten times as long, or a hundred times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.data.order import order_key, permute
from orchestrator.data.prepared import Meta
from orchestrator.errors import DataError
from orchestrator.spec.plan import Exhaustion

if TYPE_CHECKING:
    from orchestrator.spec.training import MixtureUnit

# 10,000: a share is within 1/10,000 of its weight, and the table stays a few KB.
PERIOD = 10_000
# A million rows: a table of 16 MB.
LONGEST_PERIOD = 100 * PERIOD
# Part of all rows or tokens by which a source may miss its weight for want of a longer period.
TOLERANCE = 1e-3


class Mixture:
    """The sources of a stage in order of their names, and their shares.

    In order of the names, because the section is a mapping: a job that lists them otherwise is the same job.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        num_rows: Mapping[str, int],
        *,
        tokens_per_row: Mapping[str, float] | None = None,
        begun: Mapping[str, int] | None = None,
    ) -> None:
        """Lay out one period.

        Args:
            weights: Positive weight of each source.
            num_rows: Rows that each source holds.
            tokens_per_row: Mean tokens of each source's rows, where weights are in tokens; absent:
                they are in rows.
            begun: Rows that sources have given before; absent: none.

        Raises:
            DataError: A weight is too small to get one row in 10,000.
        """
        weights = {name: weights[name] for name in sorted(weights)}
        self.names = tuple(weights)
        self.num_rows = np.array([num_rows[name] for name in self.names], dtype=np.int64)
        self.begun = np.array([(begun or {}).get(name, 0) for name in self.names], dtype=np.int64)
        self.shares = _shares(weights, tokens_per_row or dict.fromkeys(weights, 1.0))
        self.period = int(self.shares.sum())
        # Row j of a source's s rows would ideally stand at (j + 1/2) / s of the period.
        ideal = np.concatenate([(np.arange(share) + 0.5) / share for share in self.shares])
        sources = np.repeat(np.arange(len(self.names)), self.shares)
        self._source = sources[np.argsort(ideal, kind="stable")]
        self._earlier = np.empty(self.period, dtype=np.int64)
        for index, share in enumerate(self.shares):
            self._earlier[self._source == index] = np.arange(share)

    @classmethod
    def of_prepared(
        cls,
        weights: Mapping[str, float],
        unit: MixtureUnit,
        metas: Mapping[str, Meta],
        begun: Mapping[str, int] | None = None,
    ) -> Mixture:
        """The mixture of prepared folders, whose ``Meta`` say how many rows and tokens they hold.

        Raises:
            DataError: A weight is too small to get one row in 10,000, or weights are in tokens of
                rows that have no fixed ones.
        """
        num_rows = {name: metas[name].num_rows for name in weights}
        if unit == "rows":
            return cls(weights, num_rows, begun=begun)
        tokens_per_row = {name: metas[name].tokens_per_row() for name in weights}
        return cls(weights, num_rows, tokens_per_row=tokens_per_row, begun=begun)

    def locate(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source index, position in that source's epoch, and epoch of each global row.

        Args:
            global_rows: int64, not negative, any shape.

        Returns:
            Three int64 arrays of the same shape. The position is a place in the epoch's order,
            before ``order.permute``.
        """
        period, offset = np.divmod(np.asarray(global_rows, dtype=np.int64), self.period)
        source = self._source[offset]
        drawn = self.begun[source] + period * self.shares[source] + self._earlier[offset]
        epoch, position = np.divmod(drawn, self.num_rows[source])
        return source, position, epoch

    def locate_rows(self, global_rows: np.ndarray, *, seed: int) -> np.ndarray:
        """Source index, row number in that source, and epoch of each global row.

        Args:
            global_rows: int64 ``(B,)``, not negative.
            seed: The job's seed; with a source's name and the epoch it is the key of their order.

        Returns:
            int64 ``(3, B)``.
        """
        sources, positions, epochs = self.locate(global_rows)
        rows = np.empty(len(global_rows), dtype=np.int64)
        for source, in_source in group(sources):
            for epoch, in_epoch in group(epochs[in_source]):
                places = in_source[in_epoch]
                key = order_key(seed, self.names[source], epoch)
                rows[places] = permute(positions[places], int(self.num_rows[source]), key)
        return np.stack([sources, rows, epochs])

    def drawn(self, cursor: int) -> dict[str, int]:
        """Rows that each source has given by row ``cursor`` of the mixture, those given before included."""
        period, offset = divmod(cursor, self.period)
        counts = self.begun + period * self.shares
        counts += np.bincount(self._source[:offset], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def size(self, name: str) -> int:
        """Rows that the source ``name`` holds: one epoch of it."""
        return int(self.num_rows[self.names.index(name)])

    def exhaustion(self) -> Exhaustion:
        """How many rows come before any source would begin its next epoch, and which one does."""
        # A source that was read to its last row has none left, and one that was never read all of them.
        left_over = np.where(self.begun > 0, -self.begun % self.num_rows, self.num_rows)
        periods, left = np.divmod(left_over, self.shares)
        ends = {
            name: int(periods[index]) * self.period + int(np.flatnonzero(self._source == index)[left[index]])
            for index, name in enumerate(self.names)
        }
        source = min(ends, key=ends.__getitem__)
        return Exhaustion(source, ends[source])


def group(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each distinct value of ``(B,)`` and the int64 places where it stands, both rising."""
    if len(values) and (values == values[0]).all():
        yield int(values[0]), np.arange(len(values))
        return
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for places in np.split(order, changes):
        if len(places):
            yield int(values[places[0]]), places


def _shares(weights: Mapping[str, float], tokens_per_row: Mapping[str, float]) -> np.ndarray:
    """Rows of each source in a period; int64, their sum is the period.

    Raises:
        DataError: A weight is too small to get one row in ``PERIOD``.
    """
    tokens = np.array([tokens_per_row[name] for name in weights], dtype=np.float64)
    wanted = np.array(list(weights.values()), dtype=np.float64)
    period = PERIOD
    while True:
        shares = _whole_shares(wanted / tokens, period)
        read = shares * tokens
        missed = np.abs(read / read.sum() - wanted / wanted.sum()).max()
        if missed <= TOLERANCE or period == LONGEST_PERIOD:
            break
        period *= 10
    for name, share in zip(weights, shares, strict=True):
        if share < period // PERIOD:
            raise DataError(
                f"data.mixture: weight {weights[name]} of '{name}' out of {sum(weights.values()):g} is"
                f" less than one row in {PERIOD}. Raise it, or leave the dataset out."
            )
    return shares


def _whole_shares(values: np.ndarray, period: int) -> np.ndarray:
    """Whole shares of ``period`` in the proportion of ``values``, by largest remainder."""
    exact = values / values.sum() * period
    shares: np.ndarray = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - shares), kind="stable")
    shares[by_remainder[: period - int(shares.sum())]] += 1
    return shares
