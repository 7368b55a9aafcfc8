"""Every job file of the project is valid and plans, and says in its first lines how to adapt it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchers.planning import plan_job
from orchestrator.spec.load import dump_resolved, load_job, load_resolved

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))

# Published sizes, in millions of parameters: Radford et al. 2019; Devlin et al. 2018; Zhang et al. 2024.
PARAMETERS = {"gpt2_124m": (124, 125), "bert_base_pretrain": (109, 112), "llama_1b_fsdp2": (1095, 1105)}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_validates_plans_and_survives_its_own_wire_format(path: Path, tmp_path: Path) -> None:
    job = load_job(path, env={})
    document = plan_job(job, runs_dir=tmp_path, with_model=False)
    json.dumps(document)
    assert [stage["name"] for stage in document["stages"]]
    resolved = tmp_path / "job.yaml"
    resolved.write_text(dump_resolved(job))
    assert dump_resolved(load_resolved(resolved)) == dump_resolved(job)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", PARAMETERS)
def test_recipes_have_the_published_number_of_parameters(name: str, tmp_path: Path) -> None:
    path = next(path for path in JOBS if path.stem == name)
    document = plan_job(load_job(path, env={}), runs_dir=tmp_path, with_model=True)
    low, high = PARAMETERS[name]
    assert low * 10**6 <= document["stages"][0]["parameters"] < high * 10**6


def test_the_offload_recipe_differs_from_its_base_in_strategy_and_resources_alone() -> None:
    base, offload = (
        load_job(next(path for path in JOBS if path.stem == name), env={})
        for name in ("llama_1b_fsdp2", "llama_1b_zero3_offload")
    )
    assert base.stages[0].model == offload.stages[0].model
    assert base.stages[0].global_batch_size == offload.stages[0].global_batch_size
    assert offload.stages[0].strategy.name == "zero"
    assert offload.stages[0].strategy.stage == 3
    assert offload.stages[0].strategy.offload_optimizer.device == "cpu"
