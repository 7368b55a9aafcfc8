"""What makes two stages the same: the keys that shape a trajectory, compared and digested.

Resources, the strategy (its dtypes aside), checkpoints, tracking, launcher, logging and evaluation
intervals change nothing that is learned and are not part of it; neither are limits, which may be
raised, nor where a dataset's files lie, since their content is digested where it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.spec.float16 import loss_scale_of
from orchestrator.spec.job import EvaluateStage, ExportStage, Job, Stage, TrainStage
from orchestrator.spec.metrics import best_mode
from orchestrator.spec.plan import input_stage

TRAJECTORY = (
    "objective",
    "init",
    "model",
    "data",
    "global_batch_size",
    "micro_batch_size",
    "optimizer",
    "schedule",
)
DTYPES = ("param_dtype", "reduce_dtype")
LOCATION = {"text": "files", "json": "files", "csv": "files", "parquet": "files", "saved": "path"}
"""By source, the key that says where a dataset lies."""
ABSENT = "absent"
UNSET = ("after", None)
"""Left out, so that stages finished before the key existed keep their digest."""


def trajectory_keys(stage: TrainStage, job: Job) -> dict[str, Any]:
    """Everything in ``job`` that shapes the weights of ``stage``, in the job file's own shape."""
    keys = stage.model_dump(mode="json", by_alias=True)
    shape: dict[str, Any] = {key: keys[key] for key in TRAJECTORY}
    shape |= {key: keys[key] for key in ("trainable", "freeze") if keys[key] is not None}
    if keys["init"]:
        # Where they say nothing new they are left out, as trust_pickle is: the weights are the same.
        unset = {"format": "orchestrator", "trust_pickle": keys["init"]["trust_pickle"]}
        shape["init"] = {key: value for key, value in keys["init"].items() if unset.get(key) != value}
    # What a key means, not how it is spelt: packing 'true' is 'cut'.
    meant = {"packing": stage.data.packing_mode, "document_mask": stage.data.confines_documents}
    shape["data"] = {key: value for key, value in (keys["data"] | meant).items() if (key, value) != UNSET}
    shape["strategy"] = {key: keys["strategy"].get(key, "float32") for key in DTYPES}
    loss_scale = loss_scale_of(stage)
    shape |= {} if loss_scale is None else {"loss_scale": loss_scale.model_dump(mode="json")}
    # Only where it is asked for, so that stages finished before the key existed keep their digest.
    order = {} if job.reproducibility == "standard" else {"reproducibility": job.reproducibility}
    inputs = _inputs(job, list(stage.data.mixture))
    return {"seed": job.seed, **order, **inputs, "stages": {stage.name: shape}}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per key that differs: ``stages.pretrain.optimizer.lr: 0.001 -> 0.0003``."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        f"{key}: {before.get(key, ABSENT)} -> {after.get(key, ABSENT)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def limits_lowered(old: TrainStage, new: TrainStage) -> list[str]:
    """One line per limit of ``new`` that is lower than, or of another kind than, that of ``old``."""
    lines = []
    for key, before in old.limits.model_dump().items():
        after = getattr(new.limits, key)
        if before is not None and (after is None or after < before):
            found = ABSENT if after is None else after
            lines.append(f"stages.{new.name}.limits.{key}: {before} -> {found}")
    return lines


def spec_fingerprint(job: Job, stage: Stage) -> str:
    """Digest of what the job file alone says about ``stage`` and the stages it builds on.

    Two equal ones mean the same stage as long as files and hub entries keep their content.
    """
    name = input_stage(stage)
    inputs = {} if name is None else {name: spec_fingerprint(job, job.stage(name))}
    keys = _stage_keys(job, stage)
    locations = {
        name: getattr(job.datasets[name], LOCATION[job.datasets[name].source])
        for name in keys.get("datasets", {})
        if job.datasets[name].source in LOCATION
    }
    return digest({"stage": keys, "inputs": inputs, "locations": locations})


def stage_fingerprint(
    job: Job,
    stage: Stage,
    *,
    input_fingerprints: Mapping[str, str],
    data_digests: Mapping[str, str],
) -> str:
    """Digest of everything the result of ``stage`` depends on.

    Args:
        input_fingerprints: Fingerprints of the stages it reads, by name.
        data_digests: Digests of the rows and tokenizer it reads, by any stable name.
    """
    content = {"inputs": dict(input_fingerprints), "data": dict(data_digests)}
    return digest({"stage": _stage_keys(job, stage), **content})


def weights_fingerprint(
    job: Job,
    stage: Stage,
    *,
    input_fingerprints: Mapping[str, str],
    data_digests: Mapping[str, str],
) -> str:
    """What the stage's weights depend on: all of its fingerprint but evaluation, where that chooses none."""
    if isinstance(stage, TrainStage) and stage.checkpoint.weights == "last":
        stage = stage.model_copy(update={"evaluation": None})
        data_digests = {
            name: value for name, value in data_digests.items() if not name.startswith("evaluation.")
        }
    return stage_fingerprint(job, stage, input_fingerprints=input_fingerprints, data_digests=data_digests)


def _stage_keys(job: Job, stage: Stage) -> dict[str, Any]:
    """What a finished stage of this job depends on, as far as the job file says."""
    if isinstance(stage, TrainStage):
        evaluated = list(stage.evaluation.datasets) if stage.evaluation else []
        max_rows = stage.evaluation.max_rows if stage.evaluation else None
        return {
            **trajectory_keys(stage, job),
            "limits": stage.limits.model_dump(mode="json"),
            "evaluation": {
                **_inputs(job, evaluated),
                "evaluated": evaluated,
                "max_rows": max_rows,
            },
            **_choice_of_weights(stage),
        }
    if isinstance(stage, EvaluateStage):
        keys = stage.model_dump(mode="json", by_alias=True, exclude=("micro_batch_size",))
        return {"seed": job.seed, **_inputs(job, list(stage.datasets)), "stages": {stage.name: keys}}
    assert isinstance(stage, ExportStage)
    return {"stages": {stage.name: stage.model_dump(mode="json", by_alias=True)}}


def _choice_of_weights(stage: TrainStage) -> dict[str, Any]:
    """What decides which step's weights are kept, where it is not the last one's."""
    if stage.checkpoint.weights == "last":
        return {}
    assert stage.checkpoint.keep_best is not None
    assert stage.evaluation is not None
    every = {"saved": stage.checkpoint.every_steps, "evaluated": stage.evaluation.every_steps}
    return {"best": {"metric": stage.checkpoint.keep_best.metric, "mode": best_mode(stage), **every}}


def _inputs(job: Job, datasets: list[str]) -> dict[str, Any]:
    """The tokenizer, and the datasets that rows come from or are compared with, or that it learned from."""
    tokenizer = job.tokenizer.model_dump(mode="json", by_alias=True) if job.tokenizer else None
    learned = list(job.tokenizer.train.datasets) if job.tokenizer and job.tokenizer.train else []
    sections = {}
    for name in with_compared(job, [*datasets, *learned]):
        dataset = job.datasets[name]
        # The same rows, whichever way they are read.
        exclude = ["streaming", *([LOCATION[dataset.source]] if dataset.source in LOCATION else [])]
        sections[name] = dataset.model_dump(mode="json", by_alias=True, exclude=exclude)
    return {"tokenizer": tokenizer, "datasets": sections}


def with_compared(job: Job, names: list[str]) -> list[str]:
    """``names``, and the datasets that their training rows must share nothing with, each once."""
    settings = [job.datasets[name].decontaminate for name in names]
    compared = [other for setting in settings if setting is not None for other in setting.against]
    return list(dict.fromkeys([*names, *compared]))


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values of a tree of mappings; a list is a value."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, "null" if node is None else node


def digest(content: Mapping[str, Any]) -> str:
    """Digest of ``content``'s canonical JSON."""
    import xxhash

    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode())
