"""Where the positions of a model begin: RoBERTa and its relatives leave out the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# "Position numbers begin at padding_idx+1", says create_position_ids_from_input_ids of these architectures
# (models/*/modeling_*.py of transformers 5.23), and the table of positions has max_position_embeddings rows.
# Others with that function (fsmt, nllb-moe, speech models) compute their positions and have no such table.
AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


def first_position(config: Mapping[str, Any], pad_id: int) -> int:
    """Position of a row's first token, and so the number of positions that no row can use.

    Args:
        config: Keys of a Hugging Face configuration, ``model_type`` among them.
        pad_id: Id of the padding token, where ``config`` has none.
    """
    model_type = config.get("model_type")
    if model_type not in AFTER_PADDING:
        return 0
    if model_type == "esm" and config.get("position_embedding_type", "absolute") != "absolute":
        return 0
    # MPNet's modeling file has the number itself, whatever the configuration says.
    padding = 1 if model_type == "mpnet" else config.get("pad_token_id")
    return 1 + (padding if isinstance(padding, int) else pad_id)
