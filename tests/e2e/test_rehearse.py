"""A rehearsal of a small job: each fault is noticed, little is lost, and the state is the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.commands import orchestrator
from tests.e2e.test_kill_and_resume import write_job

CHEAP = "kill-rank,hang,corrupt"
OTHERS = "hang-data,kill-save,kill-all,preempt,resize,switch-strategy"


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("faults", [CHEAP, pytest.param(OTHERS, marks=pytest.mark.exhaustive)])
def test_a_run_that_meets_faults_ends_as_the_one_that_met_none(faults: str, tmp_path: Path) -> None:
    path = write_job(tmp_path, "rehearsed", ["fsdp2"])
    runs = tmp_path / "runs"
    command = ("rehearse", path, "--faults", faults, "--json", "--runs-dir", runs)
    options = ("--set", "resources.hang_timeout_seconds=5")
    done = orchestrator(*command, *options, home=tmp_path / "home", seconds=1000)
    assert done.returncode == 0, done.stderr + done.stdout
    found = {finding["fault"]: finding for finding in json.loads(done.stdout)["faults"]}
    assert list(found) == faults.split(",")
    for name, finding in found.items():
        assert finding["ok"], finding
        assert finding["rows_exactly_once"], finding
        assert finding["state_equal"] == "yes", finding
        stopped = dict.fromkeys(("preempt", "resize", "switch-strategy"), (6, 0))
        # A damaged checkpoint of step 8 falls back to the one before it, not to the beginning.
        expected = {**stopped, "corrupt": (4, 6), "kill-save": (4, 4)}.get(name, (4, 2))
        assert (finding["resumed_at_step"], finding["steps_lost"]) == expected, finding
    for hang in {"hang", "hang-data"} & set(found):
        # From 5 s without a step on; a slow step makes it more, and Ray's own time-outs are many minutes.
        assert 4 < found[hang]["noticed_after_seconds"] < 60
    assert not list(runs.glob("rehearsed*")), "nothing is left of a rehearsal in which all was well"
