"""The commands that take a run, status aside: logs, cancel, verify, compare, predict."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchers import run_logs, runs, submitted
from launchers.cli_print import metrics_text, number_text, print_json, print_table
from launchers.submission_record import read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import OrchestratorError, PlanError


def logs(options: Namespace) -> int:
    """Print a worker's log, once or as it grows."""
    if options.json and options.follow:
        raise PlanError(
            "--json prints one document and --follow has no end; give one of them:"
            f" 'orchestrator logs {options.run} --json' or 'orchestrator logs {options.run} --follow'"
        )
    run_dir = runs.find_run(options.run, options.runs_dir)
    if options.stage is None and not _has_started(run_dir):
        return _driver_output(options, run_dir)
    if options.follow:
        run_logs.follow_log(run_dir, options.stage, options.rank, _write)
        return 0
    stage, path = run_logs.find_log(run_dir, options.stage, options.rank)
    if options.json:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        print_json({"name": run_dir.name, "stage": stage, "rank": options.rank, "lines": lines})
    else:
        _write(path.read_bytes())
    return 0


def _has_started(run_dir: Path) -> bool:
    """Whether a stage has a log; before that, a submitted run has the output of its driver."""
    return read_submission(RunLayout(run_dir)) is None or run_logs.has_stage_log(run_dir)


def _driver_output(options: Namespace, run_dir: Path) -> int:
    """Print what a submitted run's driver says before its first stage has a log."""
    if options.follow:
        has_printed = submitted.follow_output(run_dir, _write)
        if run_logs.has_stage_log(run_dir) or not has_printed:
            run_logs.follow_log(run_dir, None, options.rank, _write)
        return 0
    output = submitted.driver_output(run_dir)
    if output is None:
        run_logs.find_log(run_dir, None, options.rank)
    elif options.json:
        lines = output.splitlines()
        print_json({"name": run_dir.name, "stage": None, "rank": None, "lines": lines})
    else:
        _write(output.encode())
    return 0


def _write(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def cancel(options: Namespace) -> int:
    """Ask a run, or those of a sweep, to save its work and stop, or take it out of its queue."""
    try:
        run_dir = runs.find_run(options.run, options.runs_dir)
    except runs.UnknownRunError:
        swept = runs.sweep_runs(options.run, options.runs_dir)
        if not swept:
            raise
        return _cancel_sweep(options, swept)
    state = submitted.stop_run(run_dir)
    if options.json:
        print_json({"name": run_dir.name, "state": state})
    else:
        print(_cancelled_text(run_dir, state))
    return 0


def _cancel_sweep(options: Namespace, swept: Sequence[Path]) -> int:
    """Cancel the runs of a sweep that has no run directory: each is a job of its own.

    Those whose place refuses are told, and the others are cancelled all the same.
    """
    name = Path(options.run).name
    if not any(RunLayout(run_dir).submission.is_file() for run_dir in swept):
        raise PlanError(
            f"the sweep '{name}' was not submitted but is run by one command, which would begin the next run:"
            " end that with Ctrl-C, or cancel one of its runs by name"
        )
    states, refused = dict[str, str](), dict[str, str]()
    # The last first: those that wait must not begin when an earlier one ends.
    for run_dir in reversed(swept):
        try:
            states[run_dir.name] = submitted.stop_run(run_dir)
        except runs.UnknownRunError:
            states[run_dir.name] = runs.run_status(run_dir)["state"]
            continue
        except OrchestratorError as error:
            states[run_dir.name] = runs.run_status(run_dir)["state"]
            refused[run_dir.name] = str(error)
            if not options.json:
                print(f"{run_dir.name}: {error}", file=sys.stderr)
            continue
        if not options.json:
            print(_cancelled_text(run_dir, states[run_dir.name]))
    if not refused and not set(states.values()) & {"stopping", "cancelled", "cancelling"}:
        listed = ", ".join(f"{run} is '{states[run]}'" for run in sorted(states)[: runs.NUM_NAMED])
        raise runs.UnknownRunError(f"no run of the sweep '{name}' is running or queued: {listed}")
    if options.json:
        names = [run_dir.name for run_dir in swept]
        listed_states = [{"name": run, "state": states[run], "problem": refused.get(run)} for run in names]
        print_json({"name": name, "runs": listed_states})
    elif refused:
        left = ", ".join(run_dir.name for run_dir in swept if run_dir.name in refused)
        print(f"of the sweep '{name}' not ended, for the reasons above: {left}", file=sys.stderr)
    return 1 if refused else 0


def _cancelled_text(run_dir: Path, state: str) -> str:
    """What was done, and where the work is."""
    if state == "stopping":
        stages = runs.run_status(run_dir)["stages"]
        is_setting_up = any(stage["state"] in runs.SETTING_UP.values() for stage in stages)
        when = "before its workers start" if is_setting_up else "after this step"
        return f"{run_dir.name} stops {when}, with its work saved"
    if state == "cancelling":
        return (
            f"{run_dir.name} is cancelled; its place keeps it in the queue until its turn comes, and it ends"
            " then without running"
        )
    begun = [stage for stage in runs.run_status(run_dir)["stages"] if stage["state"] != "waiting"]
    if not begun and not RunLayout(run_dir).events.is_file():
        return f"{run_dir.name} is cancelled before it started"
    saved = [stage for stage in begun if stage["state"] == "finished" or stage["saved_step"] is not None]
    if not saved:
        return f"{run_dir.name} is taken out of its queue; it has begun, but saved nothing yet"
    last = saved[-1]
    step = "the end" if last["state"] == "finished" else f"step {number_text(last['saved_step'])}"
    return f"{run_dir.name} is taken out of its queue; its work is saved at {step} of stage '{last['name']}'"


def _find_one(options: Namespace) -> Path:
    """The directory of a run; ``UnknownRunError`` for that of a sweep, which has no stages."""
    run_dir = runs.find_run(options.run, options.runs_dir)
    swept = runs.sweep_runs(options.run, options.runs_dir)
    if swept and not RunLayout(run_dir).job.is_file():
        names = [path.name for path in swept]
        known = ", ".join(names[: runs.NUM_NAMED]) + (f" to {names[-1]}" if names[runs.NUM_NAMED :] else "")
        raise runs.UnknownRunError(f"'{options.run}' is a sweep; give one of its runs instead: {known}")
    return run_dir


def verify(options: Namespace) -> int:
    """Check a run's checkpoints byte by byte, and prove from its ledgers what it read."""
    run_dir = _find_one(options)
    from launchers.verification import verify_run

    document = verify_run(run_dir, options.stage)
    if options.json:
        print_json(document)
    else:
        _print_verification(document)
    return 0 if document["ok"] else 1


def _print_verification(document: dict[str, Any]) -> None:
    """A table of ledgers, one of checkpoints, and everything that does not hold."""
    ledgers, problems, notes = [], [], []
    for stage in document["stages"]:
        ledger = stage["ledger"]
        epochs = metrics_text(ledger["epochs"]) or "-"
        workers = ", ".join(map(str, ledger["world_sizes"])) or "-"
        left_out = f" ({ledger['steps_left_out']:,} left out)" if ledger["steps_left_out"] else ""
        counts = number_text(ledger["steps"]) + left_out, number_text(ledger["rows"])
        ledgers.append((stage["name"], *counts, workers, epochs, _verdict(ledger)))
        problems += [] if ledger["ok"] else [ledger["problem"]]
        notes += [f"stage '{stage['name']}': {ledger['note']}"] if ledger["note"] else []
    checkpoints = document["checkpoints"]
    problems += [
        f"stage '{found['stage']}', checkpoint of step {found['step']}: {found['problem']}"
        for found in checkpoints
        if not found["ok"]
    ]
    problems += [
        f"stage '{found['stage']}', weights: {found['problem']}; 'orchestrator run' writes them anew"
        for found in document["weights"]
        if not found["ok"]
    ]
    problems += [
        f"stage '{found['stage']}', evaluated rows of '{found['dataset']}': {found['problem']}"
        for found in document["held_out"]
        if not found["ok"]
    ]
    header = ("stage", "steps", "rows", "workers", "epochs", "each row once an epoch, data unchanged")
    print_table(f"{document['name']}: ledgers", header, ledgers)
    rows = [(found["stage"], number_text(found["step"]), _verdict(found)) for found in checkpoints]
    rows += [(found["stage"], "weights", _verdict(found)) for found in document["weights"]]
    rows += [
        (found["stage"], f"evaluated rows of {found['dataset']}", _verdict(found))
        for found in document["held_out"]
    ]
    if rows:
        print_table(f"{document['name']}: files", ("stage", "step", "every byte as written"), rows)
    is_empty = not checkpoints and not any(stage["ledger"]["steps"] for stage in document["stages"])
    verdict = "everything else holds" if notes else "everything holds"
    if is_empty:
        verdict = "nothing to verify yet: no stage has a checkpoint"
    print("\n".join([*notes, *(problems or [f"{document['name']}: {verdict}"])]))


def _verdict(part: dict[str, Any]) -> str:
    return "yes" if part["ok"] else "NO"


def compare(options: Namespace) -> int:
    """Show in which keys of their jobs and in which final metrics runs differ."""
    from launchers.comparison import compare_runs

    document = compare_runs([path for run in options.runs for path in runs.find_all(run, options.runs_dir)])
    if options.json:
        print_json(document)
        return 0
    names = document["runs"]
    keys = [(found["key"], *map(str, found["values"])) for found in document["keys"]]
    if keys:
        print_table("keys of the job files", ("key", *names), keys)
    else:
        print("their job files differ in nothing but the name")
    metrics = [
        (
            found["stage"],
            found["metric"],
            *("-" if value is None else f"{value:.6g}" for value in found["values"]),
        )
        for found in document["metrics"]
    ]
    if metrics:
        print_table("final metrics", ("stage", "metric", *names), metrics)
    else:
        print("none of their stages is finished")
    return 0


def predict(options: Namespace) -> int:
    """Answer from a run's weights: labels, numbers, tags, a filled mask, generated text, or a reply."""
    run_dir = _find_one(options)
    from launchers.predict import predict as answer_all

    answers = answer_all(run_dir, stage=options.stage, texts=options.texts, pairs=options.pairs)
    if options.json:
        print_json({"name": run_dir.name, "predictions": answers})
        return 0
    for answer in answers:
        asked = [answer["text"], *([answer["text_pair"]] if "text_pair" in answer else [])]
        print("\n".join([*asked, f"  {_answer_text(answer)}"]))
    return 0


def _answer_text(answer: dict[str, Any]) -> str:
    """What a person reads first: the labels, the tagged or filled text, or the generated one."""
    if "labels" in answer:
        return f"{', '.join(answer['labels']) or 'no label'}  ({metrics_text(answer['probabilities'])})"
    if "values" in answer:
        return metrics_text(answer["values"])
    if "tags" in answer:
        # Words past the end of a row have no tag.
        tagged = zip(answer["words"], answer["tags"], strict=True)
        return "  ".join(f"{word}/{'?' if tag is None else tag}" for word, tag in tagged)
    if "label" in answer:
        return f"{answer['label']}  ({metrics_text(answer['probabilities'])})"
    if "filled" in answer:
        # In quotes: a space at the beginning of a token tells it from the one that continues a word.
        listed = [f"{each['token']!r} {each['probability']:.4g}" for each in answer["candidates"]]
        return f"{answer['filled']}  ({'  '.join(listed)})"
    return str(answer["reply"] if "reply" in answer else answer["generated"])
