"""The ledger says exactly what was committed, through deaths on any line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.data.mixture import Mixture
from orchestrator.errors import DataError
from orchestrator.spec.plan import BatchPlan
from orchestrator.train.ledger import Ledger, Record, committed_steps, read_ledger

PLAN = BatchPlan(world_size=2, micro_batch_size=2, grad_accum_steps=1, global_batch_size=4, seq_len=8)
MIXTURE = Mixture({"a": 3.0, "b": 1.0}, {"a": 5, "b": 7})


def open_ledger(path: Path, start_step: int, *, saved_by: int | None = None) -> Ledger:
    return Ledger(
        path, PLAN, start_step, mixture=MIXTURE, data={"a": "1f", "b": "2f"}, seed=9, saved_by=saved_by
    )


def test_a_record_says_what_its_steps_consumed_in_ranges(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = open_ledger(path, 0)
    ledger.commit(3)
    ledger.commit(5)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "steps": [0, 3],
            "rows": [0, 12],
            "world_size": 2,
            "sources": {"a": [0, 9], "b": [0, 3]},
            "data": {"a": "1f", "b": "2f"},
            "left_out": [],
            "seed": 9,
        },
        {
            "steps": [3, 5],
            "rows": [12, 20],
            "world_size": 2,
            "sources": {"a": [9, 15], "b": [3, 5]},
            "data": {"a": "1f", "b": "2f"},
            "left_out": [],
            "seed": 9,
        },
    ]
    assert read_ledger(path)[1] == Record(
        (3, 5), (12, 20), 2, {"a": (9, 15), "b": (3, 5)}, {"a": "1f", "b": "2f"}, seed=9
    )


def test_ledger_joins_without_gap_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = open_ledger(path, 0)
    first.commit(3)
    first.commit(6)
    # Killed after step 6 was recorded, resumed from the checkpoint of step 3.
    open_ledger(path, 3).commit(7)
    assert [record.rows for record in read_ledger(path)] == [(0, 12), (12, 28)]


def test_a_record_lost_between_checkpoint_and_ledger_is_made_up_for_by_who_saved_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    open_ledger(path, 0).commit(5)
    # Killed after the checkpoint of step 10, which 4 workers wrote, and before its record.
    open_ledger(path, 10, saved_by=4).commit(15)
    records = read_ledger(path)
    assert [record.steps for record in records] == [(0, 5), (5, 10), (10, 15)]
    assert [record.world_size for record in records] == [2, 4, 2]


def test_a_torn_last_line_is_left_out_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    open_ledger(path, 0).commit(5)
    whole = path.read_text()
    open_ledger(path, 5).commit(6)
    path.write_text(path.read_text()[:-20])
    assert [record.steps for record in read_ledger(path)] == [(0, 5)]
    open_ledger(path, 5)
    assert path.read_text() == whole


def test_records_of_earlier_versions_are_read_without_what_they_lack(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"steps": [0, 5], "rows": [0, 20], "world_size": 2}\n')
    assert read_ledger(path) == [Record((0, 5), (0, 20), 2, None, None)]
    assert read_ledger(tmp_path / "none") == []


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"steps": [0, 5], "world_size": 2}',
        '{"steps": [0, 5, 6], "rows": [0, 20], "world_size": 2}',
        '{"steps": [0, 5.5], "rows": [0, 20], "world_size": 2}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": "two"}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": 2, "sources": [1]}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": 2, "left_out": [[4, 6]]}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": 2, "left_out": [[3, 4], [1, 2]]}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": 2, "left_out": [[2, 2]]}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": true}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": "2"}',
        '{"steps": [0, 5], "rows": [0, 20], "world_size": 2, "seed": true}',
    ],
)
def test_a_line_that_is_no_record_is_named_by_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    open_ledger(path, 0).commit(5)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"ledger\.jsonl: line 2 is no record of a ledger"):
        read_ledger(path)


def test_steps_left_out_are_in_the_record_also_where_it_is_made_up_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    open_ledger(path, 0).commit(3, [(1, 2)])
    Ledger(path, PLAN, 6, mixture=MIXTURE, data={}, seed=9, saved_by=2, left_out=[(3, 5)])
    assert [record.left_out for record in read_ledger(path)] == [((1, 2),), ((3, 5),)]


def test_steps_that_were_committed_are_known_whatever_else_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert committed_steps(path) == []
    ledger = open_ledger(path, 0)
    ledger.commit(3)
    ledger.commit(5)
    path.write_text(path.read_text() + '{"steps": 7}\n[]\n{"steps": [5, 9')
    assert committed_steps(path) == [3, 5]


def test_records_that_were_lost_are_not_made_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lost = {"mixture": MIXTURE, "data": {}, "seed": 9, "saved_by": 2, "since": 6}
    Ledger(path, PLAN, 9, **lost, left_out=[(7, 8)])
    first, last = read_ledger(path)
    assert (first.steps, first.world_size, first.left_out) == ((0, 6), None, ())
    assert (last.steps, last.world_size, last.left_out) == ((6, 9), 2, ((7, 8),))
    Ledger(path, PLAN, 9, **lost)
    assert read_ledger(path) == [first, last], "what is there is kept"


def test_another_order_of_rows_than_the_one_that_was_begun_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    open_ledger(path, 0).commit(5)
    before = path.read_text()
    # As a version that mixes otherwise would have written it.
    path.write_text(before.replace('"a": [0, 15], "b": [0, 5]', '"a": [0, 14], "b": [0, 6]'))
    assert path.read_text() != before
    with pytest.raises(
        DataError, match=r"by row 20 the sources had given {'a': 14, 'b': 6}, and in the order"
    ):
        open_ledger(path, 5)
    # From the start nothing was read yet.
    assert open_ledger(path, 0).committed == 0


@pytest.mark.parametrize("line", ["{}", '{"steps": [0, "x"], "rows": [0, 4], "world_size": 1}'])
def test_a_line_that_is_no_record_is_named_when_a_stage_goes_on(line: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    open_ledger(path, 0).commit(5)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"ledger\.jsonl: record 2 is none of a ledger: .* Delete that line"):
        open_ledger(path, 5)
