"""What becomes of submitted jobs: status, logs and cancel ask their place."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import pytest

from launchers.base import PlaceState
from launchers.progress import ProgressDisplay
from launchers.run_directory import only_driver, opened_run
from launchers.submission_record import (
    JOB_ID_VARIABLE,
    CancelledError,
    Submission,
    read_submission,
    refuse_cancelled,
)
from launchers.submitted import join_places
from launchers.sweep_record import SweepRecord
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from orchestrator.spec.load import load_job
from orchestrator.tracking.events import append_event, read_events
from tests.unit.launchers.commands import Console, FakeRun
from tests.unit.launchers.place import NAME, Place
from tests.unit.spec.jobs import VALID, write_job


@pytest.fixture(autouse=True)
def place() -> type[Place]:
    Place.reset()
    return Place


def submitted(runs: Path, name: str, phase: str | None = "queued", **options: object) -> FakeRun:
    """A run that was submitted; ``phase``: that of its job, unless that is over."""
    run = FakeRun(runs, name)
    Submission.of_now(NAME, name, options).write(run.layout)
    if phase is not None:
        Place.jobs[name] = PlaceState("queued" if phase == "queued" else "running", phase.upper())
    return run


def test_a_place_that_does_not_answer_is_asked_once(console: Console, tmp_path: Path) -> None:
    Place.is_down = True
    for name in ("first", "second", "third"):
        submitted(tmp_path, name)
    submitted(tmp_path, "elsewhere", region="x")
    listed = console("status", "--runs-dir", tmp_path)
    assert (listed.code, len(listed.output.splitlines())) == (0, 6)
    assert listed.errors.splitlines() == [
        "orchestrator: warning: elsewhere: the place does not answer",
        "orchestrator: warning: first and 2 more: the place does not answer",
    ]
    assert Place.times_asked == 2


@pytest.mark.parametrize(
    ("launcher", "options", "expected"),
    [
        ("slurm", [{"nodes": 1}, {"nodes": 2, "partition": "x"}], 1),
        ("ray", [{"address": "http://a:1"}, {"address": "http://a:1", "python": "x"}], 1),
        ("ray", [{"address": "http://a:1"}, {"address": "http://b:1"}], 2),
        ("kuberay", [{"image": "a"}, {"image": "b", "namespace": None}], 1),
        ("kuberay", [{"image": "a", "namespace": "x"}, {"image": "a", "namespace": "y"}], 2),
        ("my.own:Place", [{"a": 1}, {"a": 2}], 2),
    ],
)
def test_runs_share_a_queue_whatever_their_other_options(
    launcher: str, options: list[dict[str, object]], expected: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Submission, "place", lambda submission: Place({}))
    for number, given in enumerate(options):
        Submission.of_now(launcher, str(number), given).write(RunLayout(tmp_path / str(number)))
    join_places({tmp_path / str(number): {"name": str(number)} for number in range(len(options))})
    assert Place.times_asked == expected


def test_a_sweep_and_its_runs_are_looked_up_together(console: Console, tmp_path: Path) -> None:
    submitted(tmp_path, "tiny")
    for number in range(3):
        run = submitted(tmp_path, f"tiny-{number}")
        run.layout.submitted_job.write_text(run.layout.job.read_text())
    assert console("status", "tiny", "--runs-dir", tmp_path).code == 0
    assert Place.times_asked == 1


def of_sweep(runs: Path, number: int, phase: str | None = "queued") -> FakeRun:
    """A run of the sweep ``sw``, submitted as a job of its own."""
    run = submitted(runs, f"sw-{number}", phase)
    run.layout.submitted_job.write_text(run.layout.job.read_text())
    return run


def test_cancelling_a_sweep_of_single_jobs_cancels_its_runs(console: Console, tmp_path: Path) -> None:
    of_sweep(tmp_path, 0, None).event("run_finished")
    begun = of_sweep(tmp_path, 1, "running")
    begun.event("run_started")
    of_sweep(tmp_path, 2)
    of_sweep(tmp_path, 10)
    submitted(tmp_path, "other")
    cancel = ("cancel", "sw", "--runs-dir", tmp_path)
    ended = console(*cancel, "--json")
    assert ended.json() == {
        "name": "sw",
        "runs": [
            {"name": "sw-0", "state": "finished", "problem": None},
            {"name": "sw-1", "state": "stopping", "problem": None},
            {"name": "sw-2", "state": "cancelled", "problem": None},
            {"name": "sw-10", "state": "cancelled", "problem": None},
        ],
    }
    assert begun.layout.stop_request.is_file()
    assert sorted(Place.jobs) == ["other", "sw-1"]
    before = "sw-10 is cancelled before it started\nsw-2 is cancelled before it started\n"
    assert console(*cancel).output == f"{before}sw-1 stops after this step, with its work saved\n"
    Place.jobs.clear()
    assert console(*cancel).output == before
    for number in (2, 10):
        run = RunLayout(tmp_path / f"sw-{number}")
        Submission.of_now(NAME, f"sw-{number}", {}).write(run)
    ended = console(*cancel)
    assert (ended.code, ended.errors) == (
        2,
        "no run of the sweep 'sw' is running or queued: sw-0 is 'finished', sw-1 is 'interrupted',"
        " sw-10 is 'waiting', sw-2 is 'waiting'\n",
    )


def test_a_sweep_that_one_command_runs_is_not_cancelled_run_by_run(console: Console, tmp_path: Path) -> None:
    run = of_sweep(tmp_path, 0)
    run.layout.submission.unlink()
    ended = console("cancel", "sw", "--runs-dir", tmp_path)
    assert ended.code == 2
    assert ended.errors.startswith("the sweep 'sw' was not submitted but is run by one command")


@pytest.mark.parametrize("command", ["logs", "verify"])
def test_what_is_for_one_run_names_those_of_a_sweep(command: str, console: Console, tmp_path: Path) -> None:
    of_sweep(tmp_path, 0)
    of_sweep(tmp_path, 1)
    ended = console(command, "sw", "--runs-dir", tmp_path)
    assert (ended.code, ended.errors) == (
        2, "'sw' is a sweep; give one of its runs instead: sw-0, sw-1\n",
    )  # fmt: skip


def test_one_that_ran_as_a_whole_has_nothing_to_verify_but_its_runs(console: Console, tmp_path: Path) -> None:
    for number in range(12):
        of_sweep(tmp_path, number)
    whole = RunLayout(tmp_path / "sw")
    whole.root.mkdir()
    whole.events.write_text('{"event": "run_finished"}\n')
    named = ", ".join(f"sw-{number}" for number in range(10))
    for command in (("verify",), ("predict", "--text", "a")):
        ended = console(command[0], "sw", *command[1:], "--runs-dir", tmp_path)
        assert (ended.code, ended.errors) == (
            2, f"'sw' is a sweep; give one of its runs instead: {named} to sw-11\n",
        )  # fmt: skip


def test_cancelling_a_job_that_was_queued_again_says_where_its_work_is(
    console: Console, tmp_path: Path
) -> None:
    cancel = ("cancel", "tiny", "--runs-dir", tmp_path)
    run = submitted(tmp_path, "tiny")
    assert console(*cancel).output == "tiny is cancelled before it started\n"
    run.event("run_started")
    queue_again("tiny")
    taken = "tiny is taken out of its queue; "
    assert console(*cancel).output == f"{taken}it has begun, but saved nothing yet\n"
    run.event("stage_started", stage="pretrain")
    checkpoint = run.layout.stage("pretrain").checkpoints / "step-00000137"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").write_text("{}")
    queue_again("tiny")
    assert console(*cancel).output == f"{taken}its work is saved at step 137 of stage 'pretrain'\n"
    run.finish("pretrain")
    queue_again("tiny")
    assert console(*cancel).output == f"{taken}its work is saved at the end of stage 'pretrain'\n"


def queue_again(name: str) -> None:
    Place.jobs[name] = PlaceState("queued", "PENDING, BeginTime")


def test_a_job_that_waits_on_after_it_was_cancelled_is_said_to(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.submitted.LOOK_SECONDS", 0)
    Place.keeps = True
    job = write_job(tmp_path, f"{VALID}launcher: {{name: '{NAME}'}}\n")
    runs = ("--runs-dir", tmp_path / "runs")
    assert console("submit", job, *runs).code == 0
    waits = (
        "tiny is cancelled; its place keeps it in the queue until its turn comes, and it ends then without"
    )
    assert console("cancel", "tiny", *runs).output == f"{waits} running\n"
    assert console("cancel", "tiny", "--json", *runs).json() == {"name": "tiny", "state": "cancelling"}
    detail = "PENDING, cancelled: it ends when its turn comes"
    status = console("status", "tiny", "--json", *runs).json()
    assert (status["state"], status["job"]["state"]) == ("queued", detail)
    refused = console("submit", job, *runs)
    assert (refused.code, f"job tiny ({detail}); submit it once" in refused.errors) == (1, True), (
        refused.errors
    )

    Place.jobs["tiny"] = PlaceState("running", "RUNNING")
    assert console("status", "tiny", "--json", *runs).json()["job"]["state"] == "RUNNING"
    # As Ray says of one that could not start for long.
    Place.jobs.clear()
    Place.endings["tiny"] = "FAILED"
    assert console("status", "tiny", "--json", *runs).json()["state"] == "cancelled"
    Place.keeps = False
    assert console("submit", job, *runs).code == 0
    assert console("status", "tiny", "--json", *runs).json()["job"]["state"] == "PENDING"


def test_a_driver_ends_if_its_submission_was_cancelled_before(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.submitted.LOOK_SECONDS", 0)
    Place.keeps = True
    runs = tmp_path / "runs"
    layout = RunLayout(runs / "tiny")
    path = write_job(tmp_path, f"{VALID}launcher: {{name: '{NAME}'}}\n")
    assert console("submit", path, "--runs-dir", runs).code == 0
    job = load_job(path)
    display = ProgressDisplay(io.StringIO(), layout)

    def drive(job_id: str) -> None:
        monkeypatch.setenv(JOB_ID_VARIABLE, job_id)
        with opened_run(job, layout, display):
            pass
        SweepRecord(layout).run(lambda: 0)

    drive("tiny")
    layout.events.unlink()
    assert console("cancel", "tiny", "--runs-dir", runs).code == 0
    monkeypatch.setenv(JOB_ID_VARIABLE, "tiny")
    ended = console("run", layout.submitted_job, "--runs-dir", runs)
    said = "tiny was cancelled before its driver started: nothing is run\n"
    assert (ended.code, ended.output, ended.errors) == (75, "", said)
    assert not layout.events.exists()
    with pytest.raises(CancelledError):
        SweepRecord(layout).run(lambda: 0)
    append_event(layout.events, "run_started")
    with pytest.raises(CancelledError):
        drive("tiny")
    assert [event["event"] for event in read_events(layout.events)] == ["run_started", "run_stopped"]
    drive("tiny.2")
    monkeypatch.delenv(JOB_ID_VARIABLE)
    with opened_run(job, layout, display):
        # From here on a request is for this start.
        layout.stop_request.write_text("cancel")
    assert layout.stop_request.exists()
    layout.submission.write_text("{")
    drive("tiny")


def test_a_run_that_is_cancelled_as_it_runs_is_not_started_again(console: Console, tmp_path: Path) -> None:
    run = submitted(tmp_path, "tiny", "running")
    for event in ("run_started", "run_stopped"):
        run.event(event)
        before = read_submission(run.layout)
        assert before is not None
        assert not before.is_cancelled
        with only_driver(run.layout) if event == "run_stopped" else nullcontext():
            assert "tiny stops after this step" in console("cancel", "tiny", "--runs-dir", tmp_path).output
        noted = read_submission(run.layout)
        assert noted is not None
        assert noted.is_cancelled
        before.write(run.layout)


def test_a_cancellation_that_its_place_refuses_is_noted_all_the_same(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: Place, job_id: str, *, only_queued: bool) -> None:
        raise LaunchError("not yours")

    run = submitted(tmp_path, "tiny")
    monkeypatch.setattr(Place, "cancel", refuse)
    ended = console("cancel", "tiny", "--runs-dir", tmp_path)
    noted = "The run is noted as cancelled, and its driver ends at once where it starts from now on"
    assert (ended.code, ended.errors) == (1, f"not yours\n{noted}\n")
    record = read_submission(run.layout)
    assert record is not None
    assert record.is_cancelled

    def refuse_late(place: Place, job_id: str, *, only_queued: bool) -> None:
        # Another one was first.
        Place.jobs.clear()
        raise LaunchError("no such job")

    monkeypatch.setattr(Place, "cancel", refuse_late)
    assert console("cancel", "tiny", "--runs-dir", tmp_path).output == "tiny is cancelled before it started\n"
    assert console("cancel", "tiny", "--runs-dir", tmp_path).code == 0
    listed = console("status", "--json", "--runs-dir", tmp_path).json()["runs"]
    assert [entry["state"] for entry in listed] == ["cancelled"]


def test_a_place_that_starts_again_is_told_not_to_where_the_lock_is_seen(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr(Place, "end_restarts", lambda place, job_id: ended.append(job_id), raising=False)
    run = submitted(tmp_path, "tiny", "running")
    with only_driver(run.layout):
        assert console("cancel", "tiny", "--runs-dir", tmp_path).code == 0
        assert (ended, run.layout.stop_request.is_file()) == (["tiny"], True)
        # Whatever is wrong with the record, the run is asked to stop.
        run.layout.stop_request.unlink()
        run.layout.submission.write_text("{")
        stopped = console("cancel", "tiny", "--runs-dir", tmp_path)
        assert (stopped.code, run.layout.stop_request.is_file()) == (0, True)
        assert "submission.json is damaged" in stopped.errors


def test_a_job_that_waits_is_cancelled_with_the_driver_that_was_started_by_hand(
    console: Console, tmp_path: Path
) -> None:
    run = submitted(tmp_path, "tiny")
    with only_driver(run.layout):
        ended = console("cancel", "tiny", "--runs-dir", tmp_path)
    assert "tiny stops after this step" in ended.output
    assert ended.errors == f"tiny: {NAME} job tiny, which waited, is cancelled, too\n"
    assert not Place.jobs
    # One that runs is that driver's, which saves first.
    Place.jobs["tiny"] = PlaceState("running", "RUNNING")
    with only_driver(run.layout):
        assert console("cancel", "tiny", "--runs-dir", tmp_path).errors == ""
    assert Place.jobs
    Place.is_down = True
    with only_driver(run.layout):
        ended = console("cancel", "tiny", "--runs-dir", tmp_path)
    assert (ended.code, ended.errors) == (0, "orchestrator: warning: tiny: the place does not answer\n")


def test_a_finished_run_stays_so_where_another_submission_of_it_was_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path, "tiny")
    run.event("run_finished")
    Submission(NAME, "tiny", {}, time="9999", is_cancelled=True).write(run.layout)
    monkeypatch.setenv(JOB_ID_VARIABLE, "tiny")
    with pytest.raises(CancelledError):
        refuse_cancelled(run.layout)
    assert [event["event"] for event in read_events(run.layout.events)][-1] == "run_finished"


def test_a_cancellation_is_noted_where_its_place_cannot_be_asked(console: Console, tmp_path: Path) -> None:
    run = submitted(tmp_path, "tiny")
    Place.is_down = True
    ended = console("cancel", "tiny", "--runs-dir", tmp_path)
    said = "The run is noted as cancelled, and its driver ends at once where it starts from now on"
    assert (ended.code, ended.errors) == (1, f"the place does not answer\n{said}\n")
    noted = read_submission(run.layout)
    assert noted is not None
    assert noted.is_cancelled
    # What its own events say is over waits nowhere.
    finished = submitted(tmp_path, "done")
    finished.event("run_finished")
    ended = console("cancel", "done", "--runs-dir", tmp_path)
    assert (ended.code, "'finished'" in ended.errors) == (2, True)
    left = read_submission(finished.layout)
    assert left is not None
    assert not left.is_cancelled


def test_a_driver_of_the_same_job_id_runs_before_its_submission_is_recorded(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(tmp_path / "runs" / "tiny")
    path = write_job(tmp_path, f"{VALID}launcher: {{name: '{NAME}'}}\n")
    runs = ("--runs-dir", tmp_path / "runs")
    assert console("submit", path, *runs).code == 0
    assert console("cancel", "tiny", *runs).code == 0
    cancelled = layout.submission.read_text()
    submit = Place.submit

    def start_at_once(place: Place, job_file: Path, run_dir: Path) -> str:
        job_id = submit(place, job_file, run_dir)
        monkeypatch.setenv(JOB_ID_VARIABLE, job_id)
        refuse_cancelled(layout)
        return job_id

    monkeypatch.setattr(Place, "submit", start_at_once)
    assert console("submit", path, *runs).code == 0
    Place.jobs.clear()
    layout.submission.write_text(cancelled)
    Place.refuses = True
    assert console("submit", path, *runs).code == 2
    assert layout.submission.read_text() == cancelled


def test_a_submission_that_was_made_meanwhile_is_left_as_it_is(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path, "tiny")
    queue = Place.queue

    def meanwhile(place: Place) -> dict[str, PlaceState]:
        Submission.of_now(NAME, "other", {}).write(run.layout)
        return queue(place)

    monkeypatch.setattr(Place, "queue", meanwhile)
    assert console("cancel", "tiny", "--runs-dir", tmp_path).code == 0
    latest = read_submission(run.layout)
    assert latest is not None
    assert (latest.job_id, latest.is_cancelled) == ("other", False)


def test_what_cannot_be_noted_is_cancelled_by_its_place(console: Console, tmp_path: Path) -> None:
    run = submitted(tmp_path, "tiny")
    run.layout.submission_lock.mkdir()
    ended = console("cancel", "tiny", "--runs-dir", tmp_path)
    assert (ended.code, ended.output) == (0, "tiny is cancelled before it started\n")
    assert "tiny: it cannot be noted as cancelled" in ended.errors
    assert not Place.jobs
    Place.is_down = True
    ended = console("cancel", "tiny", "--runs-dir", tmp_path)
    assert (ended.code, ended.errors.splitlines()[-1]) == (1, "the place does not answer")


@pytest.mark.parametrize(
    ("launcher", "mark", "is_over"),
    [
        ("ray", "run_finished", True),
        ("ray", "run_stopped", True),
        ("ray", "run_failed", True),
        ("ray", "run_started", False),
        (NAME, "run_finished", True),
        # Its place may have queued it again.
        (NAME, "run_stopped", False),
    ],
)
def test_a_job_whose_place_is_gone_is_over_where_its_run_says_so(
    launcher: str, mark: str, is_over: bool, tmp_path: Path
) -> None:
    Place.is_down = True
    run = FakeRun(tmp_path)
    run.event("run_finished")
    options = {"address": "http://127.0.0.1:1"} if launcher == "ray" else {}
    Submission(launcher, "tiny", options, time="9999").write(run.layout)
    submission = read_submission(run.layout)
    assert submission is not None
    with pytest.raises(LaunchError):
        submission.state()
    Submission(launcher, "tiny", options, time="2000").write(run.layout)
    run.event(mark)
    submission = read_submission(run.layout)
    assert submission is not None
    if is_over:
        assert submission.state() is None
        return
    with pytest.raises(LaunchError):
        submission.state()


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("CANCELLED, exit code 0", "cancelled"),
        ("CANCELLED by 1000, exit code 0", "cancelled"),
        ("STOPPED", "cancelled"),
        ("FAILED, exit code 1", "failed"),
    ],
)
def test_a_job_that_ended_before_its_driver_is_explained(
    ending: str, state: str, console: Console, tmp_path: Path
) -> None:
    run = submitted(tmp_path, "tiny", None)
    Place.endings["tiny"] = ending

    def explained() -> str:
        status = console("status", "tiny", "--runs-dir", tmp_path, "--json").json()
        assert (status["state"], status["job"]["state"]) == (state, ending)
        return str(status["problem"]).removeprefix(
            f"{NAME} job tiny ended before its driver began the run ({ending}); "
        )

    assert explained() == "it has left no output"
    Place.printed["tiny"] = "starting Ray\nno head\n"
    assert explained() == f"'orchestrator logs tiny --runs-dir {tmp_path}' shows its output"
    # Of an earlier submission.
    run.event("stage_started", stage="pretrain")
    Submission(NAME, "tiny", {}, time="9999").write(run.layout)
    run.log("pretrain", "of workers before")
    assert explained() == "the last that it printed:\nstarting Ray\nno head"


def test_a_place_that_does_not_say_how_a_job_ended_is_a_warning(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(place: Place, job_id: str, run_dir: Path) -> str | None:
        raise LaunchError("answered 500")

    submitted(tmp_path, "tiny", None)
    monkeypatch.setattr(Place, "ending", fail)
    ended = console("status", "tiny", "--runs-dir", tmp_path)
    assert (ended.code, ended.errors) == (0, "orchestrator: warning: tiny: answered 500\n")
    assert "tiny: waiting" in ended.output
    found = console("status", "tiny", "--runs-dir", tmp_path, "--json").json()
    assert found["job"] == {"launcher": NAME, "job_id": "tiny", "state": None}


def test_following_a_job_that_ended_in_silence_says_what_looking_says(
    console: Console, tmp_path: Path
) -> None:
    submitted(tmp_path, "tiny", None)
    logs = ("logs", "tiny", "--runs-dir", tmp_path)
    message = f"{tmp_path}/tiny has no log yet: no stage of it has started\n"
    for command in (logs, (*logs, "-f")):
        ended = console(*command)
        assert (ended.code, ended.output, ended.errors) == (2, "", message)
    Place.printed["tiny"] = "starting Ray\n"
    for command in (logs, (*logs, "-f")):
        ended = console(*command)
        assert (ended.code, ended.output) == (0, "starting Ray\n")
