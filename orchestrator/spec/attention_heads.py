"""Sizes of ``model.config`` that attention heads cannot share, found without importing transformers.

That refuses them when the workers build the model, or fails at its first forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.spec.architectures import Architecture, read_architecture
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.tree import KeyPath

# Each head takes its part of the hidden size, which must come out even (transformers 5.23). Others, such as
# Mistral and Qwen, round the size of a head.
SPLIT_HIDDEN = frozenset(
    {
        "albert",
        "bert",
        "bloom",
        "camembert",
        "convbert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "falcon",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "llama",
        "modernbert",
        "mpnet",
        "opt",
        "roberta",
        "roformer",
        "xlm-roberta",
    }
)
HIDDEN, HEADS, KEY_VALUE_HEADS = "hidden_size", "num_attention_heads", "num_key_value_heads"


def check_heads(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """The stage's sizes that its heads cannot share evenly, if its architecture can be read."""
    if stage.model is None or stage.model.factory != "auto":
        return
    config = stage.model.config
    model_type = str(config["model_type"])
    known = read_architecture(model_type)
    if known is None:
        return
    place: KeyPath = (*path, "model", "config")
    pairs = [(HIDDEN, HEADS)] if model_type in SPLIT_HIDDEN else []
    pairs += [(HEADS, KEY_VALUE_HEADS)] if KEY_VALUE_HEADS in known.fields else []
    for whole, part in pairs:
        (whole_key, size), (part_key, number) = (_size(name, config, known) for name in (whole, part))
        if size is None or number is None or number < 1 or size % number == 0:
            continue
        given = next((key for key in (part_key, whole_key) if key in config), None)
        if given is None:
            continue
        below = size // number * number
        nearest = " or ".join(str(near) for near in (below, below + number) if near)
        yield (
            (*place, given),
            f"{_shown(whole_key, size, config)} is not a multiple of {_shown(part_key, number, config)}, and"
            f" '{model_type}' shares it out evenly; nearest {whole_key}: {nearest}",
        )


def _size(name: str, config: Mapping[str, Any], known: Architecture) -> tuple[str, int | None]:
    """The key by which ``config`` gives a size, or would, and the size; ``None``: not a whole number."""
    own = known.aliases.get(name, name)
    key = name if name in config and own not in config else own
    found = config.get(key, known.defaults.get(own))
    return key, found if isinstance(found, int) and not isinstance(found, bool) else None


def _shown(key: str, size: int, config: Mapping[str, Any]) -> str:
    """A key with its size, and whether that is the architecture's."""
    return f"{key} {size}" if key in config else f"{key} {size} (the default)"
