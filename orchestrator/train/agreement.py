"""Set-up that either works on all ranks or fails on all: nobody is left waiting in a collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from orchestrator.errors import LaunchError, OrchestratorError

Result = TypeVar("Result")
OTHER_RANK = "another rank could not set up the stage"


class AgreedError(OrchestratorError):
    """An error that a user can mend, raised on every rank at the same place."""

    def __init__(self, error: OrchestratorError) -> None:
        """Carry the message and exit code of this rank's error."""
        super().__init__(str(error))
        self.exit_code = error.exit_code


def together(what: str, action: Callable[[], Result]) -> Result:
    """Run ``action``, which must not communicate, on every rank and agree on whether it worked.

    Raises:
        AgreedError: It failed on this rank or another in a way a user can mend.
        Exception: It failed here in another way.
    """
    error: Exception | None = None
    results: list[Result] = []
    try:
        results.append(action())
    except Exception as caught:
        error = caught
    num_failed = torch.tensor([int(error is not None)])
    if dist.get_world_size() > 1:
        dist.all_reduce(num_failed)
    if isinstance(error, OrchestratorError):
        raise AgreedError(error) from error
    if error is not None:
        raise error
    if num_failed.item():
        raise AgreedError(LaunchError(f"{OTHER_RANK} ({what})"))
    return results[0]
