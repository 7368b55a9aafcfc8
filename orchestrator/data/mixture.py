"""Which row of which source a global row is: a pure function in constant time.

Weights become whole shares of a period of 10,000 rows, spread evenly over it, and the period
repeats. Any 10,000 consecutive rows hold every source exactly as often as its share says. A source
that runs out starts its next epoch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from orchestrator.errors import DataError

# 10,000: a share is within 1/10,000 of its weight, and the table stays a few KB.
PERIOD = 10_000


class Mixture:
    """The sources of a stage in order of their names' appearance, and their shares."""

    def __init__(self, weights: Mapping[str, float], num_rows: Mapping[str, int]) -> None:
        """Lay out one period.

        Args:
            weights: Positive weight of each source, in rows.
            num_rows: Rows that each source holds.

        Raises:
            DataError: A weight is too small to get one row in 10,000.
        """
        self.names = tuple(weights)
        self.num_rows = np.array([num_rows[name] for name in self.names], dtype=np.int64)
        self.shares = _shares(weights)
        # Row j of a source's s rows would ideally stand at (j + 1/2) / s of the period.
        ideal = np.concatenate([(np.arange(share) + 0.5) / share for share in self.shares])
        sources = np.repeat(np.arange(len(self.names)), self.shares)
        self._source = sources[np.argsort(ideal, kind="stable")]
        is_source = self._source[:, None] == np.arange(len(self.names))
        self._earlier = (np.cumsum(is_source, axis=0) - is_source)[np.arange(PERIOD), self._source]

    def locate(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source index, position in that source's epoch, and epoch of each global row.

        Args:
            global_rows: int64, not negative, any shape.

        Returns:
            Three int64 arrays of the same shape. The position is a place in the epoch's order,
            before ``order.permute``.
        """
        period, offset = np.divmod(np.asarray(global_rows, dtype=np.int64), PERIOD)
        source = self._source[offset]
        drawn = period * self.shares[source] + self._earlier[offset]
        epoch, position = np.divmod(drawn, self.num_rows[source])
        return source, position, epoch


def _shares(weights: Mapping[str, float]) -> np.ndarray:
    """Rows of each source in a period, by largest remainder; int64, their sum is ``PERIOD``."""
    values = np.array(list(weights.values()), dtype=np.float64)
    exact = values / values.sum() * PERIOD
    shares: np.ndarray = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - shares), kind="stable")
    shares[by_remainder[: PERIOD - int(shares.sum())]] += 1
    for name, share in zip(weights, shares, strict=True):
        if share == 0:
            raise DataError(
                f"data.mixture: weight {weights[name]} of '{name}' out of {values.sum():g} is"
                f" less than one row in {PERIOD}. Raise it, or leave the dataset out."
            )
    return shares
