"""A sum of squares that no order and no layout changes."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.strategies.exact_norm import exact_sum_of_squares

CPU = torch.device("cpu")


def make_gradient(spread: float) -> torch.Tensor:
    """Elements whose magnitudes span ``spread`` decimal orders."""
    generator = torch.Generator().manual_seed(3)
    magnitudes = 10 ** (spread * (torch.rand(300_001, generator=generator) - 0.5))
    return magnitudes * torch.randn(300_001, generator=generator)


def squares(gradients: list[torch.Tensor], num_elements: int) -> float:
    return exact_sum_of_squares(gradients, num_elements, CPU, num_holders=1).item()


@pytest.mark.parametrize("spread", [0.0, 6.0, 30.0])
def test_neither_order_nor_layout_changes_a_bit_and_the_sum_is_right(spread: float) -> None:
    gradient = make_gradient(spread)
    whole = squares([gradient], gradient.numel())
    order = torch.randperm(gradient.numel(), generator=torch.Generator().manual_seed(0))
    for layout in (
        [gradient.flip(0)],
        [gradient[order]],
        list(gradient[order].split(1009)),
        [torch.cat([gradient, torch.zeros(77)])],
        [gradient[:300_000].view(3, -1).T, gradient[300_000:], torch.empty(0)],
    ):
        assert squares(layout, gradient.numel()) == whole
    assert whole == pytest.approx(math.fsum((gradient.double() ** 2).tolist()), rel=1e-15)


def test_a_plain_float64_sum_depends_on_the_order() -> None:
    gradient = make_gradient(6.0).double() ** 2
    assert len({gradient.sum().item(), gradient.flip(0).cumsum(0)[-1].item(), math.fsum(gradient)}) > 1


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0.0), (1e-45, 2 * 1.4012984643e-45**2), (3e38, 1.8e77)]
)
def test_extreme_values_are_summed(value: float, expected: float) -> None:
    assert squares([torch.tensor([value, -value])], 2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_infinite(value: float) -> None:
    assert squares([torch.ones(3), torch.tensor([1.0, value])], 5) == math.inf


def test_no_gradients_have_a_sum_of_zero() -> None:
    assert squares([], 1) == 0.0
