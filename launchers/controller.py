"""Ray Train's controller in a process that starts before there is anything to control.

It imports Ray Train and torch for seconds, on a core that is idle while the driver does the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from launchers.importing import large_imports


class StageController:
    """An actor that becomes Ray Train's ``TrainController`` once it is told of what."""

    def __init__(self) -> None:
        """Import what it will need."""
        # Ray Train reads it as it is imported.
        os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
        with large_imports():
            import_module("launchers.trainer")

    def begin(self, environment: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        """Become the controller of one group of workers.

        Args:
            environment: Variables of the driver for it and its workers.
            settings: Arguments of ``TrainController``.
        """
        from launchers.trainer import WaitingController

        os.environ.update(environment)
        self._controller = WaitingController(**settings)

    async def run(self) -> Any:
        """Run the workers to their end."""
        await self._controller.run()
        return self._controller.get_result()


def start_controller() -> Any:
    """Start the process on this node; the handle that ``begin`` and ``run`` are called on."""
    import ray

    here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    return ray.remote(num_cpus=0, label_selector=here)(StageController).remote()
