"""The plan of a job for a person: a table of its training stages, then what each stage is and promises."""

from __future__ import annotations

import json
from typing import Any

from launchers.cli_print import number_text, print_table


def print_plan(document: dict[str, Any]) -> None:
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
        print(f"  {index}. {stage['name']}: {stage['kind']}{needs}: {_state_text(stage)}")
        for line in [*_changed_text(stage), *filter(None, [document["notes"].get(stage["name"])])]:
            print(f"     {line}")
        if stage["kind"] == "train":
            print(f"     {stage['promise']}")
            for dataset, earlier in stage["read_before"].items():
                print(
                    f"     begins '{dataset}' with the rows that '{earlier}' began with; the same files under"
                    " another dataset's name come in another order"
                )
            if stage["packing_efficiency"] is not None:
                print(f"     rows are {stage['packing_efficiency']:.2%} full of tokens")
    if document["sweep"]:
        print("Runs of the sweep, each in a run directory of its own; above is the job without their values:")
    for name, run in document["sweep"].items():
        values = ", ".join(f"{key}={json.dumps(value)}" for key, value in run["values"].items())
        print(f"  {name}: {values}: {run['state']}")
    if document["early_stopping"]:
        print(_early_stopping_text(document["early_stopping"]))
    if document["refusal"]:
        print(f"'run' refuses this job as it is: {document['refusal']}")


def _state_text(stage: dict[str, Any]) -> str:
    """What the next start does with a stage."""
    state: str = stage["state"]
    if state == "goes on" and stage["saved_step"] is not None:
        return f"begun, goes on from step {stage['saved_step']:,}"
    if state == "starts over":
        return f"starts over: '{stage['needs']}' gives it other weights (the old folder is kept, renamed)"
    return state


def _changed_text(stage: dict[str, Any]) -> list[str]:
    """What became of the stage's data since it was prepared, and what follows from that."""
    lines = []
    if stage["gone_data"]:
        names = ", ".join(f"'{name}'" for name in stage["gone_data"])
        lines.append(f"the source of {names} is gone: the rows that were prepared from it are kept")
    if stage["changed_data"]:
        named, more = stage["changed_data"][:3], len(stage["changed_data"]) - 3
        files = "; ".join(named) + (f"; and {more} more" if more > 0 else "")
        what = "refused if that changes its training rows"
        if stage["kind"] != "train":
            what = "done again if that changes its rows"
        lines.append(f"its data changed: {files}: {what}")
    return lines


def _early_stopping_text(rule: dict[str, Any]) -> str:
    """When runs are compared, and which of them end."""
    grace, factor, steps = rule["grace_steps"], rule["reduction_factor"], rule["compared_steps"]
    at = ", ".join(f"{step:,}" for step in steps or (grace, grace * factor))
    return (
        f"Early stopping: at step {at}{'' if steps else ', ...'} of '{rule['stage']}' a run ends unless its"
        f" {rule['metric']} is among the best 1/{factor} of the runs that were there before it"
    )


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
        rows = f"{stage['epochs']:g} {'epoch' if stage['epochs'] == 1 else 'epochs'}"
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
