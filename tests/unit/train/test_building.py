"""What a stage is made of, before it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.contracts import TokenInfo
from orchestrator.errors import DataError
from orchestrator.train.building import build_objective
from tests.unit.spec.jobs import changed, first_stage, load

TOKENS = TokenInfo(40, 0, 1, None, (0, 1), np.zeros(40, dtype=bool))


def test_an_objective_that_does_not_fit_names_the_stage(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, changed("{name: causal_lm}", "{name: masked_lm}")))
    with pytest.raises(DataError, match=r"^stage 'pretrain': objective masked_lm needs .* of 40 tokens"):
        build_objective(stage, TOKENS, ())
