"""Runs compared by Ray Tune's scheduler: thresholds computed by hand, and the same after interruptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launchers.asha import Asha
from launchers.verdicts import COMPARED, verdict_text
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.early_stopping import rule_of
from orchestrator.spec.expand import expand
from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job
from orchestrator.tracking.events import append_event, read_json_lines
from orchestrator.tracking.jsonl import JSONLTracker
from tests.unit.spec.jobs import VALID, write_job

# Comparisons after 10, 20 and 40 steps; each time the threshold is the median of those before.
RULE = "{metric: eval/loss, grace_steps: 10, reduction_factor: 2}"
TEXT = (
    VALID.replace("{max_steps: 10}", "{max_steps: 80}")
    + "    evaluation: {datasets: [rfc], every_steps: 2}\n"
)


class Runs:
    """The runs of a sweep, whose workers a test plays."""

    def __init__(self, folder: Path, *, rule: str = RULE, text: str = TEXT, num_runs: int = 4) -> None:
        self.folder = folder
        seeds = list(range(num_runs))
        path = write_job(folder, f"{text}sweep: {{grid: {{seed: {seeds}}}, early_stopping: {rule}}}\n")
        job = load_job(path, env={})
        rule_there = rule_of(job)
        assert rule_there is not None
        self.rule = rule_there
        self.jobs: Sequence[Job] = expand(job, path, lambda job: (), overrides=())

    def asha(self, *, anew: bool = False) -> Asha:
        """As a sweep that starts."""
        return Asha(self.rule, self.jobs, self.folder, anew=anew)

    def layout(self, run: int) -> RunLayout:
        return RunLayout(self.folder / self.jobs[run].name)

    def log(self, run: int, resume_step: int = 10**6, /, **losses: float) -> None:
        """Evaluations by step, ``s10=2.0``, of workers that start from ``resume_step``."""
        tracker = JSONLTracker(self.layout(run).stage("pretrain").metrics, resume_step=resume_step)
        for step, loss in losses.items():
            tracker.log(int(step[1:]), {"train/loss": 9.0})
            tracker.log(int(step[1:]), {"eval/loss": loss})
        tracker.finish("stopped")

    def events(self, run: int) -> list[dict[str, Any]]:
        return [event for event in read_json_lines(self.layout(run).events) if event["event"] == COMPARED]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_runs_behind_the_threshold_end(runs: Runs) -> None:
    asha = runs.asha()
    assert asha.look() == {}
    runs.log(0, s10=2.0)
    assert asha.look() == {}, "nothing was there before it"
    runs.log(1, s10=1.0)
    assert asha.look() == {}
    runs.log(2, s10=1.6)
    assert list(asha.look()) == ["tiny-2"], "the median of 2.0 and 1.0 is 1.5"
    runs.log(3, s10=1.4)
    assert list(asha.look()) == ["tiny-2"], "the median of 2.0, 1.0 and 1.6 is 1.6"
    runs.log(1, s20=0.9)
    asha.look()
    runs.log(0, s20=0.95)
    assert list(asha.look()) == ["tiny-0", "tiny-2"], "0.9 alone is the threshold of step 20"
    runs.log(3, s20=0.92)
    assert list(asha.look()) == ["tiny-0", "tiny-2"], "the median of 0.9 and 0.95 is 0.925"
    assert verdict_text(asha.look()["tiny-2"]) == (
        "eval/loss 1.6 at step 10 of 'pretrain', not among the best 1/2 of 3 runs"
    )
    found = [
        [(event["step"], event["value"], event["stop"]) for event in runs.events(run)] for run in range(4)
    ]
    assert found == [
        [(10, 2.0, False), (20, 0.95, True)],
        [(10, 1.0, False), (20, 0.9, False)],
        [(10, 1.6, True)],
        [(10, 1.4, False), (20, 0.92, False)],
    ]


def test_the_highest_value_may_be_the_best(tmp_path: Path) -> None:
    text = TEXT.replace("{name: causal_lm}", "{name: 'mine:Objective'}")
    runs = Runs(tmp_path, rule=RULE.replace("}", ", mode: max}"), text=text)
    asha = runs.asha()
    for run, value in enumerate((2.0, 1.0, 1.6, 1.4)):
        runs.log(run, s10=value)
        asha.look()
    # Thresholds: none, 2.0, the median 1.5, the median 1.6.
    assert list(asha.look()) == ["tiny-1", "tiny-3"]


def test_the_first_value_from_a_step_on_is_compared_and_once(runs: Runs) -> None:
    asha = runs.asha()
    runs.log(0, s8=5.0, s12=2.0, s14=9.0, s22=1.0, s24=9.0)
    asha.look()
    # Its workers are restarted from an older checkpoint and log the same steps again.
    runs.log(0, 11, s12=2.5, s22=1.5, s42=0.5, s80=0.1)
    asha.look()
    assert [event["step"] for event in runs.events(0)] == [12, 22, 42]
    assert [event["value"] for event in runs.events(0)] == [2.0, 1.0, 0.5]
    # Nothing is compared at the last step, which is where the run ends anyway.
    runs.log(1, s80=9.0)
    assert asha.look() == {}


def test_what_is_logged_at_the_same_time_is_compared_by_step_and_order(runs: Runs) -> None:
    runs.log(0, s10=2.0, s20=2.0)
    runs.log(1, s10=1.0, s20=1.0)
    # Run 0 is not compared with what run 1 reached at the same step: it was first.
    assert runs.asha().look() == {}


def test_a_sweep_that_goes_on_decides_as_one_that_was_not_interrupted(runs: Runs) -> None:
    asha = runs.asha()
    # In another order than theirs: the last is the first to be there, and loses nothing by it later.
    for run, value in ((3, 1.7), (1, 1.0), (0, 2.0), (2, 1.2)):
        runs.log(run, s10=value)
        asha.look()
    assert list(asha.look()) == ["tiny-0"]
    before = asha.look(), [runs.events(run) for run in range(4)]
    again = runs.asha()
    after = again.look(), [runs.events(run) for run in range(4)]
    assert list(after[0]) == list(before[0])
    assert after[1] == before[1], "nothing is compared twice"
    runs.log(1, s20=0.9)
    runs.log(2, s20=1.1)
    assert list(asha.look()) == ["tiny-0", "tiny-2"]
    third = runs.asha()
    assert list(third.look()) == ["tiny-0", "tiny-2"]
    assert third._scheduler.debug_string() != ""
    thresholds = [each._scheduler.debug_string().partition("\n")[2] for each in (asha, third)]
    assert thresholds[0] == thresholds[1]


def test_what_was_logged_and_not_compared_is_compared_when_the_sweep_goes_on(runs: Runs) -> None:
    asha = runs.asha()
    runs.log(0, s10=1.0)
    asha.look()
    # The sweep is killed here; its runs log on for a moment.
    runs.log(1, s10=2.0)
    assert list(runs.asha().look()) == ["tiny-1"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_the_worst(value: float, runs: Runs) -> None:
    asha = runs.asha()
    runs.log(0, s10=value)
    assert asha.look() == {}
    runs.log(1, s10=2.0)
    runs.log(2, s10=value)
    lost = asha.look()
    assert list(lost) == ["tiny-2"]
    assert verdict_text(lost["tiny-2"]).startswith("eval/loss not finite at step 10")
    runs.log(3, s10=1.0)
    assert list(asha.look()) == ["tiny-2"]


def test_steps_without_an_update_are_not_compared(tmp_path: Path) -> None:
    runs = Runs(tmp_path, rule=RULE.replace("eval/loss", "train/loss"))

    def log(run: int, **losses: float) -> None:
        tracker = JSONLTracker(runs.layout(run).stage("pretrain").metrics, resume_step=10**6)
        for step, loss in losses.items():
            left_out = {"train/steps_left_out": 1.0} if math.isnan(loss) else {}
            tracker.log(int(step[1:]), {"train/loss": loss, **left_out})
        tracker.finish("stopped")

    asha = runs.asha()
    log(0, s10=2.0)
    log(1, s10=3.0)
    log(2, s10=math.nan, s11=1.0)
    assert list(asha.look()) == ["tiny-1"]
    assert [(event["step"], event["value"]) for event in runs.events(2)] == [(11, 1.0)]


def test_what_is_trained_to_its_end_is_not_stopped(runs: Runs) -> None:
    runs.log(0, s10=1.0)
    runs.log(1, s10=2.0)
    runs.layout(1).stage("pretrain").result.write_text("{}")
    assert runs.asha().look() == {}
    runs.log(2, s10=1.4)
    assert list(runs.asha().look()) == [], "it counts for the others: the median of 1.0 and 2.0 is 1.5"


def lose(runs: Runs) -> None:
    """Run 1 loses."""
    runs.log(0, s10=1.0)
    runs.log(1, s10=2.0)
    assert list(runs.asha().look()) == ["tiny-1"]


def test_a_run_that_is_started_again_goes_on_to_the_next_comparison(runs: Runs) -> None:
    lose(runs)
    append_event(runs.layout(1).events, "run_started")
    asha = runs.asha()
    assert asha.look() == {}
    runs.log(1, s12=2.0)
    assert asha.look() == {}
    runs.log(0, s20=0.9)
    runs.log(1, s20=1.9)
    assert list(asha.look()) == ["tiny-1"]


def test_another_rule_decides_anew(runs: Runs, tmp_path: Path) -> None:
    lose(runs)
    other = Runs(tmp_path, rule="{metric: train/loss, grace_steps: 10, reduction_factor: 2}")
    assert other.asha().look() == {}, "all have a train/loss of 9.0"
    assert list(runs.asha().look()) == ["tiny-1"]


def test_a_stage_that_is_started_over_was_never_compared(runs: Runs) -> None:
    lose(runs)
    asha = runs.asha(anew=True)
    assert asha.look() == {}, "what lies there counts for nothing before the stage has started"
    for run in range(2):
        append_event(runs.layout(run).events, "run_started")
        append_event(runs.layout(run).events, "stage_set_aside", stage="pretrain", folder="f")
        runs.layout(run).stage("pretrain").metrics.unlink()
        append_event(runs.layout(run).events, "training_started", stage="pretrain", step=0, max_steps=80)
    assert asha.look() == {}
    runs.log(1, s10=2.0)
    assert asha.look() == {}, "it is the first that is there"
    runs.log(0, s10=3.0)
    assert list(asha.look()) == ["tiny-0"]


def test_epochs_are_compared_once_the_data_is_counted(tmp_path: Path) -> None:
    runs = Runs(tmp_path, text=TEXT.replace("{max_steps: 80}", "{max_epochs: 2}"))
    asha = runs.asha()
    runs.log(0, s10=1.0)
    runs.log(1, s10=2.0)
    assert asha.look() == {}
    (tmp_path / "meta.json").write_text('{"num_rows": 200}')
    runs.layout(0).stage("pretrain").inputs.write_text(f'{{"train": {{"rfc": "{tmp_path}"}}}}')
    assert list(asha.look()) == ["tiny-1"]


def test_a_line_that_was_cut_off_is_read_when_it_is_whole(runs: Runs) -> None:
    asha = runs.asha()
    runs.log(0, s10=1.0)
    runs.log(1, s8=2.0)
    metrics = runs.layout(1).stage("pretrain").metrics
    with metrics.open("a") as file:
        file.write('{"step": 10, "eval/')
        file.flush()
        assert asha.look() == {}
        file.write('loss": 2.0}\n')
    assert list(asha.look()) == ["tiny-1"]
