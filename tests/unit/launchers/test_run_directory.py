"""Rules about what a run directory may become."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
import time
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from launchers.preparation import StoppedError, input_stages, refuse_to_go_on
from launchers.progress import ProgressDisplay
from launchers.run_directory import (
    StopWish,
    only_driver,
    opened_run,
    refuse_changed,
    set_aside,
    write_run,
)
from launchers.runs import is_locked
from launchers.starting_over import refuse_remote_steps
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.steps import step_name
from orchestrator.errors import LaunchError, PlanError
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved


def make_job(**changes: Any) -> Job:
    stage: dict[str, Any] = {
        "name": "pretrain",
        "objective": {"name": "causal_lm"},
        "model": {"config": {"model_type": "gpt2"}},
        "data": {"mixture": {"a": 1.0}, "seq_len": 16},
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "schedule": {"name": "constant"},
        "limits": {"max_steps": 10},
    }
    return Job.model_validate(
        {
            "name": "job",
            "seed": changes.pop("seed", 1),
            "resources": changes.pop("resources", {}),
            "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": ["a"]}},
            "datasets": {"a": {"source": "text", "files": changes.pop("files", "/data/a.txt")}},
            "stages": [{**stage, **changes}],
        }
    )


def started_run(folder: Path) -> RunLayout:
    """A run of ``make_job()`` whose stage is finished after its 10 steps."""
    layout = RunLayout(folder / "job")
    layout.stage("pretrain").root.mkdir(parents=True)
    write_run(make_job(), layout)
    layout.stage("pretrain").job.write_text(dump_resolved(make_job()))
    layout.stage("pretrain").result.write_text(json.dumps({"step": 10}))
    return layout


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": {"num_workers": 4, "max_failures": 9}},
        {"strategy": {"name": "zero", "stage": 3}},
        {"checkpoint": {"every_steps": 7}},
        {"limits": {"max_steps": 11}},
        {"limits": {"max_tokens": 1280}},
        {"logging": {"every_steps": 1}},
    ],
)
def test_what_does_not_bend_the_trajectory_may_change(changes: dict[str, Any], tmp_path: Path) -> None:
    refuse_changed(make_job(**changes), started_run(tmp_path))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 2}, "seed: 1 -> 2"),
        ({"optimizer": {"name": "adamw", "lr": 0.002}}, "stages.pretrain.optimizer.lr: 0.001 -> 0.002"),
        ({"global_batch_size": 16}, "stages.pretrain.global_batch_size: 8 -> 16"),
        ({"micro_batch_size": 4}, "stages.pretrain.micro_batch_size: 2 -> 4"),
        ({"limits": {"max_steps": 9}}, "limits.max_steps: 10 -> 9 (10 steps done)"),
        ({"limits": {"max_tokens": 1151}}, "limits.max_steps: 10 -> absent (10 steps done)"),
        ({"strategy": {"name": "fsdp2", "param_dtype": "bfloat16"}}, "param_dtype"),
        ({"strategy": {"name": "fsdp2", "param_dtype": "float16"}}, "param_dtype: float32 -> float16"),
    ],
)
def test_what_bends_the_trajectory_is_refused_with_the_difference(
    changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError) as raised:
        refuse_changed(make_job(**changes), started_run(tmp_path))
    assert line in str(raised.value)
    assert "--fresh" in str(raised.value)


def test_a_stage_that_has_not_begun_may_change_in_every_way(tmp_path: Path) -> None:
    layout = started_run(tmp_path)
    layout.stage("pretrain").result.unlink()
    refuse_changed(make_job(seed=5), layout)


def test_a_raised_limit_can_be_taken_back_down_to_the_steps_that_are_done(tmp_path: Path) -> None:
    layout = started_run(tmp_path)
    layout.stage("pretrain").result.unlink()
    for step, file in [(4, "COMPLETE"), (6, "torn")]:
        folder = layout.stage("pretrain").checkpoints / step_name(step)
        folder.mkdir(parents=True)
        (folder / file).touch()
    refuse_changed(make_job(limits={"max_steps": 4}), layout)
    with pytest.raises(PlanError, match=r"10 -> 3 \(4 steps done\)"):
        refuse_changed(make_job(limits={"max_steps": 3}), layout)


def test_a_wish_to_stop_waits_until_the_directory_is_its_drivers(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    stop = StopWish(layout)
    stop.set("SIGINT")
    assert stop.is_set()
    assert not layout.stop_request.exists()
    stop.open()
    assert layout.stop_request.read_text() == "SIGINT"
    with pytest.raises(StoppedError):
        refuse_to_go_on(layout)


def test_a_request_that_comes_while_the_directory_is_opened_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, display = RunLayout(tmp_path / "job"), ProgressDisplay(io.StringIO(), RunLayout(tmp_path / "job"))
    seen = []

    def look_up(job: Job, pins: Path) -> tuple[Job, list[str]]:
        # What the hub is asked takes its time.
        seen.append(layout.stop_request.exists())
        layout.stop_request.write_text("cancel")
        return job, []

    monkeypatch.setattr("launchers.run_directory.look_up_pins", look_up)
    with opened_run(make_job(), layout, display):
        assert layout.stop_request.read_text() == "cancel"
    with opened_run(make_job(), layout, display):
        assert seen == [False, False]


def test_a_wish_to_stop_is_seen_by_workers_at_once(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    stop = StopWish(layout)
    stop.open()
    refuse_to_go_on(layout)
    stop.set("SIGTERM")
    assert layout.stop_request.read_text() == "SIGTERM"


def test_a_wish_that_waits_is_written_later_and_never_after_the_end(tmp_path: Path) -> None:
    for is_closed in (False, True):
        layout = RunLayout(tmp_path)
        stop = StopWish(layout)
        stop.open()
        stop.set("SIGTERM", after_seconds=2)
        assert stop.is_set()
        assert not layout.stop_request.exists()
        if is_closed:
            stop.close()
        deadline = time.monotonic() + (3 if is_closed else 60)
        while not layout.stop_request.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert layout.stop_request.exists() != is_closed
        stop.close()
        assert not layout.stop_request.exists()


def test_setting_aside_keeps_every_earlier_folder(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "content").write_text(str(number))
        set_aside(tmp_path / "run")
    assert [(tmp_path / f"run.before-{n}" / "content").read_text() for n in (1, 2)] == ["1", "2"]
    assert set_aside(tmp_path / "run") is None


def test_a_look_at_the_lock_keeps_no_driver_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The thread that lets go of it may be late on a busy machine.
    monkeypatch.setattr("launchers.run_directory.TRY_SECONDS", 5)
    layout = RunLayout(tmp_path)
    layout.driver_lock.touch()
    with layout.driver_lock.open("rb") as looking:
        # As is_locked does, for a moment.
        fcntl.flock(looking, fcntl.LOCK_SH)
        Timer(0.05, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with only_driver(layout):
            assert is_locked(layout.driver_lock)


def test_a_second_driver_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    refused = pytest.raises(LaunchError, match=r"already being run by process \d+")
    with only_driver(layout), refused, only_driver(layout):
        pass
    with only_driver(layout):
        pass


def test_the_run_id_is_made_once(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert write_run(make_job(), layout) == write_run(make_job(), layout)


def test_a_run_id_or_a_stages_job_that_is_damaged_is_named_with_what_to_do(tmp_path: Path) -> None:
    layout = started_run(tmp_path)
    layout.run_id.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"run_id is damaged: .* Delete it:"):
        write_run(make_job(), layout)
    step = layout.stage("pretrain").checkpoints / step_name(4)
    step.mkdir(parents=True)
    for content in (b"", b"name: \xff\n", b"name: job\n"):
        layout.stage("pretrain").job.write_bytes(content)
        with pytest.raises(PlanError) as raised:
            refuse_changed(make_job(), layout)
        assert f"{layout.stage('pretrain').job}" in str(raised.value)
        assert f"also stands in {step}/state.json under 'job_file': put it back to go on" in str(raised.value)
    layout.stage("pretrain").job.unlink()
    with pytest.raises(PlanError, match=r"job\.yaml: no such file"):
        refuse_changed(make_job(), layout)


def test_stages_name_the_stages_they_read() -> None:
    job = make_job(model=None, init={"stage": "other"})
    assert input_stages(job.stages[0]) == ["other"]


def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    layout = RunLayout(tmp_path / "file" / "job")
    display = ProgressDisplay(io.StringIO(), layout)
    refused = pytest.raises(PlanError, match=r"cannot be made: Not a directory. Name a folder .* --runs-dir")
    with refused, opened_run(make_job(), layout, display):
        pass


def test_starting_over_is_refused_while_the_remote_holds_steps(tmp_path: Path) -> None:
    job = make_job(checkpoint={"remote": f"file://{tmp_path}"})
    refuse_remote_steps(job, job.stages)
    step = tmp_path / "job" / "pretrain" / step_name(40)
    step.mkdir(parents=True)
    refuse_remote_steps(job, job.stages)
    (step / "COMPLETE").touch()
    with pytest.raises(PlanError) as caught:
        refuse_remote_steps(job, job.stages)
    assert str(caught.value) == (
        f"to start over: file://{tmp_path}/job/pretrain holds checkpoints up to step 40, and a start would go"
        " on from them. Move them away, or give the job another name than 'job' or another checkpoint.remote"
    )
    step.rename(step.with_name(f"quarantine-{step.name}"))
    with pytest.raises(PlanError, match=r"/pretrain/quarantine-step-00000040: damaged"):
        refuse_remote_steps(job, job.stages)


def test_a_stage_is_done_again_in_an_empty_folder_and_the_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    job = make_job(files=str(tmp_path / "a.txt"))
    layout = RunLayout(tmp_path / "job")
    display = ProgressDisplay(io.StringIO(), layout)
    for name in ("pretrain", "classify"):
        (layout.stage(name).checkpoints / step_name(3)).mkdir(parents=True)
    with (
        pytest.raises(PlanError, match="no stage 'classfy'"),
        opened_run(job, layout, display, redo="classfy"),
    ):
        pass
    with opened_run(job, layout, display, redo="pretrain"):
        assert not layout.stage("pretrain").checkpoints.exists()
        assert (layout.root / "pretrain.before-1" / "checkpoints" / step_name(3)).is_dir()
        assert (layout.stage("classify").checkpoints / step_name(3)).is_dir()


def test_a_start_that_is_refused_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    alone = make_job(files=str(tmp_path / "a.txt"))
    (pretrain,) = alone.stages
    before = alone.model_copy(update={"stages": (pretrain, pretrain.model_copy(update={"name": "more"}))})
    layout = RunLayout(tmp_path / "job")
    display = ProgressDisplay(io.StringIO(), layout)
    for stage in before.stages:
        (layout.stage(stage.name).checkpoints / step_name(3)).mkdir(parents=True)
        layout.stage(stage.name).job.write_text(dump_resolved(before))
    changed = before.model_copy(update={"seed": 3})
    with (
        pytest.raises(PlanError, match="the job file changed since this run began:\n  seed: 1 -> 3"),
        opened_run(changed, layout, display, redo="more"),
    ):
        pass
    assert (layout.stage("more").checkpoints / step_name(3)).is_dir()
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    for anew in ({"redo": "more"}, {"fresh": True}):
        with (
            pytest.raises(PlanError, match=r"start over: .* no file 'a.txt' .* Nothing has been moved"),
            opened_run(before, layout, display, **anew),  # type: ignore[arg-type]
        ):
            pass
    assert (layout.stage("more").checkpoints / step_name(3)).is_dir()
    (tmp_path / "b.txt").rename(tmp_path / "a.txt")
    shutil.rmtree(layout.stage("pretrain").root)
    with opened_run(changed, layout, display, redo="more"):
        assert not layout.stage("more").checkpoints.exists(), "what starts over may change"
