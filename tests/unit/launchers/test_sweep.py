"""Drivers of a sweep's runs, with small programs in their place: which are stopped early, and once."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launchers.ray_notice import NODES_GONE
from launchers.sweep import Drivers
from launchers.sweep_results import Outcome
from launchers.verdicts import STOPPED_EARLY
from orchestrator.tracking.events import append_event
from tests.unit.launchers.test_asha import Runs

# A driver that evaluates, and then waits to be stopped, or ends. The second signal ends it without saving.
PROGRAM = """\
import json, os, pathlib, signal, sys, time
root = pathlib.Path(sys.argv[1]).parent
told = json.loads((root.parent / "told.json").read_text())[root.name]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
stage = root / "pretrain"
stage.mkdir(exist_ok=True)
(root / "ray").write_text(os.environ["RAY_ADDRESS"])
assert "ORCHESTRATOR_NODES_GONE" not in os.environ
with (root / "starts").open("a") as starts:
    starts.write("started ")
for other in told["after"]:
    events = root.parent / other / "events.jsonl"
    while not events.exists() or "compared" not in events.read_text():
        time.sleep(0.02)
with (stage / "metrics.jsonl").open("a") as metrics:
    for step, loss in told["losses"]:
        print(json.dumps({"step": step, "eval/loss": loss}), file=metrics, flush=True)
deadline = time.monotonic() + told["seconds"]
while time.monotonic() < deadline and not asked:
    time.sleep(0.02)
if asked:
    time.sleep(0.6)
    sys.exit(130 if len(asked) > 1 else told["stopped"])
(stage / "result.json").write_text("{}")
sys.exit(told["code"])
"""


RAY = "127.0.0.2:6379"


class Sweep(Runs):
    """Runs whose drivers are told what to do."""

    def drive(self, *told: Mapping[str, Any], at_once: int = 1, look: Any = None) -> dict[str, Outcome]:
        """Run them all.

        Args:
            told: To each: ``losses``; ``after`` which runs it logs them; ``seconds`` it lives then
                without a signal; the ``code`` it ends with, by itself and (``stopped``) after a signal.
        """
        defaults: dict[str, Any] = {"losses": [], "after": [], "seconds": 0, "code": 0, "stopped": 75}
        names = [job.name for job in self.jobs]
        texts = {name: defaults | dict(each) for name, each in zip(names, told, strict=True)}
        (self.folder / "told.json").write_text(json.dumps(texts))
        program = self.folder / "driver.py"
        program.write_text(PROGRAM)
        drivers = Drivers(self.folder, lambda job_file: [sys.executable, str(program), str(job_file)])
        return drivers.run(self.jobs, at_once, look or self.asha().look, RAY)

    def starts(self) -> list[int]:
        """How often each run was started."""
        files = [self.layout(run).root / "starts" for run in range(len(self.jobs))]
        return [file.read_text().count("started") if file.exists() else 0 for file in files]


FINISHED = Outcome("finished")
GOOD: dict[str, Any] = {"losses": [(10, 1.0)]}
# It would live for a minute.
HOPELESS: dict[str, Any] = {"losses": [(10, 5.0)], "seconds": 60}
REASON = "eval/loss 5 at step 10 of 'pretrain', not among the best 1/2 of 2 runs"


def test_all_use_one_ray_and_none_gives_its_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NODES_GONE, str(tmp_path / "gone"))
    sweep = Sweep(tmp_path, num_runs=2)
    ends = sweep.drive({}, {}, at_once=2)
    assert set(ends.values()) == {FINISHED}
    assert [(sweep.layout(run).root / "ray").read_text() for run in range(2)] == [RAY, RAY]


def test_a_losing_run_is_asked_to_save_and_the_others_finish(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_runs=3)
    ends = sweep.drive(GOOD, HOPELESS, GOOD)
    assert list(ends.values()) == [FINISHED, Outcome(STOPPED_EARLY, REASON), FINISHED]
    assert not sweep.layout(1).stage("pretrain").result.exists()
    # The same command again: it is not started, and the others find themselves finished.
    assert sweep.drive(GOOD, HOPELESS, GOOD) == ends
    assert sweep.starts() == [2, 1, 2]


def test_a_sweep_that_is_killed_ends_in_the_same_states(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_runs=3)
    asha = sweep.asha()

    def dies() -> Mapping[str, Any]:
        if asha.look():
            # The decision is written down and nothing else has happened.
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        sweep.drive(GOOD, HOPELESS, GOOD, look=dies)
    assert sweep.starts() == [1, 1, 0]
    ends = sweep.drive(GOOD, HOPELESS, GOOD)
    assert list(ends.values()) == [FINISHED, Outcome(STOPPED_EARLY, REASON), FINISHED]
    assert sweep.starts() == [2, 1, 1]


def test_a_run_that_lost_goes_on_without_early_stopping(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_runs=2)
    sweep.drive(GOOD, HOPELESS)
    assert list(sweep.drive(GOOD, HOPELESS | {"seconds": 0}, look=dict).values()) == [FINISHED, FINISHED]
    append_event(sweep.layout(1).events, "run_started")
    append_event(sweep.layout(1).events, "run_finished")
    assert list(sweep.drive(GOOD, HOPELESS | {"seconds": 0}).values()) == [FINISHED, FINISHED]


def test_a_losing_run_that_fails_while_it_saves_has_failed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_runs=2)
    ends = sweep.drive(GOOD, HOPELESS | {"stopped": 1})
    assert [end.state for end in ends.values()] == ["finished", "failed"]


def test_a_driver_that_was_asked_before_it_could_take_the_signal_is_stopped(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_runs=2)
    (tmp_path / "driver.py").write_text("import time; time.sleep(60)")
    drivers = Drivers(tmp_path, lambda job_file: [sys.executable, str(tmp_path / "driver.py")])
    looks: list[None] = []

    def stop_at_second_look() -> dict[str, Any]:
        looks.append(None)
        if len(looks) == 2:
            drivers.stop("SIGUSR1")
        return {}

    ends = drivers.run(sweep.jobs, 1, stop_at_second_look, RAY)
    assert [end.state for end in ends.values()] == ["stopped", "waiting"]


def test_runs_at_the_same_time_are_compared(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, num_runs=3)
    waiting = GOOD | {"seconds": 1.5}
    # Whoever is there first has nobody to be behind.
    late = HOPELESS | {"after": ["tiny-0", "tiny-1"]}
    ends = sweep.drive(waiting, waiting, late, at_once=3)
    assert [end.state for end in ends.values()] == ["finished", "finished", STOPPED_EARLY]
