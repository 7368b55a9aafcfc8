"""What an examination finds in some rows, and the folder that holds it for a shard of a streamed source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from orchestrator.data.columns import Unsound

ARRAYS = ("numbers", "hashes")
COUNTS = ("num_rows", "num_blank", "num_filtered", "dropped", "scrubbed")


@dataclass(frozen=True)
class Examined:
    """What one range of a source's rows holds, or one shard of a streamed source."""

    num_rows: int
    """Rows that were looked at."""
    numbers: np.ndarray
    """int64: rows that are kept, by their number in the source."""
    hashes: np.ndarray
    """uint64 ``(rows, 2)``, as ``hash_rows`` returns them; without rows where no split needs them."""
    num_blank: int
    """Rows among them whose text is empty or white space alone."""
    num_filtered: int
    """Rows that the filter keeps, sound or not."""
    unsound: tuple[Unsound, ...]
    dropped: Mapping[str, int]
    """Rows by the key of the section that drops them."""
    scrubbed: Mapping[str, int]
    """Placeholders in the texts of these rows, by kind."""

    def save(self, folder: Path) -> None:
        """Write it into ``folder``."""
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        counts = {name: getattr(self, name) for name in COUNTS}
        unsound = [asdict(row) for row in self.unsound]
        (folder / "counts.json").write_text(json.dumps({**counts, "unsound": unsound}, indent=1), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Examined:
        """Read what ``save`` wrote."""
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
        counts = json.loads((folder / "counts.json").read_text("utf-8"))
        unsound = tuple(Unsound(**row) for row in counts.pop("unsound"))
        return cls(**arrays, **counts, unsound=unsound)


def renumbered(shards: Iterable[Examined]) -> Iterator[Examined]:
    """Each shard with its rows' numbers among those of all shards."""
    first = 0
    for shard in shards:
        unsound = tuple(replace(row, number=row.number + first) for row in shard.unsound)
        yield replace(shard, numbers=shard.numbers + first, unsound=unsound)
        first += shard.num_rows
