"""Which architectures have which heads, as transformers' auto classes know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)

from orchestrator.contracts import Head
from orchestrator.errors import ModelError

AUTO_CLASSES: Mapping[Head, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "masked_lm": AutoModelForMaskedLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "pretraining": AutoModelForPreTraining,
}
# Configurations of the architectures that have each.
ARCHITECTURES: Mapping[Head, Any] = {
    "causal_lm": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "masked_lm": transformers.MODEL_FOR_MASKED_LM_MAPPING,
    "sequence_classification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token_classification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "pretraining": transformers.MODEL_FOR_PRETRAINING_MAPPING,
}
OBJECTIVES: Mapping[Head, str] = {"pretraining": "masked_lm with next_sentence"}


def auto_class(config: PretrainedConfig, head: Head) -> Any:
    """The auto class that builds ``head`` on the architecture of ``config``.

    Raises:
        ModelError: The architecture is one of transformers' own and has no such head.
    """
    # The code of a hub entry brings classes of its own, and names them here.
    is_from_hub = hasattr(config, "auto_map")
    if not is_from_hub and type(config) not in ARCHITECTURES[head]:
        wanted = OBJECTIVES.get(head, head)
        others = [name for name, known in ARCHITECTURES.items() if type(config) in known]
        has = ", ".join(name for name in others if name not in OBJECTIVES) or "none that can be trained here"
        raise ModelError(f"model_type '{config.model_type}' has no head for {wanted}; it has: {has}")
    return AUTO_CLASSES[head]
