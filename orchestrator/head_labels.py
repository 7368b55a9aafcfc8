"""What the outputs of a trained head mean, which nobody may change unnoticed."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import ModelError


def check_labels(source: str, own: Sequence[str], label_names: Sequence[str]) -> None:
    """Refuse to give a trained output the name of another one.

    Args:
        source: Where the trained head is from.
        own: What its outputs mean.
        label_names: What they are going to mean; names that it does not have are new ones.

    Raises:
        ModelError: A name of its own stands elsewhere.
    """
    moved = [name for place, name in enumerate(label_names) if name in own and own.index(name) != place]
    if moved:
        raise ModelError(
            f"the outputs of the model in {source} are {', '.join(own)}, in this order, and the job's labels"
            f" are {', '.join(label_names)}: '{moved[0]}' would be another output. Give the datasets"
            f" label_names that begin with [{', '.join(own)}]"
        )
