"""What is logged about the data follows from the cursor alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.data.mixture import Mixture
from orchestrator.train.meter import Meter, source_metrics


@pytest.mark.parametrize("cursor", [0, 1, 777, 10_000, 54_321])
def test_rows_and_epochs_of_each_source_are_those_that_the_cursor_passed(cursor: int) -> None:
    mixture = Mixture({"a": 0.7, "b": 0.3}, {"a": 1000, "b": 40})
    sources, _, epochs = mixture.locate(np.arange(cursor))
    metrics = source_metrics(mixture, cursor)
    assert list(metrics) == ["data/a/rows", "data/a/epoch", "data/b/rows", "data/b/epoch"]
    for index, (name, size) in enumerate({"a": 1000, "b": 40}.items()):
        assert metrics[f"data/{name}/rows"] == (sources == index).sum()
        assert metrics[f"data/{name}/epoch"] == metrics[f"data/{name}/rows"] / size
        passed = epochs[sources == index].max(initial=0)
        assert passed in (int(metrics[f"data/{name}/epoch"]), np.ceil(metrics[f"data/{name}/epoch"]) - 1)


def test_steps_that_overflowed_are_counted_among_those_without_an_update() -> None:
    meter = Meter(("loss",), torch.device("cpu"))
    for loss in (2.0, None, 4.0):
        meter.add(tokens=1, data_wait_seconds=0.0)
        if loss is None:
            meter.add_overflow()
        else:
            meter.add_loss(torch.tensor([loss], dtype=torch.float64))
    metrics = meter.read()
    assert metrics["train/loss"] == 3.0
    assert (metrics["train/steps_left_out"], metrics["train/steps_overflowed"]) == (1, 1)
    meter.add(tokens=1, data_wait_seconds=0.0)
    assert "train/steps_overflowed" not in meter.read()
