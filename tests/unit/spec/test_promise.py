"""What ``plan`` promises for each choice that bears on exactness."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.spec.job import Resources
from orchestrator.spec.promise import agreement, promise
from tests.unit.spec.jobs import VALID, first_stage, load

ORDER = "otherwise equal up to the order of summation (about 1e-6)"
BITWISE = "bit-identical on ddp, fsdp2, zero 0-3 at 1 and 2 workers"
SET = "stages.pretrain."


@pytest.mark.parametrize(
    ("num_workers", "overrides", "expected"),
    [
        (2, ["global_batch_size=8"], BITWISE),
        (1, ["global_batch_size=4"], BITWISE),
        (2, ["global_batch_size=8", "strategy={name: zero, stage: 3}"], BITWISE),
        (
            2,
            [],
            "bit-identical among ddp, fsdp2, zero 0 and zero 1 at 2 workers, and between zero 2"
            f" and zero 3; {ORDER}",
        ),
        (
            2,
            ["global_batch_size=8", "optimizer.fused=true"],
            "fused AdamW: strategies agree within about 5e-7",
        ),
        (2, ["global_batch_size=8", "strategy.compile=true"], "compile: strategies agree within about 2e-7"),
        (
            2,
            ["global_batch_size=8", "strategy.param_dtype=bfloat16"],
            "bfloat16: bit-identical among fsdp2, zero 2 and zero 3; ddp within about 1e-4",
        ),
        (
            2,
            ["strategy.param_dtype=bfloat16"],
            "bfloat16: bit-identical among fsdp2, zero 2 and zero 3 at 2 workers; ddp within about 1e-4;"
            f" {ORDER}",
        ),
        (
            2,
            ["global_batch_size=8", "strategy={name: zero, stage: 1, param_dtype: float16}"],
            "float16: bit-identical among fsdp2, zero 1, zero 2 and zero 3; ddp within about 1e-4 while the"
            " same steps overflow",
        ),
        (
            2,
            ["optimizer.fused=true", "strategy.compile=true"],
            "fused AdamW: strategies agree within about 5e-7; compile: strategies agree within"
            f" about 2e-7; {ORDER}",
        ),
        (
            2,
            ["strategy={name: fsdp2, reduce_dtype: bfloat16}"],
            "not promised: gradients are summed in bfloat16",
        ),
        (2, ["strategy={name: zero, config: ds.json}"], "not promised: the DeepSpeed settings are your own"),
        (2, ["strategy={name: 'mine.engine:Engine'}"], "not promised: the strategy is your own"),
    ],
)
def test_each_choice_is_promised_what_was_measured(
    num_workers: int, overrides: list[str], expected: str, tmp_path: Path
) -> None:
    job = load(tmp_path, VALID, *(SET + override for override in overrides))
    assert promise(first_stage(job), Resources(num_workers=num_workers)) == expected


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (Resources(num_workers=4), "bit-identical on ddp, fsdp2, zero 0-3 at 1, 2, 4, 8, ... workers"),
        (
            Resources(num_workers=2, gpus_per_worker=1),
            "bit-identical on ddp, fsdp2, zero 0-3 at 1, 2, 4, 8, ... workers; measured on CPUs alone",
        ),
    ],
)
def test_exact_is_promised_at_every_number_of_workers(
    resources: Resources, expected: str, tmp_path: Path
) -> None:
    job = load(tmp_path, VALID, "reproducibility=exact")
    assert promise(first_stage(job), resources, job.reproducibility) == expected


DDP, FSDP2, ZERO1, ZERO2, ZERO3 = "ddp", "fsdp2", "zero, stage: 1", "zero, stage: 2", "zero, stage: 3"
BF16, F16 = "param_dtype: bfloat16", "param_dtype: float16"
TWO = "global_batch_size=8"
EXACTLY = "reproducibility=exact"


@pytest.mark.parametrize(
    ("strategies", "options", "num_workers", "overrides", "expected"),
    [
        ((DDP, ZERO3), "", (2, 1), [TWO], 0.0),
        ((FSDP2, FSDP2), "reduce_dtype: bfloat16", (2, 2), [], 0.0),
        ((FSDP2, FSDP2), "reduce_dtype: bfloat16", (2, 1), [], None),
        ((ZERO2, ZERO2), "config: ds.json", (2, 1), [], None),
        ((DDP, ZERO1), "", (2, 2), [], 0.0),
        ((ZERO2, ZERO3), "", (2, 2), [], 0.0),
        ((FSDP2, ZERO2), "", (2, 2), [], 1e-6),
        ((DDP, DDP), "", (2, 1), [], 1e-6),
        ((DDP, FSDP2), "", (2, 2), [TWO, "optimizer.fused=true"], 5e-7),
        ((FSDP2, ZERO2), "compile: true", (2, 2), [TWO], 2e-7),
        ((FSDP2, ZERO2), "compile: true", (2, 2), ["optimizer.fused=true"], 1.7e-6),
        ((FSDP2, FSDP2), "replicate_degree: 2", (4, 2), [EXACTLY], 0.0),
        ((DDP, ZERO3), "", (4, 2), [EXACTLY], 0.0),
        ((FSDP2, ZERO2), BF16, (2, 2), [TWO], 0.0),
        ((FSDP2, FSDP2), BF16, (2, 1), [TWO], 0.0),
        ((FSDP2, ZERO2), BF16, (2, 2), [], 0.0),
        ((ZERO2, ZERO3), BF16, (2, 2), [], 0.0),
        ((DDP, FSDP2), BF16, (2, 2), [TWO], None),
        ((DDP, DDP), BF16, (2, 1), [TWO], 0.0),
        ((DDP, DDP), BF16, (2, 1), [], 1e-6),
        ((FSDP2, ZERO2), f"{BF16}, compile: true", (2, 2), [TWO], None),
        ((FSDP2, ZERO1), F16, (2, 2), [TWO], 0.0),
        ((FSDP2, ZERO1), F16, (2, 2), [], None),
        ((DDP, FSDP2), F16, (2, 2), [TWO], None),
    ],
)
def test_two_ways_to_run_a_stage_agree_as_the_readme_says(
    strategies: tuple[str, str],
    options: str,
    num_workers: tuple[int, int],
    overrides: list[str],
    expected: float | None,
    tmp_path: Path,
) -> None:
    given = [override if override == EXACTLY else SET + override for override in overrides]
    workers = f"resources.num_workers={max(num_workers)}"
    jobs = [
        load(tmp_path, VALID, f"{SET}strategy={{name: {name}, {options}}}", workers, *given)
        for name in strategies
    ]
    stage, other = (first_stage(job) for job in jobs)
    found = agreement(stage, other.strategy, num_workers, jobs[0].reproducibility)
    assert found == (expected if expected is None else pytest.approx(expected))
