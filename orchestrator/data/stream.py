"""The rows of a stage by its global cursor: mixed, shuffled, endless.

Legend of shapes: B rows that are asked for, S ``seq_len``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.contracts import EqualRows, Row
from orchestrator.data.loader import RowReader
from orchestrator.data.mixture import Mixture, group

if TYPE_CHECKING:
    from orchestrator.spec.training import MixtureUnit

# 1024: permuting 8 rows costs 80 us, nearly all of it the overhead of numpy calls, and 1024 rows 300 us;
# so a block of the cursor is located at once, and remembered while it is read through.
BLOCK_ROWS = 1024


class MixtureReader:
    """Rows of a stage by the global cursor: mixed, shuffled, endless."""

    def __init__(
        self,
        readers: Mapping[str, RowReader],
        weights: Mapping[str, float],
        *,
        seed: int,
        unit: MixtureUnit = "rows",
        begun: Mapping[str, int] | None = None,
    ) -> None:
        """Join readers of one layout, each named as its source is.

        Args:
            readers: One reader for each source.
            weights: Positive weight of each source, in ``unit``; as ``data.mixture`` has them.
            seed: The job's seed.
            begun: Rows that sources have given before; absent: none.

        Raises:
            DataError: A weight is too small to get one row in 10,000, or ``unit`` is tokens and rows
                are pairs.
        """
        assert len({readers[name].meta.layout for name in weights}) == 1
        assert all(reader.source_name == name for name, reader in readers.items())
        metas = {name: reader.meta for name, reader in readers.items()}
        self.mixture = Mixture.of_prepared(weights, unit, metas, begun)
        self._readers = [readers[name] for name in self.mixture.names]
        self.num_rows = int(self.mixture.num_rows.sum())
        """Rows that all sources hold together: one epoch."""
        self._seed = seed
        self._block = lru_cache(maxsize=4)(self._locate_block)

    def read_global(self, global_rows: range | np.ndarray) -> Sequence[Row]:
        """The rows at these places of the cursor, in the order asked for.

        Args:
            global_rows: Rows consumed by all ranks before each row: consecutive ones, or int64 ``(B,)``.
        """
        sources, rows, epochs = self._locate(global_rows)
        equal_BS = self._read_equal(sources, rows)
        if equal_BS is not None:
            return EqualRows(equal_BS)
        found: dict[int, Row] = {}
        for source, in_source in group(sources):
            for epoch, in_epoch in group(epochs[in_source]):
                places = in_source[in_epoch]
                read = self._readers[source].read(rows[places], epoch)
                found.update(zip(places.tolist(), read, strict=True))
        return [found[place] for place in range(len(global_rows))]

    def _read_equal(self, sources: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """The rows as one array, int64 ``(B, S)``, where all of them are nothing but tokens."""
        if len(self._readers) == 1:
            return self._readers[0].read_equal(rows)
        tokens_BS = np.empty((len(rows), self._readers[0].meta.layout.seq_len), dtype=np.int64)
        for source, places in group(sources):
            part_BS = self._readers[source].read_equal(rows[places])
            if part_BS is None:
                return None
            tokens_BS[places] = part_BS
        return tokens_BS

    def _locate(self, global_rows: range | np.ndarray) -> np.ndarray:
        """Source, row number in it and epoch of each global row, int64 ``(3, B)``."""
        if isinstance(global_rows, range):
            block, first = divmod(global_rows.start, BLOCK_ROWS)
            if first + len(global_rows) <= BLOCK_ROWS:
                return self._block(block)[:, first : first + len(global_rows)]
            global_rows = np.arange(global_rows.start, global_rows.stop, dtype=np.int64)
        located = np.empty((3, len(global_rows)), dtype=np.int64)
        for block, places in group(global_rows // BLOCK_ROWS):
            located[:, places] = self._block(block)[:, global_rows[places] % BLOCK_ROWS]
        return located

    def _locate_block(self, block: int) -> np.ndarray:
        """The same for all rows of one block of the cursor, int64 ``(3, BLOCK_ROWS)``."""
        cursor = np.arange(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS, dtype=np.int64)
        return self.mixture.locate_rows(cursor, seed=self._seed)
