"""``submit``: its flags as keys of the job, and what it says when the job is handed over."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from launchers.runs import runs_dir_flag
from orchestrator.counts import counted


def print_submitted(submitted: Mapping[str, Any], options: Namespace) -> None:
    """Print the job id and what to type next, or on a dry run what would be submitted."""
    if options.dry_run:
        print(submitted["command"] if "command" in submitted else submitted["manifest"].rstrip())
        return
    name, launcher, flag = submitted["name"], submitted["launcher"], runs_dir_flag(options.runs_dir)
    if "job_ids" in submitted:
        ids = submitted["job_ids"]
        span = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
        print(f"{counted(len(ids), 'run')} of {name} submitted to {launcher} as {span}")
        print(f"  orchestrator status {name}{flag}")
        return
    print(f"{name} submitted to {launcher} as {submitted['job_id']}")
    print(f"  orchestrator status {name}{flag}")
    print(f"  orchestrator logs {name}{flag} -f    (once its workers have started)")


def launcher_overrides(options: Namespace) -> list[str]:
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
