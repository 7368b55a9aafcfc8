"""status, logs and cancel, read from run directories."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launchers.base import PlaceState
from launchers.stage_news import WAITING
from launchers.submission_record import Submission
from orchestrator.errors import LaunchError
from tests.unit.launchers.commands import Console, FakeRun
from tests.unit.launchers.place import NAME, Place


@contextmanager
def driving(run: FakeRun) -> Iterator[None]:
    """Hold the run's lock as its driver does."""
    with run.layout.driver_lock.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def states(console: Console, run: FakeRun) -> list[str]:
    """States of the run and of its stages."""
    status = console("status", run.layout.root, "--json").json()
    return [status["state"], *(stage["state"] for stage in status["stages"])]


def test_states_follow_the_events(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    assert states(console, run) == ["waiting", "waiting", "waiting"]
    run.event("run_started")
    run.event("stage_started", stage="pretrain")
    with driving(run):
        assert states(console, run) == ["running", "running", "waiting"]
    assert states(console, run) == ["interrupted", "interrupted", "waiting"]
    run.event("stage_stopped", stage="pretrain")
    run.event("run_stopped")
    assert states(console, run) == ["stopped", "stopped", "waiting"]
    run.event("run_started")
    run.event("stage_started", stage="pretrain")
    run.finish("pretrain")
    run.event("stage_finished", stage="pretrain")
    run.event("stage_started", stage="test")
    run.event("stage_failed", stage="test")
    run.event("run_failed")
    assert states(console, run) == ["failed", "finished", "failed"]
    run.finish("test")
    run.event("run_finished")
    assert states(console, run) == ["finished", "finished", "finished"]


def test_a_failed_run_says_why(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("run_started")
    run.event("run_failed", error="DataError", message="datasets.rfc: there is no file 'a.txt'")
    status = ("status", run.layout.root)
    assert console(*status, "--json").json()["problem"] == "datasets.rfc: there is no file 'a.txt'"
    assert console(*status).output.splitlines()[-1] == "datasets.rfc: there is no file 'a.txt'"
    run.event("run_started")
    assert console(*status, "--json").json()["problem"] is None


def compared(run: FakeRun, *, stop: bool) -> None:
    """Compare a run of a sweep with others."""
    rule = {
        "metric": "eval/loss",
        "mode": "min",
        "stage": "pretrain",
        "grace_steps": 4,
        "reduction_factor": 3,
    }
    run.event("compared", rule=rule, step=4, value=2.5, among=3, stop=stop)


def test_a_run_that_its_sweep_stopped_says_why(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("run_started")
    run.event("stage_started", stage="pretrain")
    compared(run, stop=True)
    with driving(run):
        assert states(console, run)[0] == "running"
    # The driver may be killed before it has saved.
    assert states(console, run) == ["stopped early", "stopped early", "waiting"]
    run.event("stage_stopped", stage="pretrain")
    run.event("run_stopped")
    assert states(console, run) == ["stopped early", "stopped", "waiting"]
    reason = "eval/loss 2.5 at step 4 of 'pretrain', not among the best 1/3 of 3 runs"
    status = ("status", run.layout.root)
    assert console(*status, "--json").json()["reason"] == reason
    assert console(*status).output.splitlines()[-2:] == [
        f"its sweep stopped it early: {reason}",
        f"  orchestrator run {run.layout.submitted_job} --runs-dir {tmp_path}    (goes on with it)",
    ]
    run.event("run_started")
    run.event("run_stopped")
    assert states(console, run)[0] == "stopped"
    assert console(*status, "--json").json()["reason"] is None


def test_comparisons_hide_nothing_of_a_run(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("run_started")
    run.event("stage_preparing", stage="pretrain")
    compared(run, stop=False)
    with driving(run):
        assert states(console, run) == ["running", "preparing", "waiting"]
    run.event("run_failed", error="DataError", message="no file")
    compared(run, stop=True)
    assert states(console, run)[0] == "failed"
    assert console("status", run.layout.root, "--json").json()["problem"] == "no file"


def test_looking_never_makes_a_lock(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("run_started")
    assert states(console, run)[0] == "interrupted"
    assert not run.layout.driver_lock.exists()


def test_progress_comes_from_the_last_whole_line_or_the_result(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.metrics(
        "pretrain",
        '{"step": 1, "train/loss": 3.5}\n{"step": 2, "eval/loss": 3.25}\n'
        '{"step": 2, "train/loss": 3.0}\n{"step": 3, "train/lo',
    )
    run.finish("test", **{"eval/accuracy": 0.75})
    stages = console("status", "tiny", "--runs-dir", tmp_path, "--json").json()["stages"]
    assert stages == [
        {
            "name": "pretrain",
            "state": "waiting",
            "step": 2,
            "saved_step": None,
            "metrics": {"train/loss": 3.0, "eval/loss": 3.25},
            "damaged": [],
        },
        {
            "name": "test",
            "state": "finished",
            "step": None,
            "saved_step": None,
            "metrics": {"eval/accuracy": 0.75},
            "damaged": [],
        },
    ]
    assert console("status", "tiny", "--runs-dir", tmp_path).output.splitlines() == [
        "tiny: waiting",
        "  stage     state     step  saved  metrics",
        "  pretrain  waiting   2     -      train/loss 3  eval/loss 3.25",
        "  test      finished  -     -      eval/accuracy 0.75",
    ]


@pytest.mark.parametrize("logged", ["", '{"step": 2, "train/loss": 3.5}\n'])
def test_a_stage_is_at_its_checkpoint_where_that_is_later_than_what_it_logged(
    console: Console, tmp_path: Path, logged: str
) -> None:
    run = FakeRun(tmp_path)
    if logged:
        run.metrics("pretrain", logged)
    saved = run.layout.stage("pretrain").checkpoints / "step-00000003"
    saved.mkdir(parents=True)
    (saved / "COMPLETE").write_text("{}")
    (stage, _) = console("status", "tiny", "--runs-dir", tmp_path, "--json").json()["stages"]
    assert (stage["step"], stage["saved_step"]) == (3, 3)


def test_a_stage_that_does_not_train_has_no_step(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("run_started")
    run.event("stage_started", stage="test")
    # It logs the step of the weights that it has evaluated.
    run.metrics("test", '{"step": 10, "eval/loss": 3.5}\n')
    assert console("status", "tiny", "--runs-dir", tmp_path, "--json").json()["stages"][1]["step"] is None
    assert console("status", "--runs-dir", tmp_path).output.splitlines()[-1] == "  tiny  interrupted  test"


def test_damaged_checkpoints_are_told_while_they_are_there(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    kept_as = "pretrain/checkpoints/quarantine-step-00000004"
    damage = {"step": 4, "problem": "state.json: missing, expected 9 bytes", "kept_as": kept_as}
    run.event("checkpoint_damaged", stage="pretrain", **damage)
    (run.layout.root / kept_as).mkdir(parents=True)
    status = ("status", "tiny", "--runs-dir", tmp_path)
    first, second = console(*status, "--json").json()["stages"]
    assert (first["damaged"], second["damaged"]) == ([damage], [])
    assert console(*status).output.splitlines()[-1] == (
        "[pretrain] the checkpoint of step 4 is damaged (state.json: missing, expected 9 bytes); it is kept"
        f" as {kept_as}, and the newest good one, if any, is used"
    )
    (run.layout.root / kept_as).rmdir()
    assert console(*status, "--json").json()["stages"][0]["damaged"] == []
    assert "damaged" not in console(*status).output
    # Nobody asks remote storage.
    damage["kept_as"] = "s3://bucket/tiny/pretrain/quarantine-step-00000004"
    run.event("checkpoint_damaged", stage="pretrain", **damage)
    assert console(*status, "--json").json()["stages"][0]["damaged"] == [damage]
    assert f"it is kept as {damage['kept_as']}" in console(*status).output


def test_all_runs_are_listed(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNS_DIR", str(tmp_path / "runs"))
    assert console("status").output == f"no runs in {tmp_path}/runs\n"
    assert console("status", "--json").json() == {"runs": []}
    FakeRun(tmp_path / "runs", "b").event("run_finished")
    FakeRun(tmp_path / "runs", "a").finish("pretrain")
    (tmp_path / "runs" / ".cache").mkdir()
    (tmp_path / "runs" / "not-a-run").mkdir()
    found = console("status", "--json").json()["runs"]
    assert [(run["name"], run["state"]) for run in found] == [("a", "waiting"), ("b", "finished")]
    assert console("status").output.splitlines() == [
        f"Runs in {tmp_path}/runs",
        "  run  state     stage",
        "  a    waiting   pretrain (step 10)",
        "  b    finished  -",
    ]


def test_a_run_whose_job_cannot_be_read_still_has_a_status(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("stage_started", stage="pretrain")
    for content in (b"stages: [", b"", b"name: \xff\n", b"[]"):
        run.layout.job.write_bytes(content)
        assert states(console, run) == ["waiting", "waiting"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tyny", "no run is called 'tyny' under '{runs}'. Did you mean 'tiny'?"),
        ("zebra", "no run is called 'zebra' under '{runs}'. It has other, tiny."),
        ("../secret", "'../secret' is not a run directory: it has no job.yaml or events.jsonl"),
        ("..", "'..' is not a run directory: it has no job.yaml or events.jsonl"),
        ("", "'' is not a run directory: it has no job.yaml or events.jsonl"),
    ],
)
@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_an_unknown_run_is_refused_with_the_nearest_names(
    command: str, name: str, hint: str, console: Console, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    FakeRun(runs, "tiny")
    FakeRun(runs, "other")
    FakeRun(tmp_path, "secret")
    message = hint.format(runs=runs) + "\n"
    assert console(command, name, "--runs-dir", runs) == (2, "", message)


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
@pytest.mark.parametrize("run", ["a" * 300, "a" * 5000, "./" + "a" * 300, "a/" * 3000])
def test_a_name_that_no_file_system_holds_is_an_unknown_run(
    command: str, run: str, console: Console, tmp_path: Path
) -> None:
    FakeRun(tmp_path, "tiny")
    ended = console(command, run, "--runs-dir", tmp_path)
    assert ended.code == 2
    assert ended.errors.startswith((f"no run is called '{run}'", f"'{run}' is not a run directory"))


def test_no_runs_at_all(console: Console, tmp_path: Path) -> None:
    message = f"no run is called 'x' under '{tmp_path}'. It has no runs yet.\n"
    assert console("logs", "x", "--runs-dir", tmp_path) == (2, "", message)


def test_logs_are_those_of_the_latest_stage_or_the_one_asked_for(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    for stage in ("pretrain", "test"):
        run.event("stage_started", stage=stage)
        run.log(stage, f"{stage} 0\n")
        run.log(stage, f"{stage} 1\n", rank=1)
    logs = ("logs", "tiny", "--runs-dir", tmp_path)
    assert console(*logs).output == "test 0\n"
    assert console(*logs, "--rank", "1").output == "test 1\n"
    assert console(*logs, "--stage", "pretrain").output == "pretrain 0\n"
    assert console(*logs, "--stage", "pretrain", "--json").json() == {
        "name": "tiny",
        "stage": "pretrain",
        "rank": 0,
        "lines": ["pretrain 0"],
    }


def test_a_log_that_is_not_there_is_refused(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    logs = ("logs", "tiny", "--runs-dir", tmp_path)
    root = run.layout.root
    assert console(*logs).errors == f"{root} has no log yet: no stage of it has started\n"
    run.event("stage_started", stage="pretrain")
    run.log("pretrain", "x")
    assert console(*logs, "--rank", "3").errors == "stage 'pretrain' has no log of rank 3; it has 0\n"
    message = f"{root} has no log of stage 'test'; stages with a log: pretrain\n"
    assert console(*logs, "--stage", "test") == (2, "", message)
    message = f"{root} has no stage 'pretrian'. Did you mean 'pretrain'? Its stages: pretrain, test.\n"
    assert console(*logs, "--stage", "pretrian") == (2, "", message)
    message = (
        "--json prints one document and --follow has no end; give one of them:"
        " 'orchestrator logs tiny --json' or 'orchestrator logs tiny --follow'"
    )
    assert console(*logs, "--json", "-f").json()["errors"][0]["message"] == message


def test_following_goes_on_through_stages_until_the_run_ends(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("run_started")
    run.event("stage_started", stage="pretrain")
    run.log("pretrain", "one\n")

    def drive() -> None:
        with driving(run):
            started.set()
            # By then the command has found the first stage's log.
            time.sleep(2)
            run.log("pretrain", "two\n")
            run.event("stage_started", stage="test")
            time.sleep(0.3)
            run.log("test", "three\n")
            time.sleep(0.3)
            run.event("run_finished")

    started = threading.Event()
    driver = threading.Thread(target=drive)
    driver.start()
    started.wait()
    ended = console("logs", "tiny", "-f", "--runs-dir", tmp_path)
    driver.join()
    assert ended == (0, "one\ntwo\n==> test <==\nthree\n", "")


def test_cancel_asks_a_running_driver_and_refuses_otherwise(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.event("run_finished")
    cancel = ("cancel", "tiny", "--runs-dir", tmp_path)
    message = f"{run.layout.root} is not running: its state is 'finished'\n"
    assert console(*cancel) == (2, "", message)
    assert not run.layout.stop_request.exists()
    with driving(run):
        assert console(*cancel).output == "tiny stops after this step, with its work saved\n"
        assert console(*cancel, "--json").json() == {"name": "tiny", "state": "stopping"}
        run.event("run_started")
        for event in ("stage_preparing", "stage_starting", WAITING):
            run.event(event, stage="pretrain")
            assert console(*cancel).output == "tiny stops before its workers start, with its work saved\n"
        status = console("status", "tiny", "--runs-dir", tmp_path, "--json").json()
        assert [stage["state"] for stage in status["stages"]] == ["waiting for room", "waiting"]
    assert run.layout.stop_request.exists()


def test_a_run_of_a_sweep_that_cannot_be_cancelled_keeps_no_other_from_it(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(place: Place, job_id: str, *, only_queued: bool) -> None:
        if job_id in ("sw-1", "sw-3"):
            raise LaunchError(f"{job_id} is not yours")
        Place.jobs.pop(job_id)

    Place.reset()
    monkeypatch.setattr(Place, "cancel", cancel)
    names = [f"sw-{number}" for number in range(4)]
    for name in names:
        run = FakeRun(tmp_path, name)
        run.layout.submitted_job.write_text(run.layout.job.read_text())
        Submission.of_now(NAME, name, {}).write(run.layout)
        Place.jobs[name] = PlaceState("queued", "PENDING")
    command = ("cancel", "sw", "--runs-dir", tmp_path)
    ended = console(*command)
    cancelled = ["sw-2 is cancelled before it started", "sw-0 is cancelled before it started"]
    assert (ended.code, ended.output.splitlines()) == (1, cancelled)
    said = [line for line in ended.errors.splitlines() if "sw" in line]
    assert said == [
        "sw-3: sw-3 is not yours",
        "sw-1: sw-1 is not yours",
        "of the sweep 'sw' not ended, for the reasons above: sw-1, sw-3",
    ]
    ended = console(*command, "--json")
    assert (ended.code, ended.errors) == (1, "")
    found = {run["name"]: (run["state"], run["problem"]) for run in ended.json()["runs"]}
    assert list(found) == names
    assert found["sw-0"] == found["sw-2"] == ("cancelled", None)
    for name in ("sw-1", "sw-3"):
        state, problem = found[name]
        assert (state, problem.startswith(f"{name} is not yours")) == ("waiting", True)


def test_where_the_time_went_is_shown(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    assert console("status", run.layout.root, "--json").json()["seconds"] == {}
    run.event("run_started")
    run.event("training_started", stage="pretrain", step=0, max_steps=10)
    time.sleep(0.3)
    run.event("checkpoint", stage="pretrain", step=2, seconds={"compute": 10.0})
    seconds = console("status", run.layout.root, "--json").json()["seconds"]
    assert 0.8 < seconds["goodput"] <= 1.0
    assert "time: 0:00:00, compute " in console("status", run.layout.root).output
