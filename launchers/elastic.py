"""Ray Train's elastic groups of workers, kept to the numbers among which the job's batches can be shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy


class FittingScalingPolicy(ElasticScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """As many workers as there is room for, rounded down to a number that fits."""

    def __init__(self, scaling_config: Any, fitting: Sequence[int]) -> None:
        """``fitting``: the numbers of workers that fit."""
        super().__init__(scaling_config)
        self._fitting = tuple(fitting)

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        """0 where not even the lowest number has room: Ray waits then."""
        room = super()._count_possible_workers(reserved_resources)
        return max((workers for workers in self._fitting if workers <= room), default=0)


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """A ``TorchTrainer`` with that policy, where the number of workers is a range."""

    def __init__(self, *arguments: Any, fitting: Sequence[int], **settings: Any) -> None:
        """``fitting``: the numbers of workers that fit; the rest is ``TorchTrainer``'s."""
        super().__init__(*arguments, **settings)
        self._fitting = fitting

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        """Put the policy in the place of Ray's own; tests/e2e/test_elastic.py would notice another name."""
        if self.scaling_config.elasticity_enabled:
            settings["scaling_policy"] = FittingScalingPolicy(self.scaling_config, self._fitting)
        return super()._initialize_and_run_controller(**settings)
