"""A process killed at any call that changes the disk leaves a newest valid checkpoint, and it loads."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from orchestrator.checkpoint.background import BackgroundSaver
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.saving import DirectSaver, Saver
from orchestrator.checkpoint.steps import list_steps
from orchestrator.tracking.events import append_event, read_json_lines
from tests.support import FORKED
from tests.unit.checkpoint.dying import Death, record_calls
from tests.unit.checkpoint.saved import assert_equal, load, make_tensors, save

RETENTION = Retention(2)
STEPS_BEFORE = {"first": (), "later": (1, 2), "background": (1, 2)}
CALLS = "trace.txt"
ROOT = Path(__file__).parents[3]


def make_saver(kind: str, folder: Path) -> Saver:
    if kind != "background":
        return DirectSaver(folder, RETENTION)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    return BackgroundSaver.start(folder, RETENTION, make_tensors(), torch.device("cpu"))


def save_and_die(kind: str, root: str, fatal_call: int | None) -> None:
    """Save step 3 beside what was saved before, and record it as a stage does."""
    torch.set_num_threads(1)
    folder = Path(root, "checkpoints")
    save(folder, *STEPS_BEFORE[kind], retention=RETENTION)
    saver = make_saver(kind, folder)
    death = Death(fatal_call)
    death.arm()
    saver.save(
        3,
        make_tensors(3),
        {"step": 3, "name": "a"},
        lambda: append_event(Path(root, "events.jsonl"), "checkpoint", step=3),
    )
    saver.wait()
    record_calls(death, Path(root, CALLS))
    os._exit(0)


def check(kind: str, root: Path) -> int | None:
    """The step a start goes on from, which is whole; and saves go on as if nothing had been."""
    folder = root / "checkpoints"
    expected = max((found.step for found in list_steps(folder) if found.is_complete), default=None)
    manager = CheckpointManager(folder, RETENTION)
    path = manager.newest()
    assert not list(folder.glob("quarantine*"))
    recorded = [event["step"] for event in read_json_lines(root / "events.jsonl")]
    if path is None:
        assert kind == "first" and expected is None and recorded == []
        return None
    tensors, state = load(manager, path)
    step: int = state["step"]
    assert_equal(tensors, make_tensors(step))
    assert step == expected
    assert recorded in ([], [step]) and (not recorded or step == 3)
    manager.save(4, make_tensors(4), {"step": 4})
    assert [found.step for found in list_steps(folder)] == ([3, 4] if step == 3 else [2, 4])
    return step


def die_at(kind: str, root: Path, fatal_call: int | None) -> int | None:
    """Exit code of a process that was to die at a call."""
    child = FORKED.Process(target=save_and_die, args=(kind, str(root), fatal_call))
    child.start()
    child.join(60)
    return child.exitcode


@pytest.mark.parametrize("kind", STEPS_BEFORE)
def test_a_process_killed_at_any_call_leaves_a_newest_valid_checkpoint_that_loads(
    kind: str, tmp_path: Path
) -> None:
    assert die_at(kind, tmp_path / "whole", None) == 0
    calls = (tmp_path / "whole" / CALLS).read_text().split()
    # Shard, index, state, manifest and COMPLETE each; a step is removed only where there were two.
    assert calls.count("open") >= 5 and calls.count("fsync") >= 8
    assert ("rmdir" in calls) == (kind != "first")
    resumed = []
    for fatal_call in range(1, len(calls) + 1):
        root = tmp_path / str(fatal_call)
        assert die_at(kind, root, fatal_call) == -signal.SIGKILL, calls[fatal_call - 1]
        resumed.append(check(kind, root))
        shutil.rmtree(root, ignore_errors=True)
    # Up to the rename of COMPLETE the step before is the newest, from then on the new one.
    committed = resumed.index(3)
    assert set(resumed[:committed]) == {None if kind == "first" else 2}
    assert set(resumed[committed:]) == {3}
    assert calls[committed - 1] == "rename"


CHANGES = "openat,open,creat,write,writev,pwrite64,pwritev,ftruncate,truncate,fallocate,fsync,fdatasync,"
CHANGES += "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat"
PROGRAM = "from tests.unit.checkpoint.test_dying import save_and_die; save_and_die('{kind}', '{root}', None)"
CALL = re.compile(r"^\d+\s+(\w+)\((.*)$")


def kind_of(name: str, arguments: str) -> str | None:
    """Of a system call, as ``Death`` counts them; ``None``: it changes nothing."""
    if name.startswith(("open", "creat")):
        return "open" if "O_WRONLY" in arguments or "O_RDWR" in arguments or name == "creat" else None
    if name == "unlinkat" and "AT_REMOVEDIR" in arguments:
        return "rmdir"
    kinds: list[tuple[str, Callable[[str], bool]]] = [
        ("write", lambda n: n.startswith(("write", "pwrite"))),
        ("fsync", lambda n: n in ("fsync", "fdatasync")),
        ("rename", lambda n: n.startswith("rename")),
        ("unlink", lambda n: n.startswith("unlink")),
        ("mkdir", lambda n: n.startswith("mkdir")),
    ]
    return next((kind for kind, matches in kinds if matches(name)), name)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_calls_that_are_counted_are_the_system_calls_that_a_save_makes(tmp_path: Path) -> None:
    """Nothing that reaches the disk escapes the test above."""
    log, root = tmp_path / "strace", tmp_path / "run"
    command = ["strace", "-f", "-y", "--seccomp-bpf", "-o", str(log), "-e", f"trace={CHANGES}"]
    program = PROGRAM.format(kind="later", root=root)
    done = subprocess.run([*command, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    if "ptrace" in done.stderr.lower() or "not permitted" in done.stderr.lower():
        pytest.skip(f"strace cannot trace here: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    # From the folder of step 3 on, whose making is the first counted call.
    lines = log.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if "mkdir" in line and "step-00000003" in line)
    seen = []
    for line in lines[begin:]:
        match = CALL.match(line)
        if match is None or str(root) not in line or CALLS in line:
            continue
        kind = kind_of(match[1], match[2])
        if kind is not None:
            seen.append(kind)
    counted = (root / CALLS).read_text().replace("torn", "write").split()
    assert counted[0] == "mkdir" and len(counted) > 40
    assert seen == counted
