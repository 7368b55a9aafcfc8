from __future__ import annotations

import pytest

from orchestrator.spec.launchers import SlurmOptions


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (3, 180),
        ("3", 180),
        ("2:30", 150),
        ("0:02:30", 150),
        ("0-0", None),
        ("0", None),
        ("0-0:02", 120),
        ("0-00:02:59", 179),
        ("UNLIMITED", None),
    ],
)
def test_a_time_limit_that_leaves_no_turn_a_step_is_refused(time: int | str, seconds: int | None) -> None:
    if seconds is None:
        assert SlurmOptions(time=time).time == time
        return
    with pytest.raises(ValueError, match=f"time: {time!r} is a limit of {seconds} s, .* 180 s before it"):
        SlurmOptions(time=time)


@pytest.mark.parametrize("time", [4, "3:01", "1:00:00", "1-0", "0-1", "0-00:04", "INFINITE"])
def test_any_other_is_taken(time: int | str) -> None:
    assert SlurmOptions(time=time).time == time


def test_a_shorter_grace_time_leaves_more_of_it() -> None:
    assert SlurmOptions(time=3, grace_seconds=119).time == 3
    with pytest.raises(ValueError, match="180 s before it"):
        SlurmOptions(time=3, grace_seconds=120)


def test_a_time_limit_among_the_flags_is_checked_alike() -> None:
    with pytest.raises(ValueError, match=r"flags: '--time=1' is a limit of 60 s, .* 180 s before it"):
        SlurmOptions(time=60, flags=("--exclusive", "--time=1"))
    for flag in ("--time=soon", "--time", "--time="):
        with pytest.raises(ValueError, match=rf"flags: expected minutes, .*, found '{flag}'"):
            SlurmOptions(flags=(flag,))
    assert SlurmOptions(flags=("--time=3",), grace_seconds=60).flags == ("--time=3",)
    assert SlurmOptions(flags=("--time=1-0", "--time-min=1")).time is None
