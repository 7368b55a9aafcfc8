"""Models from configurations, their fit to rows, and what is written for from_pretrained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from orchestrator.contracts import TokenInfo
from orchestrator.errors import ModelError
from orchestrator.models import (
    build_auto_model,
    check_fit,
    count_parameters,
    find_blocks,
    load_model,
    make_config,
    save_weights,
)
from orchestrator.spec.positions import AFTER_PADDING, first_position

TOKENS = TokenInfo(40, 0, 1, 2, (0, 1, 2), np.zeros(40, dtype=bool))
GPT = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16}
BERT = {
    "model_type": "bert",
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}


class NoTokenizer:
    """Stands where a tokenizer is saved beside the weights."""

    pad_token_id = 0
    model_max_length = 10**30

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_vocabulary_and_special_tokens_come_from_the_tokenizer() -> None:
    config = make_config(GPT, TOKENS)
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (40, 0, 1)
    assert make_config({**GPT, "vocab_size": 64}, TOKENS).vocab_size == 64


def test_unknown_architecture_and_unknown_key_are_refused() -> None:
    with pytest.raises(ModelError, match="'gpt9' is not a Hugging Face architecture"):
        make_config({"model_type": "gpt9"})
    with pytest.raises(ModelError, match=r"'gtp2' is not .*\. Did you mean 'gpt2'\?"):
        make_config({"model_type": "gtp2"})
    with pytest.raises(ModelError, match=r"'gpt2' has no keys \['n_layr'\]. Did you mean 'n_layer'\?"):
        make_config({**GPT, "n_layr": 2})
    with pytest.raises(ModelError, match=r"'gpt2' has no keys \['zebra'\]. It has \["):
        make_config({**GPT, "zebra": 2})


def test_the_attention_implementation_is_a_key_of_every_configuration() -> None:
    for name in ("eager", "sdpa"):
        model = build_auto_model({**GPT, "attn_implementation": name}, "causal_lm", TOKENS, ())
        assert model.config._attn_implementation == name
    with pytest.raises(ModelError, match="'gpt2' cannot be built for causal_lm: FlashAttention2"):
        build_auto_model({**GPT, "attn_implementation": "flash_attention_2"}, "causal_lm", TOKENS, ())


def test_counting_parameters_builds_nothing_and_counts_tied_ones_once() -> None:
    model = build_auto_model(GPT, "causal_lm", TOKENS, ())
    counted = count_parameters({**GPT, "vocab_size": 40}, "causal_lm", 2)
    assert counted == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("config", [GPT, BERT])
def test_counted_parameters_are_those_of_the_head(config: dict[str, Any]) -> None:
    labels = ("a", "b", "c")
    model = build_auto_model(config, "sequence_classification", TOKENS, labels)
    counted = count_parameters({**config, "vocab_size": 40}, "sequence_classification", len(labels))
    assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_blocks_are_the_repeated_layers() -> None:
    assert len(find_blocks(build_auto_model(BERT, "masked_lm", TOKENS, ()))) == 3
    with pytest.raises(ModelError, match="no list of repeated blocks"):
        find_blocks(torch.nn.Linear(2, 2))


def test_next_sentence_needs_a_model_with_that_head() -> None:
    build_auto_model(BERT, "pretraining", TOKENS, ())
    with pytest.raises(ModelError, match="'gpt2' has none; use 'bert'"):
        build_auto_model(GPT, "pretraining", TOKENS, ())
    with pytest.raises(ModelError, match="'gpt2' has none; use 'bert'"):
        count_parameters(GPT, "pretraining", 0)


def test_rows_longer_than_the_positions_and_larger_vocabularies_are_refused() -> None:
    config = make_config(GPT, TOKENS)
    check_fit(config, TOKENS, 16, "stage 'a'")
    with pytest.raises(ModelError, match=r"stage 'a': data.seq_len 17 .* 16 positions"):
        check_fit(config, TOKENS, 17, "stage 'a'")
    with pytest.raises(ModelError, match="tokenizer has 40 entries, the model's vocab_size is 39"):
        check_fit(make_config({**GPT, "vocab_size": 39}, TOKENS), TOKENS, 16, "stage 'a'")


SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}
MORE_KEYS: dict[str, dict[str, Any]] = {
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 4},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "xmod": {"default_language": "en_XX"},
}


@pytest.mark.parametrize("pad_id", [0, 3])
@pytest.mark.parametrize("model_type", [*sorted(AFTER_PADDING), "bert", "electra"])
def test_the_longest_row_that_fits_is_the_longest_that_runs(model_type: str, pad_id: int) -> None:
    keys = {**SMALL, **MORE_KEYS.get(model_type, {}), "pad_token_id": pad_id}
    config = AutoConfig.for_model(model_type, **keys)
    longest = 16 - first_position(config.to_dict(), pad_id=9)
    check_fit(config, TOKENS, longest, "stage 'a'")
    with pytest.raises(ModelError, match=rf"data.seq_len {longest + 1} .* Use seq_len {longest} or less"):
        check_fit(config, TOKENS, longest + 1, "stage 'a'")
    model = AutoModel.from_config(config).eval()
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_a_padding_token_of_the_tokenizer_stands_for_a_missing_one() -> None:
    tokens = replace(TOKENS, pad_id=2)
    config = make_config({"model_type": "roberta", **SMALL}, tokens)
    with pytest.raises(
        ModelError,
        match=r"model's 13 positions \(max_position_embeddings 16, which begin at 3 in 'roberta'\)",
    ):
        check_fit(config, tokens, 14, "stage 'a'")
    rotary = {"model_type": "esm", "position_embedding_type": "rotary", **SMALL}
    check_fit(make_config(rotary, tokens), tokens, 16, "stage 'a'")


def test_written_weights_load_with_equal_logits_and_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_auto_model(BERT, "sequence_classification", TOKENS, ("bad", "good")).eval()
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    folder = tmp_path / "weights"
    tokenizer = NoTokenizer()
    save_weights(model, weights, tokenizer, folder)
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.config.id2label == {0: "bad", 1: "good"}


def test_a_trained_head_keeps_the_order_of_its_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_auto_model(BERT, "sequence_classification", TOKENS, ("bad", "good"))
    model.save_pretrained(tmp_path)
    for names in (("bad", "good"), ("ham", "spam")):
        loaded = load_model(str(tmp_path), "sequence_classification", TOKENS, names)
        assert tuple(loaded.config.id2label.values()) == names
    with pytest.raises(ModelError, match="'bad' would be another output"):
        load_model(str(tmp_path), "sequence_classification", TOKENS, ("awful", "bad", "good"))
    with pytest.raises(ModelError, match=r"bad, good, in this order.*label_names that begin with \[bad"):
        load_model(str(tmp_path), "sequence_classification", TOKENS, ("good", "bad"))


def test_a_new_head_depends_on_the_seed_alone(tmp_path: Path) -> None:
    base = build_auto_model(GPT, "causal_lm", TOKENS, ())
    save_weights(base, dict(base.named_parameters()), NoTokenizer(), tmp_path / "base")
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = load_model(str(tmp_path / "base"), "sequence_classification", TOKENS, ("a", "b"))
        assert torch.equal(model.transformer.wte.weight, base.transformer.wte.weight)
        heads.append(model.score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(str(tmp_path), "causal_lm", TOKENS, ())
