"""submit: a refusal leaves the run directories as they were, whoever else is being refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launchers.base import PlaceState, RefusedJobError
from launchers.submission import submit_job
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from orchestrator.spec.expand import expand
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved, load_job
from tests.unit.launchers.commands import Console
from tests.unit.launchers.place import NAME, ArrayPlace, Place
from tests.unit.spec.jobs import VALID, write_data, write_job

SWEEP = "sweep: {grid: {seed: [1, 2, 3]}}\n"


@pytest.fixture(autouse=True)
def place() -> type[Place]:
    Place.reset()
    return Place


def queue(name: str) -> None:
    Place.jobs[name] = PlaceState("queued", "PENDING")


def job(folder: Path, name: str = NAME, more: str = "") -> Path:
    return write_job(folder, f"{VALID}launcher: {{name: '{name}'}}\n{more}")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_submission_leaves_the_files_of_the_one_before(console: Console, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert console("submit", job(tmp_path), "--runs-dir", runs).code == 0
    console("cancel", "tiny", "--runs-dir", runs)
    before = files(runs)
    assert sorted(before) == ["tiny/submission.json", "tiny/submission.lock", "tiny/submitted.yaml"]
    Place.refuses = True
    refused = console("submit", job(tmp_path), "--runs-dir", runs, "--set", "seed=5")
    assert (refused.code, refused.errors) == (2, "no such partition\n")
    assert files(runs) == before


def test_what_the_place_takes_and_can_never_start_leaves_the_files_of_the_one_before(
    console: Console, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    submit = ("submit", job(tmp_path), "--runs-dir", runs)
    Place.hopeless = "no node is so large"
    refused = console(*submit)
    assert (refused.code, refused.errors) == (2, "no node is so large\n")
    assert list(runs.iterdir()) == []
    Place.hopeless = None
    assert console(*submit).code == 0
    console("cancel", "tiny", "--runs-dir", runs)
    before = files(runs)
    Place.hopeless = "no node is so large"
    assert console(*submit, "--set", "seed=5").code == 2
    assert files(runs) == before


def test_a_place_that_cannot_be_asked_after_it_took_the_job_leaves_the_record(
    console: Console, tmp_path: Path
) -> None:
    Place.is_down = True
    write_data(tmp_path)
    submit = ("submit", job(tmp_path), "--runs-dir", tmp_path / "runs")
    ended = console(*submit)
    assert (ended.code, ended.output.splitlines()[0]) == (0, f"tiny submitted to {NAME} as tiny")
    assert ended.errors == (
        f"orchestrator: warning: tiny is submitted as {NAME} job tiny; whether it can ever start was not"
        " settled: the place does not answer\n"
    )
    Place.is_down = False
    assert "tiny is queued already" in console(*submit).errors


def begin(path: Path, runs: Path) -> None:
    """Leave the runs of a job file as they are once their stage has finished."""
    whole = load_job(path)
    for run in expand(whole, path, lambda job: (), overrides=()) if whole.sweep else [whole]:
        stage = RunLayout(runs / run.name).stage("pretrain")
        stage.root.mkdir(parents=True)
        stage.job.write_text(dump_resolved(run))
        stage.result.write_text("{}")


@pytest.mark.parametrize("more", ["", SWEEP])
def test_another_job_than_the_run_has_begun_with_is_refused_and_changes_nothing(
    more: str, console: Console, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    path = job(tmp_path, more=more)
    begin(path, runs)
    before = files(runs)
    submit = ("submit", path, "--runs-dir", runs, "--set")
    refused = console(*submit, "stages.pretrain.optimizer.lr=2e-3")
    assert refused.code == 2
    assert f"{runs}/tiny{'-0' if more else ''}: the job file changed since this run began" in refused.errors
    assert "lr: 0.001 -> 0.002" in refused.errors
    assert refused.errors.endswith(f"to submit it from the start, rename {runs}/tiny{'-0' if more else ''}\n")
    assert (files(runs), Place.jobs) == (before, {})
    # What training does not depend on may change.
    assert console(*submit, "stages.pretrain.checkpoint.every_steps=3").code == 0


@pytest.mark.parametrize("is_dry", [False, True])
def test_files_that_are_not_here_are_warned_of_before_the_job_waits(
    is_dry: bool, console: Console, tmp_path: Path
) -> None:
    submit = ("submit", job(tmp_path), "--runs-dir", tmp_path / "runs", *["--dry-run"] * is_dry)
    ended = console(*submit)
    warning = (
        f"orchestrator: warning: datasets.rfc.files: nothing matches {tmp_path}/data/*.txt on this machine\n"
    )
    assert (ended.code, ended.errors) == (0, "" if is_dry else warning)


def test_a_job_that_cannot_be_written_down_is_named(console: Console, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "tiny" / "submission.json.tmp").mkdir(parents=True)
    ended = console("submit", job(tmp_path), "--runs-dir", runs)
    assert ended.code == 1
    assert ended.errors.startswith(f"tiny was submitted to {NAME} as tiny, which cannot be written down: ")
    assert f"{runs}/tiny/submission.json.tmp" in ended.errors


def test_a_refused_sweep_is_still_one(console: Console, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    submit = ("submit", job(tmp_path, f"{ArrayPlace.__module__}:ArrayPlace", SWEEP), "--runs-dir", runs)
    assert console(*submit).code == 0
    before = files(runs)
    Place.jobs.clear()
    queue("tiny-2")
    refused = console(*submit)
    assert refused.code == 1
    assert "tiny-2 is queued already" in refused.errors
    assert files(runs) == before
    listed = console("status", "tiny", "--runs-dir", runs)
    assert (listed.code, listed.output.splitlines()[0]) == (0, "runs of the sweep tiny")


def test_of_several_at_once_each_is_refused_for_the_same_reason(tmp_path: Path) -> None:
    runs, loaded = tmp_path / "runs", load_job(job(tmp_path))
    Place.refuses = True
    found: list[BaseException] = []
    threads = [threading.Thread(target=submit_into, args=(loaded, runs, found)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(type(error), str(error)) for error in found] == [(RefusedJobError, "no such partition")] * 3
    assert list(runs.iterdir()) == []


def test_of_several_at_once_the_place_takes_one(tmp_path: Path) -> None:
    runs, loaded = tmp_path / "runs", load_job(job(tmp_path))
    found: list[BaseException] = []
    threads = [threading.Thread(target=submit_into, args=(loaded, runs, found)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(isinstance(error, LaunchError) and "queued already" in str(error) for error in found)
    assert (runs / "tiny" / "submitted.yaml").is_file()


@pytest.mark.parametrize("folder", ["runs", "my runs"])
def test_what_to_type_next_finds_the_run(
    folder: str, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORCHESTRATOR_RUNS_DIR", raising=False)
    place, options = f"{ArrayPlace.__module__}:ArrayPlace", () if folder == "runs" else ("--runs-dir", folder)
    ended = console("submit", job(tmp_path, place), *options)
    flag = "" if folder == "runs" else " --runs-dir 'my runs'"
    assert ended.output.splitlines() == [
        f"tiny submitted to {place} as tiny",
        f"  orchestrator status tiny{flag}",
        f"  orchestrator logs tiny{flag} -f    (once its workers have started)",
    ]
    # What a refusal names is found from any folder.
    flag = "" if folder == "runs" else f" --runs-dir '{tmp_path}/my runs'"
    refused = console("submit", job(tmp_path, place), *options)
    assert f"'orchestrator status tiny{flag}' and 'orchestrator logs tiny{flag} -f'" in refused.errors
    assert f"'orchestrator cancel tiny{flag}'" in refused.errors
    swept = console("submit", job(tmp_path, place, SWEEP), "--set", "name=sw", *options)
    flag = "" if folder == "runs" else " --runs-dir 'my runs'"
    assert swept.output.splitlines() == [
        f"3 runs of sw submitted to {place} as sw-0 to sw-2",
        f"  orchestrator status sw{flag}",
    ]


def submit_into(loaded: Job, runs: Path, found: list[BaseException]) -> None:
    """Submit it, and note what that ended with."""
    try:
        submit_job(loaded, runs_dir=runs, dry_run=False)
    except Exception as error:
        found.append(error)
