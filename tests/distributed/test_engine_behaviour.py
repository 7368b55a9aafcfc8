"""What engines do beside the common trajectory: refusals, other optimizers, failures, start-up."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from orchestrator.errors import PlanError
from tests.distributed.odd_model import build_odd, step_odd
from tests.distributed.training import (
    build_engine,
    build_model,
    count_targets,
    different,
    loss_of,
    make_adamw,
    make_batch,
    train,
)
from tests.support import STARTED_ANEW, run_ranks

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "zero 0": {"name": "zero", "stage": 0},
    "zero 1": {"name": "zero", "stage": 1},
    "zero 2": {"name": "zero", "stage": 2},
    "zero 3": {"name": "zero", "stage": 3},
}

OFFLOADED = {"name": "zero", "stage": 2, "param_dtype": "bfloat16", "offload_optimizer": {"device": "cpu"}}
SKIPPING = {**ENGINES, "zero 2 bfloat16 offload": OFFLOADED}


def make_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, foreach=True)


def make_plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-2, foreach=True)


def make_adafactor(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(model.parameters(), lr=1e-2, foreach=False)


def make_fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def make_adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": make_sgd,
    "sgd without momentum": make_plain_sgd,
    "adafactor": make_adafactor,
    "fused adamw": make_fused_adamw,
}


def refusal(strategy: dict[str, Any], **options: Any) -> str:
    """The message of the PlanError that building an engine raises."""
    with pytest.raises(PlanError) as caught:
        build_engine(build_model("gpt2"), strategy, **options)
    return str(caught.value)


def refusals(folder: str) -> dict[str, str]:
    round_robin = Path(folder, f"{dist.get_rank()}.json")
    round_robin.write_text(json.dumps({"zero_optimization": {"round_robin_gradients": True}}))
    nvme = {"device": "nvme", "nvme_path": "/tmp"}
    found = {
        "replicate": refusal({"name": "fsdp2", "replicate_degree": 3}),
        "adafactor": refusal(ENGINES["zero 1"], make_optimizer=make_adafactor),
        "round robin": refusal({**ENGINES["zero 2"], "config": str(round_robin)}),
        "adam": refusal(ENGINES["ddp"], make_optimizer=make_adam),
    }
    zero_3 = {"name": "zero", "stage": 3}
    if not _has_libaio():
        found["nvme parameters"] = refusal({**zero_3, "offload_param": nvme})
    return found


def _has_libaio() -> bool:
    return any(Path(folder, "libaio.h").exists() for folder in ("/usr/include", "/usr/local/include"))


def optimizer_norms() -> dict[str, dict[str, list[float]]]:
    """Norms of four steps, by optimizer and engine."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, make_optimizer in OPTIMIZERS.items():
        engines = ["ddp", "fsdp2", "zero 0"]
        if name != "adafactor":
            engines += ["zero 1", "zero 3"]
        found[name] = {
            engine: train(
                build_engine(
                    build_model("gpt2"), ENGINES[engine], make_optimizer=make_optimizer, max_grad_norm=None
                ),
                "gpt2",
                range(4),
            ).norms
            for engine in engines
        }
    return found


def non_finite() -> dict[str, tuple[float, list[str]]]:
    """By engine: the norm this rank sees where one rank's loss is infinite, and what differs on rank 0 after
    that step was skipped and two more were taken, from a run that never met it."""
    found: dict[str, tuple[float, list[str]]] = {}
    for name, strategy in SKIPPING.items():
        expected = train(build_engine(build_model("gpt2"), strategy), "gpt2", range(3)).weights
        engine = build_engine(build_model("gpt2"), strategy)
        train(engine, "gpt2", range(1))
        with engine.micro_step(last=True):
            batch = make_batch("gpt2", 1, dist.get_rank())
            loss = loss_of(engine.model, "gpt2", batch, count_targets("gpt2", 1, 2))
            engine.backward(loss * float("inf") if dist.get_rank() == 1 else loss)
        norm = engine.gradient_norm()
        engine.skip_step()
        after = train(engine, "gpt2", range(1, 3)).weights
        found[name] = (norm, different(after, expected) if expected else [])
    return found


def evaluation() -> dict[str, list[str]]:
    """By engine: what differs after steps with evaluations and state read in between, from steps without."""
    found: dict[str, list[str]] = {}
    for name, strategy in {
        **ENGINES,
        "fsdp2 no reshard": {"name": "fsdp2", "reshard_after_forward": False},
    }.items():
        expected = train(build_engine(build_model("bert"), strategy), "bert", range(3)).weights
        engine = build_engine(build_model("bert"), strategy)
        for step in range(3):
            train(engine, "bert", range(step, step + 1))
            engine.model.eval()
            with torch.no_grad(), engine.micro_step(last=False):
                loss_of(engine.model, "bert", make_batch("bert", 9, 0), count_targets("bert", 9, 2))
            engine.model.train()
            engine.neutral_state()
        found[name] = different(engine.full_weights() or {}, expected)
    return found


class Unused(nn.Module):
    """A model of which one parameter takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(7, 5)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x).square().sum()  # type: ignore[no-any-return]


def train_unused() -> dict[str, dict[str, torch.Tensor]]:
    """Weights and step counts after three steps in which one parameter has no gradient."""
    found = {}
    for name in ("fsdp2", "zero 0", "zero 1", "zero 2", "zero 3"):
        torch.manual_seed(0)
        model = Unused()
        engine = build_engine(model, ENGINES[name], make_optimizer=make_adamw, blocks=[])
        for step in range(3):
            with engine.micro_step(last=True):
                x = torch.full((2, 7), 0.1 * (step + 1 + dist.get_rank()))
                engine.backward(engine.model(x))
            engine.step(1e-2, engine.gradient_norm())
        state = engine.neutral_state()
        steps = {key: value for key, value in state.items() if key.startswith("optim.step.")}
        weights = engine.full_weights()
        found[name] = {**(weights or {}), **{key: value.clone() for key, value in steps.items()}}
    return found


def behaviour(folder: str) -> dict[str, Any]:
    return {
        "refusals": refusals(folder),
        "optimizers": optimizer_norms(),
        "non-finite": non_finite(),
        "evaluation": evaluation(),
        "unused": train_unused(),
    }


@functools.cache
def behaviours() -> list[dict[str, Any]]:
    """By rank; from one start of processes."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(behaviour, 2, folder)


@pytest.mark.slow
def test_a_plan_that_cannot_work_is_refused_on_every_rank_with_the_value() -> None:
    for rank in behaviours():
        found = rank["refusals"]
        assert "replicate_degree 3 does not divide 2 workers" in found["replicate"]
        assert "adafactor under strategy zero, stage 1" in found["adafactor"]
        assert "optimizer Adam:" in found["adam"] and "AdamW" in found["adam"]
        assert "stage 2: DeepSpeed keeps" in found["round robin"]
        if not _has_libaio():
            assert "strategy.offload_param.device: found 'nvme', which needs" in found["nvme parameters"]
            assert "libaio-dev" in found["nvme parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers_train_alike_under_every_engine(name: str) -> None:
    found = behaviours()[0]["optimizers"][name]
    for norms in found.values():
        assert norms == (found["ddp"] if name != "fused adamw" else pytest.approx(found["ddp"], rel=1e-5))
    assert len(set(found["ddp"])) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SKIPPING)
def test_infinite_gradients_on_one_rank_are_seen_by_all_and_a_skipped_step_leaves_no_trace(name: str) -> None:
    for norm, differences in (rank["non-finite"][name] for rank in behaviours()):
        assert not math.isfinite(norm)
        assert differences == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ENGINES, "fsdp2 no reshard"])
def test_evaluating_and_reading_state_between_steps_changes_nothing(name: str) -> None:
    assert behaviours()[0]["evaluation"][name] == []


def start_zero() -> list[float]:
    """Losses of ZeRO 1 and 3, and what DeepSpeed may have found on PATH."""
    assert shutil.which("g++") is None and shutil.which("ninja") is None
    found: list[float] = []
    for stage in (1, 3):
        engine = build_engine(build_model("llama"), {"name": "zero", "stage": stage})
        found += train(engine, "llama", range(2)).losses.values()
    return found


@pytest.mark.slow
def test_deepspeed_starts_without_compiler_prints_nothing_and_leaves_home_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home, empty = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    empty.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    (losses,) = run_ranks(start_zero, 1, context=STARTED_ANEW)
    assert losses[:4] == losses[4:]
    assert capfd.readouterr() == ("", "")
    assert list(home.rglob("*")) == []


def compiled_weights() -> list[dict[str, torch.Tensor]]:
    """Weights after two steps of plain and of compiled blocks, of each kind of engine."""
    found = []
    for strategy in (ENGINES["ddp"], ENGINES["fsdp2"], ENGINES["zero 3"]):
        for is_compiled in (False, True):
            engine = build_odd({**strategy, "compile": is_compiled}, "sgd")
            for step in range(2):
                step_odd(engine, step)
            found.append(engine.full_weights() or {})
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_compiled_models_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    ((expected, *others),) = run_ranks(compiled_weights, 1)
    for found in others:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)


@pytest.mark.slow
def test_a_parameter_without_gradient_is_updated_alike_by_every_engine() -> None:
    found = behaviours()[0]["unused"]
    for name, tensors in found.items():
        assert different(tensors, found["zero 0"]) == [], name
    assert found["fsdp2"]["optim.step.unused"] == found["fsdp2"]["optim.step.used.weight"] == 3.0
