"""What a stage is made of, before it trains."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from launchers.counting import planned_steps
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.contracts import TokenInfo
from orchestrator.data.prepared import content_digest
from orchestrator.errors import CheckpointError, DataError, ModelError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.plan import plan_batch
from orchestrator.train.building import build_objective, build_parts, load_checkpoint_weights
from orchestrator.train.inputs import StageInputs
from tests.prepared import write_rows
from tests.unit.data.corpus import train_small
from tests.unit.spec.jobs import changed, first_stage, load

TOKENS = TokenInfo(40, 0, 1, None, (0, 1), np.zeros(40, dtype=bool))


def test_an_objective_that_does_not_fit_names_the_stage(tmp_path: Path) -> None:
    stage = first_stage(load(tmp_path, changed("{name: causal_lm}", "{name: masked_lm}")))
    with pytest.raises(DataError, match=r"^stage 'pretrain': objective masked_lm needs .* of 40 tokens"):
        build_objective(stage, TOKENS, ())


def saved_checkpoint(folder: Path, model: nn.Module, tokenizer: str) -> Path:
    """A checkpoint of ``model`` at step 1, trained with ``tokenizer``."""
    weights = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    CheckpointManager(folder).save(1, weights, {"step": 1, "tokenizer": tokenizer})
    return folder / "step-00000001"


def test_weights_of_a_checkpoint_are_taken_whole(tmp_path: Path) -> None:
    trained, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    folder = saved_checkpoint(tmp_path, trained, "tokens-a")
    load_checkpoint_weights(fresh, folder, tokenizer_digest="tokens-a")  # type: ignore[arg-type]
    assert torch.equal(fresh.weight, trained.weight)
    assert torch.equal(fresh.bias, trained.bias)


def test_outputs_of_a_checkpoint_keep_their_labels(tmp_path: Path) -> None:
    trained = nn.Linear(3, 2)
    weights = {f"model.{name}": value.detach() for name, value in trained.named_parameters()}
    state = {"step": 1, "tokenizer": "tokens-a", "label_names": ["neg", "pos"]}
    CheckpointManager(tmp_path).save(1, weights, state)
    for names, is_fine in ((("neg", "pos"), True), (("ham", "spam"), True), (("pos", "neg"), False)):
        with nullcontext() if is_fine else pytest.raises(ModelError, match="'pos' would be another output"):
            load_checkpoint_weights(
                nn.Linear(3, 2),  # type: ignore[arg-type]
                tmp_path / "step-00000001",
                tokenizer_digest="tokens-a",
                label_names=names,
            )


@pytest.mark.parametrize(
    ("outputs", "tokenizer", "message"),
    [
        (2, "tokens-b", "trained with the tokenizer tokens-a, and this stage's is tokens-b"),
        (5, "tokens-a", r"2 parameters differ in name or shape, first 'bias' is \[2\], expected \[5\]"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    outputs: int, tokenizer: str, message: str, tmp_path: Path
) -> None:
    folder = saved_checkpoint(tmp_path, nn.Linear(3, 2), "tokens-a")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint_weights(nn.Linear(3, outputs), folder, tokenizer_digest=tokenizer)  # type: ignore[arg-type]


def job_of(**data: object) -> Job:
    model = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8}
    stage = {
        "name": "pretrain",
        "objective": {"name": "causal_lm"},
        "model": {"config": model},
        "data": {"mixture": {"a": 3.0, "b": 1.0}, "seq_len": 8, **data},
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "schedule": {"name": "constant"},
        "limits": {"max_steps": 1000},
    }
    return Job.model_validate(
        {
            "name": "run",
            "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 400, "datasets": ["a"]}},
            "datasets": {name: {"source": "text", "files": f"/data/{name}.txt"} for name in "ab"},
            "stages": [stage],
        }
    )


def test_a_stage_that_stops_has_the_steps_that_plan_shows(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    folders = {
        "a": write_rows(tmp_path / "a", 900, seq_len=8),
        "b": write_rows(tmp_path / "b", 90, seq_len=8),
    }
    StageInputs(
        fingerprint="f",
        spec_fingerprint="s",
        tokenizer=str(train_small(tmp_path)),
        train={name: str(folder) for name, folder in folders.items()},
        evaluation={},
        label_names=(),
        weights=None,
        run_id="id",
        data_digests={},
        input_fingerprints={},
    ).write(layout.stage("pretrain").inputs)
    for data, expected in (({}, 1000), ({"on_exhausted": "stop"}, 90)):
        job = job_of(**data)
        stage = job.stage("pretrain")
        assert isinstance(stage, TrainStage)
        parts = build_parts(job, stage, layout)
        assert parts.max_steps == expected
        assert planned_steps(stage, plan_batch(stage, job.resources), layout.stage("pretrain")) == expected
    # The last parts are those that stop: no row of theirs comes twice, and one of the next step would.
    _, _, epochs = parts.reader.mixture.locate(np.arange(91 * 4))
    assert not epochs[: 90 * 4].any()
    assert epochs[90 * 4 :].any()
    assert parts.data_digests == {name: content_digest(folder) for name, folder in folders.items()}
