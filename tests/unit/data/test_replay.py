"""A replay finds the first row that is consumed twice, and the first epoch that leaves one out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.mixture import Mixture
from orchestrator.data.replay import Lapse, Replay

MIXTURE = Mixture({"a": 0.7, "b": 0.3}, {"a": 100, "b": 13})


def lapses(cursor: np.ndarray, *, chunk: int, mixture: Mixture = MIXTURE) -> list[Lapse]:
    """The first lapse of a replay in chunks, if there is one."""
    replay = Replay(mixture, seed=3)
    for start in range(0, len(cursor), chunk):
        found = replay.consume(cursor[start : start + chunk])
        if found is not None:
            return [found]
    return []


@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    length=st.integers(1, 400),
    chunk=st.integers(1, 400),
)
@settings(max_examples=60, deadline=None)
def test_the_cursor_in_order_has_no_lapse_however_it_is_cut(
    sizes: tuple[int, int], length: int, chunk: int
) -> None:
    mixture = Mixture({"a": 0.6, "b": 0.4}, {"a": sizes[0], "b": sizes[1]})
    assert lapses(np.arange(length), chunk=chunk, mixture=mixture) == []


def test_rows_drawn_are_counted_by_source() -> None:
    replay = Replay(MIXTURE, seed=3)
    assert replay.consume(np.arange(500)) is None
    assert replay.drawn == MIXTURE.drawn(500)


@given(place=st.integers(0, 299), again=st.integers(0, 299), chunk=st.sampled_from([1, 7, 64, 300]))
@settings(max_examples=60, deadline=None)
def test_a_row_that_is_consumed_twice_is_found(place: int, again: int, chunk: int) -> None:
    """Instead of the row at ``again``, the one at ``place`` is consumed."""
    cursor = np.arange(300)
    cursor[again] = place
    sources, _, epochs = MIXTURE.locate_rows(np.arange(300), seed=3)
    found = lapses(cursor, chunk=chunk)
    if place == again:
        assert found == []
    elif sources[place] == sources[again] and epochs[place] == epochs[again]:
        # A row of an epoch that goes on is consumed twice.
        (lapse,) = found
        assert lapse.global_row == place
        assert lapse.source == MIXTURE.names[sources[place]]
        assert lapse.message.endswith(f"of epoch {epochs[place]} is consumed twice")
    else:
        assert found


def test_a_row_that_is_left_out_is_found_when_the_next_epoch_begins() -> None:
    sources, rows, epochs = MIXTURE.locate_rows(np.arange(300), seed=3)
    left_out = int(np.flatnonzero((sources == 1) & (epochs == 2))[4])
    begins = int(np.flatnonzero((sources == 1) & (epochs == 3))[0])
    (found,) = lapses(np.delete(np.arange(300), left_out), chunk=50)
    assert found == Lapse(
        begins,
        "b",
        "epoch 3 begins while 1 of 13 rows of epoch 2 were never consumed, the first of them"
        f" row {rows[left_out]}",
    )


def test_an_epoch_that_is_left_out_whole_is_found() -> None:
    sources, _, epochs = MIXTURE.locate_rows(np.arange(300), seed=3)
    kept = np.flatnonzero((sources != 1) | (epochs != 1))
    (found,) = lapses(kept, chunk=300)
    assert (found.source, found.global_row) == ("b", int(np.flatnonzero((sources == 1) & (epochs == 2))[0]))


def test_a_row_of_an_epoch_that_is_over_is_found() -> None:
    sources, _, epochs = MIXTURE.locate_rows(np.arange(300), seed=3)
    old = int(np.flatnonzero((sources == 1) & (epochs == 0))[5])
    (found,) = lapses(np.append(np.arange(300), old), chunk=300)
    assert (found.source, found.global_row) == ("b", old)


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 100_000])
def test_epochs_of_any_size_fit_the_bits(num_rows: int) -> None:
    mixture = Mixture({"a": 1.0}, {"a": num_rows})
    cursor = np.arange(min(3 * num_rows, 200_000))
    assert lapses(cursor, chunk=1000, mixture=mixture) == []
    (found,) = lapses(np.append(np.arange(num_rows - 1), num_rows), chunk=50_000, mixture=mixture)
    assert found.message.startswith(f"epoch 1 begins while 1 of {num_rows} rows of epoch 0")


@given(cursor=st.integers(0, 500), length=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_a_replay_goes_on_where_another_mixture_ended(cursor: int, length: int) -> None:
    begun = MIXTURE.drawn(cursor)
    after = Mixture({"b": 0.8, "a": 0.2}, {"a": 100, "b": 13}, begun=begun)
    replay = Replay(after, seed=3)
    assert replay.consume(np.arange(length)) is None
    assert replay.drawn == after.drawn(length)
    # A row that was consumed before is consumed again.
    forgetful = Mixture({"b": 1.0}, {"b": 13}, begun={"b": max(begun["b"] - 1, 0)})
    last = forgetful.locate_rows(np.arange(1), seed=3)[1]
    if begun["b"] % 13:
        assert Replay(after, seed=3)._epochs[after.names.index("b")].mark(last) == 0
