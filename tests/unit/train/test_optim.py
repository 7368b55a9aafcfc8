"""Parameter groups and schedules."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from orchestrator.spec.optimization import Optimizer, Schedule
from orchestrator.train.optim import group_parameters, learning_rate, make_optimizer


def schedule(**keys: object) -> Schedule:
    return TypeAdapter(Schedule).validate_python(keys)


def tiny_gpt() -> nn.Module:
    config = AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)
    return AutoModelForCausalLM.from_config(config)


def test_norms_biases_and_embeddings_do_not_decay_by_default() -> None:
    model = tiny_gpt()
    decayed, undecayed = group_parameters(model, 0.1, ("norm", "bias", "embedding"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        f"transformer.h.0.{layer}.weight"
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert len(decayed["params"]) + len(undecayed["params"]) == len(names)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)


def test_everything_decays_when_the_job_says_so() -> None:
    (group,) = group_parameters(tiny_gpt(), 0.1, ())
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_every_optimizer_lowers_a_quadratic(name: str) -> None:
    section = TypeAdapter(Optimizer).validate_python({"name": name, "lr": 0.05, "weight_decay": 0.0})
    model = nn.Linear(4, 4)
    optimizer = make_optimizer(model, section)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model.weight**2).sum() + (model.bias**2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_adamw_is_foreach_unless_fused_is_asked_for() -> None:
    for fused in (False, True):
        section = TypeAdapter(Optimizer).validate_python({"name": "adamw", "lr": 1.0, "fused": fused})
        optimizer = make_optimizer(nn.Linear(2, 2), section)
        assert isinstance(optimizer, torch.optim.AdamW)
        assert bool(optimizer.defaults["fused"]) == fused
        assert bool(optimizer.defaults["foreach"]) == (not fused)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_warmup_rises_in_a_line_to_the_peak(name: str) -> None:
    rates = [learning_rate(schedule(name=name, warmup_steps=4), 1.0, step, 100) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_is_half_way_in_the_middle_and_ends_at_its_ratio() -> None:
    cosine = schedule(name="cosine", warmup_steps=10, min_lr_ratio=0.2)
    assert learning_rate(cosine, 1.0, 60, 110) == pytest.approx(0.6)
    assert learning_rate(cosine, 1.0, 110, 110) == pytest.approx(0.2)


def test_linear_falls_in_a_line() -> None:
    linear = schedule(name="linear", min_lr_ratio=0.0)
    assert [learning_rate(linear, 2.0, step, 4) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_wsd_keeps_the_peak_until_the_decay() -> None:
    wsd = schedule(name="wsd", warmup_steps=2, decay_steps=4, min_lr_ratio=0.5)
    rates = [learning_rate(wsd, 1.0, step, 10) for step in range(10)]
    assert rates[2:7] == [1.0] * 5
    assert rates[7:] == pytest.approx([0.875, 0.75, 0.625])


def test_constant_never_falls() -> None:
    assert learning_rate(schedule(name="constant"), 0.3, 10**6, 10) == 0.3
