"""validate, plan and schema, and how every command fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchers.cli import main
from launchers.planning import ParameterCounts
from orchestrator.errors import ModelError
from orchestrator.spec.json_schema import job_schema
from tests.unit.launchers.commands import TEXT, Console, FakeRun
from tests.unit.spec.jobs import VALID, changed, write_job

PROMISE = (
    "bit-identical among ddp, fsdp2, zero 0 and zero 1 at 1 worker, and between zero 2 and zero 3;"
    " otherwise equal up to the order of summation (about 1e-6)"
)


def test_a_valid_job_is_called_valid(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, TEXT)
    assert console("validate", path) == (0, f"{path}: valid: 2 stages (pretrain, test)\n", "")
    assert console("validate", path, "--json").json() == {"ok": True, "errors": []}


def test_problems_go_to_stderr_and_exit_with_2(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, changed("warmup_steps: 2", "warmup_step: 2"))
    message = f"{path}:22: stages[0].schedule.warmup_step: unknown key. Did you mean 'warmup_steps'?\n"
    assert console("validate", path) == (2, "", message)


def test_problems_as_json(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, changed("seed: 17", "seed: x").replace("lr: 1e-3", "lr: y"))
    ended = console("validate", path, "--json")
    assert (ended.code, ended.errors) == (2, "")
    assert ended.json() == {
        "ok": False,
        "errors": [
            {
                "file": str(path),
                "line": 2,
                "key": "seed",
                "message": "expected a whole number, found 'x'",
            },
            {
                "file": str(path),
                "line": 21,
                "key": "stages[0].optimizer.lr",
                "message": "expected a number, found 'y'",
            },
        ],
    }


COMPLAINT = (
    "global_batch_size 16 is not a multiple of micro_batch_size 4 x dp_degree 3 = 12.\nNearest: 12 or 24."
)


def test_validate_and_plan_refuse_a_batch_that_cannot_be_split(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, VALID)
    option = ("--set", "resources.num_workers=3")
    message = f"{path}:16: stages[0].global_batch_size: {COMPLAINT}\n"
    assert console("validate", path, *option) == (2, "", message)
    assert console("plan", path, *option) == (2, "", f"stages[0] 'pretrain': {COMPLAINT}\n")
    assert console("plan", path, *option, "--json").json() == {
        "ok": False,
        "errors": [
            {
                "file": None,
                "line": None,
                "key": "",
                "message": f"stages[0] 'pretrain': {COMPLAINT}",
            }
        ],
    }


def test_overrides_may_be_repeated(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, VALID)
    options = ("--set", "stages.pretrain.micro_batch_size=2", "--set", "resources.num_workers=4")
    stage = console("plan", path, "--no-model", "--json", *options).json()["stages"][0]
    assert (stage["world_size"], stage["micro_batch_size"], stage["grad_accum_steps"]) == (4, 2, 2)


def test_the_plan_as_json(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, TEXT)
    ended = console("plan", path, "--no-model", "--json", "--runs-dir", tmp_path / "runs")
    assert ended.json() == {
        "name": "tiny",
        "run_dir": str(tmp_path / "runs" / "tiny"),
        "resources": {
            "num_workers": 1,
            "cpus_per_worker": 1,
            "gpus_per_worker": 0,
            "max_failures": 3,
        },
        "stages": [
            {
                "name": "pretrain",
                "kind": "train",
                "needs": None,
                "done": False,
                "objective": "causal_lm",
                "strategy": "ddp",
                "world_size": 1,
                "micro_batch_size": 4,
                "grad_accum_steps": 4,
                "global_batch_size": 16,
                "seq_len": 64,
                "packing_efficiency": None,
                "tokens_per_step": 1024,
                "steps": 10,
                "tokens": 10240,
                "rows": 160,
                "epochs": None,
                "parameters": None,
                "promise": PROMISE,
            },
            {"name": "test", "kind": "evaluate", "needs": "pretrain", "done": False},
        ],
    }
    assert not (tmp_path / "runs").exists()


def test_the_plan_knows_how_full_prepared_rows_are(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    stage = run.layout.stage("pretrain")
    stage.root.mkdir()
    folders = {}
    for name, rows, efficiency in (("a", 300, 1.0), ("b", 100, 0.5)):
        folders[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        meta = {"num_rows": rows, "packing_efficiency": efficiency}
        (tmp_path / name / "meta.json").write_text(json.dumps(meta))
    stage.inputs.write_text(json.dumps({"train": folders}))
    path = write_job(tmp_path, TEXT)
    command = ("plan", path, "--no-model", "--runs-dir", tmp_path)
    assert console(*command, "--json").json()["stages"][0]["packing_efficiency"] == 0.875
    assert "     rows are 87.50% full of tokens" in console(*command).output.splitlines()
    # Pairs are not packed.
    (tmp_path / "b" / "meta.json").write_text('{"num_rows": 100, "packing_efficiency": null}')
    assert console(*command, "--json").json()["stages"][0]["packing_efficiency"] is None


def test_the_plan_in_plain_lines(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, TEXT.replace("{max_steps: 10}", "{max_epochs: 2.5}"))
    ended = console("plan", path, "--no-model", "--runs-dir", tmp_path)
    assert ended.output.splitlines() == [
        f"tiny: workers 1, CPU cores each 1, GPUs each 0, run directory {tmp_path}/tiny",
        "  stage     strategy  batch           seq_len  steps  rows        tokens  parameters",
        "  pretrain  ddp       1 x 4 x 4 = 16  64       ?      2.5 epochs  ?       ?",
        "batch: workers x micro-batch x accumulation = rows per step",
        "Stages, in order:",
        "  1. pretrain: train: to do",
        f"     {PROMISE}",
        "  2. test: evaluate, needs pretrain: to do",
    ]


def done_stages(console: Console, run: FakeRun, *options: str) -> list[str]:
    """Stages that ``plan`` calls done."""
    source = run.layout.root / "source.yaml"
    where = ("--runs-dir", run.layout.root.parent)
    plan = console("plan", source, "--no-model", "--json", *where, *options).json()
    return [stage["name"] for stage in plan["stages"] if stage["done"]]


def test_finished_stages_are_done_until_their_keys_change(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    assert done_stages(console, run) == []
    run.finish("test")
    assert done_stages(console, run) == []
    run.finish("pretrain")
    assert done_stages(console, run) == ["pretrain", "test"]
    assert done_stages(console, run, "--set", "resources.num_workers=2") == ["pretrain", "test"]
    assert done_stages(console, run, "--set", "stages.test.split=train") == ["pretrain"]
    assert done_stages(console, run, "--set", "stages.pretrain.limits.max_steps=11") == []
    run.layout.stage("pretrain").result.write_text("{")
    assert done_stages(console, run) == []


def test_parameters_are_counted_once_and_remembered(console: Console, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = "{model_type: gpt2, n_layer: 1, n_embd: 8, n_head: 2, n_positions: 64}"
    text = changed("{model_type: gpt2}", config)
    path = write_job(tmp_path, text)
    runs = ("--runs-dir", tmp_path / "runs", "--json")
    # Embeddings of 512 tokens and 64 positions; two norms, attention and a 4 x 8 MLP; a last norm.
    expected = (512 + 64) * 8 + 4 * 8 + (8 * 24 + 24 + 64 + 8) + (8 * 32 + 32 + 32 * 8 + 8) + 16
    assert console("plan", path, "--no-model", *runs).json()["stages"][0]["parameters"] is None
    assert console("plan", path, *runs).json()["stages"][0]["parameters"] == expected
    assert console("plan", path, "--no-model", *runs).json()["stages"][0]["parameters"] == expected


def test_a_damaged_memory_of_parameters_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    for content in ("{", "[]"):
        path.write_text(content)
        assert ParameterCounts(path, with_model=False).count({"model_type": "gpt2"}) is None


def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="model_type 'gpt7'"):
        ParameterCounts(tmp_path / "p.json", with_model=True).count({"model_type": "gpt7"})


def test_the_schema_is_printed(console: Console) -> None:
    assert console("schema").json() == json.loads(json.dumps(job_schema()))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: COMMAND\nusage: orchestrator"),
        (["valdate"], "argument COMMAND: invalid choice: 'valdate' (choose from"),
        (["validate"], "the following arguments are required: JOB\nusage: orchestrator validate"),
        (["validate", "a", "--sett", "b"], "unrecognized arguments: --sett b\nusage: orchestrator"),
        (["logs", "x", "--rank", "one"], "argument --rank: invalid int value: 'one'\nusage:"),
        (["validate", "nowhere.yaml"], "nowhere.yaml: no such file\n"),
    ],
)
def test_a_wrong_command_line_gets_one_message(arguments: list[str], expected: str, console: Console) -> None:
    ended = console(*arguments)
    assert (ended.code, ended.output) == (2, "")
    assert ended.errors.startswith(expected)
    as_json = console(*arguments, "--json")
    assert (as_json.code, as_json.errors) == (2, "")
    assert as_json.json()["ok"] is False


def test_a_traceback_comes_only_when_asked_for(console: Console, tmp_path: Path) -> None:
    assert "Traceback" not in console("validate", tmp_path).errors
    ended = console("validate", tmp_path, "--traceback")
    assert ended.code == 2
    assert ended.errors.startswith("Traceback (most recent call last)")
    assert ended.errors.rstrip().endswith("is a folder; give a job file (.yaml)")


def test_help_names_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    listed = capfd.readouterr().out.split("COMMAND\n")[1].split("\n")
    assert [line.split()[0] for line in listed if line.strip()] == [
        "validate",
        "plan",
        "run",
        "prepare",
        "submit",
        "schema",
        "status",
        "logs",
        "cancel",
        "predict",
    ]
