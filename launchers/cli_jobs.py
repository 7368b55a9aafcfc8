"""The commands that take a job file: validate, plan, data, run, prepare, submit, schema."""

from __future__ import annotations

import glob
import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from launchers.cli_print import number_text, print_json, print_table

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
    warnings = _warn_of_missing_files(job)
    if options.json:
        print_json({"ok": True, "errors": [], "warnings": warnings})
        return 0
    names = [stage.name for stage in job.stages]
    count = f"{len(names)} stage" if len(names) == 1 else f"{len(names)} stages"
    print(f"{options.job}: valid: {count} ({', '.join(names)})")
    return 0


def plan(options: Namespace) -> int:
    """Show what a job will do, in numbers."""
    from launchers.planning import plan_job

    job = _load_job(options)
    document = plan_job(job, runs_dir=options.runs_dir, with_model=options.with_model)
    _warn_of_missing_files(job)
    if options.json:
        print_json(document)
    else:
        _print_plan(document)
    return 0


def _print_plan(document: dict[str, Any]) -> None:
    """A table of the training stages' numbers, then what each stage is and what it promises."""
    resources = document["resources"]
    trained = [stage for stage in document["stages"] if stage["kind"] == "train"]
    title = (
        f"{document['name']}: workers {_workers_text(resources['num_workers'])}, CPU cores each"
        f" {resources['cpus_per_worker']}, GPUs each {resources['gpus_per_worker']},"
        f" run directory {document['run_dir']}"
    )
    header = ("stage", "strategy", "batch", "seq_len", "steps", "rows", "tokens", "parameters")
    print_table(title, header, [_plan_row(stage) for stage in trained])
    print("batch: workers x micro-batch x accumulation = rows per step")
    if isinstance(resources["num_workers"], dict):
        fitting = ", ".join(map(str, document["fitting_workers"]))
        print(f"numbers of workers that can share the batches of all stages: {fitting}")
    print("Stages, in order:")
    for index, stage in enumerate(document["stages"], start=1):
        needs = f", needs {stage['needs']}" if stage["needs"] else ""
        saved = stage.get("saved_step")
        to_do = "to do" if saved is None else f"begun, goes on from step {saved:,}"
        state = "done" if stage["done"] else to_do
        print(f"  {index}. {stage['name']}: {stage['kind']}{needs}: {state}")
        if stage["kind"] == "train":
            print(f"     {stage['promise']}")
            if stage["packing_efficiency"] is not None:
                print(f"     rows are {stage['packing_efficiency']:.2%} full of tokens")
    if document["refusal"]:
        print(f"'run' refuses this job as it is: {document['refusal']}")


def _workers_text(workers: int | dict[str, int]) -> str:
    """``2``, or ``1 to 4``."""
    return str(workers) if isinstance(workers, int) else f"{workers['min']} to {workers['max']}"


def _plan_row(stage: dict[str, Any]) -> tuple[str, ...]:
    batch = (
        f"{stage['world_size']} x {stage['micro_batch_size']} x {stage['grad_accum_steps']}"
        f" = {stage['global_batch_size']}"
    )
    rows = number_text(stage["rows"])
    if stage["epochs"] is not None:
        rows = f"{stage['epochs']:g} epochs"
    return (
        stage["name"],
        stage["strategy"],
        batch,
        number_text(stage["seq_len"]),
        number_text(stage["steps"]),
        rows,
        number_text(stage["tokens"]),
        _parameters_text(stage["parameters"], stage["trained_parameters"]),
    )


def _parameters_text(num_parameters: int | None, num_trained: int | None) -> str:
    """How many there are, and how many of them are trained where it is not all."""
    if num_trained == num_parameters:
        return number_text(num_parameters)
    return f"{number_text(num_parameters)}, {number_text(num_trained)} trained"


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
    from launchers.run import run_job

    return run_job(
        job, runs_dir=options.runs_dir, fresh=options.fresh, redo=options.redo, as_json=options.json
    )


def prepare(options: Namespace) -> int:
    """Make what all stages read, and write the run directory."""
    job = _load_job(options)
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
                f" {layout.root} --stage {stage.name}"
            )
    return 0


def rehearse(options: Namespace) -> int:
    """Run a short copy of a job with faults, and compare it with one without."""
    from dataclasses import asdict

    from launchers.rehearsal import rehearse as run_rehearsal
    from launchers.rehearsed_faults import chosen_faults

    job = _load_job(options)
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
    from launchers.submission import submit_job

    options.overrides = [*options.overrides, *_launcher_overrides(options)]
    job = _load_job(options)
    submitted = submit_job(job, runs_dir=options.runs_dir, dry_run=options.dry_run)
    if options.json:
        print_json(submitted)
    elif options.dry_run:
        print(submitted["command"])
    else:
        print(f"{job.name} submitted to {job.launcher.name} as {submitted['job_id']}")
        print(f"  orchestrator status {job.name}")
        print(f"  orchestrator logs {job.name} -f    (once its workers have started)")
    return 0


def _launcher_overrides(options: Namespace) -> list[str]:
    """The flags of ``submit`` as keys of the job, checked like those of the file."""
    given: dict[str, Any] = {"name": options.launcher}
    for name in ("address", "nodes", "partition", "time", "account"):
        given[f"options.{name}"] = getattr(options, name)
    given["options.after"] = options.after
    given["options.flags"] = list(options.rest) or None
    # JSON is YAML, quoted; and a flag is not interpolated, which a shell has done already.
    return [
        f"launcher.{key}={json.dumps(value).replace('${', '$${')}"
        for key, value in given.items()
        if value is not None
    ]


def schema(options: Namespace) -> int:
    """Print the JSON Schema of the job file."""
    from orchestrator.spec.json_schema import job_schema

    print_json(job_schema())
    return 0
