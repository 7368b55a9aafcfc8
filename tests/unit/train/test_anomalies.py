"""Which steps are anomalies, and when leaving them out has been in vain."""

from __future__ import annotations

import math

import pytest

from orchestrator.spec.optimization import Anomalies, LossSpike
from orchestrator.train.anomalies import AnomalyWatch


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_a_loss_or_norm_that_is_not_finite_gets_the_jobs_action(loss: float, norm: float) -> None:
    found = AnomalyWatch(Anomalies(nonfinite="rollback")).judge(loss, norm)
    assert found is not None
    assert found.action == "rollback"
    assert str(norm if math.isfinite(loss) else loss) in found.what


def test_a_spike_is_measured_against_the_mean_of_a_full_window() -> None:
    watch = AnomalyWatch(Anomalies(loss_spike=LossSpike(action="skip", factor=2.0, window=3)))
    for loss in (9.0, 1.0, 2.0):
        assert watch.judge(100.0, 1.0) is None
        watch.accept(loss)
    assert watch.judge(8.0, 1.0) is None
    assert watch.judge(8.01, 1.0) is not None
    watch.accept(3.0)
    assert watch.recent_losses == [1.0, 2.0, 3.0]
    assert watch.judge(4.01, 1.0) is not None


def test_a_watch_goes_on_from_the_losses_of_a_checkpoint() -> None:
    section = Anomalies(loss_spike=LossSpike(factor=2.0, window=2))
    assert AnomalyWatch(section, [1.0, 1.0]).judge(2.5, 1.0) is not None


def test_leaving_out_step_after_step_ends_in_a_stop_and_a_good_step_begins_anew() -> None:
    watch = AnomalyWatch(Anomalies(nonfinite="skip", max_in_a_row=2))
    for step in range(2):
        watch.leave_out(step, step + 1)
    found = watch.judge(math.nan, 1.0)
    assert found is not None
    assert (found.action, found.what) == ("stop", "the loss is nan, after 2 in a row (max_in_a_row: 2)")
    watch.accept(1.0)
    found = watch.judge(math.nan, 1.0)
    assert found is not None and found.action == "skip"


def test_a_rollback_takes_in_what_was_left_out_since_the_checkpoint() -> None:
    watch = AnomalyWatch(Anomalies())
    watch.leave_out(3, 4)
    watch.leave_out(7, 8)
    watch.leave_out(6, 10)
    assert watch.take_left_out() == [(3, 4), (6, 10)]
    assert watch.take_left_out() == []
