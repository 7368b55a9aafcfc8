"""What is told of a stage: every step once, over restarts too, and why it restarted."""

from __future__ import annotations

from pathlib import Path

from launchers.stage_news import WAITING, StageNews
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import append_event
from orchestrator.tracking.jsonl import JSONLTracker

STAGE = "pretrain"


def start(run: RunLayout, step: int) -> JSONLTracker:
    """What the workers write when they start from the checkpoint of ``step``."""
    tracker = JSONLTracker(run.stage(STAGE).metrics, resume_step=step)
    append_event(run.events, "training_started", stage=STAGE, step=step, max_steps=99)
    return tracker


def steps(news: StageNews) -> list[int]:
    """Steps told by the next two looks."""
    return [line["step"] for _ in range(2) for line in news.metrics()]


def test_a_fresh_stage_is_told_from_its_first_step(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    news = StageNews(STAGE, run)
    assert list(news.messages()) == []
    assert steps(news) == []
    tracker = start(run, 0)
    tracker.log(1, {"train/loss": 1.0})
    assert list(news.messages()) == []
    assert steps(news) == [1]
    tracker.log(2, {"train/loss": 1.0})
    tracker.finish("finished")
    assert steps(news) == [2]


def test_a_folder_in_the_place_of_the_metrics_is_for_the_workers_to_refuse(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    run.stage(STAGE).metrics.mkdir(parents=True)
    assert steps(StageNews(STAGE, run)) == []


def test_a_later_start_tells_no_step_twice(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    first = start(run, 0)
    for step in range(1, 7):
        first.log(step, {"train/loss": 1.0})
    first.finish("stopped")
    news = StageNews(STAGE, run)
    second = start(run, 4)
    second.log(5, {"train/loss": 2.0})
    second.finish("finished")
    assert list(news.messages()) == ["goes on from step 4"]
    assert steps(news) == [5]


def test_a_failure_and_the_restart_after_it_are_told_once(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    news = StageNews(STAGE, run)
    tracker = start(run, 0)
    for step in range(1, 7):
        tracker.log(step, {"train/loss": 1.0})
    tracker.finish("failed")
    assert (list(news.messages()), steps(news)) == ([], [1, 2, 3, 4, 5, 6])
    for rank in (1, 0):
        message = "Connection closed by peer\nand a long traceback"
        append_event(run.events, "rank_failed", stage=STAGE, rank=rank, error="RuntimeError", message=message)
    append_event(run.events, "rank_failed", stage="other", rank=0, error="E", message="of another stage")
    assert list(news.messages()) == ["rank 1 failed: RuntimeError: Connection closed by peer"]
    restarted = start(run, 4)
    for step in (5, 6, 7):
        restarted.log(step, {"train/loss": 1.0})
    restarted.finish("finished")
    assert list(news.messages()) == ["restarted, goes on from step 4"]
    assert steps(news) == [5, 6, 7]


def test_a_wait_for_room_is_told(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    news = StageNews(STAGE, run)
    for stage in ("other", STAGE):
        append_event(run.events, WAITING, stage=stage)
    assert list(news.messages()) == ["waits for room for its workers"]


def test_a_stage_whose_end_nobody_wrote_down_ends_with_the_next_ones_start(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    first, second = StageNews(STAGE, run), StageNews("test", run)
    for stage in (STAGE, STAGE):
        append_event(run.events, "stage_started", stage=stage)
        assert (list(first.messages()), first.is_finished) == ([], False)
    append_event(run.events, "stage_started", stage="test")
    for news, is_finished in ((first, True), (second, False)):
        assert (list(news.messages()), news.is_finished) == ([], is_finished)


def test_what_was_done_about_a_wrong_step_and_where_stacks_lie_is_told(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    news = StageNews(STAGE, run)
    for action in ("skip", "rollback", "stop"):
        append_event(run.events, "anomaly", stage=STAGE, step=7, what="the loss is nan", action=action)
    append_event(run.events, "hang", stage=STAGE, rank=1, phase="compute", seconds=31.5)
    assert list(news.messages()) == [
        "step 7: the loss is nan: left out",
        "step 7: the loss is nan: back to the newest checkpoint, the rows since are left out",
        "step 7: the loss is nan: stopped before the update",
        f"rank 1 made no progress in 31.5 s (compute); stacks are in {tmp_path / STAGE / 'logs'}",
    ]


def test_a_damaged_checkpoint_is_told_before_the_start_from_an_older_one(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    news = StageNews(STAGE, run)
    damage = {"step": 6, "problem": "state.json: missing", "kept_as": "pretrain/checkpoints/quarantine-a"}
    append_event(run.events, "checkpoint_damaged", stage=STAGE, **damage)
    append_event(run.events, "checkpoint_damaged", stage="another", **damage)
    start(run, 4).finish("finished")
    assert list(news.messages()) == [
        "the checkpoint of step 6 is damaged (state.json: missing); it is kept as"
        " pretrain/checkpoints/quarantine-a, and the newest good one, if any, is used",
        "goes on from step 4",
    ]


def test_a_start_without_the_checkpoints_that_there_were_is_told(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    news = StageNews(STAGE, run)
    append_event(run.events, "checkpoints_gone", stage=STAGE, recorded=7)
    assert list(news.messages()) == ["no checkpoint of its 7 recorded steps is left: it begins anew"]
    append_event(run.events, "checkpoints_gone", stage=STAGE, recorded=1)
    assert list(news.messages()) == ["no checkpoint of its 1 recorded step is left: it begins anew"]
    append_event(run.events, "checkpoints_gone", stage=STAGE, recorded=20, step=15)
    assert list(news.messages()) == [
        "of its 20 recorded steps no checkpoint after step 15 is left: they are trained anew"
    ]


def test_an_overflow_is_told_with_the_scales(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    news = StageNews(STAGE, run)
    scales = {"loss_scale": 65536.0, "next_loss_scale": 32768.0}
    append_event(run.events, "overflow", stage=STAGE, step=3, rows=[16, 24], **scales)
    assert list(news.messages()) == [
        "step 3: gradients overflowed float16: left out, loss scale 65536 -> 32768"
    ]
