"""Norm and clip."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.strategies.clip import clip, norm_of, sum_of_squares, unscale

CPU = torch.device("cpu")


def make_gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((37, 13), (101,), (1,))]


def test_norm_does_not_depend_on_how_gradients_are_laid_out() -> None:
    gradients = make_gradients()
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    whole = norm_of(sum_of_squares(gradients, CPU))
    for num_parts in (1, 2, 3, 7):
        parts = [sum_of_squares([part], CPU) for part in flat.chunk(num_parts)]
        assert norm_of(torch.stack(parts).sum()) == whole
    assert whole == pytest.approx(float(flat.double().norm()), rel=1e-7)


def test_clip_gives_the_norm_asked_for_and_leaves_smaller_ones_alone() -> None:
    gradients = make_gradients()
    before = [gradient.clone() for gradient in gradients]
    norm = norm_of(sum_of_squares(gradients, CPU))
    for max_norm in (None, 2 * norm):
        clip(gradients, norm, max_norm)
        assert all(map(torch.equal, gradients, before))
    clip(gradients, norm, 0.5)
    assert norm_of(sum_of_squares(gradients, CPU)) == pytest.approx(0.5, rel=1e-5)


def test_no_gradients_have_norm_zero() -> None:
    assert norm_of(sum_of_squares([], CPU)) == 0.0
    clip([], 0.0, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_norm_that_float32_cannot_hold_is_not_finite(value: float) -> None:
    gradients = [torch.full((2, 2), value)]
    assert not math.isfinite(norm_of(sum_of_squares(gradients, CPU)))


@pytest.mark.parametrize("averaged_over", [1, 2, 4])
def test_a_scale_and_an_average_over_ranks_are_undone_to_the_bit(averaged_over: int) -> None:
    expected = [torch.randn(7), torch.randn(3, 5) * 1e-20]
    gradients = [gradient * 2.0**16 / averaged_over for gradient in expected]
    unscale(gradients, 2.0**16, averaged_over=averaged_over)
    assert all(map(torch.equal, gradients, expected))
    unscale([], 2.0, averaged_over=1)
