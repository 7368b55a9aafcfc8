"""validate, plan and schema, and how every command fails."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from launchers.cli import main
from launchers.planning import ParameterCounts
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import ModelError
from orchestrator.spec.json_schema import job_schema
from orchestrator.tracking.events import replace_text
from tests.unit.launchers.commands import TEXT, Console, FakeRun
from tests.unit.spec.jobs import VALID, changed, write_job

PROMISE = (
    "bit-identical among ddp, fsdp2, zero 0 and zero 1 at 1 worker, and between zero 2 and zero 3;"
    " otherwise equal up to the order of summation (about 1e-6)"
)


def test_a_valid_job_is_called_valid(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, TEXT)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").touch()
    assert console("validate", path) == (0, f"{path}: valid: 2 stages (pretrain, test)\n", "")
    assert console("validate", path, "--json").json() == {"ok": True, "errors": [], "warnings": []}


@pytest.mark.parametrize("command", [("validate",), ("plan", "--no-model")])
def test_files_that_are_not_on_this_machine_are_a_warning(
    command: tuple[str, ...], console: Console, tmp_path: Path
) -> None:
    ended = console(command[0], write_job(tmp_path, TEXT), *command[1:], "--json")
    warning = f"datasets.rfc.files: nothing matches {tmp_path}/data/*.txt on this machine"
    assert (ended.code, ended.errors) == (0, f"orchestrator: warning: {warning}\n")
    if command[0] == "validate":
        assert ended.json()["warnings"] == [warning]


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
    " Or num_workers: 2 or 4."
)


def test_every_command_refuses_a_batch_that_cannot_be_split(console: Console, tmp_path: Path) -> None:
    path = write_job(tmp_path, VALID)
    option = ("--set", "resources.num_workers=3")
    message = f"{path}:16: stages[0].global_batch_size: {COMPLAINT}\n"
    for command in ("validate", "plan", "run", "prepare", "submit"):
        assert console(command, path, *option) == (2, "", message)
    assert console("plan", path, *option, "--json").json() == {
        "ok": False,
        "errors": [
            {
                "file": str(path),
                "line": 16,
                "key": "stages[0].global_batch_size",
                "message": COMPLAINT,
            }
        ],
    }


@pytest.mark.parametrize("command", ["validate", "plan", "run", "prepare", "submit"])
def test_a_deepspeed_file_that_contradicts_the_job_is_refused_before_anything_starts(
    command: str, console: Console, tmp_path: Path
) -> None:
    (tmp_path / "ds.json").write_text('{"bf16": true, "zero_optimization": {"stage": 3}}')
    path = write_job(tmp_path, changed("{name: ddp}", "{name: zero, config: ds.json}"))
    options = () if command == "validate" else ("--runs-dir", tmp_path / "runs")
    place = f"{path}:18: stages[0].strategy.config: {tmp_path}/ds.json: "
    message = (
        f'{place}bf16: found true, expected an object or "auto"\n'
        f'{place}zero_optimization.stage: found 3, expected 2 or "auto" (strategy.stage)\n'
    )
    assert console(command, path, *options) == (2, "", message)
    assert not (tmp_path / "runs").exists()


def test_a_deepspeed_file_that_is_not_there_is_refused_with_the_rest(
    console: Console, tmp_path: Path
) -> None:
    path = write_job(tmp_path, changed("{name: ddp}", "{name: zero, config: nope.json}"))
    errors = console("validate", path, "--json", "--set", "resources.num_workers=3").json()["errors"]
    assert [error["key"] for error in errors] == ["stages[0].global_batch_size", "stages[0].strategy.config"]
    assert errors[1]["message"] == f"{tmp_path}/nope.json: No such file or directory; name a readable file"


def test_a_deepspeed_file_that_leaves_all_to_the_job_is_accepted(console: Console, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"train_batch_size": "auto", "zero_optimization": {"stage": "auto"}}')
    path = write_job(tmp_path, changed("{name: ddp}", "{name: zero, config: ds.json}"))
    assert console("validate", path).code == 0
    assert console("plan", path, "--no-model").code == 0


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
            "hang_timeout_seconds": 30.0,
        },
        "stages": [
            {
                "name": "pretrain",
                "kind": "train",
                "needs": None,
                "done": False,
                "state": "to do",
                "changed_data": [],
                "gone_data": [],
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
                "trained_parameters": None,
                "saved_step": None,
                "read_before": {},
                "promise": PROMISE,
            },
            {
                "name": "test",
                "kind": "evaluate",
                "needs": "pretrain",
                "done": False,
                "state": "to do",
                "changed_data": [],
                "gone_data": [],
            },
        ],
        "fitting_workers": None,
        "notes": {},
        "refusal": None,
        "sweep": {},
        "early_stopping": None,
    }
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_which_rows_come_again(console: Console, tmp_path: Path) -> None:
    second = VALID[VALID.index("  - name: pretrain") :].replace("name: pretrain", "name: go-on", 1)
    second = second.replace("model: {config: {model_type: gpt2}}", "init: {stage: pretrain}")
    path = write_job(tmp_path, VALID + second)
    first, after = console("plan", path, "--no-model", "--json").json()["stages"]
    assert (first["read_before"], after["read_before"]) == ({}, {"rfc": "pretrain"})
    assert (
        "     begins 'rfc' with the rows that 'pretrain' began with"
        in console("plan", path, "--no-model").output
    )


def test_the_plan_knows_how_full_prepared_rows_are(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    stage = run.layout.stage("pretrain")
    stage.root.mkdir()
    meta = tmp_path / "rows" / "meta.json"
    meta.parent.mkdir()
    meta.write_text('{"num_rows": 100, "packing_efficiency": 0.875}')
    stage.inputs.write_text(json.dumps({"train": {"rfc": str(meta.parent)}}))
    path = write_job(tmp_path, TEXT)
    command = ("plan", path, "--no-model", "--runs-dir", tmp_path)
    assert console(*command, "--json").json()["stages"][0]["packing_efficiency"] == 0.875
    assert "     rows are 87.50% full of tokens" in console(*command).output.splitlines()
    # Pairs are not packed.
    meta.write_text('{"num_rows": 100, "packing_efficiency": null}')
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


def test_plan_says_what_run_would_refuse(console: Console, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.finish("pretrain")
    command = ("plan", run.layout.root / "source.yaml", "--no-model", "--runs-dir", run.layout.root.parent)
    assert "refuses" not in console(*command).output
    text = console(*command, "--set", "stages.pretrain.optimizer.lr=0.5").output
    assert "'run' refuses this job as it is: " in text
    assert "stages.pretrain.optimizer.lr: 0.001 -> 0.5" in text


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
    # Where no run was ever made, a plan leaves nothing behind.
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    assert console("plan", path, *runs).json()["stages"][0]["parameters"] == expected
    assert console("plan", path, "--no-model", *runs).json()["stages"][0]["parameters"] == expected


def test_the_plan_counts_what_is_trained(console: Console, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = "{model_type: gpt2, n_layer: 1, n_embd: 8, n_head: 2, n_positions: 64}"
    path = write_job(tmp_path, changed("{model_type: gpt2}", config))
    runs = ("--runs-dir", tmp_path / "runs")
    freeze = ("--set", "stages.pretrain.freeze=['transformer.wte.*']")
    stage = console("plan", path, *runs, "--json", *freeze).json()["stages"][0]
    # The head is tied to the 512 embeddings.
    assert stage["parameters"] - stage["trained_parameters"] == 512 * 8
    text = console("plan", path, *runs, *freeze).output
    assert f"{stage['parameters']:,}, {stage['trained_parameters']:,} trained" in text
    assert "trained" not in console("plan", path, *runs).output
    misspelt = console("plan", path, *runs, "--set", "stages.pretrain.freeze=['transformer.wtee.*']")
    assert misspelt.code == 2
    assert "stage 'pretrain': freeze: 'transformer.wtee.*' matches no parameter" in misspelt.errors


def test_a_damaged_memory_of_parameters_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    for content in ("{", "[]"):
        path.write_text(content)
        assert ParameterCounts(path, with_model=False).count({"model_type": "gpt2"}, "causal_lm", 2) is None


def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="model_type 'gpt7'"):
        ParameterCounts(tmp_path / "p.json", with_model=True).count({"model_type": "gpt7"}, "causal_lm", 2)


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
        (["validate", "nowhere.yaml"], "nowhere.yaml: no such file.\n"),
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


@pytest.mark.parametrize(("name", "command"), [("driver.lock", "run"), ("events.jsonl", "status")])
def test_a_folder_in_the_place_of_a_file_is_named_with_what_to_do(
    name: str, command: str, console: Console, tmp_path: Path
) -> None:
    run = FakeRun(tmp_path)
    (run.layout.root / name).mkdir()
    target = run.layout.root / "source.yaml" if command == "run" else "tiny"
    ended = console(command, target, "--runs-dir", tmp_path)
    expected = f"{run.layout.root / name}: Is a directory: put that right and run the same command again"
    assert (ended.code, ended.output) == (1, "")
    assert ended.errors == f"{expected}; it goes on from what is there\n"


def test_of_two_files_the_one_that_cannot_be_replaced_is_named(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inputs.json").mkdir()
    monkeypatch.setattr("launchers.cli_status.status", lambda _: replace_text(tmp_path / "inputs.json", ""))
    ended = console("status")
    assert ended.code == 1
    assert ended.errors.startswith(f"{tmp_path / 'inputs.json'}: Is a directory: put that right and run")


def test_what_prepare_says_to_type_can_be_pasted(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(tmp_path / "my $(runs)" / "tiny")
    monkeypatch.setattr("launchers.run.prepare_job", lambda *arguments, **options: layout)
    ended = console("prepare", write_job(tmp_path, VALID))
    command = ended.output.splitlines()[1]
    assert shlex.split(command)[-3:] == [str(layout.root), "--stage", "pretrain"]


def test_help_names_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    listed = capfd.readouterr().out.split("COMMAND\n")[1].split("\n")
    assert [line.split()[0] for line in listed if line.strip()] == [
        "validate",
        "plan",
        "data",
        "run",
        "prepare",
        "rehearse",
        "submit",
        "schema",
        "status",
        "logs",
        "cancel",
        "verify",
        "compare",
        "predict",
    ]
