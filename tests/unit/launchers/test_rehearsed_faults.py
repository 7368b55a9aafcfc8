"""What a fault does in a job that is unlike most."""

from __future__ import annotations

from typing import Any

import pytest

from launchers.rehearsed_faults import FAULTS, NotPossibleError
from tests.unit.launchers.test_run_directory import make_job


@pytest.mark.parametrize("fault", ["hang", "hang-data"])
def test_a_job_that_waits_for_ever_is_not_made_to_hang(fault: str) -> None:
    with pytest.raises(NotPossibleError, match="hang_timeout_seconds is null"):
        FAULTS[fault].changes(make_job(resources={"hang_timeout_seconds": None}))
    assert FAULTS[fault].changes(make_job()) == {}


@pytest.mark.parametrize(
    ("num_workers", "changes", "expected"),
    [
        (1, {}, "there is one worker, and no lower number"),
        (
            2,
            {"strategy": {"name": "fsdp2", "replicate_degree": 2}},
            "no lower number than 2 workers fits; 1: replicate_degree 2 does not divide num_workers 1",
        ),
        (4, {"strategy": {"name": "fsdp2", "replicate_degree": 2}}, 2),
        (4, {}, 2),
    ],
)
def test_a_run_goes_on_with_a_number_of_workers_that_the_job_may_have(
    num_workers: int, changes: dict[str, Any], expected: str | int
) -> None:
    job = make_job(resources={"num_workers": num_workers}, **changes)
    if isinstance(expected, int):
        assert FAULTS["resize"].changes(job) == {"num_workers": expected}
        return
    with pytest.raises(NotPossibleError) as refused:
        FAULTS["resize"].changes(job)
    assert str(refused.value) == expected
