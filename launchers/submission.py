"""``orchestrator submit``: hand a resolved job to a launcher."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from launchers.base import make_launcher
from launchers.submitted import Submission, only_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved
from orchestrator.spec.section import Section


def submit_job(job: Job, *, runs_dir: Path, dry_run: bool) -> dict[str, Any]:
    """Submit ``job``; ``{name, launcher, job_id}``, or ``{name, launcher, command}`` on a dry run.

    Raises:
        LaunchError: The run is being run or queued already, or the launcher refused it.
    """
    layout = RunLayout(runs_dir.resolve() / job.name)
    name, options = job.launcher.name, job.launcher.options
    values = options.model_dump(mode="json") if isinstance(options, Section) else dict(options)
    launcher = make_launcher(name, values, job.resources)
    if dry_run:
        command = shlex.join(launcher.render(layout.submitted_job, layout.root))
        return {"name": job.name, "launcher": name, "command": command}
    with only_submission(layout):
        # It is read as a job file again: what looks like an environment variable there is text by now.
        layout.submitted_job.write_text(dump_resolved(job).replace("${", "$${"), encoding="utf-8")
        try:
            job_id = launcher.submit(layout.submitted_job, layout.root)
        except BaseException:
            _leave_nothing(layout)
            raise
        Submission.of_now(name, job_id, values).write(layout)
    return {"name": job.name, "launcher": name, "job_id": job_id}


def _leave_nothing(layout: RunLayout) -> None:
    """Remove what a refused submission wrote, and the run directory if it holds nothing else."""
    layout.submitted_job.unlink(missing_ok=True)
    layout.submission_lock.unlink(missing_ok=True)
    with suppress(OSError):
        layout.root.rmdir()
