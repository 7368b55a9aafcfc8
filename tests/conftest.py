"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# No test asserts how long something takes: machines are shared.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
