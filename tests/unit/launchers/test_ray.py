"""The Ray launcher, asked about jobs of a cluster that were submitted from elsewhere."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launchers.ray_http import NODES
from launchers.room import SETTLED_SECONDS
from launchers.submission_record import Submission, read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.load import dump_resolved, load_job
from tests.unit.launchers.commands import Console
from tests.unit.launchers.jobs_service import Serve, answer, ray
from tests.unit.spec.jobs import VALID, write_data, write_job


def cluster(*cpus: float, age: float = 3600) -> dict[str, object]:
    """The answers of one that takes jobs, whose nodes have these CPUs.

    Args:
        age: Seconds since the first has started; the others were there an hour before.
    """
    started = (time.time() - age) * 1000
    nodes = [
        {
            "state": "ALIVE",
            "resources_total": {"CPU": count, "memory": 1e9},
            "start_time_ms": started - 3_600_000 * (index > 0),
        }
        for index, count in enumerate(cpus)
    ]
    dead = {"state": "DEAD", "resources_total": {"CPU": 64.0}, "start_time_ms": started}
    return {
        "/api/jobs/": [],
        NODES: {"result": True, "data": {"result": {"result": [*nodes, dead]}}},
        "/api/version": {"version": "4", "ray_version": "2.60.0"},
        "POST /api/jobs/": {"job_id": "tiny", "submission_id": "tiny"},
    }


def taking(known: Mapping[str, object], asked: list[str]) -> Callable[[str], bytes]:
    """A jobs service that notes what it is asked."""

    def said(path: str) -> bytes:
        asked.append(path)
        return answer(json.dumps(known.get(path, {})))

    return said


@pytest.mark.parametrize("metadata", [{"run_dir": "/elsewhere/far"}, {}, None])
@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED"])
def test_a_job_of_this_id_that_is_another_runs_is_not_this_one(
    status: str, metadata: dict[str, str] | None, serve: Serve, console: Console, tmp_path: Path
) -> None:
    job = {"submission_id": "far", "status": status, "driver_exit_code": 0, "metadata": metadata}
    # It could not be stopped, either: that would be another error.
    address = serve(ray({"/api/jobs/": [job], "/api/jobs/far": job, "/api/jobs/far/logs": {"logs": "x"}}))
    run = RunLayout(tmp_path / "far")
    Submission.of_now("ray", "far", {"address": address}).write(run)
    runs = ("--runs-dir", tmp_path)
    status_of = console("status", "far", "--json", *runs).json()
    assert status_of["job"] == {"launcher": "ray", "job_id": "far", "state": None}
    assert "(its place no longer knows how); it has left no output" in status_of["problem"]
    logs = console("logs", "far", *runs)
    assert (logs.code, logs.output) == (2, "")
    cancelled = console("cancel", "far", *runs)
    assert (cancelled.code, cancelled.errors) == (2, f"{run.root} is not running: its state is 'waiting'\n")
    assert '"is_cancelled": false' in run.submission.read_text()


@pytest.mark.parametrize("folder", ["runs", "link"])
def test_a_job_of_this_run_is_known_by_whatever_path_the_run_is_given(
    folder: str, serve: Serve, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("runs")
    job = {
        "submission_id": "far",
        "status": "RUNNING",
        "metadata": {"run_dir": str(tmp_path.resolve() / "runs" / "far")},
    }
    address = serve(ray({"/api/jobs/": [job], "/api/jobs/far": job, "/api/jobs/far/logs": {"logs": "x\n"}}))
    Submission.of_now("ray", "far", {"address": address}).write(RunLayout(Path("runs/far")))
    assert console("status", "far", "--json", "--runs-dir", folder).json()["state"] == "starting"
    assert console("logs", f"{folder}/far").output == "x\n"
    monkeypatch.chdir(tmp_path / folder / "far")
    assert console("status", ".", "--json").json()["state"] == "starting"


def test_what_ends_a_job_that_is_in_the_way_names_its_cluster(
    serve: Serve, console: Console, tmp_path: Path
) -> None:
    run_dir = tmp_path.resolve() / "runs" / "tiny"
    job = {"submission_id": "tiny.2", "status": "PENDING", "metadata": {"run_dir": str(run_dir)}}
    address = serve(ray({**cluster(2), "/api/jobs/": [job]}))
    submit = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--address", address)
    ended = console(*submit, "--runs-dir", tmp_path / "runs")
    assert (ended.code, ended.errors) == (
        1,
        f"{run_dir} is queued already as job tiny.2 of the Ray cluster at {address}; end it with"
        f" 'ray job stop tiny.2 --address={address}', or rename yours\n",
    )


def test_the_cluster_that_was_asked_is_recorded_and_asked_from_any_shell(
    serve: Serve, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, asked = tmp_path.resolve() / "runs" / "tiny", list[str]()
    job = {"submission_id": "tiny", "status": "RUNNING", "metadata": {"run_dir": str(run_dir)}}

    def said(path: str) -> bytes:
        asked.append(path)
        jobs = [job] if "POST /api/jobs/" in asked else []
        # As is there whatever is asked for: the package that is sent.
        return answer(json.dumps({**cluster(2), "/api/jobs/": jobs}.get(path, {})))

    address = serve(said)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address + "/")
    runs = ("--runs-dir", tmp_path / "runs")
    ended = console("submit", write_job(tmp_path, VALID), "--launcher", "ray", *runs)
    assert ended.code == 0, ended.errors
    submission = read_submission(RunLayout(run_dir))
    assert submission is not None
    assert submission.options["address"] == address
    assert submission.options["python"] == "python"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", serve(lambda path: answer("another cluster", 500)))
    status = console("status", "tiny", "--json", *runs)
    assert (status.errors, status.json()["state"]) == ("", "starting")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("sets", "advice"),
    [
        (("resources.num_workers=4",), "room for 3. Set resources.num_workers to 3 or less"),
        # Of three and four workers, four alone can share the batch.
        (("resources.num_workers={min: 3, max: 4}",), "room for 3. Set resources.num_workers to 3 or less"),
        (("resources.cpus_per_worker=3",), "room for 0. Set resources.cpus_per_worker to 2"),
        (
            ("resources.num_workers=2", "launcher.options.entrypoint_cpus=2"),
            "room for 1 beside the driver's 2 CPU. Set resources.num_workers to 1 or less, or"
            " set launcher.options.entrypoint_cpus to 0",
        ),
        (
            ("sweep={'grid': {'resources.num_workers': [1, 4]}}",),
            "room for 3. Set resources.num_workers to 3",
        ),
    ],
)
def test_a_job_too_large_for_the_cluster_is_refused_where_it_is_submitted(
    sets: tuple[str, ...], advice: str, dry_run: bool, serve: Serve, console: Console, tmp_path: Path
) -> None:
    asked: list[str] = []
    address, runs = serve(taking(cluster(1, 2), asked)), tmp_path / "runs"
    more = [part for text in sets for part in ("--set", text)] + ["--dry-run"] * dry_run
    job = write_job(tmp_path, VALID)
    ended = console("submit", job, "--launcher", "ray", "--address", address, "--runs-dir", runs, *more)
    if dry_run:
        assert (ended.code, asked) == (0, []), ended.errors
        return
    assert ended.code == 2
    assert "found 2 nodes with 3 CPU and 0 GPU, " + advice in ended.errors
    assert ended.errors.endswith(", or give a larger cluster with --address.\n")
    assert (list(runs.iterdir()), [path for path in asked if "POST" in path]) == ([], [])


@pytest.mark.parametrize(
    ("cpus", "age", "more", "warning"),
    [
        ([2], 3600, {}, ""),
        # Its driver waits for nodes that may still come.
        ([0.5, 1], 5, {}, ""),
        # Its head takes jobs before it has joined as a node.
        ([], 0, {}, ""),
        ([1], 3600, {NODES: {"result": False}}, "whether the job has room is for its driver to say: what"),
    ],
)
def test_a_job_is_taken_that_has_room_or_where_its_driver_is_to_say(
    cpus: list[int],
    age: float,
    more: dict[str, object],
    warning: str,
    serve: Serve,
    console: Console,
    tmp_path: Path,
) -> None:
    asked: list[str] = []
    write_data(tmp_path)
    known = {**cluster(*cpus, age=age), **more}
    submit = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--runs-dir", tmp_path / "runs")
    ended = console(*submit, "--address", serve(taking(known, asked)), "--set", "resources.num_workers=2")
    assert (ended.code, "POST /api/jobs/" in asked) == (0, True), ended.errors
    assert (warning in ended.errors, "warning" in ended.errors) == (True, bool(warning))


def test_of_a_sweep_the_run_is_named_that_has_no_room(serve: Serve, console: Console, tmp_path: Path) -> None:
    address, runs = serve(taking(cluster(2), [])), tmp_path / "runs"
    submit = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--address", address)
    sweep = "sweep={'grid': {'resources.num_workers': [1, 4, 2]}}"
    ended = console(*submit, "--runs-dir", runs, "--set", sweep)
    assert (ended.code, ended.errors.partition(" x ")[0]) == (2, "tiny-1: resources: 4 workers")


@pytest.mark.parametrize("age", [5, 3600])
def test_a_driver_that_no_node_holds_is_sent_only_where_nodes_may_still_join(
    age: float, serve: Serve, console: Console, tmp_path: Path
) -> None:
    asked: list[str] = []
    submit = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--runs-dir", tmp_path / "runs")
    address = serve(taking(cluster(2, age=age), asked))
    ended = console(*submit, "--address", address, "--set", "launcher.options.entrypoint_cpus=3")
    said = (
        "launcher.options.entrypoint_cpus is 3, and no node has more than 2 CPU: the driver would not start"
    )
    if age > SETTLED_SECONDS:
        assert (ended.code, ended.errors.partition(". ")[0]) == (2, said)
        assert not [path for path in asked if "POST" in path]
    else:
        assert ended.code == 0, ended.errors
        assert f"warning: the job waits for a node that may still join: {said}" in ended.errors


def test_what_has_finished_needs_no_room(serve: Serve, console: Console, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    path = write_job(tmp_path, VALID)
    submit = ("submit", path, "--launcher", "ray", "--runs-dir", runs, "--set", "resources.num_workers=2")
    job = load_job(path, overrides=("resources.num_workers=2",))
    for stage in (RunLayout(runs / "tiny").stage(stage.name) for stage in job.stages):
        assert console(*submit, "--address", serve(taking(cluster(1), []))).code == 2
        stage.root.mkdir(parents=True)
        stage.job.write_text(dump_resolved(job))
        stage.result.write_text("{}")
    assert console(*submit, "--address", serve(taking(cluster(1), []))).code == 0


def test_the_command_of_a_dry_run_asks_for_what_is_sent(console: Console, tmp_path: Path) -> None:
    cores = ("--set", "launcher.options.entrypoint_cpus=0.5")
    ended = console("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--dry-run", *cores)
    assert "'--working-dir=<a folder with job.yaml and your modules>'" in ended.output
    # Its driver counts them itself, and Ray does not tell it.
    assert "--entrypoint-num-cpus=0.5" in ended.output
    assert '"ORCHESTRATOR_DRIVER_CPUS": "0.5"' in ended.output


@pytest.mark.parametrize(
    "job",
    [
        {"submission_id": "far", "metadata": ["run_dir"]},
        {"submission_id": "far", "metadata": "run_dir"},
        {"submission_id": ["far"], "metadata": {}},
    ],
)
def test_a_job_of_somebody_else_may_say_anything_of_itself(
    job: dict[str, object], serve: Serve, console: Console, tmp_path: Path
) -> None:
    write_data(tmp_path)
    known = {**cluster(2), "/api/jobs/": [{"status": "RUNNING", **job}]}
    submit = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--runs-dir", tmp_path / "runs")
    ended = console(*submit, "--address", serve(taking(known, [])))
    assert ended.code == 0, ended.errors


def test_what_a_cluster_says_of_an_ending_is_no_command_to_the_terminal(
    serve: Serve, console: Console, tmp_path: Path
) -> None:
    run = RunLayout(tmp_path / "far")
    job = {"submission_id": "far", "metadata": {"run_dir": str(run.root)}, "status": "FAILED"}
    job["message"] = "no\x1b]0;head\x07\nmore"
    address = serve(ray({"/api/jobs/": [job], "/api/jobs/far": job, "/api/jobs/far/logs": {"logs": ""}}))
    Submission.of_now("ray", "far", {"address": address}).write(run)
    assert "(FAILED: no?]0;head?)" in console("status", "far", "--runs-dir", tmp_path).output


def test_ctrl_c_while_the_cluster_is_asked_for_its_nodes_sends_nothing(
    serve: Serve, console: Console, tmp_path: Path
) -> None:
    asked: list[str] = []
    answers = taking(cluster(2), asked)

    def said(path: str) -> bytes:
        if path == NODES:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return answers(path)

    runs = tmp_path / "runs"
    submit = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--address", serve(said))
    ended = console(*submit, "--runs-dir", runs)
    assert ended.code == 130, ended.errors
    assert (list(runs.iterdir()), [path for path in asked if "POST" in path]) == ([], [])
