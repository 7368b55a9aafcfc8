from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.data.labels import label_ids
from orchestrator.errors import DataError


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
    ],
)
def test_values_become_ids(
    values: list[Any], names: Any, num_labels: int | None, ids: list[int], expected_names: tuple[str, ...]
) -> None:
    found, found_names = label_ids("datasets.d", values, names, num_labels)
    assert found.dtype == np.int64
    assert found.tolist() == ids
    assert found_names == expected_names


@pytest.mark.parametrize(
    ("values", "names", "num_labels", "message"),
    [
        ([0, 1, 2], None, 2, "row 2 (counted from 0) has label 2, expected 0 to 1 with num_labels 2"),
        ([1], ("01", "02"), 2, "row 0 (counted from 0) has label '1', expected one of ['01', '02']"),
        ([0, -1], None, None, "row 1 (counted from 0) has label -1, expected 0 to 0"),
        ([0, 2], ("bad", "good"), 2, "has label 2, expected 0 to 1 with label_names ['bad', 'good']"),
        (["a", "c"], ("a", "b"), 2, "row 1 (counted from 0) has label 'c', expected one of ['a', 'b']"),
        (["a", "b"], ("a", "b", "c"), 2, "3 labels ['a', 'b', 'c'], but num_labels is 2"),
        ([0.5], None, 2, "label 0.5 of type float, expected an integer, a boolean or a string"),
    ],
)
def test_unfit_label_names_row_value_and_choices(
    values: list[Any], names: Any, num_labels: int | None, message: str
) -> None:
    with pytest.raises(DataError) as raised:
        label_ids("datasets.d", values, names, num_labels)
    assert str(raised.value).startswith("datasets.d: ")
    assert message in str(raised.value)
