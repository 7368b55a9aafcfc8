"""The commands that take a job file: validate, plan, data, run, prepare, submit, schema."""

from __future__ import annotations

import glob
import os
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from launchers.cli_print import number_text, print_json, print_table
from orchestrator.counts import counted

if TYPE_CHECKING:
    from launchers.rehearsal import Finding
    from orchestrator.spec.job import Job
    from orchestrator.spec.tree import KeyPath


def _load_job(options: Namespace) -> Job:
    """The job of a command, checked alone, against itself and with the DeepSpeed files that it names.

    Raises:
        SpecError: Everything wrong with them.
    """
    from orchestrator.spec.load import load_checked

    return load_checked(options.job, _deepspeed_complaints, overrides=options.overrides)


def _load_runs(job: Job, options: Namespace) -> list[Job]:
    """The jobs of the runs of ``job``'s sweep; none where it is one run.

    Raises:
        SpecError: Everything wrong with one of them.
    """
    if job.sweep is None:
        return []
    from orchestrator.spec.expand import expand

    return expand(job, options.job, _deepspeed_complaints, overrides=options.overrides)


def _load_one(options: Namespace) -> Job:
    """The job of a command that is for one run.

    Raises:
        SpecError: Everything wrong with it; or it is a sweep.
    """
    job = _load_job(options)
    if job.sweep is not None:
        from orchestrator.spec.expand import refuse_sweep

        refuse_sweep(job, options.job)
    return job


def _deepspeed_complaints(job: Job) -> Iterable[tuple[KeyPath, str]]:
    """What is wrong with the DeepSpeed files that a job names; most jobs name none."""
    strategies = [getattr(stage, "strategy", None) for stage in job.stages]
    if all(getattr(strategy, "config", None) is None for strategy in strategies):
        return ()
    from orchestrator.spec.deepspeed_file import complaints

    return complaints(job)


def _warn_of_missing_files(job: Job) -> list[str]:
    """Say on stderr which files are not here; a job may be checked on another machine than it runs on."""
    warnings = []
    for name, dataset in job.datasets.items():
        files: str | tuple[str, ...] = getattr(dataset, "files", ())
        warnings += [
            f"datasets.{name}.files: nothing matches {pattern} on this machine"
            for pattern in ((files,) if isinstance(files, str) else files)
            if not os.path.exists(pattern) and next(glob.iglob(pattern, recursive=True), None) is None
        ]
    for warning in warnings:
        print(f"orchestrator: warning: {warning}", file=sys.stderr)
    return warnings


def validate(options: Namespace) -> int:
    """Check a job file."""
    job = _load_job(options)
    runs = _load_runs(job, options)
    warnings = _warn_of_missing_files(job)
    if options.json:
        print_json({"ok": True, "errors": [], "warnings": warnings})
        return 0
    names = [stage.name for stage in job.stages]
    sweep = f", a sweep of {counted(len(runs), 'run')}" if runs else ""
    print(f"{options.job}: valid: {counted(len(names), 'stage')} ({', '.join(names)}){sweep}")
    return 0


def plan(options: Namespace) -> int:
    """Show what a job will do, in numbers."""
    from launchers.plan_text import print_plan
    from launchers.planning import plan_job

    job = _load_job(options)
    runs = _load_runs(job, options)
    document = plan_job(job, runs_dir=options.runs_dir, with_model=options.with_model)
    points = job.sweep.points if job.sweep else ()
    document["sweep"] = {
        run.name: {"values": dict(point), "state": _run_state(job, run, options)}
        for run, point in zip(runs, points, strict=True)
    }
    document["early_stopping"] = _early_stopping(job, document)
    _warn_of_missing_files(job)
    if options.json:
        print_json(document)
    else:
        print_plan(document)
    return 0 if document["refusal"] is None else 2


def _early_stopping(job: Job, document: dict[str, Any]) -> dict[str, Any] | None:
    """What early stopping will do, as far as the steps of its stage are known."""
    from orchestrator.spec.early_stopping import compared_steps, rule_of

    rule = rule_of(job)
    if rule is None:
        return None
    num_steps = next(stage["steps"] for stage in document["stages"] if stage["name"] == rule.stage)
    steps = None if num_steps is None else compared_steps(rule, num_steps)
    return {**rule.model_dump(mode="json"), "compared_steps": steps}


def _run_state(job: Job, run: Job, options: Namespace) -> str:
    """How far a run of ``job``'s sweep is: ``done``, ``stopped early``, ``begun`` or ``to do``."""
    from launchers.planning import plan_job
    from launchers.verdicts import STOPPED_EARLY, lost_under
    from orchestrator.checkpoint.layout import RunLayout
    from orchestrator.spec.early_stopping import rule_of
    from orchestrator.tracking.events import read_events

    stages = plan_job(run, runs_dir=options.runs_dir, with_model=False)["stages"]
    if all(stage["done"] for stage in stages):
        return "done"
    rule = rule_of(job)
    events = read_events(RunLayout(options.runs_dir / run.name).events)
    if rule is not None and lost_under(events, rule.model_dump(mode="json")):
        return STOPPED_EARLY
    return "begun" if any(stage["done"] or stage.get("saved_step") for stage in stages) else "to do"


def data(options: Namespace) -> int:
    """Show what a job's datasets hold, and what becomes of their rows."""
    job = _load_job(options)
    from launchers.data_summary import summarize
    from launchers.data_text import print_summary

    def on_dataset(name: str) -> None:
        print(f"reading dataset '{name}'", file=sys.stderr)

    document = summarize(job, runs_dir=options.runs_dir, on_dataset=on_dataset)
    if options.json:
        print_json(document)
    else:
        print_summary(document)
    return 0


def run(options: Namespace) -> int:
    """Run a job, or go on where it stopped."""
    job = _load_job(options)
    if job.sweep is not None:
        from launchers.sweep import run_sweep

        runs = _load_runs(job, options)
        if options.redo is not None:
            # Else every run would start, and end with this message in a log of its own.
            job.stage(options.redo)
        return run_sweep(job, runs, options)
    from launchers.run import run_job

    return run_job(
        job, runs_dir=options.runs_dir, fresh=options.fresh, redo=options.redo, as_json=options.json
    )


def prepare(options: Namespace) -> int:
    """Make what all stages read, and write the run directory."""
    job = _load_one(options)
    from launchers.run import prepare_job

    layout = prepare_job(job, runs_dir=options.runs_dir, as_json=options.json)
    if options.json:
        print_json({"name": job.name, "run_dir": str(layout.root)})
    else:
        print(f"{layout.root} is prepared. Without Ray, stage by stage:")
        for stage in job.stages:
            workers = job.resources.num_workers
            print(
                f"  torchrun --nproc-per-node {workers} -m orchestrator.train.worker"
                f" {shlex.quote(str(layout.root))} --stage {stage.name}"
            )
    return 0


def rehearse(options: Namespace) -> int:
    """Run a short copy of a job with faults, and compare it with one without."""
    from dataclasses import asdict

    from launchers.rehearsal import rehearse as run_rehearsal
    from launchers.rehearsed_faults import chosen_faults

    job = _load_one(options)
    faults = chosen_faults(options.faults)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # As Ctrl-C: the run at hand ends with this command.
    signal.signal(signal.SIGTERM, stop)
    findings = run_rehearsal(job, options.stage, faults, options.runs_dir, say)
    ok = all(finding.ok for finding in findings)
    if options.json:
        print_json({"name": job.name, "ok": ok, "faults": [asdict(finding) for finding in findings]})
    else:
        _print_findings(job.name, findings)
    return 0 if ok else 1


def _print_findings(name: str, findings: list[Finding]) -> None:
    """A table of faults, and what is to be said about them."""
    header = ("fault", "noticed after", "resumed at step", "steps lost", "rows exactly once", "state equal")
    rows = [
        (
            finding.fault,
            "-" if finding.noticed_after_seconds is None else f"{finding.noticed_after_seconds:g} s",
            "-" if finding.resumed_at_step is None else number_text(finding.resumed_at_step),
            "-" if finding.steps_lost is None else number_text(finding.steps_lost),
            {True: "yes", False: "no", None: "-"}[finding.rows_exactly_once],
            finding.state_equal,
        )
        for finding in findings
    ]
    print_table(f"{name}: rehearsal", header, rows)
    for finding in findings:
        if finding.note:
            print(f"{finding.fault}: {finding.note}")


def submit(options: Namespace) -> int:
    """Start a job where its launcher says, without waiting for it."""
    from launchers.cli_submit import launcher_overrides, print_submitted
    from launchers.submission import submit_job, submit_sweep

    options.overrides = [*options.overrides, *launcher_overrides(options)]
    job = _load_job(options)
    if job.sweep is None:
        submitted = submit_job(job, runs_dir=options.runs_dir, dry_run=options.dry_run)
    else:
        runs = _load_runs(job, options)
        submitted = submit_sweep(job, runs, runs_dir=options.runs_dir, dry_run=options.dry_run)
    if options.json:
        print_json(submitted)
    else:
        print_submitted(submitted, options)
    if not options.dry_run:
        # It may wait in a queue for long before its driver looks.
        _warn_of_missing_files(job)
    return 0


def schema(options: Namespace) -> int:
    """Print the JSON Schema of the job file."""
    from orchestrator.spec.json_schema import job_schema

    print_json(job_schema())
    return 0
