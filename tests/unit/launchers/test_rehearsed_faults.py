"""What a fault does in a job that is unlike most."""

from __future__ import annotations

import pytest

from launchers.rehearsed_faults import FAULTS, NotPossibleError
from tests.unit.launchers.test_run_directory import make_job


@pytest.mark.parametrize("fault", ["hang", "hang-data"])
def test_a_job_that_waits_for_ever_is_not_made_to_hang(fault: str) -> None:
    with pytest.raises(NotPossibleError, match="hang_timeout_seconds is null"):
        FAULTS[fault].changes(make_job(resources={"hang_timeout_seconds": None}))
    assert FAULTS[fault].changes(make_job()) == {}
