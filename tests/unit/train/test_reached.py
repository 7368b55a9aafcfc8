"""A run that goes on, or was killed on any line, contradicts itself in no file; a lost record does."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.saving import DirectSaver
from orchestrator.checkpoint.steps import COMPLETE, step_name
from orchestrator.train.proof import StageProof, prove_stage
from orchestrator.train.reached import Listed, Reached
from tests.prepared import write_rows
from tests.unit.train.starts import Start, TrainedStage, make_stage


@pytest.fixture
def trained(tmp_path: Path) -> TrainedStage:
    """Six steps, each saved; not finished."""
    trained = make_stage(tmp_path, {"a": write_rows(tmp_path / "a", 50)}, {"a": 1.0})
    trained.start(Start(workers=2, save_every=1, killed_at=6))
    return trained


def prove(trained: TrainedStage) -> StageProof:
    return prove_stage(trained.job, trained.stage, trained.layout)


def problems(proof: StageProof) -> list[str]:
    """All that is said to be wrong."""
    return [str(found.problem) for found in (proof.ledger, *proof.checkpoints) if found.problem is not None]


def remove(trained: TrainedStage, *steps: int) -> None:
    for step in steps:
        seal.remove(trained.layout.checkpoints / step_name(step))


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_run_that_saves_every_step_is_never_reported(keep_last: int, tmp_path: Path) -> None:
    trained = make_stage(tmp_path, {"a": write_rows(tmp_path / "a", 50)}, {"a": 1.0})
    ledger, saver = trained.ledger(0, 2), DirectSaver(trained.layout.checkpoints, Retention(keep_last))
    tensors = {"model.weight": torch.zeros(3)}

    def train() -> None:
        for step in range(1, 81):
            state = {"step": step, "world_size": 2, "recorded": ledger.committed}
            saver.save(step, tensors, state, partial(ledger.commit, step))

    proofs = []
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        while not training.done():
            proofs.append(prove(trained))
        training.result()
    assert [problem for proof in proofs for problem in problems(proof)] == []
    assert len({proof.ledger.steps for proof in proofs}) > 3, "it was looked at while it went on"
    assert prove(trained).ledger.steps == 80


def test_a_record_that_is_pending_is_no_violation_and_the_next_start_writes_it(trained: TrainedStage) -> None:
    lines = trained.layout.ledger.read_text()
    trained.drop_record(-1)
    proof = prove(trained)
    assert proof.is_proved
    assert proof.ledger.steps == 5
    assert proof.ledger.note == "the record of step 6 is pending; this run or its next start writes it"
    trained.ledger(6, workers=4)
    assert trained.layout.ledger.read_text() == lines
    assert prove(trained).ledger.note is None


def test_the_first_record_may_be_pending(tmp_path: Path) -> None:
    trained = make_stage(tmp_path, {"a": write_rows(tmp_path / "a", 50)}, {"a": 1.0})
    trained.start(Start(workers=2, save_every=3, killed_at=4, loses_record=True))
    trained.layout.ledger.unlink()
    proof = prove(trained)
    assert proof.is_proved
    assert str(proof.ledger.note).startswith("the record of steps 1 to 3 is pending")


def lose_two_records(trained: TrainedStage) -> None:
    trained.drop_record(-1)
    trained.drop_record(-1)


def lose_the_last_record_of_a_finished_stage(trained: TrainedStage) -> None:
    trained.drop_record(-1)
    trained.finish()


def forget_what_was_recorded(trained: TrainedStage) -> None:
    trained.drop_record(-1)
    trained.save(6, 2, None)


def say_what_is_not_so(trained: TrainedStage) -> None:
    trained.drop_record(-1)
    trained.save(6, 2, 4)


def damage_the_state(trained: TrainedStage) -> None:
    trained.drop_record(-1)
    (trained.layout.checkpoints / step_name(6) / seal.STATE).write_text(json.dumps({"recorded": 5}))


LOSSES: dict[Callable[[TrainedStage], None], tuple[int, int]] = {
    lose_two_records: (4, 6),
    lose_the_last_record_of_a_finished_stage: (5, 6),
    forget_what_was_recorded: (5, 6),
    say_what_is_not_so: (5, 6),
    damage_the_state: (5, 6),
    lambda trained: remove(trained, 5, 6): (6, 4),
}


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_ledger_that_does_not_fit_the_newest_checkpoint_is_a_violation(
    lose: Callable[[TrainedStage], None], trained: TrainedStage
) -> None:
    lose(trained)
    ledger, newest = LOSSES[lose]
    proof = prove(trained).ledger
    assert proof.note is None
    assert proof.problem == (
        f"stage 'pretrain', step {min(ledger, newest) + 1}: the ledger ends with step {ledger}, and the"
        f" newest checkpoint or result is of step {newest}"
    )


def test_what_goes_on_after_checkpoints_were_listed_is_no_contradiction(trained: TrainedStage) -> None:
    listed = Listed.of(trained.layout.checkpoints)
    ledger = trained.ledger(6, 2)
    for step in (7, 8, 9):
        trained.save(step, 2, ledger.committed)
        ledger.commit(step)
    remove(trained, *range(1, 9))
    assert (listed.newest, listed.is_followed_by(9), listed.is_followed_by(10)) == (6, True, False)
    reached = Reached.read(trained.layout, listed)
    assert (reached.recorded, reached.newest, reached.note) == (9, 9, None)


def test_a_save_that_is_committed_and_not_yet_recorded_is_no_contradiction(trained: TrainedStage) -> None:
    before = Listed.of(trained.layout.checkpoints)
    trained.save(7, 2, 6)
    assert Reached.read(trained.layout, before).note is None
    assert str(Reached.read(trained.layout, Listed.of(before.folder)).note).startswith(
        "the record of step 7 is pending"
    )


def test_what_a_save_or_a_removal_left_when_it_was_killed_is_no_checkpoint(trained: TrainedStage) -> None:
    for step, names in ((2, (seal.WAITING,)), (3, ()), (4, (seal.WAITING, seal.MANIFEST))):
        path = trained.layout.checkpoints / step_name(step)
        (path / COMPLETE).rename(path / seal.WAITING)
        for name in {seal.WAITING, seal.MANIFEST} - set(names):
            (path / name).unlink()
    proof = prove(trained)
    assert proof.is_proved
    assert [found.step for found in proof.checkpoints] == [1, 5, 6]


def test_a_complete_that_was_lost_is_reported(trained: TrainedStage) -> None:
    (trained.layout.checkpoints / step_name(2) / COMPLETE).unlink()
    assert problems(prove(trained)) == [
        "no COMPLETE file, though it was complete once: somebody or something has removed it"
    ]


def test_a_folder_that_is_saved_and_removed_has_never_lost_its_complete(tmp_path: Path) -> None:
    newest = [tmp_path / step_name(0)]

    def save_and_remove() -> None:
        for step in range(1, 201):
            path = tmp_path / step_name(step)
            path.mkdir()
            newest[0] = path
            seal.seal(path, {})
            seal.remove(path)

    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(save_and_remove)
        while not saving.done():
            assert not seal.has_lost_complete(newest[0])
        saving.result()
