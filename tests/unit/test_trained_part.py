"""Patterns choose what is trained; tied tensors are chosen by any of their names."""

from __future__ import annotations

import pytest
from torch import nn

from orchestrator.errors import ModelError
from orchestrator.trained_part import TrainedPart


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def trained(part: TrainedPart) -> list[str]:
    model = Tied()
    part.apply(model)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


LAYERS = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (TrainedPart(), ["embedding.weight", *LAYERS]),
        (TrainedPart(freeze=("embedding.*",)), LAYERS),
        (TrainedPart(freeze=("head.weight",)), LAYERS),
        (TrainedPart(freeze=("layers.0.*", "*.bias")), ["embedding.weight", "layers.1.weight"]),
        (TrainedPart(trainable=("layers.[1].*",)), LAYERS[2:]),
        (TrainedPart(trainable=("head.*",)), ["embedding.weight"]),
        (TrainedPart(trainable=("*",)), ["embedding.weight", *LAYERS]),
    ],
)
def test_patterns_choose_parameters_by_name(part: TrainedPart, expected: list[str]) -> None:
    assert trained(part) == expected


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ModelError) as caught:
        trained(TrainedPart(freeze=("layer.0.*", "embedding.*", "zzz")))
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "freeze: 'layer.0.*' matches no parameter of Tied; the nearest names are layers.0."
    )
    assert second.startswith("freeze: 'zzz' matches no parameter of Tied; the nearest names are embedding")


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(ModelError, match=r"freeze \['\*'\] matches every parameter, so none is trained"):
        trained(TrainedPart(freeze=("*",)))
