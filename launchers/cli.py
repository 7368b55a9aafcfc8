"""The command line: options, dispatch, and how every command ends.

argparse, because importing typer alone takes most of the time that ``validate`` may take; commands
import what they need when they run. Exit codes: 0 done, 1 the run failed, 2 the user's input is
wrong, 75 stopped with its work saved (sysexits' EX_TEMPFAIL).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.errors import OrchestratorError, SpecError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

Command = Callable[[argparse.Namespace], int]
DESCRIPTION = "From one YAML file to a trained, fine-tuned, evaluated model."
UNEXPECTED, INTERRUPTED = 1, 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
GO_ON = " and run the same command again; it goes on from what is there"


class UsageError(OrchestratorError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that ``--json`` holds for usage errors too."""

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError`` with the command's usage."""
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


class _Once(argparse.Action):
    """Refuses a second value, which would take the place of the first without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        """Store the value."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option} is given twice: it takes one; stages on its weights start over with it")
        setattr(namespace, self.dest, values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments, rest = _split(sys.argv[1:] if arguments is None else arguments)
    as_json, with_traceback = "--json" in arguments, "--traceback" in arguments
    try:
        options = make_parser().parse_args(arguments)
        options.rest = rest
        command: Command = options.command
        return command(options)
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing is left to say, not even when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except OrchestratorError as error:
        return _fail(error, str(error), error.exit_code, as_json, with_traceback)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror}: free some{GO_ON}"
        elif isinstance(error, OSError) and error.filename:
            # Of two the second is the one that a new file was to replace.
            message = f"{error.filename2 or error.filename}: {error.strerror}: put that right{GO_ON}"
        else:
            hint = "" if with_traceback else "\nRun it again with --traceback to see where."
            message = f"unexpected {type(error).__name__}: {error}{hint}"
        return _fail(error, message, UNEXPECTED, as_json, with_traceback)


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The arguments of ``submit`` before and after ``--``; other commands keep all of theirs."""
    if list(arguments[:1]) != ["submit"] or "--" not in arguments:
        return arguments, []
    end = arguments.index("--")
    return arguments[:end], arguments[end + 1 :]


def _fail(error: Exception, message: str, exit_code: int, as_json: bool, with_traceback: bool) -> int:
    """Say why a command ended: one document on stdout for ``--json``, one message on stderr."""
    if with_traceback:
        import traceback

        traceback.print_exception(error)
    if as_json:
        from launchers.cli_print import print_json

        errors: list[dict[str, str | int | None]]
        errors = [{"file": None, "line": None, "key": "", "message": message}]
        if isinstance(error, SpecError):
            errors = [problem.as_dict() for problem in error.problems]
        print_json({"ok": False, "errors": errors})
    elif not with_traceback:
        print(message, file=sys.stderr)
    return exit_code


def make_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = _Parser(prog="orchestrator", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_job_commands(commands)
    _add_run_commands(commands)
    return parser


def _add(commands: Commands, name: str, run: str, summary: str) -> _Parser:
    """A command with the options that all have; ``run`` is imported when it is called."""
    parser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.set_defaults(command=_Lazy(run))
    return parser


def _add_job_commands(commands: Commands) -> None:
    validate = _add(commands, "validate", "cli_jobs:validate", "check a job file")
    plan = _add(commands, "plan", "cli_jobs:plan", "show what a job will do, in numbers")
    data = _add(commands, "data", "cli_jobs:data", "show what the datasets hold and what is left of them")
    run = _add(commands, "run", "cli_jobs:run", "run a job, or go on where it stopped")
    prepare = _add(
        commands, "prepare", "cli_jobs:prepare", "make tokenizers and data for workers started by hand"
    )
    rehearse = _add(
        commands, "rehearse", "cli_jobs:rehearse", "run a short copy of a job with faults, and compare"
    )
    submit = _add(commands, "submit", "cli_jobs:submit", "start a job elsewhere, without waiting for it")
    for parser in (validate, plan, data, run, prepare, rehearse, submit):
        parser.add_argument("job", metavar="JOB", type=Path, help="the job file (YAML)")
        parser.add_argument(
            "--set",
            dest="overrides",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="set a key, such as stages.pretrain.optimizer.lr=3e-4; may be repeated",
        )
    for parser in (plan, data, run, prepare, rehearse, submit):
        _add_runs_dir(parser)
    _add_launcher_options(submit)
    submit.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    plan.add_argument(
        "--no-model",
        dest="with_model",
        action="store_false",
        help="do not build models to count their parameters (needs no torch)",
    )
    rehearse.add_argument(
        "--faults", metavar="NAMES", help="which, by comma (default: all; an unknown one lists them)"
    )
    rehearse.add_argument("--stage", help="the training stage (default: the first)")
    run.add_argument(
        "--redo", metavar="STAGE", action=_Once, help="start one stage over; its folder is kept, renamed"
    )
    run.add_argument("--fresh", action="store_true", help="start over; an earlier run is kept, renamed")
    _add(commands, "schema", "cli_jobs:schema", "print the JSON Schema of the job file")


def _add_launcher_options(submit: _Parser) -> None:
    """What overrides ``launcher`` of the job file."""
    submit.add_argument(
        "--launcher", help="local, ray, slurm, kuberay, or your own (default: the job file's)"
    )
    submit.add_argument("--address", metavar="URL", help="ray: the cluster's jobs service, http://HEAD:8265")
    submit.add_argument("--nodes", type=int, metavar="N", help="slurm: number of nodes")
    submit.add_argument("--partition", metavar="P", help="slurm: partition")
    submit.add_argument("--time", metavar="T", help="slurm: time limit, such as 30 (minutes) or 1-12:00:00")
    submit.add_argument("--account", metavar="A", help="slurm: account that is charged")
    submit.add_argument(
        "--after", metavar="RUN", action="append", help="slurm: start when this run has finished; repeatable"
    )
    submit.epilog = "slurm: after -- any other flags of sbatch, such as: -- --qos=high --exclusive"


def _add_run_commands(commands: Commands) -> None:
    status = _add(commands, "status", "cli_status:status", "show how far a run is, or all runs")
    status.add_argument("run", metavar="RUN", nargs="?", help="a name, of a sweep, too, or a run directory")
    logs = _add(commands, "logs", "cli_runs:logs", "print a worker's log")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    logs.add_argument("--rank", type=int, default=0, help="the worker (default: 0)")
    cancel = _add(commands, "cancel", "cli_runs:cancel", "ask a run to save its work and stop")
    verify = _add(
        commands, "verify", "cli_runs:verify", "prove what a run read, and that its checkpoints are sound"
    )
    compare = _add(commands, "compare", "cli_runs:compare", "show in which keys and metrics runs differ")
    compare.add_argument("runs", metavar="RUN", nargs="+", help="names, of sweeps, too, or run directories")
    predict = _add(commands, "predict", "cli_runs:predict", "answer from a run's weights")
    predict.add_argument(
        "--text", dest="texts", metavar="TEXT", action="append", required=True, help="the input"
    )
    predict.add_argument(
        "--text-pair",
        dest="pairs",
        metavar="TEXT",
        action="append",
        default=[],
        help="the second text, one for each --text, where the stage classifies pairs",
    )
    for parser in (logs, cancel, verify, predict):
        parser.add_argument("run", metavar="RUN", help="a name, or a run directory")
    for parser in (logs, predict):
        parser.add_argument("--stage", help="the stage (default: the latest)")
    verify.add_argument("--stage", help="the training stage (default: all)")
    for parser in (status, logs, cancel, verify, compare, predict):
        _add_runs_dir(parser)


def _add_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs-dir",
        metavar="FOLDER",
        type=Path,
        default=Path(os.environ.get("ORCHESTRATOR_RUNS_DIR") or "runs"),
        help="where runs are (default: $ORCHESTRATOR_RUNS_DIR, or runs)",
    )


class _Lazy:
    """A command by ``module:function``, imported when it is called."""

    def __init__(self, target: str) -> None:
        self._module, _, self._function = target.partition(":")

    def __call__(self, options: argparse.Namespace) -> int:
        import importlib

        command: Command = getattr(importlib.import_module(f"launchers.{self._module}"), self._function)
        return command(options)


class _Version(argparse.Action):
    """Print the installed version; looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        from importlib.metadata import version

        print(f"orchestrator {version('orchestrator')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
