from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.mixture import PERIOD, Mixture
from orchestrator.data.packing import plan_best_fit
from orchestrator.errors import DataError

WEIGHTS = st.lists(st.floats(0.1, 50.0), min_size=1, max_size=6)


def named(values: list[float]) -> dict[str, float]:
    return {f"source-{index}": value for index, value in enumerate(values)}


@given(weights=WEIGHTS, start=st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_any_ten_thousand_rows_hold_the_weights_to_one_in_ten_thousand(
    weights: list[float], start: int
) -> None:
    mixture = Mixture(named(weights), dict.fromkeys(named(weights), 1000))
    sources, _, _ = mixture.locate(np.arange(start, start + PERIOD))
    counts = np.bincount(sources, minlength=len(weights))
    assert np.array_equal(counts, mixture.shares)
    assert np.abs(counts / PERIOD - np.array(weights) / sum(weights)).max() <= 1 / PERIOD


@given(
    weights=WEIGHTS,
    tokens=st.lists(st.floats(1.0, 20.0), min_size=6, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_weights_in_tokens_are_exact_in_the_mean(weights: list[float], tokens: list[float]) -> None:
    names = named(weights)
    tokens_per_row = dict(zip(names, tokens, strict=False))
    mixture = Mixture(names, dict.fromkeys(names, 1000), tokens_per_row=tokens_per_row)
    read = mixture.shares * np.array(list(tokens_per_row.values()))
    # A share is a whole number of rows: one row more or less changes the share by its own tokens.
    tolerance = max(tokens) / read.sum() * 2
    assert np.abs(read / read.sum() - np.array(weights) / sum(weights)).max() <= tolerance


@pytest.mark.parametrize("ratio", [3.0, 57.3, 511.7, 1999.0])
@pytest.mark.parametrize("weight", [0.7, 0.5])
def test_shares_of_tokens_hold_to_one_in_a_thousand_however_long_rows_are(
    ratio: float, weight: float
) -> None:
    weights = {"long": weight, "short": 1 - weight}
    tokens_per_row = {"long": ratio, "short": 1.0}
    mixture = Mixture(weights, {"long": 10**6, "short": 10**9}, tokens_per_row=tokens_per_row)
    drawn = mixture.drawn(3 * mixture.period)
    read = {name: count * tokens_per_row[name] for name, count in drawn.items()}
    assert abs(read["long"] / sum(read.values()) - weight) <= 1e-3
    # The rows of any part of a period are as near to it as whole rows allow.
    some = mixture.drawn(10_000)
    expected = mixture.shares[0] / mixture.period * 10_000
    assert abs(some["long"] - expected) <= 1
    sources, positions, _ = mixture.locate(np.arange(20_000))
    assert np.bincount(sources).tolist() == list(mixture.drawn(20_000).values())
    assert all(np.array_equal(positions[sources == n], np.arange((sources == n).sum())) for n in (0, 1))


@pytest.mark.parametrize("means", [(5.0, 4.0), (3.0, 6.0)])
def test_any_ten_thousand_packed_rows_hold_weights_in_tokens_to_one_in_a_thousand(
    means: tuple[float, float],
) -> None:
    tokens = {}
    for name, mean in zip("ab", means, strict=True):
        lengths = np.random.default_rng(len(tokens)).lognormal(mean, 1.0, 100_000)
        plan = plan_best_fit(np.cumsum([0, *np.maximum(lengths.astype(np.int64), 1)]), 512)
        ends = np.cumsum([0, *(plan.pieces[1] - plan.pieces[0])])
        tokens[name] = ends[plan.rows[0] + plan.rows[1]] - ends[plan.rows[0]]
    sizes = {name: len(found) for name, found in tokens.items()}
    per_row = {name: float(found.mean()) for name, found in tokens.items()}
    mixture = Mixture({"a": 0.7, "b": 0.3}, sizes, tokens_per_row=per_row)
    sources, rows, _ = mixture.locate_rows(np.arange(5 * PERIOD), seed=3)
    of_a = np.where(sources == 0, tokens["a"][np.minimum(rows, sizes["a"] - 1)], 0)
    of_b = np.where(sources == 1, tokens["b"][np.minimum(rows, sizes["b"] - 1)], 0)
    sums = [np.cumsum([0, *found]) for found in (of_a, of_b)]
    in_a, in_b = (found[PERIOD:] - found[:-PERIOD] for found in sums)
    assert np.abs(in_a / (in_a + in_b) - 0.7).max() <= 1e-3


def test_weights_in_tokens_give_fewer_rows_to_a_source_of_long_rows() -> None:
    tokens_per_row = {"long": 900.0, "short": 100.0}
    mixture = Mixture({"long": 0.5, "short": 0.5}, {"long": 9, "short": 9}, tokens_per_row=tokens_per_row)
    assert mixture.shares.tolist() == [1000, 9000]


SIZES = st.lists(st.integers(1, 3000), min_size=6, max_size=6)


@given(weights=WEIGHTS, sizes=SIZES, start=st.integers(0, 3 * PERIOD), length=st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_drawn_rows_are_those_that_were_located(
    weights: list[float], sizes: list[int], start: int, length: int
) -> None:
    names = named(weights)
    mixture = Mixture(names, dict(zip(names, sizes, strict=False)))
    sources, positions, epochs = mixture.locate(np.arange(start, start + length))
    before, after = mixture.drawn(start), mixture.drawn(start + length)
    for index, name in enumerate(names):
        numbers = (epochs * sizes[index] + positions)[sources == index]
        assert np.array_equal(numbers, np.arange(before[name], after[name]))


@given(
    weights=WEIGHTS,
    sizes=st.lists(st.integers(50, 900), min_size=6, max_size=6),
    seed=st.integers(0, 9),
)
@settings(max_examples=20, deadline=None)
def test_no_row_of_an_epoch_comes_twice_and_all_of_a_whole_one_come(
    weights: list[float], sizes: list[int], seed: int
) -> None:
    names, cursor = named(weights), np.arange(3000)
    mixture = Mixture(names, dict(zip(names, sizes, strict=False)))
    located = mixture.locate_rows(cursor, seed=seed)
    backwards = mixture.locate_rows(cursor[::-1], seed=seed)[:, ::-1]
    assert np.array_equal(located, backwards)
    assert len(set(map(tuple, located.T.tolist()))) == len(cursor)
    sources, rows, epochs = located
    for index in range(len(names)):
        first = rows[(sources == index) & (epochs == 0)]
        has_second = (epochs[sources == index] > 0).any()
        assert not has_second or np.array_equal(np.sort(first), np.arange(sizes[index]))


@given(weights=WEIGHTS, sizes=SIZES)
@settings(max_examples=60, deadline=None)
def test_exhaustion_is_the_first_row_of_any_second_epoch(weights: list[float], sizes: list[int]) -> None:
    names = named(weights)
    mixture = Mixture(names, dict(zip(names, sizes, strict=False)))
    exhaustion = mixture.exhaustion()
    sources, positions, epochs = mixture.locate(np.arange(exhaustion.rows + 1))
    assert not epochs[:-1].any()
    assert (epochs[-1], positions[-1]) == (1, 0)
    assert mixture.names[sources[-1]] == exhaustion.source


def test_exhaustion_of_large_sources_is_found_at_once() -> None:
    mixture = Mixture({"a": 0.7, "b": 0.3}, {"a": 10**12, "b": 10**11})
    end = mixture.exhaustion()
    assert end.source == "b"
    assert abs(end.rows - 10**11 / 0.3) < PERIOD
    assert mixture.drawn(end.rows)["b"] == 10**11


@given(weights=WEIGHTS, sizes=st.lists(st.integers(1, 500), min_size=6, max_size=6))
@settings(max_examples=30, deadline=None)
def test_each_source_gives_every_row_once_an_epoch(weights: list[float], sizes: list[int]) -> None:
    names = named(weights)
    num_rows = dict(zip(names, sizes, strict=False))
    sources, positions, epochs = Mixture(names, num_rows).locate(np.arange(3 * PERIOD))
    for index, size in enumerate(num_rows.values()):
        drawn = np.flatnonzero(sources == index)
        assert np.array_equal(positions[drawn], np.arange(len(drawn)) % size)
        assert np.array_equal(epochs[drawn], np.arange(len(drawn)) // size)


def test_sources_are_interleaved_evenly() -> None:
    mixture = Mixture({"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 10, "b": 10, "c": 10})
    sources, _, _ = mixture.locate(np.arange(PERIOD))
    for start in range(0, PERIOD, 100):
        counts = np.bincount(sources[start : start + 100], minlength=3)
        assert np.abs(counts - [70, 20, 10]).max() <= 1


def test_a_row_does_not_depend_on_what_else_is_asked() -> None:
    mixture = Mixture({"a": 3.0, "b": 1.0}, {"a": 1234, "b": 77})
    rows = np.array([10**15, 0, 9999, 10_000, 5, 10**15])
    together = np.stack(mixture.locate(rows))
    alone = np.concatenate([np.stack(mixture.locate(rows[i : i + 1])) for i in range(len(rows))], axis=1)
    assert np.array_equal(together, alone)


def test_one_source_is_read_through_in_order() -> None:
    sources, positions, epochs = Mixture({"a": 0.3}, {"a": 7}).locate(np.arange(20_003))
    assert not sources.any()
    assert np.array_equal(epochs * 7 + positions, np.arange(20_003))


def test_weight_below_one_row_of_a_period_is_refused() -> None:
    with pytest.raises(DataError, match=r"weight 1e-06 of 'rare' out of 1 is less than one row in 10000"):
        Mixture({"main": 1.0, "rare": 1e-6}, {"main": 10, "rare": 10})


def test_equal_weights_alternate() -> None:
    counts: dict[int, int] = defaultdict(int)
    sources, _, _ = Mixture({"a": 1.0, "b": 1.0}, {"a": 5, "b": 5}).locate(np.arange(20))
    for source in sources.tolist():
        counts[source] += 1
    assert sources[0] != sources[1]
    assert counts == {0: 10, 1: 10}


@given(
    weights=st.lists(st.floats(0.1, 50.0), min_size=2, max_size=4),
    sizes=st.lists(st.integers(1, 90), min_size=4, max_size=4),
    cursors=st.tuples(st.integers(0, 400), st.integers(1, 400)),
)
@settings(max_examples=60, deadline=None)
def test_a_mixture_goes_on_in_the_sources_where_another_ended(
    weights: list[float], sizes: list[int], cursors: tuple[int, int]
) -> None:
    names = named(weights)
    num_rows = dict(zip(names, sizes, strict=False))
    first = Mixture(names, num_rows)
    drawn = first.drawn(cursors[0])
    # Other weights, so that each source goes on by itself.
    second = Mixture(dict(zip(names, reversed(weights), strict=True)), num_rows, begun=drawn)
    found = [mixture.locate_rows(np.arange(end), seed=5)
             for mixture, end in ((first, cursors[0]), (second, cursors[1]))]  # fmt: skip
    both = np.concatenate(found, axis=1)
    for index, name in enumerate(names):
        _, rows, epochs = both[:, both[0] == index]
        alone = Mixture({name: 1.0}, {name: num_rows[name]}).locate_rows(np.arange(len(rows)), seed=5)
        assert np.array_equal(np.stack([rows, epochs]), alone[1:])
    counts = np.bincount(both[0], minlength=len(names)).tolist()
    assert second.drawn(cursors[1]) == dict(zip(names, counts, strict=True))
    end = second.exhaustion()
    before, after = (second.drawn(end.rows + more)[end.source] for more in (0, 1))
    assert before % num_rows[end.source] == 0
    assert after == before + 1


@given(weights=WEIGHTS, begun=st.integers(0, 10_000), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_order_in_which_a_job_lists_its_sources_changes_nothing(
    weights: list[float], begun: int, data: st.DataObject
) -> None:
    listed = named(weights)
    sizes = {name: 50 + 7 * index for index, name in enumerate(listed)}
    otherwise = {name: listed[name] for name in data.draw(st.permutations(list(listed)))}
    rows = np.arange(begun, begun + 2000)
    first, second = (Mixture(names, sizes) for names in (listed, otherwise))
    assert first.names == second.names
    assert np.array_equal(first.locate_rows(rows, seed=3), second.locate_rows(rows, seed=3))
    assert first.drawn(begun) == second.drawn(begun)


@pytest.mark.parametrize(("begun", "rows"), [(0, 10), (7, 3), (9, 1), (10, 0), (13, 7), (20, 0)])
def test_a_source_that_was_read_through_is_exhausted_before_it_begins_again(begun: int, rows: int) -> None:
    mixture = Mixture({"a": 1.0}, {"a": 10}, begun={"a": begun})
    assert mixture.exhaustion().rows == rows
