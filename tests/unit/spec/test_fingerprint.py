"""What may change between two starts of a run, and what makes a finished stage another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.spec.fingerprint import (
    difference,
    limits_lowered,
    spec_fingerprint,
    stage_fingerprint,
    trajectory_keys,
)
from orchestrator.spec.job import Job
from tests.unit.spec.jobs import VALID, first_stage, load

TEXT = VALID + "  - {name: test, kind: evaluate, from: pretrain, datasets: [rfc], split: validation}\n"


def changes(folder: Path, *overrides: str) -> list[str]:
    """Lines of difference that overrides make to the first stage's trajectory."""
    old, new = load(folder, TEXT), load(folder, TEXT, *overrides)
    return difference(trajectory_keys(first_stage(old), old), trajectory_keys(first_stage(new), new))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=3", "seed: 17 -> 3"),
        ("stages.pretrain.optimizer.lr=3e-4", "stages.pretrain.optimizer.lr: 0.001 -> 0.0003"),
        ("stages.pretrain.model.config.n_layer=2", "stages.pretrain.model.config.n_layer: absent -> 2"),
        ("stages.pretrain.data.mixture.rfc=2", "stages.pretrain.data.mixture.rfc: 1.0 -> 2.0"),
        ("stages.pretrain.global_batch_size=32", "stages.pretrain.global_batch_size: 16 -> 32"),
        ("stages.pretrain.micro_batch_size=8", "stages.pretrain.micro_batch_size: 4 -> 8"),
        ("stages.pretrain.schedule.warmup_steps=3", "stages.pretrain.schedule.warmup_steps: 2 -> 3"),
        (
            "stages.pretrain.strategy.param_dtype=bfloat16",
            "stages.pretrain.strategy.param_dtype: float32 -> bfloat16",
        ),
        ("tokenizer.train.vocab_size=600", "tokenizer.train.vocab_size: 512 -> 600"),
        ("datasets.rfc.deduplicate=true", "datasets.rfc.deduplicate: False -> True"),
        ("stages.pretrain.data.packing=false", "stages.pretrain.data.packing: cut -> none"),
        ("stages.pretrain.data.document_mask=true", "stages.pretrain.data.document_mask: False -> True"),
    ],
)
def test_what_shapes_the_trajectory_is_a_difference(override: str, line: str, tmp_path: Path) -> None:
    assert changes(tmp_path, override) == [line]


FREE = [
    "stages.pretrain.data.packing=true",
    "stages.pretrain.data.packing=cut",
    "stages.pretrain.data.document_mask=false",
    "stages.pretrain.data.after=null",
    "resources.num_workers=2",
    "stages.pretrain.strategy={name: zero, stage: 3}",
    "stages.pretrain.strategy={name: fsdp2, activation_checkpointing: true}",
    "stages.pretrain.checkpoint.every_steps=1",
    "stages.pretrain.logging.every_steps=1",
    "tracking={wandb: {project: x}}",
    "launcher={name: slurm, options: {nodes: 2}}",
    "datasets.rfc.files=elsewhere/*.txt",
]


FLOAT16 = "stages.pretrain.strategy={name: fsdp2, param_dtype: float16}"


@pytest.mark.parametrize(
    ("scale", "lines"),
    [
        ("initial: 65536", []),
        ("growth_interval: 2000", []),
        ("initial: 1024", ["stages.pretrain.loss_scale.initial: 65536.0 -> 1024.0"]),
        ("growth_interval: 9", ["stages.pretrain.loss_scale.growth_interval: 2000 -> 9"]),
    ],
)
def test_how_float16_scales_the_loss_shapes_the_trajectory(
    scale: str, lines: list[str], tmp_path: Path
) -> None:
    old = load(tmp_path, TEXT, FLOAT16)
    new = load(tmp_path, TEXT, FLOAT16, f"stages.pretrain.loss_scale={{{scale}}}")
    assert difference(*(trajectory_keys(first_stage(job), job) for job in (old, new))) == lines


def test_jobs_without_float16_have_the_keys_they_had(tmp_path: Path) -> None:
    job = load(tmp_path, TEXT)
    assert "loss_scale" not in trajectory_keys(first_stage(job), job)["stages"]["pretrain"]


@pytest.mark.parametrize("override", [*FREE, "stages.pretrain.limits.max_steps=99"])
def test_what_does_not_shape_it_is_no_difference(override: str, tmp_path: Path) -> None:
    assert changes(tmp_path, override) == []


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("max_steps=10", []),
        ("max_steps=11", []),
        ("max_steps=9", ["stages.pretrain.limits.max_steps: 10 -> 9"]),
        ("max_tokens=999999", ["stages.pretrain.limits.max_steps: 10 -> absent"]),
    ],
)
def test_limits_may_only_be_raised(override: str, lines: list[str], tmp_path: Path) -> None:
    old, new = load(tmp_path, TEXT), load(tmp_path, TEXT, f"stages.pretrain.limits.{override}")
    assert limits_lowered(first_stage(old), first_stage(new)) == lines


def fingerprints(job: Job) -> tuple[str, str]:
    """Fingerprints of the two stages, with the same inputs and data."""
    return tuple(  # type: ignore[return-value]
        stage_fingerprint(job, stage, input_fingerprints={}, data_digests={"rfc": "1"})
        for stage in job.stages
    )


@pytest.mark.parametrize("override", FREE)
def test_a_finished_stage_stays_finished(override: str, tmp_path: Path) -> None:
    old, new = load(tmp_path, TEXT), load(tmp_path, TEXT, override)
    assert fingerprints(old) == fingerprints(new)


@pytest.mark.parametrize(
    "override",
    [
        "stages.pretrain.limits.max_steps=11",
        "stages.pretrain.optimizer.lr=1",
        "stages.pretrain.evaluation={datasets: [rfc]}",
        "seed=1",
    ],
)
def test_another_result_has_another_fingerprint(override: str, tmp_path: Path) -> None:
    old, new = load(tmp_path, TEXT), load(tmp_path, TEXT, override)
    assert fingerprints(old)[0] != fingerprints(new)[0]


def test_which_weights_a_stage_leaves_is_part_of_it_where_they_are_not_the_last(tmp_path: Path) -> None:
    best = (
        "    evaluation: {datasets: [rfc], every_steps: 2}\n"
        "    checkpoint: {every_steps: 2, keep_best: {metric: eval/loss}}\n"
    )
    text = TEXT.replace("  - {name: test", best + "  - {name: test")
    found = [
        fingerprints(load(tmp_path, text, *(f"stages.pretrain.{override}" for override in overrides)))[0]
        for overrides in (
            [],
            ["checkpoint.every_steps=4"],
            ["checkpoint.weights=best"],
            ["checkpoint.weights=best", "checkpoint.every_steps=4"],
            ["checkpoint.weights=best", "checkpoint.keep_best.metric=eval/perplexity"],
        )
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_inputs_and_data_are_part_of_a_fingerprint(tmp_path: Path) -> None:
    job = load(tmp_path, TEXT)
    found = {
        stage_fingerprint(job, job.stages[1], input_fingerprints=inputs, data_digests=data)
        for inputs in ({"pretrain": "a"}, {"pretrain": "b"})
        for data in ({"rfc": "1"}, {"rfc": "2"})
    }
    assert len(found) == 4


def test_the_specs_fingerprint_follows_inputs_and_locations(tmp_path: Path) -> None:
    job = load(tmp_path, TEXT)
    known = spec_fingerprint(job, job.stages[1])
    assert known == spec_fingerprint(load(tmp_path, TEXT, "resources.num_workers=2"), job.stages[1])
    for override in ("stages.pretrain.optimizer.lr=1", "datasets.rfc.files=elsewhere/*.txt"):
        other = load(tmp_path, TEXT, override)
        assert spec_fingerprint(other, other.stages[1]) != known


def test_a_dataset_that_rows_are_compared_with_shapes_the_trajectory(tmp_path: Path) -> None:
    text = TEXT.replace("stages:", "  exam: {source: text, files: exam.txt}\nstages:", 1)
    compared = "datasets.rfc.decontaminate={against: [exam]}"
    old, new = load(tmp_path, text), load(tmp_path, text, "datasets.exam.test_fraction=0.5")
    assert difference(trajectory_keys(first_stage(old), old), trajectory_keys(first_stage(new), new)) == []
    old = load(tmp_path, text, compared)
    new = load(tmp_path, text, compared, "datasets.exam.test_fraction=0.5")
    lines = difference(trajectory_keys(first_stage(old), old), trajectory_keys(first_stage(new), new))
    assert lines == ["datasets.exam.test_fraction: 0.0 -> 0.5"]
