"""A run proves what it read: whatever kills and worker counts it went through, and nothing that is not so."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.checkpoint.steps import COMPLETE, step_name
from orchestrator.data.order import order_key, permute
from orchestrator.data.prepared import content_digest
from orchestrator.data.replay import rows_of_steps
from orchestrator.train.proof import StageProof, prove_stage
from tests.prepared import write_rows
from tests.unit.train.starts import GLOBAL_BATCH_SIZE, Start, TrainedStage, consumed_rows, make_stage

SIZES = {"a": 150, "b": 61, "c": 9}
WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared rows that no test changes."""
    root = tmp_path_factory.mktemp("rows")
    return {name: write_rows(root / name, size) for name, size in SIZES.items()}


def prove(trained: TrainedStage) -> StageProof:
    return prove_stage(trained.job, trained.stage, trained.layout)


def trained_stage(folder: Path, folders: Mapping[str, Path]) -> TrainedStage:
    """Twenty finished steps: 10 of 12 by 2 workers, 10 by 4."""
    trained = make_stage(folder, folders, WEIGHTS)
    trained.start(Start(workers=2, save_every=5, killed_at=12))
    trained.start(Start(workers=4, save_every=5, killed_at=20))
    trained.finish()
    return trained


STARTS = st.lists(
    st.builds(
        Start,
        workers=st.sampled_from([1, 2, 3, 4, 8]),
        save_every=st.integers(2, 9),
        killed_at=st.integers(1, 30),
        loses_record=st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@given(starts=STARTS, weights=st.tuples(*[st.floats(0.1, 5.0)] * 3))
@settings(max_examples=15, deadline=None)
def test_every_row_of_an_epoch_is_consumed_once_through_kills_and_changes_of_workers(
    starts: list[Start], weights: tuple[float, ...], folders: Mapping[str, Path]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trained = make_stage(Path(folder), folders, dict(zip(SIZES, weights, strict=True)))
        for start in starts:
            trained.start(start)
        last = max(trained.saved_by, default=0) + 1
        trained.start(Start(workers=1, save_every=last, killed_at=last))
        trained.finish()
        proof = prove(trained)
    assert proof.ledger.problem is None
    assert proof.ledger.rows == last * GLOBAL_BATCH_SIZE
    assert set(proof.ledger.world_sizes) <= {start.workers for start in starts} | {1}
    assert all(found.problem is None for found in proof.checkpoints)

    cursor = consumed_rows(trained)
    assert len(cursor) == proof.ledger.rows
    sources, positions, epochs = trained.mixture.locate(cursor)
    for index, (name, size) in enumerate(SIZES.items()):
        drawn = int((sources == index).sum())
        assert proof.ledger.epochs[name] == drawn / size
        for epoch in range(-(-drawn // size)):
            places = positions[(sources == index) & (epochs == epoch)]
            rows = permute(places, size, order_key(7, name, epoch)).tolist()
            assert len(set(rows)) == len(rows), "no row of an epoch twice"
            assert len(rows) == min(size, drawn - epoch * size), "every row of a whole epoch"


def test_rows_of_steps_are_those_of_all_ranks_and_micro_batches(
    tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    trained = make_stage(tmp_path, folders, WEIGHTS)
    for workers in (1, 2, 3, 4, 8):
        rows = rows_of_steps(trained.batch(workers), range(3, 5))
        assert rows.tolist() == list(range(3 * GLOBAL_BATCH_SIZE, 5 * GLOBAL_BATCH_SIZE))


def test_a_finished_stage_is_proved_in_numbers(tmp_path: Path, folders: Mapping[str, Path]) -> None:
    proof = prove(trained_stage(tmp_path, folders))
    assert proof.is_proved
    assert (proof.ledger.steps, proof.ledger.rows, proof.ledger.world_sizes) == (20, 480, (2, 4))
    assert proof.ledger.epochs == {"a": 288 / 150, "b": 144 / 61, "c": 48 / 9}
    assert [found.step for found in proof.checkpoints] == [5, 10, 15, 20]


def test_a_stage_that_has_not_begun_has_nothing_to_prove(tmp_path: Path, folders: Mapping[str, Path]) -> None:
    proof = prove(make_stage(tmp_path, folders, WEIGHTS))
    assert proof.is_proved
    assert (proof.ledger.rows, proof.checkpoints) == (0, ())


def drop_inner_record(trained: TrainedStage) -> None:
    trained.drop_record(1)


def repeat_steps(trained: TrainedStage) -> None:
    trained.rewrite_record(2, steps=[8, 15])


def go_backwards(trained: TrainedStage) -> None:
    trained.rewrite_record(1, steps=[5, 5])


def claim_other_rows(trained: TrainedStage) -> None:
    trained.rewrite_record(2, rows=[240, 361])


def claim_other_draws(trained: TrainedStage) -> None:
    trained.rewrite_record(2, sources={"a": [144, 216], "b": [73, 108], "c": [24, 36]})


def hide_a_source(trained: TrainedStage) -> None:
    trained.rewrite_record(3, sources={"a": [216, 288], "b": [108, 144]})


def invent_a_source(trained: TrainedStage) -> None:
    trained.rewrite_record(2, sources={"a": [144, 216], "b": [72, 108], "c": [24, 36], "z": [0, 5]})


def invent_a_source_without_draws(trained: TrainedStage) -> None:
    trained.rewrite_record(2, sources={"a": [144, 216], "b": [72, 108], "c": [24, 36], "z": [0, 0]})


def claim_steps_without_an_update(trained: TrainedStage) -> None:
    trained.rewrite_record(2, left_out=[[12, 14]])


def claim_other_workers(trained: TrainedStage) -> None:
    trained.rewrite_record(2, world_size=1)


def claim_other_workers_of_a_checkpoint_that_is_gone(trained: TrainedStage) -> None:
    shutil.rmtree(trained.layout.checkpoints / step_name(10))
    trained.rewrite_record(1, world_size=1)


def claim_steps_without_an_update_of_a_checkpoint_that_is_gone(trained: TrainedStage) -> None:
    shutil.rmtree(trained.layout.checkpoints / step_name(10))
    trained.rewrite_record(1, left_out=[[6, 7]])


def claim_another_seed(trained: TrainedStage) -> None:
    trained.rewrite_record(2, seed=trained.job.seed + 1)


def claim_workers_that_do_not_divide_the_batch(trained: TrainedStage) -> None:
    trained.rewrite_record(1, world_size=5)


def claim_no_workers(trained: TrainedStage) -> None:
    trained.rewrite_record(1, world_size=0)


def invent_data(trained: TrainedStage) -> None:
    (record, *_) = map(json.loads, trained.layout.ledger.read_text().splitlines())
    trained.rewrite_record(1, data={**record["data"], "z": "0" * 32})


def claim_other_data(trained: TrainedStage) -> None:
    data = {name: content_digest(folder) for name, folder in trained.folders.items()}
    trained.rewrite_record(1, data={**data, "b": "0" * 32})


def drop_last_record(trained: TrainedStage) -> None:
    trained.drop_record(3)


def lose_the_ledger(trained: TrainedStage) -> None:
    trained.layout.ledger.unlink()


def finish_early(trained: TrainedStage) -> None:
    for step in (15, 20):
        shutil.rmtree(trained.layout.checkpoints / step_name(step))
    trained.layout.result.write_text('{"step": 10}')


def damage_the_result(trained: TrainedStage) -> None:
    trained.layout.result.write_text("{")


def write_nonsense(trained: TrainedStage) -> None:
    with trained.layout.ledger.open("a") as file:
        file.write("nonsense\n")


def lose_the_inputs(trained: TrainedStage) -> None:
    trained.layout.inputs.unlink()


LIES: dict[Callable[[TrainedStage], None], str] = {
    drop_inner_record: "step 6: steps 6 to 10 are missing from the ledger",
    repeat_steps: "step 9: steps 9 to 10 are in the ledger twice",
    go_backwards: "step 6: a record goes from step 5 to 5, expected a later one",
    claim_other_rows: (
        "step 11: steps 11 to 15 are recorded with rows [240, 361], expected [240, 360]: 24 a step"
    ),
    claim_other_draws: (
        "step 11, source 'b': steps 11 to 15 are recorded with draws [73, 108], expected [72, 108]"
    ),
    hide_a_source: "step 16, source 'c': steps 16 to 20 are recorded with draws none, expected [36, 48]",
    invent_a_source: "step 11, source 'z': draws of it are recorded, and the stage has no such source",
    invent_a_source_without_draws: "step 11, source 'z': draws of it are recorded, and the stage has no such",
    claim_steps_without_an_update: (
        "step 11: of steps 11 to 15 [(12, 14)] are left out, and their checkpoint has []"
    ),
    claim_other_workers: ("step 11: steps 11 to 15 are recorded with 1 worker, and their checkpoint has 4"),
    claim_other_workers_of_a_checkpoint_that_is_gone: (
        "step 6: steps 6 to 10 are recorded with 1 worker, and their event in events.jsonl has 2"
    ),
    claim_steps_without_an_update_of_a_checkpoint_that_is_gone: (
        "step 6: of steps 6 to 10 [(6, 7)] are left out, and their event in events.jsonl has []"
    ),
    claim_another_seed: "step 11: its rows were read in the order of seed ",
    claim_workers_that_do_not_divide_the_batch: (
        "step 6: recorded with 5 workers: stage 'pretrain': global_batch_size 24 is not a multiple of"
        " micro_batch_size 1 x dp_degree 5 = 5. Nearest: 20 or 25."
    ),
    claim_no_workers: "step 6: recorded with 0 workers: ",
    invent_data: "step 6, source 'z': it read data with digest "
    + "0" * 32
    + ", and the stage has no such source",
    claim_other_data: f"step 6, source 'b': it read data with digest {'0' * 32}, now it is ",
    drop_last_record: (
        "step 16: the ledger ends with step 15, and the newest checkpoint or result is of step 20"
    ),
    lose_the_ledger: (
        "step 1: the ledger ends with step 0, and the newest checkpoint or result is of step 20"
    ),
    finish_early: "step 11: the ledger ends with step 20, and the newest checkpoint or result is of step 10",
    damage_the_result: "step 1: {folder}/run/pretrain/result.json is damaged: JSONDecodeError(",
    write_nonsense: "step 1: {folder}/run/pretrain/ledger.jsonl: line 5 is no record of a ledger: 'nonsense'",
    lose_the_inputs: "step 1: {folder}/run/pretrain/inputs.json does not say which data was read: ",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_is_found_with_its_step_and_source(
    lie: Callable[[TrainedStage], None], tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    trained = trained_stage(tmp_path, folders)
    lie(trained)
    proof = prove(trained)
    assert proof.ledger.problem is not None
    assert proof.ledger.problem.startswith(f"stage 'pretrain', {LIES[lie].format(folder=tmp_path)}")
    assert not proof.is_proved


def own_rows(folder: Path) -> dict[str, Path]:
    """Prepared rows that a test may change."""
    return {name: write_rows(folder / "rows" / name, size) for name, size in SIZES.items()}


@pytest.mark.parametrize("file", ["tokens.bin", "documents.npy", "meta.json", COMPLETE])
def test_a_changed_byte_of_the_data_is_found_with_its_source(file: str, tmp_path: Path) -> None:
    folders = own_rows(tmp_path)
    trained = trained_stage(tmp_path, folders)
    content = bytearray((folders["c"] / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folders["c"] / file).write_bytes(content)
    problem = prove(trained).ledger.problem
    assert problem is not None
    assert problem.startswith(f"stage 'pretrain', step 1, source 'c': {folders['c']}: ")


def test_a_source_is_blamed_from_the_first_step_that_read_it(tmp_path: Path) -> None:
    folders = {"a": write_rows(tmp_path / "a", 900), "rare": write_rows(tmp_path / "rare", 10)}
    trained = make_stage(tmp_path, folders, {"a": 0.999, "rare": 0.001})
    trained.start(Start(workers=1, save_every=10, killed_at=40))
    (folders["rare"] / "tokens.bin").write_bytes(b"")
    # Of 1,000 rows one is of this source: row 500, which step 21 reads.
    problem = prove(trained).ledger.problem
    assert problem is not None
    assert problem.startswith("stage 'pretrain', step 21, source 'rare'")


def test_data_that_was_made_anew_with_other_content_is_found(tmp_path: Path) -> None:
    folders = own_rows(tmp_path)
    trained = trained_stage(tmp_path, folders)
    shutil.rmtree(folders["b"])
    write_rows(folders["b"], SIZES["b"])
    assert prove(trained).is_proved, "made anew with the same content, it is the same data"
    shutil.rmtree(folders["b"])
    write_rows(folders["b"], SIZES["b"], first_token=1)
    problem = prove(trained).ledger.problem
    assert problem is not None
    assert problem.startswith("stage 'pretrain', step 1, source 'b': it read data with digest ")


def test_data_that_is_gone_is_named(tmp_path: Path) -> None:
    folders = own_rows(tmp_path)
    trained = trained_stage(tmp_path, folders)
    shutil.rmtree(folders["a"])
    problem = prove(trained).ledger.problem
    assert problem == f"stage 'pretrain', step 1, source 'a': {folders['a']}: it is missing"


@pytest.mark.parametrize("missing", ["sources", "data", "world_size"])
def test_what_an_old_record_does_not_say_is_named_as_not_proved(
    missing: str, tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    trained = trained_stage(tmp_path, folders)
    trained.rewrite_record(1, **{missing: None})
    proof = prove(trained)
    assert proof.ledger.problem == (
        f"stage 'pretrain', step 6: its record has no '{missing}', as those of earlier versions or of a"
        " ledger that was lost, so what it would say cannot be proved; everything else holds"
    )
    assert proof.ledger.rows == 480


def test_what_does_not_hold_comes_before_what_cannot_be_proved(
    tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    trained = trained_stage(tmp_path, folders)
    trained.rewrite_record(0, sources=None)
    trained.drop_record(2)
    problem = prove(trained).ledger.problem
    assert problem == "stage 'pretrain', step 11: steps 11 to 15 are missing from the ledger"


def test_what_the_ledger_alone_says_is_noted_in_ranges(tmp_path: Path, folders: Mapping[str, Path]) -> None:
    trained = trained_stage(tmp_path, folders)
    assert prove(trained).ledger.note is None
    events = trained.run.events.read_text().splitlines(keepends=True)
    for step in (5, 10, 20):
        shutil.rmtree(trained.layout.checkpoints / step_name(step))
    assert prove(trained).ledger.note is None
    trained.run.events.write_text("".join(line for line in events if '"step": 20' in line))
    note = prove(trained).ledger.note
    assert note is not None
    assert note.startswith("not proved of steps 1 to 10: how many workers there were")
    assert prove(trained).is_proved


def test_an_event_of_steps_that_were_taken_back_witnesses_nothing(
    tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    trained = make_stage(tmp_path, folders, WEIGHTS)
    trained.start(Start(workers=2, save_every=5, killed_at=10))
    shutil.rmtree(trained.layout.checkpoints / step_name(10))
    del trained.saved_by[10]
    trained.start(Start(workers=4, save_every=5, killed_at=10, loses_record=True))
    trained.start(Start(workers=1, save_every=20, killed_at=20))
    shutil.rmtree(trained.layout.checkpoints / step_name(10))
    proof = prove(trained)
    assert proof.ledger.problem is None
    assert proof.ledger.world_sizes == (2, 4, 1)
    assert str(proof.ledger.note).startswith("not proved of steps 6 to 10: ")


def test_a_damaged_checkpoint_is_named_and_others_hold(tmp_path: Path, folders: Mapping[str, Path]) -> None:
    trained = trained_stage(tmp_path, folders)
    (trained.layout.checkpoints / step_name(10) / "state.json").write_text("{}")
    proof = prove(trained)
    assert proof.ledger.problem is None
    assert not proof.is_proved
    found = {checkpoint.step: checkpoint.problem for checkpoint in proof.checkpoints}
    assert [step for step, problem in found.items() if problem is None] == [5, 15, 20]
    assert str(found[10]).startswith("state.json: 2 bytes with digest ")


def test_an_interrupted_save_is_no_checkpoint_and_a_committed_one_without_complete_is_damaged(
    tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    trained = trained_stage(tmp_path, folders)
    trained.layout.result.unlink()
    (trained.layout.checkpoints / step_name(25)).mkdir()
    assert prove(trained).is_proved
    (trained.layout.checkpoints / step_name(20) / COMPLETE).unlink()
    proof = prove(trained)
    assert [found.step for found in proof.checkpoints if found.problem is not None] == [20]


def test_a_newest_checkpoint_that_lost_everything_is_named(
    tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    trained = trained_stage(tmp_path, folders)
    # Older ones may be half removed, since newer ones are there.
    for step in (5, 20):
        for file in (trained.layout.checkpoints / step_name(step)).iterdir():
            file.unlink()
    (found,) = [found for found in prove(trained).checkpoints if found.problem is not None]
    assert (found.step, found.problem) == (
        20,
        "no COMPLETE and no manifest.json, though the ledger has its steps",
    )


def test_a_mixture_in_tokens_is_replayed_as_it_was_read(tmp_path: Path, folders: Mapping[str, Path]) -> None:
    trained = make_stage(tmp_path, folders, WEIGHTS, mixture_unit="tokens")
    trained.start(Start(workers=3, save_every=4, killed_at=9))
    assert prove(trained).is_proved
    record = json.loads(trained.layout.ledger.read_text().splitlines()[0])
    assert record["sources"] == {name: [0, end] for name, end in trained.mixture.drawn(96).items()}
