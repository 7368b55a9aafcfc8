"""What transformers makes of sizes that heads cannot share, and that validate says so first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel

from orchestrator.spec.attention_heads import SPLIT_HIDDEN
from tests.unit.spec.jobs import complaints, load
from tests.unit.spec.test_architectures import with_config

GROUPED = ["gemma", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"]


def tiny(model_type: str, hidden: int, heads: int, key_value_heads: int | None = None) -> dict[str, Any]:
    """Keys of a small model, as its architecture calls them."""
    config = AutoConfig.for_model(model_type)
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": 1, "vocab_size": 512}
    keys: dict[str, Any] = {config.attribute_map.get(key, key): size for key, size in sizes.items()}
    if key_value_heads is not None:
        keys["num_key_value_heads"] = key_value_heads
    keys |= {key: 32 for key in ("intermediate_size", "ffn_dim", "hidden_dim") if hasattr(config, key)}
    keys |= {"pad_token_id": 0} if getattr(config, "pad_token_id", None) else {}
    keys |= {"rotary_dim": 4} if model_type == "gptj" else {}
    return keys | ({"attention_types": [[["global"], 1]]} if model_type == "gpt_neo" else {})


def runs(model_type: str, keys: dict[str, Any]) -> bool:
    """Whether transformers builds the model and it reads a row."""
    try:
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **keys)).eval()
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2, 3]]))
    except (RuntimeError, ValueError, StrictDataclassError):
        return False
    return True


def written(model_type: str, keys: dict[str, Any]) -> str:
    """A job with such a model."""
    given = ", ".join(f"{key}: {value}" for key, value in keys.items()).replace("'", '"')
    return with_config(f"model_type: {model_type}, {given}")


@pytest.mark.parametrize("model_type", sorted(SPLIT_HIDDEN))
def test_a_hidden_size_that_heads_cannot_share_is_refused_as_transformers_does(
    model_type: str, tmp_path: Path
) -> None:
    even, odd = tiny(model_type, 48, 4), tiny(model_type, 50, 4)
    assert (runs(model_type, even), runs(model_type, odd)) == (True, False)
    load(tmp_path, written(model_type, even))
    (complaint,) = complaints(tmp_path, written(model_type, odd))
    assert "job.yaml:14: stages[0].model.config." in complaint
    assert f" 4, and '{model_type}' shares it out evenly; nearest " in complaint
    assert complaint.endswith(": 48 or 52")


@pytest.mark.parametrize("model_type", GROUPED)
def test_heads_that_key_value_heads_cannot_share_are_refused_as_transformers_does(
    model_type: str, tmp_path: Path
) -> None:
    even, odd = tiny(model_type, 48, 4, 2), tiny(model_type, 48, 4, 3)
    assert (runs(model_type, even), runs(model_type, odd)) == (True, False)
    load(tmp_path, written(model_type, even))
    assert complaints(tmp_path, written(model_type, odd)) == [
        "job.yaml:14: stages[0].model.config.num_key_value_heads: num_attention_heads 4 is not a multiple of"
        f" num_key_value_heads 3, and '{model_type}' shares it out evenly;"
        " nearest num_attention_heads: 3 or 6"
    ]


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
def test_a_size_that_is_rounded_for_each_head_is_allowed(model_type: str, tmp_path: Path) -> None:
    keys = tiny(model_type, 50, 4, 4)
    assert runs(model_type, keys)
    load(tmp_path, written(model_type, keys))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model_type: gpt2, n_head: 7", "n_head: n_embd 768 (the default) is not a multiple of n_head 7"),
        ("model_type: gpt2, n_embd: 100", "n_embd: n_embd 100 is not a multiple of n_head 12 (the default)"),
        (
            "model_type: gpt2, hidden_size: 100, num_attention_heads: 3",
            "num_attention_heads: hidden_size 100 is not a multiple of num_attention_heads 3",
        ),
        (
            "model_type: mistral, num_attention_heads: 4",
            "num_attention_heads: num_attention_heads 4 is not a multiple of"
            " num_key_value_heads 8 (the default)",
        ),
    ],
)
def test_what_the_file_leaves_out_is_the_architectures(config: str, message: str, tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, with_config(config))
    assert complaint.startswith(f"job.yaml:14: stages[0].model.config.{message}, and ")


def test_what_is_no_number_is_left_to_transformers(tmp_path: Path) -> None:
    load(tmp_path, with_config("model_type: gpt2, n_embd: 100, n_head: 0"))
    load(tmp_path, with_config("model_type: gpt2, n_embd: 100, n_head: x"))
