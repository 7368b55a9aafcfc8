"""What a person is told of a stage that failed: which rank, in which step, on which rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from launchers.failures import WorkersDiedError, death_among, failure_message
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from orchestrator.spec.job import Job
from orchestrator.tracking.events import append_event
from orchestrator.tracking.jsonl import JSONLTracker
from tests.unit.launchers.test_run_directory import make_job

NOTE = "in step 5, which reads rows 32 to 39 of the stage's order"
STAGE = "pretrain"


def raised(message: str, *notes: str) -> Exception:
    error = RuntimeError(message)
    for note in notes:
        error.add_note(note)
    return error


def job_that_logs(*, every_steps: int) -> Job:
    """One stage of 8 rows a step."""
    return make_job(logging={"every_steps": every_steps})


# Ray Train reads at its import whether Ray asks for a token: it must not be imported before the first test.
def dead() -> Exception:
    """What Ray Train says of a worker that died."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("A check failed.", RayActorError(error_msg="The actor died."))


def died(failures: dict[int, Exception]) -> WorkersDiedError:
    from launchers.trainer import deaths

    error = death_among(failures, deaths(failures))
    assert error is not None
    return error


def told(error: LaunchError, layout: RunLayout, *, every_steps: int = 1) -> str:
    return failure_message(error, layout, 1, job_that_logs(every_steps=every_steps).stage(STAGE))


def start(layout: RunLayout, step: int, logged: Sequence[int] = ()) -> None:
    """What rank 0 leaves when workers start from the checkpoint of ``step`` and log the steps ``logged``."""
    append_event(layout.events, "stage_started", stage=STAGE)
    tracker = JSONLTracker(layout.stage(STAGE).metrics, resume_step=step)
    append_event(layout.events, "training_started", stage=STAGE, step=step, max_steps=12)
    for one in logged:
        tracker.log(one, {})
    tracker.finish("failed")


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """Of a run with an event from before its workers started."""
    run = RunLayout(tmp_path)
    append_event(run.events, "stage_starting", stage=STAGE)
    return run


def test_the_rank_that_died_is_told_and_not_the_one_that_missed_it(layout: RunLayout) -> None:
    start(layout, 0)
    message = "Connection reset by peer"
    append_event(
        layout.events, "rank_failed", stage=STAGE, rank=0, error="RuntimeError", message=f"{message}; {NOTE}"
    )
    text = told(died({0: raised(message, NOTE), 1: dead()}), layout)
    assert text.startswith(f"stage '{STAGE}' failed: rank 1 died {NOTE}. Ray says: The actor died.")
    assert str(layout.stage(STAGE).log(1)) in text
    assert "rank 0" not in text


def test_deaths_are_told_from_errors_that_a_rank_raised() -> None:
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    from launchers.trainer import deaths

    no_memory = WorkerHealthCheckFailedError("A check failed.", OutOfMemoryError("node is out of memory"))
    unpacked = WorkerHealthCheckFailedError("A check failed.", TypeError("cannot pickle"))
    failures = {0: raised("poison"), 1: no_memory, 2: unpacked, 3: WorkerHealthCheckTimeoutError("hanging")}
    found = deaths(failures)
    assert sorted(found) == [1, 3]
    assert "node is out of memory" in found[1]
    assert death_among(failures, found) is None
    assert death_among({0: raised("gloo")}, {}) is None
    because = RayActorError(error_msg="pid: 9 The actor is dead because its node has died.")
    assert deaths({0: because}) == {0: "its node has died."}


@pytest.mark.parametrize(
    ("every_steps", "logged", "saved", "where"),
    [
        (1, [4], [3], "after step 4, the last on record; step 5 reads rows 32 to 39 of the stage's order"),
        (
            5,
            [],
            [3],
            "after step 3, the last on record; steps 4 to 5 read rows 24 to 39 of the stage's order",
        ),
        (5, [5, 10], [9], "after step 10, the last on record; steps 11 to 12 read rows 80 to 95"),
        (5, [12], [], "after its last step, 12"),
    ],
)
def test_where_no_other_rank_missed_it_the_steps_since_the_last_on_record_are_told(
    layout: RunLayout, every_steps: int, logged: list[int], saved: list[int], where: str
) -> None:
    start(layout, 0, [9])
    start(layout, 3, logged)
    for step in saved:
        append_event(layout.events, "checkpoint", stage=STAGE, step=step)
    assert f"rank 0 died {where}" in told(died({0: dead()}), layout, every_steps=every_steps)


def test_a_worker_that_dies_before_it_trains_has_no_step(layout: RunLayout) -> None:
    start(layout, 0)
    append_event(layout.events, "stage_started", stage=STAGE)
    assert "ranks 0, 1 died before its first step" in told(died({1: dead(), 0: dead()}), layout)


def test_workers_that_were_ended_for_a_hang_have_not_died_of_themselves(layout: RunLayout) -> None:
    start(layout, 4)
    append_event(layout.events, "hang", stage=STAGE, rank=1, phase="compute", seconds=31.5)
    text = told(died({0: dead(), 1: dead()}), layout)
    assert "failed: rank 1 made no progress in 31.5 s (compute) after step 4, the last on record" in text


def test_a_rank_that_only_missed_another_says_so(layout: RunLayout) -> None:
    error = LaunchError("Ray's own")
    assert "failed: Ray's own\n" in told(error, layout)
    for rank, message in ((1, "Connection reset by peer"), (0, "poison")):
        append_event(layout.events, "rank_failed", stage=STAGE, rank=rank, error="E", message=message)
        missed = "Another rank may have ended first" in told(error, layout)
        assert (missed, f"rank {rank}: E: {message}" in told(error, layout)) == (rank == 1, True)
