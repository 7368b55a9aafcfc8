"""``orchestrator run`` for a person: the driver with a display, signals and a last word."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from launchers.cli_print import apart_from_json, print_json
from launchers.display import Display
from launchers.driver import State, run_stages
from launchers.preparation import prepare_stages
from launchers.progress import ProgressDisplay, format_metrics
from launchers.ray_notice import give_notice, is_asked_to_make_room
from launchers.run_directory import StopWish
from launchers.runs import read_result, run_status
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.counts import counted
from orchestrator.errors import LaunchError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.tracking.events import append_event

Result = TypeVar("Result")
# Ctrl-C, what schedulers and shells send, and what batch systems send ahead of a time limit.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# What shells report of a process that ended by SIGINT.
INTERRUPTED = 130
# Before workers that Ray has given notice are asked through the run directory as well. They answered it after
# 1.4 to 2.7 s, and after 4.3 s where Ray Train looks every 5 s: signals sent to jobs on two SLURM nodes.
NOTICE_LEAD_SECONDS = 10.0
# At most this part of the time that is left.
NOTICE_LEAD_FRACTION = 0.1
EXIT_CODES: dict[State, int] = {"finished": 0, "stopped": 75}


def run_job(job: Job, *, runs_dir: Path, fresh: bool, redo: str | None, as_json: bool) -> int:
    """Run a job to its end and print what came of it; the command's exit code."""
    layout = RunLayout(runs_dir.resolve() / job.name)
    display = ProgressDisplay(sys.stderr if as_json else sys.stdout, layout)
    with apart_from_json(as_json=as_json):
        state = _run_stoppable(job, layout, display, fresh=fresh, redo=redo)
    if as_json:
        print_json(run_status(layout.root))
    elif state == "stopped":
        same = _same_command(fresh=fresh, redo=redo)
        print(f"Stopped; {layout.root} holds its work, and {same} goes on from there.")
    else:
        _print_end(job, layout, runs_dir)
    return EXIT_CODES[state]


def prepare_job(job: Job, *, runs_dir: Path, as_json: bool) -> RunLayout:
    """Make what all stages of a job read; the run directory that workers are given."""
    layout = RunLayout(runs_dir.resolve() / job.name)
    display = ProgressDisplay(sys.stderr if as_json else sys.stdout, layout)
    with apart_from_json(as_json=as_json):
        prepare_stages(job, layout, display)
    return layout


def _run_stoppable(job: Job, layout: RunLayout, display: Display, *, fresh: bool, redo: str | None) -> State:
    """Run the driver until it ends or is asked to stop."""
    stop = StopWish(layout)
    if is_asked_to_make_room():
        stop.set("a signal before the driver started")
    return stoppable(
        lambda: run_stages(job, layout, display, fresh=fresh, redo=redo, stop=stop),
        lambda by: _ask_to_stop(stop, by, layout),
        lambda: None,
        same=_same_command(fresh=fresh, redo=redo),
    )


def _same_command(*, fresh: bool, redo: str | None) -> str:
    """What goes on with a run: with a flag that starts over, the command would start over again."""
    flag = "--fresh" if fresh else "--redo" if redo is not None else None
    return "the same command" if flag is None else f"the same command without {flag}"


def _ask_to_stop(stop: StopWish, by: str, layout: RunLayout) -> None:
    """Ask the workers through the run directory, a little later where Ray has told them already."""
    if not is_asked_to_make_room():
        stop.set(by)
        return
    try:
        num_nodes, seconds_left = give_notice()
    except LaunchError as error:
        stop.set(by)
        print(f"No notice by Ray: {error}; workers are asked through the run directory.", file=sys.stderr)
        return
    stop.set(by, after_seconds=max(0.0, min(NOTICE_LEAD_SECONDS, seconds_left * NOTICE_LEAD_FRACTION)))
    append_event(layout.events, "notice_given", nodes=num_nodes, seconds_left=round(seconds_left))
    nodes = "its one node is" if num_nodes == 1 else f"all {num_nodes} nodes are"
    print(f"Ray gives notice that {nodes} taken away.", file=sys.stderr)


def stoppable(
    work: Callable[[], Result],
    stop: Callable[[str], None],
    end: Callable[[], None],
    *,
    same: str = "the same command",
) -> Result:
    """Do ``work`` in a thread, so that this one stays free for signals.

    Args:
        stop: Called at the first of ``STOP_SIGNALS``, with its name: save and stop. More change nothing.
        end: Called at a SIGINT after that, by which this process ends at once: somebody sits at a terminal.
        same: What to type to go on after that.

    Once it has returned, all of them but SIGINT are ignored: nothing is left to do but to exit.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    is_stopping = False

    def take_down() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping and number != signal.SIGINT:
            return
        if is_stopping:
            # Threads of native libraries cannot be ended one by one; what the run needs is on the disk.
            print(f"Stopped at once; {same} goes on from the last checkpoint.", file=sys.stderr)
            end()
            os._exit(INTERRUPTED)
        is_stopping = True
        stop(signal.Signals(number).name)
        print("Stopping as soon as the work is saved; Ctrl-C once more to stop at once.", file=sys.stderr)

    thread = threading.Thread(target=take_down, name="driver", daemon=True)
    thread.start()
    while thread.is_alive():
        # Again and again: Ray puts handlers of its own, which end the process, in their place when it starts.
        for number in STOP_SIGNALS:
            signal.signal(number, on_signal)
        thread.join(timeout=0.2)
    for number in STOP_SIGNALS:
        # Python puts the defaults back while it exits, but not in the place of SIG_IGN: otherwise a scheduler
        # that signals once more would replace the exit code.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)
    if errors:
        raise errors[0]
    return results[0]


def _print_end(job: Job, layout: RunLayout, runs_dir: Path) -> None:
    """Where the weights are, the numbers, and what to type next."""
    for stage in job.stages:
        stage_layout = layout.stage(stage.name)
        result = read_result(stage_layout)
        print(f"\n{stage.name}: {_describe(result)}")
        if stage_layout.weights.exists():
            print(f"  weights: {stage_layout.weights}")
    print("\nNext:")
    for command in next_commands(job, layout, runs_dir):
        print(f"  {command}")


def next_commands(job: Job, layout: RunLayout, runs_dir: Path) -> list[str]:
    """What to type when a run has finished; each works as it stands."""
    last = [stage for stage in job.stages if isinstance(stage, TrainStage)][-1]
    options = "" if str(runs_dir) == "runs" else f" --runs-dir {shlex.quote(str(runs_dir))}"
    return [
        f"orchestrator predict {job.name} --stage {last.name}{options} {_question(job, last, layout)}",
        f"orchestrator status {job.name}{options}",
        f"orchestrator logs {job.name} --stage {last.name}{options}",
    ]


def _question(job: Job, stage: TrainStage, layout: RunLayout) -> str:
    """Options of ``predict`` with which a stage's weights can be asked: the texts are left open."""
    if stage.objective.name == "masked_lm":
        return f'--text "... {_mask(layout.stage(stage.name))} ..."'
    reads_pairs = any(job.datasets[name].text_pair_column for name in stage.data.mixture)
    is_pair = stage.objective.name == "sequence_classification" and reads_pairs
    return '--text "..."' + (' --text-pair "..."' if is_pair else "")


def _mask(stage: StageLayout) -> str:
    """The mask of the tokenizer beside a stage's weights, read without transformers."""
    path = stage.weights / "tokenizer_config.json"
    mask = json.loads(path.read_text(encoding="utf-8"))["mask_token"]
    return str(mask["content"] if isinstance(mask, dict) else mask)


def _describe(result: dict[str, Any]) -> str:
    """Steps and metrics of one finished stage."""
    steps = f"{counted(result['step'], 'step')}  " if result["step"] else ""
    return steps + format_metrics(result["metrics"])
