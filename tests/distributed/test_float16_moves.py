"""float16, a checkpoint of every strategy at 1 and 2 ranks, resumed by every other: `make test-faults`.

DeepSpeed is told that this CPU has float16. The state of the scaler arrives exactly in every move. What
follows is bit for bit one trajectory among fsdp2 and zero 1 to 3 wherever they move, and one among ddp; a
move between the two kinds goes on alike whichever of a kind it came from and goes to.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from orchestrator.checkpoint.steps import step_name
from orchestrator.checkpoint.storage import read_tensors
from tests.distributed.test_float16 import (
    STAGE,
    STRATEGIES,
    layout_of,
    prepare,
    scaler,
    take_over,
    tell_deepspeed_of_float16,
)
from tests.distributed.training import different
from tests.support import run_ranks

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]

SAVED, END = 6, 10
SOURCES = [(name, size) for name in STRATEGIES for size in (1, 2)]


def named(*starts: tuple[str, int]) -> str:
    return "-to-".join(f"{name}-{size}" for name, size in starts)


def run_group(folder: str) -> None:
    """This number of ranks' runs that are moved, and the moves to it."""
    from orchestrator.train.worker import run_stage

    tell_deepspeed_of_float16()
    mine = [start for start in SOURCES if start[1] == dist.get_world_size()]
    try:
        for source in mine:
            run_stage(Path(folder, "runs", named(source)), STAGE)
        for source in SOURCES:
            for target in mine:
                name = named(source, target)
                take_over(Path(folder), named(source), name, SAVED)
                run_stage(Path(folder, "runs", name), STAGE)
    except BaseException:
        Path(folder, "failed").touch()
        raise


def kind(start: tuple[str, int]) -> str:
    return "ddp" if start[0] == "ddp" else "sharded"


def test_every_ordered_pair_told_that_deepspeed_has_float16_goes_on_as_its_kind_does(tmp_path: Path) -> None:
    for source in SOURCES:
        prepare(tmp_path, named(source), strategy=source[0], num_workers=source[1], max_steps=SAVED)
        for target in SOURCES:
            options = {"strategy": target[0], "num_workers": target[1], "max_steps": END}
            prepare(tmp_path, named(source, target), **options)
    with ThreadPoolExecutor() as pool:
        groups = [pool.submit(run_ranks, run_group, n, str(tmp_path), timeout_seconds=3000) for n in (1, 2)]
        for group in groups:
            group.result()
    firsts: dict[tuple[str, str], str] = {}
    for source in SOURCES:
        for target in SOURCES:
            name = named(source, target)
            assert scaler(tmp_path, name, SAVED) == scaler(tmp_path, named(source), SAVED), name
            first = firsts.setdefault((kind(source), kind(target)), name)
            found, expected = (
                read_tensors(layout_of(tmp_path, run).checkpoints / step_name(END)) for run in (name, first)
            )
            assert different(found, expected) == [], (name, first)
            assert scaler(tmp_path, name, END) == scaler(tmp_path, first, END), (name, first)
    assert len(firsts) == 4
