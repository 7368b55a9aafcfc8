"""Imports go down only, and looking at jobs and runs loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.tracking.events import append_event
from tests.prepared import write_rows
from tests.unit.train.starts import Start, make_stage

ROOT = Path(__file__).parents[2]
# What a look at a job or a run must not load: the first four are promised to users, the others
# would cost as much as everything the command does.
HEAVY = (
    "torch",
    "ray",
    "transformers",
    "datasets",
    "deepspeed",
    "accelerate",
    "tokenizers",
    "wandb",
    "numpy",
    "rich",
    "typer",
)


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """How ``command`` ended, and what it printed."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def loaded_by(*arguments: str, cwd: Path) -> list[str]:
    """Modules in the process of a command that must succeed, as it ends."""
    # --help ends by SystemExit, which atexit outlives.
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from launchers.cli import main\n"
        "sys.exit(main())\n"
    )
    done = run(sys.executable, "-c", program, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return done.stderr.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run that has a log."""
    folder = tmp_path_factory.mktemp("imports")
    log = folder / "runs" / "smoke" / "pretrain" / "logs" / "rank-00000.log"
    log.parent.mkdir(parents=True)
    log.write_text("a line\n")
    run = folder / "runs" / "smoke"
    (run / "job.yaml").write_text("stages: [{name: pretrain}]\n")
    append_event(run / "events.jsonl", "stage_started", stage="pretrain")
    return folder


JOB = str(ROOT / "jobs" / "smoke_bert.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("run", "--help"),
        ("validate", JOB),
        ("validate", JOB, "--json"),
        ("plan", JOB, "--no-model"),
        ("plan", JOB, "--no-model", "--json"),
        ("status",),
        ("status", "smoke", "--json"),
        ("logs", "smoke"),
        ("schema",),
    ],
    ids=lambda arguments: " ".join(arguments).replace(f"{ROOT}/", ""),
)
def test_looking_loads_nothing_heavy(arguments: tuple[str, ...], folder: Path) -> None:
    loaded = loaded_by(*arguments, cwd=folder)
    assert "launchers.cli" in loaded
    assert [name for name in HEAVY if name in loaded] == []


DEEPSPEED_FILE = "orchestrator.spec.deepspeed_file"


@pytest.mark.parametrize("command", [("validate",), ("plan", "--no-model")], ids=lambda command: command[0])
def test_a_look_at_a_deepspeed_file_loads_nothing_heavy(command: tuple[str, ...], folder: Path) -> None:
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": "auto"}}')
    strategy = f"{{name: zero, config: {folder}/ds.json}}"
    loaded = loaded_by(*command, JOB, "--set", f"stages.pretrain.strategy={strategy}", cwd=folder)
    assert DEEPSPEED_FILE in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_a_job_without_a_deepspeed_file_does_not_load_its_check(folder: Path) -> None:
    assert DEEPSPEED_FILE not in loaded_by("validate", JOB, cwd=folder)


def test_only_a_job_with_phone_regions_loads_the_library_of_phone_numbers(folder: Path) -> None:
    assert "phonenumbers" not in loaded_by("validate", JOB, cwd=folder)
    given = ("--set", "datasets.reviews.phone_regions=[GB]")
    assert "phonenumbers" in loaded_by("validate", JOB, *given, cwd=folder)


def test_verify_needs_nothing_that_trains(tmp_path: Path) -> None:
    trained = make_stage(tmp_path, {"a": write_rows(tmp_path / "a", 100)}, {"a": 1.0})
    trained.start(Start(workers=2, save_every=5, killed_at=5))
    loaded = loaded_by("verify", str(trained.run.root), cwd=tmp_path)
    assert "numpy" in loaded
    assert [name for name in HEAVY if name in loaded and name != "numpy"] == []


def test_status_needs_no_checker_of_jobs(folder: Path) -> None:
    assert "pydantic_core" not in loaded_by("status", cwd=folder)


def test_the_layers_hold() -> None:
    linter = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = run(sys.executable, "-c", linter, "--no-cache", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_line_also_runs_as_a_module(folder: Path) -> None:
    done = run(sys.executable, "-m", "launchers.cli", "validate", JOB, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{JOB}: valid: 3 stages (")


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m launchers.cli schema | head -n 1"
    done = run("bash", "-o", "pipefail", "-c", command, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
