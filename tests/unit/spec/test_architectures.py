"""Keys of ``model.config`` against the sources of the architectures, which are not imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.unit.spec.jobs import changed, complaints, load

ARCHITECTURES = [
    "albert",
    "bert",
    "deberta-v2",
    "distilbert",
    "electra",
    "gemma",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "llama",
    "mistral",
    "modernbert",
    "opt",
    "phi",
    "qwen2",
    "qwen3",
    "roberta",
]


def with_config(config: str) -> str:
    return changed("{config: {model_type: gpt2}}", "{config: {" + config + "}}")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_key_of_an_architecture_is_known_and_another_is_not(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type)
    keys = {key for key in {**config.to_dict(), **config.attribute_map} if not key.startswith("_")}
    keys -= {"model_type", "transformers_version"}
    given = ", ".join(f"{key}: {1 if key.endswith('_id') else 5000}" for key in sorted(keys))
    load(tmp_path, with_config(f"model_type: {model_type}, attn_implementation: eager, {given}"))
    (complaint,) = complaints(tmp_path, with_config(f"model_type: {model_type}, hiden_size: 3"))
    assert f"model.config.hiden_size: unknown key of the architecture '{model_type}'" in complaint


def test_the_nearest_key_is_named(tmp_path: Path) -> None:
    assert complaints(tmp_path, with_config("model_type: gpt2, n_layers: 2")) == [
        "job.yaml:14: stages[0].model.config.n_layers: unknown key of the architecture 'gpt2'."
        " Did you mean 'n_layer'?"
    ]


@pytest.mark.parametrize("model_type", ["no_such", "../bert"])
def test_what_cannot_be_read_is_not_judged(model_type: str, tmp_path: Path) -> None:
    load(tmp_path, with_config(f"model_type: {model_type}, anything: 2"))
