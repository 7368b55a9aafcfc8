"""Weights & Biases: one W&B run per stage, grouped by job, continued when the stage is resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import TrackingError
from orchestrator.spec.trackers import Wandb

logger = logging.getLogger(__name__)
EXIT_CODES = {"finished": 0, "stopped": 0, "failed": 1}


class WandbTracker:
    """Logs to W&B; starting must work, a failure to log later is one warning and never ends training."""

    def __init__(
        self,
        section: Wandb,
        *,
        run_id: str,
        name: str,
        group: str,
        config: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """Start the W&B run, or continue the one with this id.

        Args:
            run_id: Stable over restarts of the stage.
            folder: Where W&B keeps its local files.

        Raises:
            TrackingError: wandb cannot be imported or the run cannot start.
        """
        try:
            import wandb
        except ImportError as error:
            raise TrackingError(
                f"tracking.wandb: {error}; pip install 'orchestrator[wandb]', or leave tracking.wandb out"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=section.project,
                entity=section.entity,
                mode=section.mode,
                tags=list(section.tags),
                id=run_id,
                name=name,
                group=group,
                job_type="stage",
                resume="allow",
                config=dict(config),
                dir=folder,
                settings=wandb.Settings(console="off", silent=True, init_timeout=60),
            )
        except Exception as error:  # wandb raises many types; each means the run did not start
            raise TrackingError(
                f"tracking.wandb: project '{section.project}' (mode {section.mode}) did not start: {error}."
                " Set WANDB_API_KEY, or mode: offline."
            ) from error
        # Steps are a metric of their own: a resumed run may log again below the last W&B step.
        self._run.define_metric("*", step_metric="step")
        self._warned = False

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log one step."""
        try:
            self._run.log({"step": step, **metrics})
        except Exception as error:
            if not self._warned:
                logger.warning("W&B could not log step %d: %s; training goes on", step, error)
            self._warned = True

    def finish(self, outcome: Literal["finished", "stopped", "failed"]) -> None:
        """End the W&B run."""
        try:
            self._run.finish(exit_code=EXIT_CODES[outcome])
        except Exception as error:
            logger.warning("W&B could not finish its run: %s", error)
