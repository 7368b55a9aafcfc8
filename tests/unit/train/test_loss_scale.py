"""The scale of the loss: halved, doubled, kept within bounds, and the same after a restart."""

from __future__ import annotations

import json
import math

import pytest
import torch

from orchestrator.spec.optimization import Anomalies, LossScale
from orchestrator.train.anomalies import Anomaly, AnomalyWatch
from orchestrator.train.loss_scale import MAX_SCALE, LossScaler, Overflow

INFINITE = "001101110001000000011"
"""By step, whether its gradients overflow."""


def meet(watch: AnomalyWatch, step: int, norm: float) -> Anomaly | Overflow | None:
    """A step with a good loss, and what is done about it."""
    found = watch.judge(1.0, norm)
    if found is None:
        watch.accept(1.0)
    elif isinstance(found, Overflow):
        watch.back_off(step, found)
    else:
        watch.leave_out(step, step + 1)
    return found


def watch_of(
    section: LossScale, state: dict[str, float] | None = None, **anomalies: object
) -> tuple[AnomalyWatch, LossScaler]:
    scaler = LossScaler(section, state)
    return AnomalyWatch(Anomalies(**anomalies), scaler=scaler), scaler


def test_the_scale_is_that_of_torchs_grad_scaler_wherever_it_is_stopped() -> None:
    section = LossScale(initial=2.0**10, growth_interval=3)
    torchs = torch.amp.GradScaler("cpu", init_scale=section.initial, growth_interval=3)
    watch, scaler = watch_of(section)
    for step, overflows in enumerate(INFINITE):
        weight = torch.nn.Parameter(torch.ones(()))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        torchs.scale(weight * (math.inf if overflows == "1" else 1.0)).backward()
        torchs.step(optimizer)
        torchs.update()
        meet(watch, step, math.inf if overflows == "1" else 1.0)
        assert scaler.scale == torchs.get_scale(), step
        watch, scaler = watch_of(section, json.loads(json.dumps(scaler.state)))


def test_the_first_scale_and_interval_are_those_of_torch() -> None:
    torchs, section = torch.amp.GradScaler("cpu"), LossScale()
    assert (section.initial, section.growth_interval) == (
        torchs.get_scale(),
        torchs.get_growth_interval(),
    )


def test_overflows_are_left_out_and_are_no_anomalies_until_the_scale_is_1() -> None:
    watch, scaler = watch_of(LossScale(initial=8.0), nonfinite="skip", max_in_a_row=2)
    found = [meet(watch, step, math.inf) for step in range(6)]
    assert found[:3] == [Overflow(8.0, 4.0), Overflow(4.0, 2.0), Overflow(2.0, 1.0)]
    assert [(step.action, step.what) for step in found[3:] if isinstance(step, Anomaly)] == [
        ("skip", NORM),
        ("skip", NORM),
        ("stop", f"{NORM}, after 2 in a row (max_in_a_row: 2)"),
    ]
    assert scaler.state == {"scale": 1.0, "good_steps": 0}
    assert watch.take_left_out() == [(step, step + 1) for step in range(6)]


NORM = (
    "the gradient norm is inf (strategy.param_dtype float16 ends at 65504, with the smallest loss scale, 1)"
)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_an_anomaly_and_leaves_the_scale(loss: float) -> None:
    watch, scaler = watch_of(LossScale(), nonfinite="rollback")
    meet(watch, 0, 1.0)
    found = watch.judge(loss, math.nan)
    assert found == Anomaly(f"the loss is {loss} (strategy.param_dtype float16 ends at 65504)", "rollback")
    watch.leave_out(0, 2)
    assert scaler.state == {"scale": 65536.0, "good_steps": 1}


def test_a_scale_that_nothing_overflows_ends_where_float32_does() -> None:
    scaler = LossScaler(LossScale(growth_interval=1), {"scale": MAX_SCALE / 2, "good_steps": 0})
    for _ in range(3):
        scaler.accept()
    assert scaler.scale == MAX_SCALE
    assert 1 / scaler.scale == torch.finfo(torch.float32).smallest_normal
