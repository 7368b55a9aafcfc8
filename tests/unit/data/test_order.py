from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.order import MAX_ROWS, mix, order_key, permute

KEYS = st.integers(0, 2**64 - 1)
FROZEN_ORDER = [0, 5, 6, 4, 9, 7, 3, 2, 1, 8]
NEAR_POWERS_OF_TWO = sorted({2**power + step for power in range(1, 15) for step in (-1, 0, 1)})


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 10, 100, *NEAR_POWERS_OF_TWO])
def test_permutation_is_a_bijection(n: int) -> None:
    permuted = permute(np.arange(n), n, order_key(3, "rows", 0))
    assert np.array_equal(np.sort(permuted), np.arange(n))


@given(n=st.integers(1, 3000), key=KEYS)
@settings(max_examples=150, deadline=None)
def test_permutation_is_a_bijection_for_any_size_and_key(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(n=st.integers(1, MAX_ROWS), key=KEYS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_seek_anywhere_in_domains_of_any_size(n: int, key: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    permuted = permute(np.array(places), n, key)
    assert len(set(permuted.tolist())) == len(places)
    assert ((permuted >= 0) & (permuted < n)).all()
    alone = [int(permute(np.array([place]), n, key)[0]) for place in places]
    assert permuted.tolist() == alone


def test_trillion_rows_are_sought_without_collision() -> None:
    n = 10**12
    places = np.arange(n - 100_000, n)
    permuted = permute(places, n, order_key(0, "web", 4))
    assert len(np.unique(permuted)) == len(places)
    assert permuted.max() < n
    assert abs(permuted.mean() / n - 0.5) < 0.01


def test_shape_is_kept() -> None:
    grid = np.arange(12).reshape(3, 4)
    assert np.array_equal(permute(grid, 12, 5), permute(grid.ravel(), 12, 5).reshape(3, 4))


def test_keys_differ_by_seed_source_and_epoch() -> None:
    keys = {
        order_key(seed, source, epoch)
        for seed in range(12)
        for source in ("a", "b", "a/pairs")
        for epoch in range(12)
    }
    assert len(keys) == 12 * 3 * 12
    orders = {tuple(permute(np.arange(50), 50, key).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_key_of_an_order_is_stable() -> None:
    """A checkpoint's cursor means the same rows in every version of this code."""
    assert permute(np.arange(10), 10, order_key(17, "reviews", 2)).tolist() == FROZEN_ORDER


@pytest.mark.parametrize("n", [3, 7, 16, 40])
def test_every_row_is_equally_likely_at_every_place(n: int) -> None:
    trials = 4000
    counts = np.zeros((n, n))
    for epoch in range(trials):
        counts[np.arange(n), permute(np.arange(n), n, order_key(1, "rows", epoch))] += 1
    expected = trials / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    # The bound lies 5 standard deviations above the mean of a chi-square variable.
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [13, 20, 40])
def test_every_two_rows_are_equally_likely_to_follow_each_other(n: int) -> None:
    trials = 3000
    counts = np.zeros((n, n))
    for epoch in range(trials):
        order = permute(np.arange(n), n, order_key(6, "rows", epoch))
        np.add.at(counts, (order[:-1], order[1:]), 1)
    pairs = counts[~np.eye(n, dtype=bool)]
    expected = trials / n
    chi_square = ((pairs - expected) ** 2 / expected).sum()
    freedom = len(pairs) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_successive_epochs_are_as_different_as_any_two_orders() -> None:
    n, epochs = 1000, 60
    orders = np.stack([permute(np.arange(n), n, order_key(8, "rows", epoch)) for epoch in range(epochs)])
    # Rows that keep their place: a Poisson variable of mean 1 for two unrelated orders.
    kept = (orders[1:] == orders[:-1]).sum(axis=1)
    assert abs(kept.mean() - 1) < 5 / np.sqrt(len(kept))
    assert len({tuple(order) for order in orders.tolist()}) == epochs


@pytest.mark.parametrize("n", [1000, 100_000])
def test_neighbours_in_the_order_are_unrelated(n: int) -> None:
    permuted = permute(np.arange(n), n, order_key(2, "rows", 0)).astype(np.float64)
    for lag in (1, 2, 8, 31):
        correlation = np.corrcoef(permuted[:-lag], permuted[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(permuted, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


def test_batches_are_spread_over_the_data() -> None:
    n, batch = 100_000, 1000
    permuted = permute(np.arange(n), n, order_key(5, "rows", 1)).reshape(-1, batch)
    counts = np.stack([np.bincount(rows * 10 // n, minlength=10) for rows in permuted])
    chi_square = ((counts - batch / 10) ** 2 / (batch / 10)).sum()
    freedom = len(permuted) * 9
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_mix_changes_half_of_the_bits() -> None:
    values = np.arange(1, 2000, dtype=np.uint64)
    flipped = mix(values) ^ mix(values ^ np.uint64(1))
    ones = np.unpackbits(flipped.view(np.uint8)).sum() / len(values)
    assert 30 < ones < 34
