"""``orchestrator submit``: hand a resolved job to a launcher."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from launchers.base import (
    ArrayLauncher,
    CheckingLauncher,
    Launcher,
    ManifestLauncher,
    MeasuringLauncher,
    RefusedJobError,
    ResolvingLauncher,
    make_launcher,
)
from launchers.deferral import deferred_signals, say
from launchers.pins import pinned, read_pins
from launchers.run_directory import refuse_changed
from launchers.runs import runs_dir_flag
from launchers.submission_lock import only_submission
from launchers.submission_record import Submission, read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError, PlanError
from orchestrator.spec.job import Job
from orchestrator.spec.load import dump_resolved
from orchestrator.spec.section import Section
from orchestrator.tracking.events import replace_text, time_now


def submit_job(job: Job, *, runs_dir: Path, dry_run: bool, runs: Sequence[Job] = ()) -> dict[str, Any]:
    """Submit ``job``; ``{name, launcher, job_id}``; on a dry run ``command`` or ``manifest`` instead.

    Args:
        runs: Of its sweep, which the one job runs.

    Raises:
        LaunchError: The run is being run or queued already, or the launcher refused it.
        PlanError: Its place has no room for it, or for one of ``runs``; or a run has begun as another job.
    """
    layout = RunLayout(runs_dir.resolve() / job.name)
    name = job.launcher.name
    launcher = make_launcher(name, _options(job), job.resources)
    if dry_run and isinstance(launcher, ManifestLauncher):
        manifest = launcher.manifest(layout.submitted_job, layout.root)
        return {"name": job.name, "launcher": name, "manifest": manifest}
    if dry_run:
        command = shlex.join(launcher.render(layout.submitted_job, layout.root))
        return {"name": job.name, "launcher": name, "command": command}

    jobs = runs or [job]

    def check() -> None:
        _refuse_changed(jobs, runs_dir)
        if isinstance(launcher, MeasuringLauncher):
            launcher.check_room([run for run in jobs if not _has_finished(run, runs_dir)])

    def submit() -> list[str]:
        return [launcher.submit(layout.submitted_job, layout.root)]

    (job_id,) = _submit(job, [job], [layout], launcher, check, submit)
    return {"name": job.name, "launcher": name, "job_id": job_id}


def submit_sweep(job: Job, runs: Sequence[Job], *, runs_dir: Path, dry_run: bool) -> dict[str, Any]:
    """Submit all runs of a sweep: as one array, ``{name, launcher, job_ids}``, or the command on a dry run.

    Where the place has no arrays, one job runs them all; the answer is that of ``submit_job``.

    Raises:
        LaunchError: A run is being run or queued already, or the launcher refused it; the runs ask for
            different places; or the runs of an array are to be compared while they run.
        PlanError: As of ``submit_job``.
    """
    name = job.launcher.name
    points = () if job.sweep is None else job.sweep.points
    keys = sorted({key for point in points for key in point if key.partition(".")[0] == "launcher"})
    if keys:
        raise RefusedJobError(
            f"the sweep sets {' and '.join(keys)}, and all of its runs are submitted at once, in one way:"
            " give that outside the sweep, or submit a job file for each"
        )
    launcher = make_launcher(name, _options(job), job.resources)
    if not isinstance(launcher, ArrayLauncher):
        return submit_job(job, runs_dir=runs_dir, dry_run=dry_run, runs=runs)
    if job.sweep is not None and job.sweep.early_stopping is not None:
        raise RefusedJobError(
            f"sweep.early_stopping compares runs that one command runs, and '{name}' makes each a job of its"
            " own: type 'orchestrator run' where RAY_ADDRESS names a cluster, give --launcher ray, or run it"
            " in one allocation, as with 'sbatch --nodes=2 slurm/ray.sbatch JOB'; or leave it out with"
            " --set sweep.early_stopping=null"
        )
    other = next((run.name for run in runs if run.resources != job.resources), None)
    if other is not None:
        raise RefusedJobError(
            f"'{other}' of the sweep asks for other resources than the job outside it, which all jobs of an"
            " array get: leave resources out of the sweep, or submit a job file for each"
        )
    layouts = [RunLayout(runs_dir.resolve() / run.name) for run in runs]
    files = [layout.submitted_job for layout in layouts]
    at_once = None if job.sweep is None else job.sweep.at_once
    if dry_run:
        command = shlex.join(launcher.render_array(job.name, files, at_once=at_once))
        return {"name": job.name, "launcher": name, "command": command}

    def check() -> None:
        _refuse_changed(runs, runs_dir)

    def submit() -> list[str]:
        return launcher.submit_array(job.name, files, at_once=at_once)

    job_ids = _submit(job, runs, layouts, launcher, check, submit)
    return {"name": job.name, "launcher": name, "job_ids": job_ids}


def _has_finished(job: Job, runs_dir: Path) -> bool:
    """Whether no stage seems to need workers any more."""
    layout = RunLayout(runs_dir.resolve() / job.name)
    return all(layout.stage(stage.name).result.exists() for stage in job.stages)


def _refuse_changed(jobs: Sequence[Job], runs_dir: Path) -> None:
    """Refuse what the driver would, of run directories that can be seen from here.

    Raises:
        PlanError: With every difference.
    """
    for job in jobs:
        layout = RunLayout(runs_dir.resolve() / job.name)
        try:
            refuse_changed(pinned(job, read_pins(layout.pins)), layout)
        except PlanError as error:
            raise PlanError(
                f"{error}\nThese are flags of 'run'; to submit it from the start, rename {layout.root}"
            ) from error


def _submit(
    job: Job,
    runs: Sequence[Job],
    layouts: Sequence[RunLayout],
    launcher: Launcher,
    check: Callable[[], None],
    submit: Callable[[], list[str]],
) -> list[str]:
    """Hand runs to the place of ``launcher`` and record them; the job id of each.

    What the place has taken is recorded before anything else can fail or be interrupted.

    Args:
        check: Refuses what need not be handed over to be refused; it may be interrupted.
        submit: Hands over, and returns the job ids.

    Raises:
        LaunchError: A run is being run or queued already, or the place refused it.
    """
    place = job.launcher.name
    with ExitStack() as stack:
        for layout in layouts:
            stack.enter_context(only_submission(layout))
        check()
        for run, layout in zip(runs, layouts, strict=True):
            stack.enter_context(_handed_over(run, layout))
        with deferred_signals(
            f"Stopping as soon as {place} has answered and its job id is written down; Ctrl-C once more to"
            f" stop at once, and then look there whether {job.name} was queued."
        ) as waiting:
            # What its driver does comes after this, however late the answer is.
            time = time_now()
            job_ids = submit()
            _record(job, launcher, layouts, job_ids, time)
            _refuse_hopeless(job, launcher, job_ids[0])
            if waiting:
                taken = f"{job.name} is submitted to {place} already, as {job_ids[0]};"
                named = f"{job.name}{runs_dir_flag(layouts[0].root.parent)}"
                say(f"{taken} 'orchestrator cancel {named}' takes it back.")
    return job_ids


def _record(
    job: Job, launcher: Launcher, layouts: Sequence[RunLayout], job_ids: Sequence[str], time: str
) -> None:
    """Write down in each run directory as what it was submitted."""
    place, options = job.launcher.name, _options(job)
    if isinstance(launcher, ResolvingLauncher):
        options |= launcher.resolved_options()
    try:
        for layout, job_id in zip(layouts, job_ids, strict=True):
            Submission(place, job_id, options, time).write(layout)
    except OSError as error:
        raise LaunchError(
            f"{job.name} was submitted to {place} as {', '.join(job_ids)}, which cannot be written down:"
            f" {error}. End it there by that id; then put this right and submit it again"
        ) from error


def _refuse_hopeless(job: Job, launcher: Launcher, job_id: str) -> None:
    """Refuse what its place could never start, and has taken out of its queue again.

    Raises:
        RefusedJobError: Naming the place's reason.
    """
    if not isinstance(launcher, CheckingLauncher):
        return
    try:
        reason = launcher.withdraw_hopeless(job_id)
    except LaunchError as error:
        say(
            f"orchestrator: warning: {job.name} is submitted as {job.launcher.name} job {job_id}; whether it"
            f" can ever start was not settled: {error}"
        )
        return
    if reason is not None:
        raise RefusedJobError(reason)


def _options(job: Job) -> dict[str, Any]:
    """``launcher.options``, as a launcher is built with them."""
    options = job.launcher.options
    return options.model_dump(mode="json") if isinstance(options, Section) else dict(options)


def write_submitted(job: Job, layout: RunLayout) -> None:
    """Write a resolved job as the job file that a driver elsewhere is given."""
    # It is read as a job file again: what looks like an environment variable there is text by now.
    layout.submitted_job.write_text(dump_resolved(job).replace("${", "$${"), encoding="utf-8")


@contextmanager
def _handed_over(job: Job, layout: RunLayout) -> Iterator[None]:
    """Write the job file for a place that is asked to take it; where that refuses, all is as it was.

    An earlier submission may still be looked at: by that file its runs are known to be those of a sweep. What
    the place has taken and was recorded stays, whatever comes after it.
    """
    before = {path: _text(path) for path in (layout.submitted_job, layout.submission)}
    earlier = read_submission(layout)
    if earlier is not None and earlier.is_cancelled:
        # A place that gives the same job id again may start the driver before this submission is recorded.
        replace(earlier, is_cancelled=False).write(layout)
    unrecorded = _text(layout.submission)
    try:
        write_submitted(job, layout)
        yield
    except BaseException as error:
        is_recorded = _text(layout.submission) != unrecorded
        if not is_recorded or isinstance(error, RefusedJobError):
            # Where the disk is full, what happened is the error to tell.
            with suppress(OSError):
                for path, text in before.items():
                    if text is None:
                        path.unlink(missing_ok=True)
                    else:
                        replace_text(path, text)
        raise


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
