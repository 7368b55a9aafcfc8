from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.data.labels import label_ids, label_problem, number_problem


@pytest.mark.parametrize(
    ("values", "names", "num_labels", "ids", "expected_names"),
    [
        ([0, 2, 1], None, 3, [0, 2, 1], ("0", "1", "2")),
        ([0, 1], None, None, [0, 1], ("0", "1")),
        ([True, False], None, 2, [1, 0], ("0", "1")),
        ([1, 0], ("bad", "good"), 2, [1, 0], ("bad", "good")),
        (["b", "a"], ("b", "a"), 2, [0, 1], ("b", "a")),
        (["a", "a"], ("a", "b"), 3, [0, 0], ("a", "b")),
        ([0], None, 2, [0], ("0", "1")),
        ([0, 1, 0], ("1", "0"), 2, [1, 0, 1], ("1", "0")),
        ([1, 5, 3], ("1", "2", "3", "4", "5"), 5, [0, 4, 2], ("1", "2", "3", "4", "5")),
        ([True, False], ("True", "False"), 2, [0, 1], ("True", "False")),
        ([True, False], ("false", "true"), 2, [1, 0], ("false", "true")),
    ],
)
def test_values_become_ids(
    values: list[Any], names: Any, num_labels: int | None, ids: list[int], expected_names: tuple[str, ...]
) -> None:
    found, found_names = label_ids(values, names, num_labels)
    assert found.dtype == np.int64
    assert found.tolist() == ids
    assert found_names == expected_names


@pytest.mark.parametrize(
    ("value", "names", "num_labels", "problem"),
    [
        (2, None, 2, "label 2, expected 0 to 1 with num_labels 2"),
        (1, ("01", "02"), 2, "label '1', expected one of ['01', '02']"),
        (-1, None, None, "label -1, expected 0 to 999999: set num_labels, or label_names"),
        (10**19, None, None, "label 10000000000000000000, expected 0 to 999999: set num_labels, or"),
        (2, ("bad", "good"), 2, "label 2, expected 0 to 1 with label_names ['bad', 'good']"),
        ("c", ("a", "b"), 2, "label 'c', expected one of ['a', 'b']"),
        ("c", None, 2, "label 'c', expected a whole number, as the others are"),
        (0.5, None, 2, "label 0.5 of type float, expected an integer, a boolean or a string"),
        ([0], None, 2, "label [0] of type list, expected an integer, a boolean or a string"),
        ({"k": 1}, ("a",), None, "label {'k': 1} of type dict, expected an integer"),
        (None, None, 2, "label None of type NoneType, expected"),
        (True, ("no", "yes"), 2, None),
        (True, ("false", "true"), 2, None),
        (1, None, 2, None),
        ("a", ("a", "b"), None, None),
    ],
)
def test_an_unfit_label_is_told_with_the_choices(
    value: Any, names: Any, num_labels: int | None, problem: str | None
) -> None:
    found = label_problem(value, names, num_labels)
    assert found is None if problem is None else str(found).startswith(problem)


@pytest.mark.parametrize(
    ("value", "num_values", "problem"),
    [
        (1.5, None, None),
        (-2, None, None),
        ([1.5], 1, None),
        ([1, 2.5], 2, None),
        ([1.5], None, "label [1.5], expected a finite number (regression)"),
        (True, None, "label True, expected a finite number (regression)"),
        ([False], 1, "label [False], expected a finite number (regression)"),
        ([1.5, True], 2, "label [1.5, True], expected a list of 2 finite numbers (regression)"),
        (1.5, 2, "label 1.5, expected a list of 2 finite numbers (regression)"),
        ([[1.5]], 1, "label [[1.5]], expected a finite number (regression)"),
        (float("nan"), None, "label nan, expected a finite number (regression)"),
        ([], 1, "label [], expected a finite number (regression)"),
    ],
)
def test_what_is_no_number_of_regression_is_told(value: Any, num_values: Any, problem: str | None) -> None:
    assert number_problem(value, num_values) == problem
