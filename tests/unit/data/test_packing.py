"""Best-fit packing: nothing lost, nothing cut that fits, and the very packing of the textbook algorithm."""

from __future__ import annotations

import bisect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.packing import Plan, fill_rows, plan_best_fit, stable_order

SEQ_LENS = st.integers(1, 40)
LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=80)


def offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def rows_of(plan: Plan) -> list[list[tuple[int, int]]]:
    """The pieces of each row, as beginning and end."""
    pieces = list(zip(*plan.pieces.tolist(), strict=True))
    return [pieces[begin : begin + size] for begin, size in plan.rows.T.tolist()]


def best_fit_decreasing(lengths: list[int], seq_len: int) -> Counter[int]:
    """The algorithm item by item, as a textbook has it: how many rows are left with how much room."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else seq_len
        bisect.insort(rooms, room - length)
    return Counter(rooms)


@given(LENGTHS, SEQ_LENS)
def test_every_token_stands_in_exactly_one_row(lengths: list[int], seq_len: int) -> None:
    found = [token for row in rows_of(plan_best_fit(offsets(lengths), seq_len)) for token in tokens_of(row)]
    assert sorted(found) == list(range(sum(lengths)))


def tokens_of(row: list[tuple[int, int]]) -> list[int]:
    return [token for begin, end in row for token in range(begin, end)]


@given(LENGTHS, SEQ_LENS)
def test_no_row_is_longer_than_seq_len_and_none_is_empty(lengths: list[int], seq_len: int) -> None:
    for row in rows_of(plan_best_fit(offsets(lengths), seq_len)):
        assert 1 <= len(tokens_of(row)) <= seq_len
        assert all(begin < end for begin, end in row)


@given(LENGTHS, SEQ_LENS)
def test_only_documents_longer_than_a_row_are_cut_and_into_as_few_pieces_as_can_be(
    lengths: list[int], seq_len: int
) -> None:
    documents = offsets(lengths)
    plan = plan_best_fit(documents, seq_len)
    begins = np.sort(plan.pieces[0])
    per_document = np.histogram(begins, documents)[0].tolist()
    assert per_document == [-(-length // seq_len) for length in lengths]
    assert plan.num_split == sum(length > seq_len for length in lengths)
    for begin, end in plan.pieces.T.tolist():
        document = np.searchsorted(documents, begin, side="right") - 1
        assert end <= documents[document + 1]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=120), st.integers(12, 30))
def test_equal_to_best_fit_decreasing_item_by_item(lengths: list[int], seq_len: int) -> None:
    """Up to the choice among rows with equal room, which the algorithm leaves open."""
    shapes = fill_rows(np.bincount(lengths, minlength=seq_len + 1), seq_len)
    found: Counter[int] = Counter()
    for num_rows, content in shapes:
        found[seq_len - sum(length * number for length, number in content)] += num_rows
    assert found == best_fit_decreasing(lengths, seq_len)


@given(LENGTHS, SEQ_LENS)
def test_the_plan_depends_on_the_lengths_alone(lengths: list[int], seq_len: int) -> None:
    first, second = (plan_best_fit(offsets(lengths), seq_len) for _ in range(2))
    assert first.rows.tolist() == second.rows.tolist()
    assert first.pieces.tolist() == second.pieces.tolist()


@given(LENGTHS, SEQ_LENS)
def test_rows_are_more_than_half_full(lengths: list[int], seq_len: int) -> None:
    """Any two rows of an any-fit packing hold more than one row could, or they would have been one."""
    num_tokens, num_rows = sum(lengths), plan_best_fit(offsets(lengths), seq_len).rows.shape[1]
    assert -(-num_tokens // seq_len) <= num_rows <= max(1, 2 * num_tokens // seq_len)


def test_documents_of_many_lengths_fill_all_but_a_thousandth() -> None:
    lengths = np.random.default_rng(0).lognormal(5.0, 1.0, 20_000).astype(int) + 1
    plan = plan_best_fit(offsets(lengths.tolist()), 512)
    assert lengths.sum() / (plan.rows.shape[1] * 512) > 0.999


def test_the_first_rows_are_a_sample_of_the_corpus() -> None:
    """Evaluation reads the first rows: they must not be those that are full of the longest documents."""
    lengths = np.random.default_rng(1).integers(1, 512, 4000)
    plan = plan_best_fit(offsets(lengths.tolist()), 512)
    rows = rows_of(plan)
    in_first_rows = [end - begin for row in rows[: len(rows) // 10] for begin, end in row]
    assert np.mean(in_first_rows) == pytest.approx(lengths.mean(), rel=0.1)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=50))
def test_stable_order_is_numpys_stable_argsort(keys: list[int]) -> None:
    values = np.array(keys, dtype=np.int64)
    assert stable_order(values).tolist() == np.argsort(values, kind="stable").tolist()
