"""The JSON Schema that editors use: valid itself, and of one mind with the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from orchestrator.spec.json_schema import job_schema
from orchestrator.spec.tree import plain
from orchestrator.spec.yaml12 import parse
from tests.unit.spec.jobs import VALID, changed

JOBS = sorted((Path(__file__).parents[3] / "jobs").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(job_schema())


def read(text: str) -> Any:
    return plain(parse(text, "job.yaml", quoted=str, problems=[]))


def test_the_schema_is_valid_itself() -> None:
    Draft202012Validator.check_schema(job_schema())


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_in_the_repository_passes(path: Path, validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(read(path.read_text()))] == []


@pytest.mark.parametrize(
    "text",
    [
        VALID,
        changed("seed: 17", "seed: ${SEED:-3}"),
        changed("seq_len: 64}", "seq_len: 64, packing: best_fit, document_mask: false}"),
        changed("{max_steps: 10}", "{max_tokens: '20_000_000'}"),
        changed("lr: 1e-3", "lr: ${LR}\n      max_grad_norm: null"),
        changed("{name: ddp}", "{name: 'mine.engine:Engine', options: {x: [1]}}"),
        changed("    strategy: {name: ddp}\n", "") + "defaults: {strategy: {name: ddp}}\n",
        "extends: base.yaml\nstages:\n  - {name: pretrain, optimizer: {lr: 1e-3}}\n",
        VALID + "  - {name: test, kind: evaluate, from: pretrain, datasets: [rfc]}\n",
    ],
)
def test_what_the_loader_takes_passes(text: str, validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(read(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        changed("seed: 17", "sed: 17"),
        changed("seed: 17", "seed: -1"),
        changed("lr: 1e-3", "lr: fast"),
        changed("seq_len: 64}", "seq_len: 64, packing: bestfit}"),
        changed("lr: 1e-3", "lr: 0"),
        changed("name: tiny", "name: Tiny"),
        changed("    strategy: {name: ddp}\n", ""),
        changed("{name: ddp}", "{name: ddp, stage: 2}"),
        changed("name: adamw", "name: adam"),
        "extends: base.yaml\nstages:\n  - {name: pretrain, optimzer: {lr: 1e-3}}\n",
        "name: x\n",
    ],
)
def test_what_the_loader_refuses_is_flagged(text: str, validator: Draft202012Validator) -> None:
    assert not validator.is_valid(read(text))


def test_keys_have_descriptions_with_units_and_defaults() -> None:
    definitions = job_schema()["$defs"]
    assert definitions["Checkpoint"]["properties"]["every_steps"] == {
        "anyOf": [{"type": "integer", "minimum": 1}, {"$ref": "#/$defs/Variable"}],
        "description": "Optimizer steps between two checkpoints; the last step is always saved.",
        "default": 500,
    }
    undescribed = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, schema in definition.get("properties", {}).items()
        if not schema.get("description")
    ]
    assert undescribed == []
