"""``--set``: which key it changes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.spec.optimization import Limits
from orchestrator.spec.strategies import DDPStrategy, ZeROStrategy
from orchestrator.spec.training import Init
from tests.unit.spec.jobs import VALID, complaints, first_stage, load


@pytest.mark.parametrize(
    "key", ["stages.pretrain.optimizer.lr", "stages[0].optimizer.lr", "stages.0.optimizer.lr"]
)
def test_list_items_are_named_or_counted(key: str, tmp_path: Path) -> None:
    assert first_stage(load(tmp_path, VALID, f"{key}=3e-4")).optimizer.lr == 3e-4


def test_values_are_yaml(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        VALID,
        "stages.pretrain.strategy={name: zero, stage: 3}",
        "stages.pretrain.optimizer.no_decay=[bias]",
        "tracking.wandb.project=a=b",
        "stages.pretrain.optimizer.max_grad_norm=null",
        "seed=${SEED:-8}",
    )
    stage = first_stage(job)
    assert stage.strategy == ZeROStrategy(name="zero", stage=3)
    assert stage.optimizer.no_decay == ("bias",)
    assert stage.optimizer.max_grad_norm is None
    assert job.tracking.wandb is not None and job.tracking.wandb.project == "a=b"
    assert job.seed == 8


def test_the_last_of_two_wins_and_sections_on_the_way_are_made(tmp_path: Path) -> None:
    job = load(tmp_path, VALID, "resources.num_workers=2", "resources.num_workers=4")
    assert job.resources.num_workers == 4


def test_one_of_several_exclusive_keys_replaces_the_other(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, VALID, "stages.pretrain.limits.max_tokens=2048"))
    assert stage.limits == Limits(max_tokens=2048)


ZERO = VALID.replace("{name: ddp}", "{name: zero, stage: 3, param_dtype: bfloat16}")


def test_another_choice_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, ZERO, "stages.pretrain.strategy.name=ddp"))
    assert stage.strategy == DDPStrategy(name="ddp")
    stage = first_stage(load(tmp_path, ZERO, "stages.pretrain.strategy.name=zero"))
    assert stage.strategy == ZeROStrategy(name="zero", stage=3, param_dtype="bfloat16")


@pytest.mark.parametrize("is_reversed", [False, True])
def test_keys_of_the_new_choice_may_be_set_before_or_after_it(is_reversed: bool, tmp_path: Path) -> None:
    overrides = ["stages.pretrain.strategy.name=ddp", "stages.pretrain.strategy.compile=true"]
    stage = first_stage(load(tmp_path, ZERO, *(reversed(overrides) if is_reversed else overrides)))
    assert stage.strategy == DDPStrategy(name="ddp", compile=True)


def test_another_choice_in_defaults_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    text = VALID.replace("    strategy: {name: ddp}\n", "") + "defaults: {strategy: {name: zero, stage: 3}}\n"
    assert first_stage(load(tmp_path, text, "defaults.strategy.name=ddp")).strategy == DDPStrategy(name="ddp")
    stage = first_stage(load(tmp_path, text, "stages.pretrain.strategy.name=ddp"))
    assert stage.strategy == DDPStrategy(name="ddp")


def test_another_architecture_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    text = VALID.replace("{model_type: gpt2}", "{model_type: gpt2, n_layer: 2}")
    model = first_stage(load(tmp_path, text, "stages[0].model.config.model_type=bert")).model
    assert model is not None and model.config == {"model_type": "bert"}


def test_another_source_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    overrides = ("datasets.rfc.path=some/hub-id", "datasets.rfc.source=hub")
    dataset = load(tmp_path, VALID, *overrides).datasets["rfc"]
    assert (dataset.source, dataset.validation_fraction, dataset.label_column) == ("hub", 0.0, None)


def test_a_stage_of_another_kind_keeps_its_name(tmp_path: Path) -> None:
    more = "  - {name: more, kind: export, from: pretrain, dtype: float16}\n"
    overrides = ("stages.more.kind=evaluate", "stages[1].from=pretrain", "stages.more.datasets=[rfc]")
    job = load(tmp_path, VALID + more, *overrides, "stages.more.split=validation")
    assert (job.stages[1].kind, job.stages[1].name) == ("evaluate", "more")
    job = load(tmp_path, VALID + more.replace("export", "train"), "stages.more.kind=export", overrides[1])
    assert (job.stages[1].kind, job.stages[1].name) == ("export", "more")


def test_an_item_of_a_list_can_be_set(tmp_path: Path) -> None:
    job = load(tmp_path, VALID, "tokenizer.train.datasets[0]=rfc")
    assert job.tokenizer is not None and job.tokenizer.train is not None
    assert job.tokenizer.train.datasets == ("rfc",)


def test_a_key_under_defaults_can_be_set(tmp_path: Path) -> None:
    text = VALID.replace("    strategy: {name: ddp}\n", "") + "defaults: {strategy: {name: ddp}}\n"
    stage = first_stage(load(tmp_path, text, "defaults.strategy.compile=true"))
    assert stage.strategy == DDPStrategy(name="ddp", compile=True)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "stages.pretain.optimizer.lr=1",
            "stages.pretain.optimizer.lr: 'stages' has no item 'pretain'. Did you mean 'pretrain'?",
        ),
        ("stages[3].name=x", "stages[3].name: 'stages' has no item '3'. Names: pretrain."),
        (
            "stages.pretrain.optimizer.learning=1",
            "stages[0].optimizer.learning: unknown key. Valid keys: lr, weight_decay, no_decay,"
            " max_grad_norm, name, betas, eps, fused.",
        ),
        (
            "stages.pretrain.optimzer.lr=1",
            "stages[0].optimzer: unknown key. Did you mean 'optimizer'?",
        ),
        ("seed.x=1", "seed.x: 'seed' is 17, which has no keys"),
        ("seed.x.y=1", "seed.x.y: 'seed' is 17, which has no keys"),
        ("seed=fast", "seed: expected a whole number, found 'fast'"),
        ("seed", "expected KEY=VALUE, found 'seed'"),
        ("=3", "expected KEY=VALUE, found ''"),
        (
            "seed=[1",
            "seed: not valid YAML: while parsing a flow sequence, did not find expected ',' or ']'",
        ),
        (
            "seed=${NOWHERE}",
            "seed: environment variable 'NOWHERE' is not set. Set it, or give a default: '${NOWHERE:-...}'",
        ),
    ],
)
def test_an_override_that_cannot_be_is_refused(override: str, expected: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, VALID, overrides=(override,)) == [f"--set: {expected}"]


def test_a_path_on_the_command_line_starts_where_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    stage = first_stage(load(tmp_path, VALID, "stages.pretrain.init.checkpoint=ckpt"))
    assert stage.init == Init(checkpoint=f"{tmp_path}/here/ckpt")
