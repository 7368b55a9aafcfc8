"""Compares the runs of a sweep while they train, by Ray Tune's scheduler for asynchronous successive halving.

1. values are read from each run's ``metrics.jsonl`` as its workers write them;
2. the first one at or after each step of comparison is given to the scheduler, which says whether it ends;
3. that is an event of the run before anything else happens, so that a sweep which is killed knows it again.

The scheduler is filled again from these events when the sweep goes on. What it holds depends on which
values were compared and not on their order, so it is the same as before; what was logged and not compared
yet is compared then, by step and then by the order of the runs. Stopping a run is ``sweep.py``'s.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from launchers.counting import planned_steps
from launchers.verdicts import COMPARED, comparisons, lost_under
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.early_stopping import compared_steps
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.plan import plan_batch
from orchestrator.spec.sweep import EarlyStopping
from orchestrator.tracking.events import append_event, read_events, time_now

# In the place of a value that is not finite. The scheduler interpolates between values, so an infinity would
# make its threshold NaN, which no run is below.
WORST = 1e300
LEFT_OUT = "train/steps_left_out"
"""In the metrics of steps of which some made no update."""


class Asha:
    """The runs of a sweep, compared with each other."""

    def __init__(self, rule: EarlyStopping, jobs: Sequence[Job], runs_dir: Path, *, anew: bool) -> None:
        """Compare ``jobs`` by ``rule``, the ``rule_of`` their sweep.

        Args:
            anew: The compared stage of each run is started over: what lies there counts for nothing.
        """
        self._rule = rule
        self._terms = rule.model_dump(mode="json")
        self._runs = [_Run(job, rule, RunLayout(runs_dir / job.name)) for job in jobs]
        self._since = time_now() if anew else ""
        self._scheduler: Any = None
        self._num_steps = 0
        self._num_compared: Counter[int] = Counter()
        """Runs that were compared, by the step of the comparison."""
        self._new: list[tuple[int, int, float | None]] = []
        """Steps, places of runs and values that were not looked at yet."""

    def look(self) -> dict[str, Mapping[str, Any]]:
        """Compare what is new; the comparison by which a run has to end, by the run's name."""
        for run in self._runs:
            if not run.is_read:
                run.read(self._terms, self._since)
        found = [
            (step, index, value)
            for index, run in enumerate(self._runs)
            if run.is_read
            for step, value in run.tail.values()
        ]
        self._new += sorted(found, key=lambda each: each[:2])
        has_history = any(run.history for run in self._runs)
        if (self._new or has_history) and self._has_scheduler():
            self._compare_new()
        return {run.name: run.lost_by for run in self._runs if run.lost_by is not None}

    def _has_scheduler(self) -> bool:
        """Whether there is one: where stages end after epochs, not before the data of a run is prepared."""
        if self._scheduler is not None:
            return True
        # One that was never evaluated may not even be able to train.
        evaluated = [self._runs[index] for _, index, _ in self._new]
        known = (run.num_steps() for run in [*evaluated, *(run for run in self._runs if run.history)])
        self._num_steps = next((steps for steps in known if steps is not None), 0)
        if not self._num_steps:
            return False
        # Here and not above: it takes 3 s.
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self._scheduler = AsyncHyperBandScheduler(
            time_attr="step",
            metric="value",
            mode=self._rule.mode,
            max_t=max(self._num_steps, self._rule.grace_steps),
            grace_period=self._rule.grace_steps,
            reduction_factor=self._rule.reduction_factor,
            # A run that has come to its last step ends by itself.
            stop_last_trials=False,
        )
        return True

    def _compare_new(self) -> None:
        """Give the scheduler what was compared before, and then what was not."""
        for run in self._runs:
            for event in run.history:
                self._give(run, int(event["step"]), event["value"])
            run.history = []
        for step, index, value in self._new:
            self._compare(self._runs[index], step, value)
        self._new = []

    def _compare(self, run: _Run, step: int, value: float | None) -> None:
        """Compare a run at a step, unless that was done, and write down what came of it."""
        if run.lost_by is not None or self._due(run, step) is None:
            return
        is_behind = self._give(run, step, value)
        event = {
            "rule": self._terms,
            "step": step,
            "value": value,
            "among": self._num_compared[run.compared_at],
            # What has been trained to its end is kept.
            "stop": is_behind and not run.layout.stage(str(self._rule.stage)).result.exists(),
        }
        append_event(run.layout.events, COMPARED, **event)
        if event["stop"]:
            run.lost_by = event

    def _due(self, run: _Run, step: int) -> int | None:
        """The comparison that a value of this step is for; ``None``: for none."""
        if step >= self._num_steps:
            return None
        reached = [due for due in compared_steps(self._rule, self._num_steps) if due <= step]
        return reached[-1] if reached and reached[-1] > run.compared_at else None

    def _give(self, run: _Run, step: int, value: float | None) -> bool:
        """Give a value to the scheduler; whether the run is behind."""
        from ray.tune.schedulers import TrialScheduler

        due = self._due(run, step)
        if due is None:
            return False
        if not run.compared_at:
            self._scheduler.on_trial_add(None, run.trial)
        run.compared_at = due
        self._num_compared[due] += 1
        worst = WORST if self._rule.mode == "min" else -WORST
        result = {"step": step, "value": worst if value is None else value}
        # It asks its controller nothing.
        return bool(self._scheduler.on_trial_result(None, run.trial, result) == TrialScheduler.STOP)


class _Run:
    """What is known of one run."""

    def __init__(self, job: Job, rule: EarlyStopping, layout: RunLayout) -> None:
        stage = job.stage(str(rule.stage))
        assert isinstance(stage, TrainStage)
        self.name = job.name
        self.layout = layout
        self.tail = _Tail(layout.stage(stage.name).metrics, rule.metric)
        self.is_read = False
        """Whether its directory is of the run that is meant."""
        self.history: list[Mapping[str, Any]] = []
        """Comparisons that the scheduler was not given yet."""
        self.lost_by: Mapping[str, Any] | None = None
        self.compared_at = 0
        """Step of the latest comparison; 0: none yet."""
        self._job, self._stage = job, stage

    def read(self, terms: Mapping[str, Any], since: str) -> None:
        """Take over what was decided before.

        Args:
            since: The stage has to have started after this time, if any.
        """
        events = list(read_events(self.layout.events))
        started = (event for event in events if event["event"] == "training_started")
        if since and not any(
            event["stage"] == self._stage.name and event["time"] >= since for event in started
        ):
            return
        self.is_read = True
        self.history = comparisons(events, terms)
        self.lost_by = lost_under(events, terms)

    def num_steps(self) -> int | None:
        """Steps of the compared stage, as far as they are known."""
        batch = plan_batch(self._stage, self._job.resources)
        return planned_steps(self._stage, batch, self.layout.stage(self._stage.name))

    @cached_property
    def trial(self) -> Any:
        """The run as the scheduler knows it: by its id."""
        from ray.tune.experiment import Trial

        return Trial("run", stub=True, trial_id=self.name)


class _Tail:
    """Values of one metric in a file that grows, and that workers write anew when they start."""

    def __init__(self, path: Path, metric: str) -> None:
        self._path, self._metric = path, metric
        self._inode, self._offset = 0, 0

    def values(self) -> Iterator[tuple[int, float | None]]:
        """Steps and values since the last look; all of them where the file is another."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        for line in complete.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                # Its writer was killed; the workers that come next write the file anew.
                continue
            if self._metric == "train/loss" and record.get(self._metric) is None and LEFT_OUT in record:
                # Steps without an update have no loss, and say nothing of the run.
                continue
            if self._metric in record:
                yield int(record["step"]), record[self._metric]
