"""ledger.jsonl: what each committed range of steps consumed, and on which data.

One line a checkpoint, ranges and no lists, for example

    {"steps": [0, 50], "rows": [0, 400], "world_size": 2,
     "sources": {"books": [0, 300], "web": [0, 100]}, "data": {"books": "9f...", "web": "31..."},
     "left_out": [[17, 18]], "seed": 17}

Ranges begin with the first and end before the last. ``rows`` are places of the cursor; those of a
source number the rows that it gave, epoch after epoch, so that draw d is position d modulo its size in
epoch d divided by its size. ``data`` are the digests of the prepared folders' content, and
``left_out`` steps whose rows were consumed without an update, because of an anomaly or of an overflow of
float16; ``seed`` is the job's, which decides the order of rows.
``proof.py`` replays it all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.mixture import Mixture
from orchestrator.errors import DataError
from orchestrator.spec.plan import BatchPlan
from orchestrator.tracking.events import read_json_lines, replace_text

Range = tuple[int, int]


@dataclass(frozen=True)
class Record:
    """One line of the ledger."""

    steps: Range
    rows: Range
    world_size: int | None
    """Workers; ``None``: the process died before it could say so."""
    sources: Mapping[str, Range] | None
    """Draws of each source; ``None``: written by a version that did not record them."""
    data: Mapping[str, str] | None
    """Content digest of each source's folder; ``None``: written by a version that did not record it."""
    left_out: tuple[Range, ...] = ()
    """Steps that made no update."""
    seed: int | None = None
    """The job's; ``None``: written by a version that did not record it."""


class Ledger:
    """Writes a stage's ledger; used by rank 0 alone."""

    def __init__(
        self,
        path: Path,
        batch_plan: BatchPlan,
        start_step: int,
        *,
        mixture: Mixture,
        data: Mapping[str, str],
        seed: int,
        saved_by: int | None,
        since: int | None = None,
        left_out: Sequence[Range] = (),
    ) -> None:
        """Continue after ``start_step``; records of later steps belong to no checkpoint and go.

        A process may die between a checkpoint and its record, so a record that is missing is made up for.

        Args:
            data: Content digest of each source's prepared folder.
            seed: The job's.
            saved_by: Workers that wrote the checkpoint of ``start_step``; ``None``: it does not say.
            since: The step that was recorded last when that was written; ``None``: it does not say.
            left_out: Steps since then that made no update.

        Raises:
            DataError: A line is no record; or the last one's rows were of other sources than these would be.
        """
        self._path = path
        self._batch_plan = batch_plan
        self._mixture = mixture
        self._data = data
        self._seed = seed
        kept = [record for record in _records(path) if record["steps"][1] <= start_step]
        self._check_order(kept)
        self._committed = kept[-1]["steps"][1] if kept else 0
        replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        if since is not None and self._committed < since:
            # Records were lost, with a disk or by hand: how many workers, and what was left out?
            self._record(since, None)
        if self._committed < start_step:
            self._record(start_step, saved_by, left_out)

    def _check_order(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to go on in another order of rows than the one that was begun: some would be read twice."""
        if not records or not records[-1].get("sources"):
            return
        end = records[-1]["rows"][1]
        found = {name: draws[1] for name, draws in records[-1]["sources"].items()}
        if found != (expected := self._mixture.drawn(end)):
            raise DataError(
                f"{self._path}: by row {end} the sources had given {found}, and in the order of this version"
                f" {expected}: go on with the version that began the stage, or start it over with --redo"
            )

    @property
    def committed(self) -> int:
        """Steps that are recorded."""
        return self._committed

    def commit(self, step: int, left_out: Sequence[Range] = ()) -> None:
        """Record the steps since the last commit, of which those ``left_out`` made no update."""
        if step > self._committed:
            self._record(step, self._batch_plan.world_size, left_out)

    def _record(self, step: int, world_size: int | None, left_out: Sequence[Range] = ()) -> None:
        """Append the record of the steps from the last commit to ``step``."""
        rows = (
            self._committed * self._batch_plan.global_batch_size,
            step * self._batch_plan.global_batch_size,
        )
        before, after = (self._mixture.drawn(cursor) for cursor in rows)
        record = Record(
            steps=(self._committed, step),
            rows=rows,
            world_size=world_size,
            sources={name: (before[name], after[name]) for name in self._mixture.names},
            data=self._data,
            left_out=tuple(left_out),
            seed=self._seed,
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        self._committed = step


def read_ledger(path: Path) -> list[Record]:
    """The ledger's records; none where the file does not exist.

    A last line without its end is left out: its writer was killed, and the next start writes it anew.

    Raises:
        DataError: A line is no record; the message has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def committed_steps(path: Path) -> list[int]:
    """Steps whose checkpoint was complete once, by the lines that can be read; none without a ledger."""
    steps = []
    for record in read_json_lines(path):
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            steps.append(_record_in(record).steps[1])
    return steps


def _parse(path: Path, number: int, line: str) -> Record:
    """One record.

    Raises:
        DataError: The line is something else.
    """
    try:
        return _record_in(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: line {number} is no record of a ledger: {line[:100]!r}") from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records as JSON, without lines that were torn.

    Raises:
        DataError: One is something else.
    """
    for number, record in enumerate(read_json_lines(path), start=1):
        try:
            _record_in(record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: record {number} is none of a ledger: {json.dumps(record)[:100]!r}. Delete that line"
                " and those after it: what is missing is made up for from the checkpoint"
            ) from error
        yield record


def _record_in(fields: dict[str, Any]) -> Record:
    """One record.

    Raises:
        Exception: It is something else: ValueError, TypeError, KeyError or AttributeError.
    """
    sources, data, workers = fields.get("sources"), fields.get("data"), fields["world_size"]
    seed, steps = fields.get("seed"), _range(fields["steps"])
    return Record(
        steps=steps,
        rows=_range(fields["rows"]),
        world_size=None if workers is None else _whole(workers),
        sources=None if sources is None else {name: _range(pair) for name, pair in sources.items()},
        data=None if data is None else {name: str(digest) for name, digest in data.items()},
        left_out=_up_to(steps[1], [_range(pair) for pair in fields.get("left_out", [])]),
        seed=None if seed is None else _whole(seed),
    )


def _up_to(end: int, ranges: list[Range]) -> tuple[Range, ...]:
    """``ranges``, which follow each other up to ``end``; a rollback may have begun before the record."""
    places = [0, *(place for steps in ranges for place in steps), end]
    if places != sorted(places) or any(first == last for first, last in ranges):
        raise ValueError(f"found {ranges}, expected ranges one after the other up to {end}")
    return tuple(ranges)


def _range(pair: Any) -> Range:
    """A range from its JSON, a list of two whole numbers."""
    first, end = pair
    return _whole(first), _whole(end)


def _whole(number: Any) -> int:
    """A number of JSON; ``true`` is none."""
    if type(number) is not int:
        raise TypeError(f"found {number!r}, expected a whole number")
    return number
