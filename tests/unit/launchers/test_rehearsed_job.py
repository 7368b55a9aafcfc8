"""The copy of a job that is rehearsed is a job like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.rehearsed_job import STEPS, shortened
from orchestrator.spec.job import TrainStage
from orchestrator.spec.load import dump_resolved, load_job, parse_resolved
from orchestrator.spec.optimization import WarmupStableDecay
from orchestrator.spec.plan import fit_schedule, ramp_steps
from tests.unit.launchers.test_run_directory import make_job

JOBS = sorted((Path(__file__).parents[3] / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_training_stage_of_our_jobs_can_be_cut_short(path: Path) -> None:
    job = load_job(path, env={})
    for stage in job.stages:
        if isinstance(stage, TrainStage):
            copy = shortened(job, stage.name)
            parse_resolved(dump_resolved(copy), "the copy")
            assert (copy.stages[-1].name, copy.stages[-1].limits.max_steps) == (stage.name, STEPS)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "cosine", "warmup_steps": 12}, (12, 0)),
        ({"name": "cosine", "warmup_steps": 100}, (8, 0)),
        ({"name": "wsd", "warmup_steps": 2, "decay_steps": 10}, (2, 10)),
        ({"name": "wsd", "warmup_steps": 2000, "decay_steps": 2000}, (4, 4)),
        ({"name": "wsd", "warmup_steps": 0, "decay_steps": 100}, (0, 8)),
        ({"name": "wsd", "warmup_steps": 1, "decay_steps": 100}, (1, 7)),
        ({"name": "wsd", "warmup_steps": 100, "decay_steps": 1}, (8, 1)),
    ],
)
def test_the_copy_has_all_parts_of_the_schedule(
    schedule: dict[str, str | int], expected: tuple[int, int]
) -> None:
    job = make_job(schedule=schedule, limits={"max_steps": 10_000})
    stage = shortened(job, None).stages[-1]
    assert isinstance(stage, TrainStage)
    assert ramp_steps(stage.schedule) == expected


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
@pytest.mark.parametrize("decay", [1, 2, 9, 100])
def test_ramps_fit_the_shortest_stages(num_steps: int, warmup: int, decay: int) -> None:
    schedule = WarmupStableDecay(name="wsd", warmup_steps=warmup, decay_steps=decay)
    shorter = ramp_steps(fit_schedule(schedule, num_steps))
    assert sum(shorter) <= num_steps
    assert shorter[1] >= 1


def test_the_copy_has_its_steps_however_few_rows_there_are() -> None:
    job = make_job(data={"mixture": {"a": 1.0}, "seq_len": 16, "on_exhausted": "stop"})
    stage = shortened(job, None).stages[-1]
    assert isinstance(stage, TrainStage)
    assert (stage.data.on_exhausted, stage.data.seq_len) == ("repeat", 16)
