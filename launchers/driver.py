"""The driver: walks a job's stages and leaves a run directory from which the same command goes on.

1. prepare what each stage reads, in dependency order, and compute its fingerprint;
2. skip those whose ``result.json`` has that fingerprint; set aside those whose inputs were made anew;
3. run the others on Ray, in one group of workers that is restarted after a fault;
4. end with the first stage that stopped early or failed.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Literal

from launchers.controller import start_controller
from launchers.display import Display
from launchers.failures import failure_message, rank_failures
from launchers.importing import imported_meanwhile
from launchers.planning import plan_job
from launchers.preparation import Preparation, StoppedError, input_stages, refuse_to_go_on
from launchers.ray_session import check_room, check_this_machine
from launchers.ray_stage import run_stages_on_ray
from launchers.ray_tasks import RayTasks
from launchers.run_directory import StopWish, opened_run, set_aside
from launchers.runs import read_result
from launchers.stage_news import WAITING
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.weights import weights_problem
from orchestrator.errors import LaunchError, OrchestratorError
from orchestrator.spec.job import EvaluateStage, Job, Stage
from orchestrator.spec.plan import fewest_workers, stage_order
from orchestrator.tracking.events import append_event, read_events, replace_text

State = Literal["finished", "stopped"]
# It imports torch and transformers.
PREPARING = "orchestrator.train.inputs"


class RefusedError(OrchestratorError):
    """What a worker refused, with its own message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Take over the worker's exit code."""
        super().__init__(message)
        self.exit_code = exit_code


def run_stages(
    job: Job, layout: RunLayout, display: Display, *, fresh: bool, redo: str | None, stop: StopWish
) -> State:
    """Run every stage that is not finished yet.

    Args:
        fresh: Start over; the old run directory is renamed.
        redo: Start one stage over; its old folder is renamed.
        stop: Ends the walk early, at the next step or batch of rows.

    Raises:
        OrchestratorError: The run cannot start, or a stage failed; ``events.jsonl`` says which.
    """
    with opened_run(job, layout, display, fresh=fresh, redo=redo) as (pinned_job, run_id):
        stop.open()
        append_event(layout.events, "run_started", pid=os.getpid(), host=socket.gethostname())
        try:
            state = _walk(pinned_job, layout, display, run_id, stop)
        except StoppedError:
            state = "stopped"
        except BaseException as error:
            append_event(layout.events, "run_failed", error=type(error).__name__, message=str(error))
            raise
        append_event(layout.events, f"run_{state}")
        stop.close()
        return state


def _walk(job: Job, layout: RunLayout, display: Display, run_id: str, stop: StopWish) -> State:
    """The stages in order, on a Ray that starts as soon as one of them surely needs it."""
    check_this_machine(fewest_workers(job))
    with RayTasks(layout.cache, lambda: refuse_to_go_on(layout)) as tasks:
        preparation = Preparation(job, layout, display, run_id, tasks)
        preparation.check_sources()
        controller = None
        if not all(layout.stage(stage.name).result.exists() for stage in job.stages):
            # Ray's processes take seconds to start, and so does torch.
            with imported_meanwhile(PREPARING):
                tasks.connect()
                controller = start_controller()
        waiting = _prepare(job, layout, display, preparation)
        plan = plan_job(job, runs_dir=layout.root.parent, with_model=False)
        replace_text(layout.plan, json.dumps(plan, indent=1))
        if not waiting:
            return "finished"
        refuse_to_go_on(layout)
        tasks.connect()
        check_room(
            fewest_workers(job),
            lambda message: _wait_for_nodes(waiting[0], layout, display, message),
            lambda: refuse_to_go_on(layout),
        )
        return _run_waiting(job, [stage.name for stage in waiting], layout, display, stop, controller)


def _wait_for_nodes(stage: Stage, layout: RunLayout, display: Display, message: str) -> None:
    """Say that a cluster is waited for that is too small so far."""
    append_event(layout.events, WAITING, stage=stage.name)
    display.note(stage.name, message)


def _prepare(job: Job, layout: RunLayout, display: Display, preparation: Preparation) -> list[Stage]:
    """Make what all stages read; those that are not finished, or read one that is not."""
    waiting: list[Stage] = []
    for stage in stage_order(job):
        append_event(layout.events, "stage_preparing", stage=stage.name)
        inputs_done = not {waited.name for waited in waiting} & set(input_stages(stage))
        fingerprint = preparation.prepare(stage)
        if inputs_done and _is_finished(stage, layout, fingerprint, display):
            display.skip(stage.name)
        else:
            waiting.append(stage)
    return waiting


def _is_finished(stage: Stage, layout: RunLayout, fingerprint: str, display: Display) -> bool:
    """Whether a stage has this fingerprint's result, and the weights that belong to it.

    Weights that are damaged are kept under another name; the stage writes them anew.
    """
    stage_layout = layout.stage(stage.name)
    if read_result(stage_layout).get("fingerprint") != fingerprint:
        return False
    problem = weights_problem(stage_layout)
    if problem is not None:
        kept = set_aside(stage_layout.weights)
        append_event(layout.events, "weights_damaged", stage=stage.name, problem=problem, kept_as=str(kept))
        display.note(stage.name, f"{problem}; they are written anew, what was there is {kept}")
        return False
    if isinstance(stage, EvaluateStage) or any(stage_layout.weights.glob("*.safetensors")):
        return True
    display.note(stage.name, f"{stage_layout.weights} holds no weights any more; they are written anew")
    return False


def _run_waiting(
    job: Job, stages: list[str], layout: RunLayout, display: Display, stop: StopWish, controller: Any
) -> State:
    """Run the stages' workers and turn how they ended into an outcome or an error."""
    for name in stages:
        layout.stage(name).result.unlink(missing_ok=True)
    append_event(layout.events, "stage_starting", stage=stages[0])
    num_events = sum(1 for _ in read_events(layout.events))
    display.start(stages)
    outcome, why = "failed", ""
    try:
        outcome, _, why = run_stages_on_ray(job, stages, layout, controller).partition(": ")
    except LaunchError as error:
        if stop.is_set() or layout.stop_request.exists():
            # Whoever sends a signal to all processes at once ends Ray before the workers have saved.
            outcome = "stopped"
            raise StoppedError("the workers ended before they had saved") from error
        name = _unfinished(stages, layout)
        raise LaunchError(failure_message(error, layout, num_events, job.stage(name))) from error
    finally:
        display.end(outcome)
        if outcome in ("failed", "refused"):
            append_event(layout.events, "stage_failed", stage=_unfinished(stages, layout))
    if outcome == "refused":
        name = _unfinished(stages, layout)
        failures = rank_failures(layout, num_events, name)
        if not failures:
            # On a full disk, or where no node sees the run directory, they could not write it down.
            raise LaunchError(f"stage '{name}': {why}")
        raise RefusedError(str(failures[-1]["message"]), int(failures[-1]["exit_code"]))
    return "stopped" if outcome == "stopped" else "finished"


def _unfinished(stages: list[str], layout: RunLayout) -> str:
    """The stage at which the workers ended early."""
    return next((name for name in stages if not layout.stage(name).result.exists()), stages[-1])
