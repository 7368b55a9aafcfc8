"""Which parameters of a model a stage trains: glob patterns over the names of ``named_parameters``.

A tied tensor has several names and is chosen by any of them. What is not trained keeps its first weights,
has no optimizer state, and is in every checkpoint and in the written weights all the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from orchestrator.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

NUM_NAMED = 3


@dataclass(frozen=True)
class TrainedPart:
    """The keys ``trainable`` and ``freeze`` of a stage; without either everything is trained."""

    trainable: tuple[str, ...] | None = None
    freeze: tuple[str, ...] | None = None

    def apply(self, model: nn.Module) -> None:
        """Set ``requires_grad`` of every parameter of ``model``.

        Raises:
            ModelError: A pattern matches no parameter, or nothing is left to train.
        """
        if self.trainable is not None:
            chosen = _matching(model, self.trainable, "trainable")
        elif self.freeze is not None:
            frozen = _matching(model, self.freeze, "freeze")
            chosen = {id(parameter) for parameter in model.parameters()} - frozen
        else:
            return
        if not chosen:
            raise ModelError(f"freeze {list(self.freeze or ())} matches every parameter, so none is trained")
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)


def _matching(model: nn.Module, patterns: Sequence[str], key: Literal["trainable", "freeze"]) -> set[int]:
    """Identities of the parameters that a pattern matches.

    Raises:
        ModelError: Naming each pattern that matches none, and the nearest names.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    matched = {pattern: [name for name in named if fnmatchcase(name, pattern)] for pattern in patterns}
    problems = [
        f"{key}: '{pattern}' matches no parameter of {type(model).__name__};"
        f" the nearest names are {', '.join(_nearest(pattern, list(named)))}"
        for pattern, names in matched.items()
        if not names
    ]
    if problems:
        raise ModelError("\n".join(problems))
    return {id(named[name]) for names in matched.values() for name in names}


def _nearest(pattern: str, names: list[str]) -> list[str]:
    """Names that the pattern may have meant."""
    return difflib.get_close_matches(pattern, names, n=NUM_NAMED, cutoff=0.3) or names[:NUM_NAMED]
