"""The smoke jobs through the command line: every stage kind, three architectures, weights that load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.manager import CheckpointManager
from tests.e2e.commands import environment, events, free_port, orchestrator, succeed

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder and home that the tests of this file share, so that data is prepared once."""
    return tmp_path_factory.mktemp("smoke")


def run(place: Path, job: str, *options: str) -> dict[str, object]:
    output = succeed(
        "run", f"jobs/{job}.yaml", "--runs-dir", place / "runs", "--json", *options, home=place / "home"
    )
    return json.loads(output)


def trained_weights(layout: RunLayout, stage: str) -> dict[str, torch.Tensor]:
    """Parameters as the stage's newest checkpoint holds them."""
    manager = CheckpointManager(layout.stage(stage).checkpoints)
    newest = manager.newest()
    assert newest is not None
    return manager.read_weights(newest)


@pytest.mark.timeout(600)
def test_gpt_job_runs_every_kind_of_stage_and_its_weights_load(place: Path) -> None:
    report = run(place, "smoke_gpt")
    assert report["state"] == "finished"
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert {name: stage["state"] for name, stage in stages.items()} == dict.fromkeys(
        ["pretrain", "classify", "test", "export"], "finished"
    )
    assert stages["classify"]["step"] == 6
    assert stages["pretrain"]["metrics"]["eval/perplexity"] > 1
    assert stages["classify"]["metrics"]["data/reviews/rows"] == 6 * 8
    assert json.loads(succeed("verify", place / "runs" / "smoke-gpt", "--json", home=place / "home"))["ok"]
    wanted = {"accuracy", "precision", "recall", "f1", "matthews_correlation", "loss"}
    assert {f"eval/{name}" for name in wanted} <= stages["test"]["metrics"].keys()

    layout = RunLayout(place / "runs" / "smoke-gpt")
    weights = layout.stage("pretrain").weights
    model = AutoModelForCausalLM.from_pretrained(weights)
    trained = trained_weights(layout, "pretrain")
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    tokenizer = AutoTokenizer.from_pretrained(weights)
    assert tokenizer.decode(tokenizer("A fine film.")["input_ids"]) == "A fine film."
    exported = load_file(layout.stage("export").weights / "model.safetensors")
    assert {value.dtype for value in exported.values()} == {torch.bfloat16}
    classifier = AutoModelForSequenceClassification.from_pretrained(layout.stage("classify").weights)
    assert classifier.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.timeout(300)
def test_a_finished_job_is_skipped_and_leaves_nothing_behind(place: Path) -> None:
    before = len(events(place / "runs" / "smoke-gpt"))
    report = run(place, "smoke_gpt")
    assert report["state"] == "finished"
    later = [event["event"] for event in events(place / "runs" / "smoke-gpt")[before:]]
    # No worker was started.
    assert later == ["run_started", *["stage_preparing"] * 4, "run_finished"]
    assert not list((place / "runs" / "smoke-gpt").glob("ray-*"))
    # Ray, W&B and the hub must not have written into the user's home.
    assert not [path for path in (place / "home").rglob("*") if "ray" in path.parts or ".ray" in path.parts]


@pytest.mark.timeout(120)
def test_predict_answers_from_every_head(place: Path) -> None:
    def answers(*arguments: str) -> list[dict[str, object]]:
        output = succeed(
            "predict", "smoke-gpt", "--runs-dir", place / "runs", "--json", *arguments, home=place / "home"
        )
        return json.loads(output)["predictions"]

    (answer,) = answers("--text", "A fine film.")
    assert answer["label"] in ("negative", "positive")
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
    (answer,) = answers("--stage", "pretrain", "--text", "The film")
    assert answer["generated"].startswith("The film")


@pytest.mark.timeout(300)
def test_damaged_weights_are_refused_and_written_anew(place: Path) -> None:
    layout = RunLayout(place / "runs" / "smoke-gpt")
    path = layout.stage("classify").weights / "model.safetensors"
    written = path.read_bytes()
    path.write_bytes(written[:-1] + bytes([written[-1] ^ 64]))
    named = ("smoke-gpt", "--runs-dir", place / "runs")
    verified = orchestrator("verify", *named, home=place / "home")
    assert verified.returncode == 1
    assert f"stage 'classify', weights: {path} has {len(written)} bytes with digest" in verified.stdout
    predicted = orchestrator("predict", *named, "--text", "A fine film.", home=place / "home")
    assert predicted.returncode == 1
    assert f"weights of stage 'classify' are damaged: {path} has" in predicted.stderr
    assert run(place, "smoke_gpt")["state"] == "finished"
    assert path.read_bytes() == written
    (kept,) = layout.stage("classify").root.glob("weights.before-*")
    assert (kept / path.name).read_bytes() != written
    succeed("verify", *named, home=place / "home")


SCRIPT = """
import sys
from orchestrator.train.worker import main
code = main(sys.argv[1:])
assert not {"ray", "datasets", "wandb"} & sys.modules.keys(), "a worker must be lean"
sys.exit(code)
"""


@pytest.mark.timeout(300)
def test_torchrun_without_ray_gives_the_same_weights_as_ray_train(place: Path) -> None:
    runs = place / "torchrun"
    succeed("prepare", "jobs/smoke_gpt.yaml", "--runs-dir", runs, home=place / "home")
    (place / "lean.py").write_text(SCRIPT)
    for stage, target in (
        ("pretrain", ["-m", "orchestrator.train.worker"]),
        ("classify", [place / "lean.py"]),
    ):
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
        command += ["--master-port", str(free_port()), *target, runs / "smoke-gpt", "--stage", stage]
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True,
            text=True,
            env=environment(place / "home"),
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
    for stage in ("pretrain", "classify"):
        ours = load_file(RunLayout(runs / "smoke-gpt").stage(stage).weights / "model.safetensors")
        rays = RunLayout(place / "runs" / "smoke-gpt").stage(stage).weights / "model.safetensors"
        assert all(torch.equal(value, ours[name]) for name, value in load_file(rays).items())


@pytest.mark.timeout(300)
def test_a_changed_job_is_refused_with_the_difference_and_fresh_starts_over(place: Path) -> None:
    runs = place / "runs"
    changed = ("run", "jobs/smoke_gpt.yaml", "--runs-dir", runs, "--set", "stages.pretrain.optimizer.lr=0.5")
    refused = orchestrator(*changed, home=place / "home")
    assert refused.returncode == 2
    assert "stages.pretrain.optimizer.lr: 0.001 -> 0.5" in refused.stderr
    assert "--fresh" in refused.stderr
    assert "Traceback" not in refused.stderr
    # Resources and intervals may change: nothing is left to do.
    allowed = orchestrator(
        *changed[:4],
        "--set",
        "resources.num_workers=1",
        "--set",
        "defaults.logging.every_steps=5",
        home=place / "home",
    )
    assert allowed.returncode == 0, allowed.stderr


@pytest.mark.timeout(900)
def test_bert_job_pretrains_continues_and_fine_tunes(place: Path) -> None:
    report = run(place, "smoke_bert")
    assert [stage["state"] for stage in report["stages"]] == ["finished"] * 3
    stages = {stage["name"]: stage for stage in report["stages"]}
    metrics = stages["pretrain"]["metrics"]
    assert metrics["train/loss"] == pytest.approx(metrics["train/mlm_loss"] + metrics["train/nsp_loss"])
    assert {"eval/mlm_loss", "eval/nsp_loss", "eval/mlm_perplexity"} <= metrics.keys()

    layout = RunLayout(place / "runs" / "smoke-bert")
    pretrained = AutoModelForPreTraining.from_pretrained(layout.stage("pretrain").weights)
    trained = trained_weights(layout, "pretrain")
    assert all(torch.equal(value, trained[name]) for name, value in pretrained.named_parameters())
    continued = AutoModelForMaskedLM.from_pretrained(layout.stage("continue").weights)
    assert continued.config.model_type == "bert"
    output = succeed(
        "predict",
        "smoke-bert",
        "--stage",
        "continue",
        "--runs-dir",
        place / "runs",
        "--json",
        "--text",
        "a [MASK] film",
        home=place / "home",
    )
    (answer,) = json.loads(output)["predictions"]
    assert len(answer["candidates"]) == 5
    assert "[MASK]" not in answer["filled"]


@pytest.mark.timeout(600)
def test_llama_job_with_hsdp_sgd_and_offline_wandb(place: Path) -> None:
    report = run(place, "smoke_llama")
    (stage,) = report["stages"]
    assert stage["state"] == "finished"
    layout = RunLayout(place / "runs" / "smoke-llama")
    trained = trained_weights(layout, "pretrain")
    model = AutoModelForCausalLM.from_pretrained(layout.stage("pretrain").weights)
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
    assert len(list(layout.stage("pretrain").root.glob("wandb/offline-run-*/run-*.wandb"))) == 1
