"""What a stage is made of, before it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.contracts import TokenInfo
from orchestrator.errors import CheckpointError, DataError
from orchestrator.train.building import build_objective, load_checkpoint_weights
from tests.unit.spec.jobs import changed, first_stage, load

TOKENS = TokenInfo(40, 0, 1, None, (0, 1), np.zeros(40, dtype=bool))


def test_an_objective_that_does_not_fit_names_the_stage(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, changed("{name: causal_lm}", "{name: masked_lm}")))
    with pytest.raises(DataError, match=r"^stage 'pretrain': objective masked_lm needs .* of 40 tokens"):
        build_objective(stage, TOKENS, ())


def saved_checkpoint(folder: Path, model: nn.Module, tokenizer: str) -> Path:
    """A checkpoint of ``model`` at step 1, trained with ``tokenizer``."""
    weights = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    CheckpointManager(folder, keep_last=2).save(1, weights, {"step": 1, "tokenizer": tokenizer})
    return folder / "step-00000001"


def test_weights_of_a_checkpoint_are_taken_whole(tmp_path: Path) -> None:
    trained, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    folder = saved_checkpoint(tmp_path, trained, "tokens-a")
    load_checkpoint_weights(fresh, folder, tokenizer_digest="tokens-a")  # type: ignore[arg-type]
    assert torch.equal(fresh.weight, trained.weight)
    assert torch.equal(fresh.bias, trained.bias)


@pytest.mark.parametrize(
    ("outputs", "tokenizer", "message"),
    [
        (2, "tokens-b", "trained with the tokenizer tokens-a, and this stage's is tokens-b"),
        (5, "tokens-a", r"2 parameters differ in name or shape, first \['bias', 'weight'\]"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    outputs: int, tokenizer: str, message: str, tmp_path: Path
) -> None:
    folder = saved_checkpoint(tmp_path, nn.Linear(3, 2), "tokens-a")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint_weights(nn.Linear(3, outputs), folder, tokenizer_digest=tokenizer)  # type: ignore[arg-type]
