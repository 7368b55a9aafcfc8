"""What a run can prove about a training stage: its checkpoints, its data, and each row once an epoch.

1. every byte of the checkpoints and of the prepared data has the digest it was written with;
2. the ledger's records follow each other from step 0 to the newest checkpoint or the result (``reached.py``),
   and name the data that is there;
3. every micro-batch of every recorded step, over all ranks, is replayed through the pure functions
   that workers read by: each row of an epoch exactly once, each source's draws as recorded;
4. numbers of workers and steps without an update are what other files say of them (``witnesses.py``).

Reads files alone, and needs none of torch, transformers and Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.checkpoint.steps import COMPLETE
from orchestrator.counts import counted
from orchestrator.data.cache import damage
from orchestrator.data.mixture import Mixture
from orchestrator.data.prepared import Meta, content_digest
from orchestrator.data.replay import Replay, rows_of_steps
from orchestrator.errors import DataError, PlanError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.plan import BatchPlan, plan_batch
from orchestrator.train.continuation import read_begun
from orchestrator.train.ledger import Record
from orchestrator.train.proved_checkpoints import CheckpointProof, prove_checkpoints
from orchestrator.train.reached import Listed, Reached
from orchestrator.train.witnesses import find_contradiction, find_witnesses, unwitnessed

# 2^16: 0.45 us a row on one busy core; larger chunks leave the caches (0.75 us at 2^18).
CHUNK_ROWS = 2**16


@dataclass(frozen=True)
class LedgerProof:
    """What the ledger proves; with a problem, everything before it holds."""

    steps: int
    rows: int
    world_sizes: tuple[int, ...]
    """Numbers of workers, in order of their first appearance."""
    epochs: Mapping[str, float]
    """Passes over each source."""
    steps_left_out: int
    """Steps that made no update, because of an anomaly or of float16."""
    problem: str | None
    """The first violation, with stage, step and source; steps are counted as in metrics.jsonl."""
    note: str | None
    """What is not proved yet, and no violation."""


@dataclass(frozen=True)
class StageProof:
    """What a training stage can prove."""

    name: str
    checkpoints: tuple[CheckpointProof, ...]
    ledger: LedgerProof

    @property
    def is_proved(self) -> bool:
        """Whether everything holds."""
        return self.ledger.problem is None and not any(found.problem for found in self.checkpoints)


class _ViolationError(Exception):
    """The first thing that does not hold."""

    def __init__(self, step: int, message: str, *, source: str | None = None) -> None:
        """At the given step, counted from 1, and of one source or of all."""
        place = f"step {step}" if source is None else f"step {step}, source '{source}'"
        super().__init__(f"{place}: {message}".replace("\n", " "))


def prove_stage(job: Job, stage: TrainStage, layout: StageLayout) -> StageProof:
    """Check a training stage; one that has not begun has nothing to prove.

    Args:
        job: The resolved job that the stage was last started with.
    """
    listed = Listed.of(layout.checkpoints)
    replayed = _ReplayedLedger(job, stage, layout)
    problem = None
    try:
        replayed.run(listed)
    except _ViolationError as violation:
        problem = f"stage '{stage.name}', {violation}"
    checkpoints = prove_checkpoints(layout, listed.steps)
    return StageProof(stage.name, tuple(checkpoints), replayed.proof(problem))


class _ReplayedLedger:
    """A stage's ledger, replayed record by record."""

    def __init__(self, job: Job, stage: TrainStage, layout: StageLayout) -> None:
        """Begin before the first step."""
        self._job = job
        self._stage = stage
        self._layout = layout
        self._steps = 0
        self._world_sizes: dict[int, None] = {}
        self._epochs: dict[str, float] = {}
        self._left_out = 0
        self._note: str | None = None
        self._unproved: _ViolationError | None = None

    def proof(self, problem: str | None) -> LedgerProof:
        """What was proved."""
        rows = self._steps * self._stage.global_batch_size
        workers, epochs = tuple(self._world_sizes), dict(self._epochs)
        return LedgerProof(self._steps, rows, workers, epochs, self._left_out, problem, self._note)

    def run(self, listed: Listed) -> None:
        """Check the data, then every record, then that the last one is of the newest checkpoint.

        Raises:
            _ViolationError: The first thing that does not hold.
        """
        try:
            reached = Reached.read(self._layout, listed)
        except DataError as error:
            raise _ViolationError(1, str(error)) from error
        records, newest = reached.records, reached.newest
        witnesses = find_witnesses(self._layout, listed.steps)
        self._note = "; ".join(filter(None, (reached.note, unwitnessed(records, witnesses)))) or None
        if records:
            folders = self._folders()
            self._check_bytes(folders, records)
            self._check_tokenizer()
            mixture, digests = self._open(folders)
            replay = Replay(mixture, seed=self._job.seed)
            for record in records:
                self._check_place(record)
                self._check_data(record, digests)
                self._replay(record, replay)
                contradiction = find_contradiction(record, witnesses)
                if contradiction is not None:
                    raise _ViolationError(record.steps[0] + 1, contradiction)
                self._world_sizes |= {} if record.world_size is None else {record.world_size: None}
                self._steps = record.steps[1]
                self._left_out += sum(end - first for first, end in record.left_out)
                self._epochs = {name: n / mixture.size(name) for name, n in replay.drawn.items()}
        if self._steps != newest and not reached.is_pending:
            raise _ViolationError(
                min(self._steps, newest) + 1,
                f"the ledger ends with step {self._steps}, and the newest checkpoint or result is of step"
                f" {newest}",
            )
        if self._unproved is not None:
            raise self._unproved

    def _folders(self) -> dict[str, Path]:
        """Prepared folders by source."""
        try:
            inputs: dict[str, Any] = json.loads(self._layout.inputs.read_text(encoding="utf-8"))
            return {name: Path(inputs["train"][name]) for name in self._stage.data.mixture}
        except (OSError, ValueError, TypeError, KeyError) as error:
            problem = f"{self._layout.inputs} does not say which data was read: {error!r}"
            raise _ViolationError(1, problem) from error

    def _check_bytes(self, folders: Mapping[str, Path], records: list[Record]) -> None:
        """Every byte of the prepared folders is what was written."""
        for name, folder in folders.items():
            problem = damage(folder) if folder.is_dir() else "it is missing"
            if problem is not None:
                raise _ViolationError(_first_step(records, name), f"{folder}: {problem}", source=name)

    def _check_tokenizer(self) -> None:
        """The tokenizer is the one that was made, where it was made in the cache."""
        folder = Path(json.loads(self._layout.inputs.read_text(encoding="utf-8")).get("tokenizer", ""))
        problem = damage(folder) if (folder / COMPLETE).is_file() else None
        if problem is not None:
            raise _ViolationError(1, f"tokenizer {folder}: {problem}")

    def _open(self, folders: Mapping[str, Path]) -> tuple[Mixture, dict[str, str]]:
        """The mixture of the prepared folders, and the digest of each one's content."""
        data = self._stage.data
        begun, problem = read_begun(self._layout, data.after)
        if problem is not None:
            raise _ViolationError(1, problem[1], source=problem[0])
        try:
            metas = {name: Meta.open(folder) for name, folder in folders.items()}
            mixture = Mixture.of_prepared(data.mixture, data.mixture_unit, metas, begun)
        except DataError as error:
            raise _ViolationError(1, str(error)) from error
        return mixture, {name: content_digest(folder) for name, folder in folders.items()}

    def _check_place(self, record: Record) -> None:
        """The record begins where the one before ended, and its rows are those of its steps."""
        (first, end), size = record.steps, self._stage.global_batch_size
        if first > self._steps:
            missing = f"steps {self._steps + 1} to {first} are missing from the ledger"
            raise _ViolationError(self._steps + 1, missing)
        if first < self._steps:
            raise _ViolationError(first + 1, f"steps {first + 1} to {self._steps} are in the ledger twice")
        if end <= first:
            backwards = f"a record goes from step {first} to {end}, expected a later one"
            raise _ViolationError(first + 1, backwards)
        if record.rows != (first * size, end * size):
            raise _ViolationError(
                first + 1,
                f"steps {first + 1} to {end} are recorded with rows {list(record.rows)}, expected"
                f" {[first * size, end * size]}: {size} a step",
            )

    def _check_data(self, record: Record, digests: Mapping[str, str]) -> None:
        """The record names the data that is there."""
        step = record.steps[0] + 1
        silent = [key for key in ("world_size", "sources", "data", "seed") if getattr(record, key) is None]
        if silent:
            self._unproved = self._unproved or _ViolationError(
                step,
                f"its record has no {', '.join(map(repr, silent))}, as those of earlier versions or of a"
                " ledger that was lost, so what it would say cannot be proved; everything else holds",
            )
        if record.seed not in (None, self._job.seed):
            raise _ViolationError(
                step, f"its rows were read in the order of seed {record.seed}, the job's is {self._job.seed}"
            )
        if record.data is None:
            return
        for name in {**digests, **record.data}:
            found, expected = record.data.get(name), digests.get(name)
            if found != expected:
                now = f"now it is {expected}" if expected else "and the stage has no such source"
                raise _ViolationError(step, f"it read data with digest {found}, {now}", source=name)

    def _replay(self, record: Record, replay: Replay) -> None:
        """Consume all rows of the record's steps; its sources gave the draws it says."""
        batch = self._batch(record)
        before = replay.drawn
        size = batch.global_batch_size
        steps_per_chunk = -(-CHUNK_ROWS // size)
        for first in range(record.steps[0], record.steps[1], steps_per_chunk):
            steps = range(first, min(first + steps_per_chunk, record.steps[1]))
            lapse = replay.consume(rows_of_steps(batch, steps))
            if lapse is not None:
                step = lapse.global_row // size + 1
                raise _ViolationError(step, lapse.message, source=lapse.source)
        if record.sources is None:
            return
        first, end = record.steps
        for name in {**replay.drawn, **record.sources}:
            recorded, expected = record.sources.get(name), (before.get(name, 0), replay.drawn.get(name, 0))
            if name not in self._stage.data.mixture:
                message = "draws of it are recorded, and the stage has no such source"
                raise _ViolationError(first + 1, message, source=name)
            if recorded != expected:
                found = "none" if recorded is None else list(recorded)
                message = f"are recorded with draws {found}, expected {list(expected)}"
                raise _ViolationError(first + 1, f"steps {first + 1} to {end} {message}", source=name)

    def _batch(self, record: Record) -> BatchPlan:
        """How the record's workers split a step."""
        # Any number of workers reads the same rows in a step, so one stands for a number not known.
        workers = 1 if record.world_size is None else record.world_size
        try:
            resources = self._job.resources.with_workers(workers)
            return plan_batch(self._stage, resources)
        except (PlanError, ValueError) as error:
            problem = f"recorded with {counted(workers, 'worker')}: {error}"
            raise _ViolationError(record.steps[0] + 1, problem) from error


def _first_step(records: list[Record], source: str) -> int:
    """The first step of the first record in which ``source`` gave a row; 1 where none says so."""
    for record in records:
        first, end = (record.sources or {}).get(source, (0, 0))
        if first < end:
            return record.steps[0] + 1
    return 1
