"""verify: one document or two tables, and an exit code that says whether everything holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.checkpoint import seal
from orchestrator.checkpoint.steps import step_name
from tests.prepared import write_rows
from tests.unit.launchers.commands import Console, FakeRun
from tests.unit.train.starts import Start, TrainedStage, make_stage


@pytest.fixture
def trained(tmp_path: Path) -> TrainedStage:
    """A run of one stage, half by 2 workers and half by 4."""
    folders = {"a": write_rows(tmp_path / "a", 96), "b": write_rows(tmp_path / "b", 10)}
    trained = make_stage(tmp_path, folders, {"a": 0.75, "b": 0.25})
    trained.start(Start(workers=2, save_every=2, killed_at=3))
    trained.start(Start(workers=4, save_every=2, killed_at=4))
    trained.finish()
    return trained


def test_a_run_that_holds_is_reported_in_full(console: Console, trained: TrainedStage) -> None:
    ended = console("verify", trained.run.root, "--json")
    assert (ended.code, ended.errors) == (0, "")
    good = {"ok": True, "problem": None}
    checkpoints = [{"step": 2, **good}, {"step": 4, **good}]
    assert ended.json() == {
        "name": "run",
        "ok": True,
        "checkpoints": [{"stage": "pretrain", **found} for found in checkpoints],
        "weights": [{"stage": "pretrain", **good}],
        "held_out": [],
        "ledger": {"ok": True, "rows": 96, "problem": None},
        "stages": [
            {
                "name": "pretrain",
                "ok": True,
                "checkpoints": checkpoints,
                "ledger": {
                    "ok": True,
                    "steps": 4,
                    "rows": 96,
                    "world_sizes": [2, 4],
                    "epochs": {"a": 0.75, "b": 2.4},
                    "steps_left_out": 0,
                    "problem": None,
                    "note": None,
                },
            }
        ],
    }
    assert console("verify", "run", "--runs-dir", trained.run.root.parent).output.splitlines() == [
        "run: ledgers",
        "  stage     steps  rows  workers  epochs         each row once an epoch, data unchanged",
        "  pretrain  4      96    2, 4     a 0.75  b 2.4  yes",
        "run: files",
        "  stage     step     every byte as written",
        "  pretrain  2        yes",
        "  pretrain  4        yes",
        "  pretrain  weights  yes",
        "run: everything holds",
    ]


def test_the_first_violation_and_every_damaged_checkpoint_are_printed(
    console: Console, trained: TrainedStage
) -> None:
    trained.rewrite_record(1, sources={"a": [36, 71], "b": [12, 24]})
    (trained.layout.checkpoints / step_name(2) / "state.json").unlink()
    message = (
        "stage 'pretrain', step 3, source 'a': steps 3 to 4 are recorded with draws [36, 71],"
        " expected [36, 72]"
    )
    ended = console("verify", trained.run.root)
    assert (ended.code, ended.errors) == (1, "")
    assert [line.split() for line in ended.output.splitlines()[4:7]] == [
        ["stage", "step", "every", "byte", "as", "written"],
        ["pretrain", "2", "NO"],
        ["pretrain", "4", "yes"],
    ]
    assert ended.output.splitlines()[-2] == message
    assert ended.output.splitlines()[-1].startswith(
        "stage 'pretrain', checkpoint of step 2: state.json: missing, expected "
    )
    document = console("verify", trained.run.root, "--json").json()
    assert document["ok"] is False
    assert document["ledger"] == {"ok": False, "rows": 48, "problem": message}
    assert [found["ok"] for found in document["checkpoints"]] == [False, True]


def test_a_record_that_is_pending_is_told_and_no_violation(console: Console, trained: TrainedStage) -> None:
    trained.layout.result.unlink()
    trained.drop_record(1)
    note = "the record of steps 3 to 4 is pending; this run or its next start writes it"
    ended = console("verify", trained.run.root)
    assert (ended.code, ended.errors) == (0, "")
    assert ended.output.splitlines()[-2:] == [f"stage 'pretrain': {note}", "run: everything else holds"]
    document = console("verify", trained.run.root, "--json").json()
    assert document["stages"][0]["ledger"]["note"] == note
    assert document["ledger"] == {"ok": True, "rows": 48, "problem": None}


def test_what_the_ledger_alone_says_is_told_as_not_proved(console: Console, trained: TrainedStage) -> None:
    seal.remove(trained.layout.checkpoints / step_name(2))
    trained.run.events.unlink()
    ended = console("verify", trained.run.root)
    assert ended.code == 0
    assert ended.output.splitlines()[-2:] == [
        "stage 'pretrain': not proved of steps 1 to 2: how many workers there were and which steps made no"
        " update, which the ledger alone says, without a checkpoint or an event",
        "run: everything else holds",
    ]


def test_one_stage_is_checked_alone(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    ended = console("verify", run.layout.root, "--stage", "pretrain", "--json")
    assert ended.code == 0
    assert [stage["name"] for stage in ended.json()["stages"]] == ["pretrain"]
    message = f"{run.layout.root} has no training stage 'test'. Its training stages: pretrain.\n"
    assert console("verify", run.layout.root, "--stage", "test") == (2, "", message)


def test_a_finished_stage_without_a_ledger_is_not_proved(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.finish("pretrain")
    document = console("verify", run.layout.root, "--json").json()
    assert document["ledger"]["problem"] == (
        "stage 'pretrain', step 1: the ledger ends with step 0, and the newest checkpoint or result is of"
        " step 10"
    )


def test_a_flipped_bit_of_held_out_rows_is_found(console: Console, trained: TrainedStage) -> None:
    rows = write_rows(trained.run.root.parent / "held-out", 4)
    inputs = json.loads(trained.layout.inputs.read_text())
    trained.layout.inputs.write_text(json.dumps({**inputs, "evaluation": {"exam": str(rows)}}))
    good = console("verify", trained.run.root, "--json").json()
    assert good["held_out"] == [{"stage": "pretrain", "dataset": "exam", "ok": True, "problem": None}]
    tokens = bytearray((rows / "tokens.bin").read_bytes())
    tokens[0] ^= 1
    (rows / "tokens.bin").write_bytes(tokens)
    ended = console("verify", trained.run.root)
    assert ended.code == 1
    assert "stage 'pretrain', evaluated rows of 'exam': " in ended.output
    assert "tokens.bin does not have the digest" in ended.output


def test_a_stage_that_writes_no_weights_has_none_to_check(console: Console, trained: TrainedStage) -> None:
    job = yaml.safe_load(trained.run.job.read_text())
    job["stages"].append(
        {"name": "test", "kind": "evaluate", "from": "pretrain", "datasets": ["a"], "split": "train"}
    )
    trained.run.job.write_text(yaml.safe_dump(job))
    result = trained.run.stage("test").result
    result.parent.mkdir()
    result.write_text('{"step": 4, "metrics": {}}')
    document = console("verify", trained.run.root, "--json").json()
    assert [found["stage"] for found in document["weights"]] == ["pretrain"]


def test_a_stage_that_was_of_another_kind_before_is_checked_as_what_it_is(
    console: Console, tmp_path: Path
) -> None:
    run = FakeRun(tmp_path)
    run.finish("pretrain")
    expected = console("verify", run.layout.root).output
    job = yaml.safe_load(run.layout.job.read_text())
    first = {**job["stages"][0], "name": "first"}
    job["stages"] = [first, {"name": "pretrain", "kind": "export", "from": "first"}]
    run.layout.stage("pretrain").job.write_text(yaml.safe_dump(job))
    assert console("verify", run.layout.root).output == expected


def test_an_unknown_run_is_the_users_error(console: Console, tmp_path: Path) -> None:
    FakeRun(tmp_path, "tiny")
    ended = console("verify", "tyny", "--runs-dir", tmp_path)
    assert (ended.code, ended.output) == (2, "")
    assert "Did you mean 'tiny'?" in ended.errors
