"""Models that keep documents apart pass; every way not to is refused, with numbers and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from orchestrator.contracts import Head, TokenInfo
from orchestrator.errors import ModelError
from orchestrator.models import build_auto_model
from orchestrator.train.confinement import check_causal, check_confined

TOKENS = TokenInfo(40, 0, 1, 2, (0, 1, 2), np.zeros(40, dtype=bool))
SIZE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 66,
}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64}
LLAMA = {"model_type": "llama", **SIZE, "num_key_value_heads": 2}


def build(config: dict[str, Any], head: Head = "causal_lm") -> PreTrainedModel:
    torch.manual_seed(0)
    return build_auto_model(config, head, TOKENS, ())


def check(model: PreTrainedModel, *, head: Head = "causal_lm", seq_len: int = 64) -> None:
    check_confined(model, TOKENS, head=head, seq_len=seq_len, where="stage 'a'")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seq_len", [2, 3, 64])
def test_a_gpt_passes_at_any_length(attention: str, seq_len: int) -> None:
    check(build({**GPT2, "attn_implementation": attention}), seq_len=seq_len)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        {**LLAMA, "model_type": "qwen3", "head_dim": 8},
        {**LLAMA, "model_type": "mistral", "sliding_window": 16},
        {**LLAMA, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 16},
    ],
    ids=lambda config: config["model_type"],
)
def test_decoders_pass(config: dict[str, Any]) -> None:
    check(build(config))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", **SIZE},
        {"model_type": "roberta", **SIZE},
        {"model_type": "modernbert", **SIZE, "local_attention": 16},
    ],
    ids=lambda config: config["model_type"],
)
def test_encoders_pass(config: dict[str, Any]) -> None:
    check(build(config, "masked_lm"), head="masked_lm")


def test_positions_that_do_not_begin_anew_are_refused() -> None:
    """OPT counts positions along the row, whatever it is told, unless a mask says otherwise."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "ffn_dim": 16}
    model = build({"model_type": "opt", **sizes, "word_embed_proj_dim": 16})
    with pytest.raises(ModelError, match=r"stage 'a': model_type 'opt' .* off those of the document alone"):
        check(model)


def test_a_model_that_mixes_neighbours_without_attention_is_refused() -> None:
    model = build({"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 16, "state_size": 4})
    with pytest.raises(
        ModelError, match=r"does not keep attention inside a document.*document_mask to false"
    ):
        check(model)


def test_a_bidirectional_model_that_is_told_to_be_causal_is_refused() -> None:
    model = build({"model_type": "bert", **SIZE}, "masked_lm")
    with pytest.raises(ModelError, match="does not keep attention inside a document"):
        check(model, head="causal_lm")


def test_a_model_without_an_effect_of_attention_cannot_be_judged() -> None:
    model = build(LLAMA)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    with pytest.raises(ModelError, match=r"cannot tell whether data\.document_mask holds"):
        check(model)


def test_a_model_that_cannot_take_the_mask_is_refused_with_its_own_words() -> None:
    model = build({"model_type": "esm", **SIZE}, "masked_lm")
    with pytest.raises(ModelError, match=r"cannot be told where documents begin: RuntimeError: .*to false"):
        check(model, head="masked_lm")


def test_an_implementation_for_gpus_needs_one() -> None:
    model = build(GPT2)
    model.config._attn_implementation_internal = "flash_attention_2"
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="'flash_attention_2' needs a GPU"):
        check(model)


def test_the_trial_leaves_no_trace() -> None:
    model = build(GPT2).train()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "config",
    [GPT2, LLAMA, {"model_type": "bert", **SIZE, "is_decoder": True}],
    ids=["gpt2", "llama", "bert as a decoder"],
)
@pytest.mark.parametrize("seq_len", [1, 2, 64])
def test_decoders_do_not_look_ahead(config: dict[str, Any], seq_len: int) -> None:
    check_causal(build(config), TOKENS, seq_len=seq_len, where="stage 'a'")


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_an_encoder_that_predicts_the_next_token_is_refused(model_type: str) -> None:
    model = build({"model_type": model_type, **SIZE})
    model.train()
    with pytest.raises(ModelError, match=rf"'{model_type}' looks ahead: .*is_decoder to true .* masked_lm"):
        check_causal(model, TOKENS, seq_len=64, where="stage 'a'")
    assert model.training
