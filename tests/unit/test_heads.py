"""Which architectures have which heads."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from orchestrator.errors import ModelError
from orchestrator.heads import AUTO_CLASSES, auto_class


def test_an_architecture_without_a_head_names_those_it_has() -> None:
    gpt = AutoConfig.for_model("gpt2")
    assert auto_class(gpt, "causal_lm") is AUTO_CLASSES["causal_lm"]
    with pytest.raises(ModelError) as raised:
        auto_class(gpt, "masked_lm")
    assert str(raised.value) == (
        "model_type 'gpt2' has no head for masked_lm; it has: causal_lm, sequence_classification,"
        " token_classification"
    )
    with pytest.raises(ModelError, match="'clip' has no head for causal_lm; it has: none that can be"):
        auto_class(AutoConfig.for_model("clip"), "causal_lm")


def test_code_of_the_hub_has_classes_of_its_own() -> None:
    theirs = AutoConfig.for_model("clip", auto_map={"AutoModelForCausalLM": "modeling.Theirs"})
    assert auto_class(theirs, "causal_lm") is AUTO_CLASSES["causal_lm"]
