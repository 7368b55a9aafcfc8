"""float16 with one loss scaler for all strategies: a run that overflows, grows, stops and moves is one run.

DeepSpeed asks the accelerator whether it has float16, which most CPUs deny, though its arithmetic runs there:
tests of ZeRO answer in its place, in the workers alone, and their names say so.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from launchers.verification import verify_run
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.steps import list_steps, step_name
from orchestrator.checkpoint.storage import read_tensors
from orchestrator.spec.optimization import LossScale
from orchestrator.tracking.events import read_json_lines
from orchestrator.train.agreement import AgreedError
from orchestrator.train.loss_scale import LossScaler
from tests.distributed import test_anomalies
from tests.distributed.test_anomalies import STAGE, layout_of
from tests.distributed.test_neutral_state import wait_for
from tests.distributed.training import different
from tests.support import run_ranks

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    **{f"zero{stage}": {"name": "zero", "stage": stage} for stage in (1, 2, 3)},
}
# Each leg has a strategy, a number of ranks, and the step it ends with; it goes on from the one before.
Leg = tuple[str, int, int]
LAST = 16
CHAINS: dict[str, list[Leg]] = {
    "fsdp2": [("fsdp2", 2, LAST)],
    "ddp": [("ddp", 2, LAST)],
    "bitwise": [("zero2", 1, 3), ("fsdp2", 2, 7), ("zero1", 1, 9), ("zero3", 2, 12), ("fsdp2", 1, LAST)],
    "moved": [("ddp", 2, 4), ("fsdp2", 1, 8), ("zero2", 2, 11), ("zero3", 1, LAST)],
    "ddp stopped": [("ddp", 1, 5), ("ddp", 2, LAST)],
}
# Above what the model's gradients allow, so that the first steps overflow; then it doubles, too far again.
LOSS_SCALE: dict[str, Any] = {"initial": 2.0**24, "growth_interval": 3}


def prepare(folder: Path, name: str, *, strategy: str, max_steps: int = LAST, **changes: Any) -> None:
    """Make what the workers of a run of one stage in float16 read."""
    model = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 30, "n_positions": 32}
    in_float16 = {
        "objective": {"name": "causal_lm"},
        "model": {"config": model},
        "strategy": {**STRATEGIES[strategy], "param_dtype": "float16"},
        "loss_scale": LOSS_SCALE,
        "schedule": {"name": "constant", "warmup_steps": 3},
        "limits": {"max_steps": max_steps},
        "checkpoint": {"every_steps": 2, "keep_last": LAST},
    }
    test_anomalies.prepare(folder, name, **{**in_float16, **changes})


def leg_name(chain: str, number: int) -> str:
    return f"{chain}-{number}".replace(" ", "-")


def last_leg(chain: str) -> str:
    return leg_name(chain, len(CHAINS[chain]) - 1)


def tell_deepspeed_of_float16() -> None:
    """Let the accelerator of this process say that it has float16."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True


def run_legs(folder: str) -> dict[str, str]:
    """The legs that belong to this number of ranks; those of the other go on beside them."""
    from orchestrator.train.worker import run_stage

    tell_deepspeed_of_float16()
    outcomes = {}
    try:
        for chain, legs in CHAINS.items():
            for number, (_, world_size, _) in enumerate(legs):
                if world_size != dist.get_world_size():
                    continue
                name = leg_name(chain, number)
                if number:
                    take_over(Path(folder), leg_name(chain, number - 1), name, legs[number - 1][2])
                outcomes[name] = run_stage(Path(folder, "runs", name), STAGE)
    except BaseException:
        Path(folder, "failed").touch()
        raise
    return outcomes


def take_over(folder: Path, before: str, name: str, step: int) -> None:
    """Begin a run with the checkpoints and the ledger of another one's first steps."""
    wait_for(layout_of(folder, before).checkpoints, step, failed=folder / "failed")
    if dist.get_rank() == 0:
        old, new = layout_of(folder, before), layout_of(folder, name)
        for path in old.checkpoints.glob("step-*"):
            if path.name <= step_name(step):
                shutil.copytree(path, new.checkpoints / path.name)
        new.ledger.write_text(old.ledger.read_text())
    dist.barrier()


@functools.cache
def chains(folder: Path) -> dict[str, str]:
    """Outcomes by leg, all of them run."""
    for chain, legs in CHAINS.items():
        for number, (strategy, num_workers, step) in enumerate(legs):
            options = {"strategy": strategy, "num_workers": num_workers, "max_steps": step}
            prepare(folder, leg_name(chain, number), **options)
    with ThreadPoolExecutor() as pool:
        groups = [pool.submit(run_ranks, run_legs, size, str(folder)) for size in (1, 2)]
    return {name: outcome for group in groups for rank in group.result() for name, outcome in rank.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("float16")
    outcomes = chains(folder)
    assert set(outcomes.values()) == {"finished"} and len(outcomes) == sum(map(len, CHAINS.values()))
    yield folder


def scaler(folder: Path, name: str, step: int = LAST) -> dict[str, float]:
    checkpoint = layout_of(folder, name).checkpoints / step_name(step)
    return CheckpointManager.read_state(checkpoint)["loss_scale"]  # type: ignore[no-any-return]


def overflows(folder: Path, chain: str) -> list[dict[str, Any]]:
    """Events of all legs."""
    return [
        {key: value for key, value in event.items() if key != "time"}
        for number in range(len(CHAINS[chain]))
        for event in read_json_lines(folder / "runs" / leg_name(chain, number) / "events.jsonl")
        if event["event"] == "overflow"
    ]


def losses(folder: Path, chain: str) -> dict[int, float]:
    """By step, of all legs; steps that were left out have none."""
    lines = [
        line
        for number in range(len(CHAINS[chain]))
        for line in read_json_lines(layout_of(folder, leg_name(chain, number)).metrics)
    ]
    return {line["step"]: line["train/loss"] for line in lines if "train/steps_left_out" not in line}


@pytest.mark.slow
def test_overflows_are_left_out_counted_and_halve_the_scale_which_grows_again(folder: Path) -> None:
    found = overflows(folder, "fsdp2")
    assert [event["step"] for event in found][:3] == [1, 2, 3]
    assert [event["loss_scale"] for event in found][:2] == [2.0**24, 2.0**23]
    assert all(event["next_loss_scale"] == event["loss_scale"] / 2 for event in found)
    assert found[-1]["step"] > found[-2]["step"] + 3, "it has grown until it was too large again"
    lines = {line["step"]: line for line in read_json_lines(layout_of(folder, last_leg("fsdp2")).metrics)}
    for event in found:
        line = lines[event["step"]]
        assert line["train/steps_left_out"] == line["train/steps_overflowed"] == 1
        assert line["train/loss_scale"] == event["next_loss_scale"]
        assert event["rows"] == [8 * (event["step"] - 1), 8 * event["step"]]
    assert lines[LAST]["train/loss_scale"] == scaler(folder, last_leg("fsdp2"))["scale"]
    checkpoints = layout_of(folder, last_leg("fsdp2")).checkpoints
    first = CheckpointManager.read_weights(checkpoints / step_name(2))
    assert found[3]["step"] == 4
    assert different(CheckpointManager.read_weights(checkpoints / step_name(4)), first) == []


@pytest.mark.slow
def test_a_run_told_that_deepspeed_has_float16_is_bitwise_one_on_fsdp2_and_zero_1_to_3(folder: Path) -> None:
    steps = (
        layout_of(folder, last_leg(chain)).checkpoints / step_name(LAST) for chain in ("bitwise", "fsdp2")
    )
    found, expected = map(read_tensors, steps)
    assert different(found, expected) == []
    assert scaler(folder, last_leg("bitwise")) == scaler(folder, last_leg("fsdp2"))
    assert overflows(folder, "bitwise") == overflows(folder, "fsdp2")
    assert losses(folder, "bitwise") == losses(folder, "fsdp2")
    weights = load_file(layout_of(folder, last_leg("bitwise")).weights / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_ddp_stopped_and_moved_to_another_number_of_ranks_is_bitwise_the_uninterrupted_run(
    folder: Path,
) -> None:
    steps = (
        layout_of(folder, last_leg(chain)).checkpoints / step_name(LAST) for chain in ("ddp stopped", "ddp")
    )
    found, expected = map(read_tensors, steps)
    assert different(found, expected) == []
    assert scaler(folder, last_leg("ddp stopped")) == scaler(folder, last_leg("ddp"))
    assert overflows(folder, "ddp stopped") == overflows(folder, "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_told_that_deepspeed_has_float16_every_checkpoint_has_the_scale_that_its_run_has_come_to(
    chain: str, folder: Path
) -> None:
    overflowed = [event["step"] for event in overflows(folder, chain)]
    expected, states = LossScaler(LossScale(**LOSS_SCALE)), {}
    for step in range(1, LAST + 1):
        if step not in overflowed:
            expected.accept()
        elif (overflow := expected.overflow()) is not None:
            expected.back_off(overflow)
        states[step] = expected.state
    for number, (_, _, end) in enumerate(CHAINS[chain]):
        name = leg_name(chain, number)
        for found in list_steps(layout_of(folder, name).checkpoints):
            assert scaler(folder, name, found.step) == states[found.step], (name, found.step)
        assert scaler(folder, name, end) == states[end]


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_every_row_is_proved_to_be_read_once_and_steps_left_out_are_counted(chain: str, folder: Path) -> None:
    proof = verify_run(folder / "runs" / last_leg(chain), None)
    assert proof["ok"], proof
    (stage,) = proof["stages"]
    assert stage["ledger"]["steps"] == LAST
    assert stage["ledger"]["steps_left_out"] == len(overflows(folder, chain))


def refused(folder: str) -> str:
    """What a stage that cannot be built says."""
    from orchestrator.train.worker import run_stage

    with pytest.raises(AgreedError) as caught:
        run_stage(Path(folder, "runs", "refused"), STAGE)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(
    torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="DeepSpeed computes in float16 on this CPU"
)
def test_zero_on_a_cpu_without_float16_ends_in_one_message_before_the_first_step(tmp_path: Path) -> None:
    prepare(tmp_path, "refused", strategy="zero2", num_workers=1)
    assert run_ranks(refused, 1, str(tmp_path)) == [
        "strategy zero, param_dtype: found 'float16', which DeepSpeed does not run on this cpu (a CPU needs"
        " AVX512-FP16); set 'bfloat16', or use strategy fsdp2 or ddp"
    ]
