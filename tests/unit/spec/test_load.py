"""Files that build on files, defaults, paths, and the resolved job."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import PlanError, SpecError
from orchestrator.spec.datasets import HubDataset, TextDataset
from orchestrator.spec.job import ExportStage, Job, Resources, TrainStage
from orchestrator.spec.load import dump_resolved, load_job, load_resolved
from orchestrator.spec.optimization import SGD, AdamW, Limits
from tests.unit.spec.jobs import VALID, changed, complaints, first_stage, load, write_job

SHARED = """\
name: shared
datasets:
  rfc: {source: hub, path: org/rfc, validation_fraction: 0.1}
defaults:
  global_batch_size: 16
  micro_batch_size: 4
  strategy: {name: fsdp2, reduce_dtype: bfloat16}
  optimizer: {name: adamw, lr: 1e-3, betas: [0.9, 0.95]}
  schedule: {name: cosine}
  limits: {max_steps: 10}
  model: {config: {model_type: gpt2}}
  evaluation: {datasets: [rfc]}
tokenizer: {from: gpt2}
stages:
  - name: pretrain
    objective: {name: causal_lm}
    data: {mixture: {rfc: 1.0}, seq_len: 64}
  - name: tune
    objective: {name: causal_lm}
    init: {stage: pretrain}
    data: {mixture: {rfc: 1.0}, seq_len: 64}
    optimizer: {name: sgd, lr: 0.1}
    limits: {max_epochs: 1}
    evaluation: null
  - {name: test, kind: evaluate, from: tune, datasets: [rfc], split: validation}
"""


def test_defaults_lie_under_training_stages_alone(tmp_path: Path) -> None:
    job = load(tmp_path, SHARED)
    pretrain, tune = job.stage("pretrain"), job.stage("tune")
    assert isinstance(pretrain, TrainStage) and isinstance(tune, TrainStage)
    assert pretrain.optimizer == AdamW(name="adamw", lr=1e-3, betas=(0.9, 0.95))
    assert pretrain.limits == Limits(max_steps=10)
    assert tune.strategy == pretrain.strategy
    assert job.stage("test").micro_batch_size == 16  # type: ignore[union-attr]


def test_a_stage_wins_over_defaults_that_do_not_fit_it(tmp_path: Path) -> None:
    tune = load(tmp_path, SHARED).stage("tune")
    assert isinstance(tune, TrainStage)
    assert tune.optimizer == SGD(name="sgd", lr=0.1)
    assert tune.limits == Limits(max_epochs=1.0)
    assert tune.model is None
    assert tune.evaluation is None


def test_a_stage_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    job = load(tmp_path, SHARED)
    with pytest.raises(PlanError) as caught:
        job.stage("tuen")
    expected = "job 'shared' has no stage 'tuen'. Did you mean 'tune'? Its stages: pretrain, tune, test."
    assert str(caught.value) == expected


def test_a_mistake_in_defaults_is_told_once_where_it_stands(tmp_path: Path) -> None:
    text = SHARED.replace("micro_batch_size: 4", "micro_batch_sise: 4")
    assert complaints(tmp_path, text) == [
        "job.yaml:6: defaults.micro_batch_sise: unknown key. Did you mean 'micro_batch_size'?",
        "job.yaml:15: stages[0].micro_batch_size: required, but missing; expected a whole number",
        "job.yaml:18: stages[1].micro_batch_size: required, but missing; expected a whole number",
    ]


def test_defaults_must_be_a_section(tmp_path: Path) -> None:
    assert complaints(tmp_path, VALID + "defaults: [1]\n") == [
        "job.yaml:24: defaults: expected a section of keys that training stages share, found a list"
    ]


def test_a_file_extends_another_and_merges_stages_by_name(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    write_job(tmp_path / "bases", SHARED, "shared.yaml")
    write_job(tmp_path / "bases", "extends: shared.yaml\nseed: 3\n", "seeded.yaml")
    job = load(
        tmp_path,
        "extends: bases/seeded.yaml\n"
        "name: mine\n"
        "datasets: {rfc: {source: text, files: [a.txt]}}\n"
        "defaults: {limits: {max_tokens: 1_000}, evaluation: null}\n"
        "stages:\n"
        "  - {name: tune, data: {seq_len: 32}}\n"
        "  - {name: test, split: train}\n"
        "  - {name: export, kind: export, from: tune}\n",
    )
    assert [stage.name for stage in job.stages] == ["pretrain", "tune", "test", "export"]
    assert (job.name, job.seed) == ("mine", 3)
    assert job.datasets["rfc"] == TextDataset(source="text", files=(f"{tmp_path}/a.txt",))
    assert first_stage(job).limits == Limits(max_tokens=1000)
    tune = job.stage("tune")
    assert isinstance(tune, TrainStage)
    assert (tune.data.seq_len, tune.data.mixture) == (32, {"rfc": 1.0})


def test_a_stage_of_another_kind_replaces_one_that_trains_by_default(tmp_path: Path) -> None:
    write_job(tmp_path, SHARED, "base.yaml")
    export = "stages: [{name: tune, kind: export, from: pretrain}, {name: test, from: pretrain}]"
    job = load(tmp_path, f"extends: base.yaml\n{export}\n")
    assert job.stages[1] == ExportStage.model_validate({"name": "tune", "kind": "export", "from": "pretrain"})


def test_a_mistake_in_a_base_names_the_base(tmp_path: Path) -> None:
    write_job(tmp_path, VALID.replace("lr: 1e-3", "lr: fast"), "base.yaml")
    assert complaints(tmp_path, "extends: base.yaml\nseed: x\n") == [
        "base.yaml:21: stages[0].optimizer.lr: expected a number, found 'fast'",
        "job.yaml:2: seed: expected a whole number, found 'x'",
    ]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("[a]", "expected the path of another job file, found a list"),
        ("job.yaml", "'job.yaml' extends this file in turn; a file cannot build on itself"),
        ("loop.yaml", "'job.yaml' extends this file in turn; a file cannot build on itself"),
        ("nowhere.yaml", "no such file: 'nowhere.yaml'"),
    ],
)
def test_a_base_that_cannot_be_read_is_refused(base: str, expected: str, tmp_path: Path) -> None:
    write_job(tmp_path, "extends: job.yaml\n", "loop.yaml")
    where = "loop.yaml" if base == "loop.yaml" else "job.yaml"
    assert complaints(tmp_path, f"extends: {base}\n") == [f"{where}:1: extends: {expected}"]


def test_paths_start_at_the_file_that_names_them(tmp_path: Path) -> None:
    for folder in ("base/model", "base/saved", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    write_job(
        tmp_path / "base",
        "name: a\n"
        "tokenizer: {from: ./tok}\n"
        "datasets:\n"
        "  files: {source: json, files: [a/*.jsonl, /abs/b.jsonl]}\n"
        "  saved: {source: saved, path: saved}\n"
        "  hub: {source: hub, path: org/name}\n"
        "defaults:\n"
        "  strategy: {name: zero, stage: 3, config: ds.json,"
        " offload_param: {device: nvme, nvme_path: disk}}\n",
        "base.yaml",
    )
    job = load(
        tmp_path / "mine",
        "extends: ../base/base.yaml\n"
        "stages:\n"
        "  - name: tune\n"
        "    objective: {name: causal_lm}\n"
        "    init: {pretrained: gpt2}\n"
        "    data: {mixture: {files: 1, saved: 1, hub: 1}, seq_len: 64}\n"
        "    global_batch_size: 1\n"
        "    micro_batch_size: 1\n"
        "    optimizer: {name: sgd, lr: 1}\n"
        "    schedule: {name: constant}\n"
        "    limits: {max_steps: 1}\n"
        "  - name: more\n"
        "    objective: {name: causal_lm}\n"
        "    init: {pretrained: ../base/model}\n"
        "    data: {mixture: {hub: 1}, seq_len: 64}\n"
        "    global_batch_size: 1\n"
        "    micro_batch_size: 1\n"
        "    optimizer: {name: sgd, lr: 1}\n"
        "    schedule: {name: constant}\n"
        "    limits: {max_steps: 1}\n",
    )
    base = tmp_path / "base"
    assert job.tokenizer is not None and job.tokenizer.from_ == f"{base}/tok"
    assert job.datasets["files"].files == (f"{base}/a/*.jsonl", "/abs/b.jsonl")  # type: ignore[union-attr]
    assert job.datasets["saved"].path == f"{base}/saved"  # type: ignore[union-attr]
    assert job.datasets["hub"] == HubDataset(source="hub", path="org/name")
    strategy = first_stage(job).strategy.model_dump()
    assert strategy["config"] == f"{base}/ds.json"
    assert strategy["offload_param"]["nvme_path"] == f"{base}/disk"
    inits = [stage.init.pretrained for stage in job.stages if isinstance(stage, TrainStage) and stage.init]
    assert inits == ["gpt2", f"{base}/model"]


def test_the_resolved_job_is_plain_and_means_the_same(tmp_path: Path) -> None:
    job = load(tmp_path, SHARED.replace("name: shared", "name: ${RUN:-from-env}"), "seed=5")
    resolved = write_job(tmp_path, dump_resolved(job), "resolved.yaml")
    assert load_resolved(resolved) == job
    assert load_job(resolved, env={}) == job
    assert "defaults" not in resolved.read_text() and "${" not in resolved.read_text()


TEXT = st.text(min_size=1, max_size=12).filter(lambda text: "$" not in text)


@settings(deadline=None)
@given(
    files=st.lists(TEXT, min_size=1, max_size=3),
    filters=st.dictionaries(
        TEXT.filter(lambda key: key != "<<"), TEXT | st.integers() | st.booleans(), max_size=2
    ),
    config=st.dictionaries(
        st.sampled_from(["n_layer", "resid_pdrop", "tie_word_embeddings"]),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none() | TEXT,
    ),
    lr=st.floats(1e-9, 1e3),
    num_workers=st.sampled_from([1, 2, 4]),
)
def test_every_resolved_job_is_read_back_equal(
    files: list[str],
    filters: dict[str, str | int | bool],
    config: dict[str, object],
    lr: float,
    num_workers: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    job = load(folder)
    stage = first_stage(job)
    assert stage.model is not None
    stage = stage.model_copy(
        update={
            "optimizer": stage.optimizer.model_copy(update={"lr": lr}),
            "model": stage.model.model_copy(update={"config": {"model_type": "gpt2", **config}}),
        }
    )
    job = job.model_copy(
        update={
            "stages": (stage,),
            "resources": Resources(num_workers=num_workers),
            "datasets": {
                "rfc": job.datasets["rfc"].model_copy(update={"files": tuple(files), "filter": filters})
            },
        }
    )
    assert load_resolved(write_job(folder, dump_resolved(job), "resolved.yaml")) == job


def test_a_damaged_resolved_job_is_refused(tmp_path: Path) -> None:
    path = write_job(tmp_path, "name: a\nstages: []\n")
    with pytest.raises(SpecError, match=r"job\.yaml:2: stages: expected a length of at least 1"):
        load_resolved(path)


def test_a_file_without_stages_is_answered_with_the_key_that_is_missing(tmp_path: Path) -> None:
    (problem,) = [text for text in complaints(tmp_path, "name: tiny\n") if "stages" in text]
    assert "stages: required, but missing" in problem


def test_a_whole_float_is_a_whole_number(tmp_path: Path) -> None:
    job = load(tmp_path, changed("{max_steps: 10}", "{max_tokens: 1e6}"))
    assert first_stage(job).limits == Limits(max_tokens=1_000_000)


def test_sections_never_change_and_survive_pickling(tmp_path: Path) -> None:
    job = load(tmp_path)
    with pytest.raises(AttributeError, match=r"Job\.seed cannot change; copy with 'model_copy'"):
        job.seed = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Job\.seed cannot be deleted"):
        del job.seed
    with pytest.raises(ValidationError):
        job.model_copy(update={"seed": -1})
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.model_copy(update={"seed": 3}) != job


def test_pydantic_takes_sections_as_types(tmp_path: Path) -> None:
    job = load(tmp_path)
    assert TypeAdapter(Job).validate_python(job.model_dump(mode="json", by_alias=True)) == job


def test_a_model_of_another_architecture_replaces_the_base_model(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    write_job(tmp_path / "bases", SHARED, "shared.yaml")
    job = load(
        tmp_path,
        "extends: bases/shared.yaml\n"
        "stages:\n"
        "  - {name: pretrain, model: {config: {model_type: bert, hidden_size: 24}}}\n",
    )
    model = first_stage(job).model
    assert model is not None
    assert model.config == {"model_type": "bert", "hidden_size": 24}


def test_a_mixture_is_replaced_and_not_added_to(tmp_path: Path) -> None:
    other = "  other: {source: text, files: data/*.txt}\n"
    write_job(tmp_path, VALID, "base.yaml")
    mixed = (
        "extends: base.yaml\ndatasets:\n"
        + other
        + "stages: [{name: pretrain, data: {mixture: {other: 1.0}}}]\n"
    )
    data = first_stage(load(tmp_path, mixed)).data
    assert (data.mixture, data.seq_len) == ({"other": 1.0}, 64)
    shared = VALID.replace("stages:\n", other + "stages:\n") + "defaults: {data: {mixture: {other: 1.0}}}\n"
    assert first_stage(load(tmp_path, shared)).data.mixture == {"rfc": 1.0}
