"""Each bad day ends in one message, the documented exit code, and a run from which ``run`` goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.checkpoint.layout import RunLayout
from tests.e2e.commands import RUN_SECONDS, events, kill_tree, last_step, orchestrator, started, succeed

pytestmark = pytest.mark.slow


def job_file(folder: Path, **changes: Any) -> Path:
    """A tiny classification job on a csv file; ``changes`` go over its stage."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["text,label"] + [f"word{i % 7} other{i % 5} good{i % 2},{i % 3}" for i in range(90)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "empty.txt").write_text("\n\n")
    stage: dict[str, Any] = {
        "name": "classify",
        "objective": {"name": "sequence_classification", "num_labels": 3},
        "model": {
            "config": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32}
        },
        "data": {"mixture": {"rows": 1.0}, "seq_len": 16},
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "limits": {"max_steps": 8},
        "checkpoint": {"every_steps": 2, "keep_last": 2},
        "logging": {"every_steps": 1},
    }
    source = {"source": "csv", "files": "rows.csv", "label_column": "label"}
    datasets = {"rows": {**source, **changes.pop("dataset", {})}}
    resources = {"num_workers": 2, "max_failures": 1, **changes.pop("resources", {})}
    tokenizer = changes.pop(
        "tokenizer", {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": ["rows"]}}
    )
    before = [{**stage, **changes.pop("before")}] if "before" in changes else []
    job = {
        "name": "bad-day",
        "resources": resources,
        "tokenizer": tokenizer,
        "datasets": datasets,
        "stages": [*before, {**stage, **changes}],
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def refusal(path: Path, *options: str) -> str:
    """The one message of a run that must be refused."""
    done = orchestrator(
        "run", path, "--runs-dir", path.parent / "runs", *options, home=path.parent / "home", cwd=path.parent
    )
    assert done.returncode == 2, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "wrong key": ({"seq_length": 3}, ["seq_length", "unknown key"]),
    "wrong type": ({"micro_batch_size": "two"}, ["micro_batch_size", "'two'"]),
    "missing file": ({"dataset": {"files": "nowhere.csv"}}, ["nowhere.csv", "datasets.rows"]),
    "empty corpus": (
        {"dataset": {"source": "text", "files": "empty.txt"}, "objective": {"name": "causal_lm"}},
        ["datasets.rows", "none of 2 rows holds a token"],
    ),
    "text column that is not there": ({"dataset": {"text_column": "review"}}, ["'review'", "text"]),
    "more labels than num_labels": (
        {"objective": {"name": "sequence_classification", "num_labels": 2}},
        ["num_labels 2", "label 2"],
    ),
    "indivisible batch": (
        {"global_batch_size": 5},
        ["global_batch_size 5", "micro_batch_size 2 x dp_degree 2 = 4", "Nearest: 4 or 8"],
    ),
    "sequence longer than the positions": (
        {"data": {"mixture": {"rows": 1.0}, "seq_len": 64}},
        ["seq_len 64", "n_positions 32"],
    ),
    "tokenizer larger than the vocabulary": (
        {"model": {"config": {"model_type": "gpt2", "vocab_size": 100, "n_positions": 32}}},
        ["vocab_size 100", "the tokenizer's 300"],
    ),
    "unknown architecture key": (
        {"model": {"config": {"model_type": "gpt2", "hidden": 16}}},
        ["model.config.hidden: unknown key", "gpt2"],
    ),
    "tokenizer folder without a tokenizer": ({"tokenizer": {"from": "."}}, ["tokenizer"]),
}


@pytest.mark.parametrize("day", REFUSED)
def test_user_errors_are_refused_before_any_worker_starts(day: str, tmp_path: Path) -> None:
    changes, expected = REFUSED[day]
    if day == "empty corpus":
        changes = {**changes, "dataset": {**changes["dataset"], "label_column": None}}
    message = refusal(job_file(tmp_path, **changes))
    for part in expected:
        assert part in message


@pytest.mark.ray
def test_too_few_cpus_are_said_at_once_and_fewer_workers_go_on(tmp_path: Path) -> None:
    cpus = len(os.sched_getaffinity(0))
    path = job_file(tmp_path, global_batch_size=2 * (cpus + 1), resources={"num_workers": cpus + 1})
    message = refusal(path)
    assert f"{cpus + 1} workers x 1 CPU" in message
    assert f"Set resources.num_workers to {cpus}" in message


PLUGIN = """
from orchestrator.objectives.sequence_classification import SequenceClassification
from orchestrator.spec.training import SequenceClassificationObjective

INNER = SequenceClassificationObjective(name="sequence_classification", num_labels=3)

class Fragile(SequenceClassification):
    def __init__(self, section, tokens, label_names):
        super().__init__(INNER, tokens, [])
        self.calls = 0

    @classmethod
    def row_layout(cls, section, data):
        return super().row_layout(INNER, data)

    def loss_sums(self, model, batch):
        self.calls += 1
        if {fail} and self.calls > 2:
            raise RuntimeError("poisoned batch")
        return super().loss_sums(model, batch)
"""


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_worker_that_raises_ends_in_its_message_and_the_mended_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(PLUGIN.format(fail=True))
    # A stage that finishes before it gives it no more restarts.
    before = {"name": "before", "limits": {"max_steps": 1}}
    path = job_file(tmp_path, objective={"name": "fragile:Fragile", "options": {}}, before=before)
    command = ("run", path, "--runs-dir", tmp_path / "runs")
    failed = orchestrator(*command, home=tmp_path / "home", cwd=tmp_path)
    assert failed.returncode == 1, failed.stderr
    assert "stage 'classify' failed" in failed.stderr
    assert re.search(
        r"rank [01]: RuntimeError: poisoned batch; in step 5, which reads rows 16 to 19", failed.stderr
    )
    assert "Traceback" not in failed.stderr
    run = RunLayout(tmp_path / "runs" / "bad-day")
    starts = starts_of(run, "classify")
    # One restart is allowed, and it goes on from the checkpoint before the failure.
    assert starts == [0, 2]
    (tmp_path / "fragile.py").write_text(PLUGIN.format(fail=False))
    _flip_a_bit(run.stage("classify").checkpoints / "step-00000004" / "shard-00001.bin")
    told = "[classify] the checkpoint of step 4 is damaged (shard-00001.bin: "
    output = succeed(*command, home=tmp_path / "home", cwd=tmp_path)
    assert told in output
    assert "kept as classify/checkpoints/quarantine-step-00000004" in output
    assert starts_of(run, "classify")[-1] == 2
    assert starts_of(run, "before") == [0]
    assert json.loads(run.stage("classify").result.read_text())["step"] == 8
    assert (run.stage("classify").checkpoints / "quarantine-step-00000004" / "COMPLETE").exists()
    assert told in succeed("status", run.root, home=tmp_path / "home")
    assert json.loads(succeed("verify", run.root, "--json", home=tmp_path / "home"))["ok"]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_worker_that_dies_is_named_with_its_step_and_not_the_one_that_missed_it(tmp_path: Path) -> None:
    plugin = PLUGIN.format(fail="dist.get_rank() == 1")
    plugin = plugin.replace('raise RuntimeError("poisoned batch")', "os._exit(13)")
    (tmp_path / "fragile.py").write_text(f"import os\nimport torch.distributed as dist\n{plugin}")
    # A checkpoint on its way to the disk would die with its writers.
    checkpoint = {"every_steps": 2, "asynchronous": False}
    path = job_file(tmp_path, objective={"name": "fragile:Fragile", "options": {}}, checkpoint=checkpoint)
    failed = orchestrator("run", path, "--runs-dir", tmp_path / "runs", home=tmp_path / "home", cwd=tmp_path)
    assert failed.returncode == 1, failed.stderr
    # Of the step rank 0 says, or what was logged before where Ray has ended it before it could.
    where = r"(in step 5, which reads rows 16|after step [34], the last on record; step.* rows \d+) to 19 "
    assert re.search(rf"stage 'classify' failed: rank 1 died {where}", failed.stderr), failed.stderr
    run = RunLayout(tmp_path / "runs" / "bad-day")
    assert str(run.stage("classify").log(1)) in failed.stderr
    assert "Traceback" not in failed.stderr
    assert starts_of(run, "classify") == [0, 2]


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def starts_of(run: RunLayout, stage: str) -> list[int]:
    """The step of each start of a stage."""
    started = [event for event in events(run.root) if event["event"] == "training_started"]
    return [event["step"] for event in started if event["stage"] == stage]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_full_disk_ends_in_one_message_and_space_lets_the_run_go_on(
    small_disk: Path, tmp_path: Path
) -> None:
    model = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 96, "n_positions": 32}
    path = job_file(tmp_path, model={"config": model})
    command = ("run", path, "--runs-dir", small_disk)
    failed = orchestrator(*command, home=tmp_path / "home", cwd=tmp_path)
    assert failed.returncode in (1, 2), failed.stdout
    assert "space" in failed.stderr.lower()
    assert "Traceback" not in failed.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    succeed(*command, home=tmp_path / "home", cwd=tmp_path)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_cancel_saves_and_stops_with_exit_75_and_the_next_start_goes_on(tmp_path: Path) -> None:
    path = job_file(tmp_path, limits={"max_steps": 3000}, checkpoint={"every_steps": 2000})
    runs, home = tmp_path / "runs", tmp_path / "home"
    submitted = json.loads(succeed("submit", path, "--runs-dir", runs, "--json", home=home))
    assert submitted["launcher"] == "local"
    run = RunLayout(runs / "bad-day")
    try:
        _wait_for(lambda: last_step(run.stage("classify").metrics) >= 3)
        second = orchestrator("run", path, "--runs-dir", runs, home=home)
        assert second.returncode == 1
        assert f"process {submitted['job_id']}" in second.stderr
        succeed("cancel", "bad-day", "--runs-dir", runs, home=home)
        _wait_for(lambda: _has_ended(submitted["job_id"]))
    finally:
        kill_tree(int(submitted["job_id"]))
    status = json.loads(succeed("status", "bad-day", "--runs-dir", runs, "--json", home=home))
    assert status["state"] == "stopped"
    saved = [event["step"] for event in events(run.root) if event["event"] == "checkpoint"]
    assert saved == [status["stages"][0]["step"]]


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_before_the_workers_start_stops_the_run_and_the_next_start_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    path = job_file(tmp_path, strategy={"name": "ddp"}, limits={"max_steps": 2})
    runs, home = tmp_path / "runs", tmp_path / "home"
    with started("run", path, "--runs-dir", runs, home=home) as process:
        run = RunLayout(runs / "bad-day")
        _wait_for(run.events.exists)
        process.send_signal(number)
        for more in () if number == signal.SIGINT else (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            # What schedulers send more than once changes nothing.
            time.sleep(0.05)
            process.send_signal(more)
        output, errors = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 75, output + errors
    assert "the same command goes on" in output
    seen = [event["event"] for event in events(run.root)]
    assert [name for name in seen if name != "stage_preparing"] == ["run_started", "run_stopped"]
    if number == signal.SIGUSR1:
        succeed("run", path, "--runs-dir", runs, home=home)
        _check_that_a_finished_run_does_without_its_sources(path, runs, home)


def _check_that_a_finished_run_does_without_its_sources(path: Path, runs: Path, home: Path) -> None:
    """Its stages stay finished; what would need the sources anew is refused."""
    (path.parent / "rows.csv").unlink()
    output = succeed("run", path, "--runs-dir", runs, home=home)
    assert "keeps the rows that were prepared before" in output
    assert "there is no file 'rows.csv'" in output
    assert "finished before, skipped" in output
    (tokens,) = (runs / ".cache" / "rows").glob("*/tokens.bin")
    tokens.write_bytes(bytes(len(tokens.read_bytes())))
    assert "there is no file 'rows.csv'" in refusal(path)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _has_ended(pid: str) -> bool:
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
