"""``orchestrator submit``: hand a resolved job to a launcher."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from launchers.base import Launcher
from launchers.runs import is_locked
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from orchestrator.registry import resolve
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved


def submit_job(job: Job, *, launcher_name: str, runs_dir: Path, dry_run: bool) -> dict[str, Any]:
    """Submit ``job``; ``{name, launcher, job_id}``, or ``{name, launcher, command}`` on a dry run.

    Raises:
        LaunchError: The run is being run already, or the launcher refused it.
    """
    layout = RunLayout(runs_dir.resolve() / job.name)
    launcher: Launcher = resolve("launcher", launcher_name)(job.launcher.options)
    if dry_run:
        command = shlex.join(launcher.render(layout.submitted_job, layout.root))
        return {"name": job.name, "launcher": launcher_name, "command": command}
    if is_locked(layout.driver_lock):
        place = shlex.quote(str(layout.root))
        raise LaunchError(
            f"{layout.root} is being run already; follow it with 'orchestrator logs {place} -f',"
            f" or stop it with 'orchestrator cancel {place}'"
        )
    layout.root.mkdir(parents=True, exist_ok=True)
    # It is read as a job file again: what looks like an environment variable there is text by now.
    layout.submitted_job.write_text(dump_resolved(job).replace("${", "$${"), encoding="utf-8")
    job_id = launcher.submit(layout.submitted_job, layout.root)
    return {"name": job.name, "launcher": launcher_name, "job_id": job_id}
