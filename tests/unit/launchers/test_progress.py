"""What a person sees of a run's metrics."""

from __future__ import annotations

import io
from pathlib import Path

from launchers.progress import ProgressDisplay, _pace, format_metrics
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import append_event
from orchestrator.tracking.jsonl import JSONLTracker


def test_a_metric_that_is_not_finite_is_shown_as_such() -> None:
    assert format_metrics({"train/loss": None, "train/lr": 0.001, "other": 1.0}) == "loss nan  lr 1.00e-03"


def test_each_of_several_datasets_is_shown() -> None:
    metrics = {"eval/a/loss": 2.0, "eval/b/accuracy": 0.5, "data/a/rows": 8.0}
    assert format_metrics(metrics) == "a: eval loss 2.0000  b: accuracy 0.500"


def test_without_a_terminal_each_logged_step_is_a_plain_line(tmp_path: Path) -> None:
    run, stream = RunLayout(tmp_path), io.StringIO()
    display = ProgressDisplay(stream, run)
    tracker = JSONLTracker(run.stage("pretrain").metrics, resume_step=0)
    tracker.log(1, {"train/loss": 9.0})
    display.start(["pretrain"])
    append_event(run.events, "training_started", stage="pretrain", step=1, max_steps=20)
    tracker.log(2, {"train/loss": 2.5, "train/tokens_per_second": 1234.5})
    tracker.finish("finished")
    display.end("stopped")
    assert stream.getvalue().splitlines() == [
        "[pretrain] starting workers",
        "[pretrain] goes on from step 1",
        "[pretrain] step 2 of 20  loss 2.5000  1,234 tokens/s",
        "[pretrain] stopped",
    ]


def test_a_message_is_shown_as_it_is_whatever_its_brackets(tmp_path: Path) -> None:
    run, stream = RunLayout(tmp_path), io.StringIO()
    display = ProgressDisplay(stream, run)
    message = "[/pytorch/gloo/pair.cc:553] Connection closed by [rank0] [red]"
    display.start(["pretrain"])
    append_event(run.events, "rank_failed", stage="pretrain", rank=1, error="RuntimeError", message=message)
    display.end("failed")
    assert f"[pretrain] rank 1 failed: RuntimeError: {message}" in stream.getvalue().splitlines()
    display.note("tune", message)
    assert stream.getvalue().splitlines()[-1] == f"[tune] {message}"


def test_stages_are_followed_one_after_the_other(tmp_path: Path) -> None:
    run, stream = RunLayout(tmp_path), io.StringIO()
    display = ProgressDisplay(stream, run)
    display.start(["pretrain", "tune", "test"])
    for stage in ("pretrain", "tune"):
        append_event(run.events, "stage_started", stage=stage)
        tracker = JSONLTracker(run.stage(stage).metrics, resume_step=0)
        append_event(run.events, "training_started", stage=stage, step=0, max_steps=2)
        tracker.log(1, {"train/loss": 9.0})
        tracker.log(2, {"train/loss": 8.0})
        tracker.finish("finished")
        append_event(run.events, "stage_finished", stage=stage)
    display.end("failed")
    steps = ["step 1 of 2  loss 9.0000", "step 2 of 2  loss 8.0000", "finished"]
    assert stream.getvalue().splitlines() == [
        "[pretrain] starting workers",
        *(f"[pretrain] {line}" for line in steps),
        *(f"[tune] {line}" for line in steps),
        "[test] failed",
    ]


def test_preparation_says_its_rate_and_the_remaining_time() -> None:
    assert _pace(1000, 7_384_000, 1.0) == ", 1,000 rows/s, 2:03:04 left"
    assert [_pace(0, 5, 1.0), _pace(5, 0, 1.0)] == ["", ""]


def test_each_dataset_is_reported_by_tenths(tmp_path: Path) -> None:
    stream = io.StringIO()
    display = ProgressDisplay(stream, RunLayout(tmp_path))
    for what in ("a (train)", "b (train)"):
        for done in (10, 11, 100):
            display.prepare("pretrain", what, done, 100)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[pretrain] tokenising a (train): 10 of 100 rows"
    assert lines[1] == "[pretrain] tokenising a (train): 100 of 100 rows"
    assert lines[2] == "[pretrain] tokenising b (train): 10 of 100 rows"
