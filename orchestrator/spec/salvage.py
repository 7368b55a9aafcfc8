"""What of a job with errors in it can still be checked, so that one look at a file shows all errors.

1. take out what was refused, and put the least that is allowed where something required is missing;
   again, as long as that leaves sections that are refused
2. names are looked up in the whole; what fits what, in the parts that nothing was done to
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic_core import ValidationError

from orchestrator.spec.compile import fields_of
from orchestrator.spec.job import Job
from orchestrator.spec.messages import explain, is_echo, nearest
from orchestrator.spec.references import Complaint, check_dataset_names, check_fit, check_stage_names
from orchestrator.spec.tree import KeyPath

STAND_IN = "stand-in"
"""Stands for names that are missing, and is never complained about."""
# The least that each section needs.
DATASET = {"source": "text", "files": STAND_IN}
TOKENIZER_TRAINING = {"algorithm": "bpe", "vocab_size": 64, "datasets": [STAND_IN]}
EXPORT: dict[str, Any] = {"from": STAND_IN}
EVALUATION: dict[str, Any] = {"from": STAND_IN, "datasets": [STAND_IN]}
TRAINING: dict[str, Any] = {
    "objective": {"name": "causal_lm"},
    "data": {"mixture": {STAND_IN: 1.0}, "seq_len": 2},
    "global_batch_size": 1,
    "micro_batch_size": 1,
    "strategy": {"name": "ddp"},
    "optimizer": {"name": "adamw", "lr": 1.0},
    "schedule": {"name": "constant"},
    "limits": {"max_steps": 1},
}
ROUNDS = 6
"""Taking out a key can leave a section that is refused itself; sections lie no deeper than this."""


def check_rest(tree: dict[str, Any], refused: Collection[KeyPath]) -> Iterator[Complaint]:
    """Contradictions between sections of a job of which ``refused`` were refused.

    Args:
        tree: The job as plain dictionaries and lists; is changed.
    """
    given = _names(tree)
    changed: set[KeyPath] = {(key,) for path in refused if (key := _misspelt(path, tree)) is not None}
    job = _made_sound(tree, refused, changed)
    if job is None:
        return
    known = {*job.datasets, *(stage.name for stage in job.stages)}

    def untouched(path: KeyPath) -> bool:
        return not any(taken[: len(path)] == path[: len(taken)] for taken in changed)

    def is_the_files(path: KeyPath) -> bool:
        """Whether a name is given in the file, and is not that of something which was refused."""
        found = _lookup(tree, path)
        name = found if isinstance(found, str) else str(path[-1])
        refused = [other.lower() for other in given - known]
        return name != STAND_IN and nearest(name.lower(), refused) is None

    if not any(stage.name.startswith(STAND_IN) for stage in job.stages):
        yield from (found for found in check_stage_names(job) if is_the_files(found[0]))
    if ("datasets",) not in changed:
        yield from (found for found in check_dataset_names(job) if is_the_files(found[0]))
    sound = {name: item for name, item in job.datasets.items() if untouched(("datasets", name))}
    yield from check_fit(job.model_copy(update={"datasets": sound}), untouched)


def _names(tree: dict[str, Any]) -> set[str]:
    """What datasets and stages are called in the file, fit for a name or not."""
    stages, datasets = tree.get("stages"), tree.get("datasets")
    listed = stages if isinstance(stages, list) else []
    named = [stage.get("name") for stage in listed if isinstance(stage, dict)]
    return {str(name) for name in (*named, *(datasets if isinstance(datasets, dict) else ())) if name}


def _misspelt(path: KeyPath, tree: dict[str, Any]) -> str | None:
    """The section of the job that an unknown key of it was probably meant to be."""
    known = list(fields_of(Job))
    near = nearest(str(path[0]), known) if len(path) == 1 and path[0] not in known else None
    return None if near in tree else near


def _made_sound(tree: dict[str, Any], refused: Collection[KeyPath], changed: set[KeyPath]) -> Job | None:
    """The job of ``tree`` without what is refused; the parts this took are added to ``changed``."""
    for number in range(ROUNDS):
        for path in sorted(refused, key=len, reverse=True):
            _take_out(tree, path, changed, climb=number > 0)
        for part in {_part(path) for path in changed}:
            _fill_in(tree, part, may_stand_in=number == 0)
        try:
            return Job.model_validate({"name": STAND_IN, **tree})
        except ValidationError as failure:
            errors = failure.errors(include_url=False)
            refused = [explain(error, Job)[0] for error in errors if not is_echo(error)]
    return None


def _take_out(tree: dict[str, Any], path: KeyPath, changed: set[KeyPath], *, climb: bool) -> None:
    """Remove the value at ``path``; a list of stages keeps its length.

    Args:
        climb: Remove the section that lacks it where there is none.
    """
    part = _part(path)
    while climb and len(path) > len(part) and not _has(_lookup(tree, path[:-1]), path[-1]):
        path = path[:-1]
    changed.add(path[:3] if path[0] == "stages" else part)
    parent = _lookup(tree, path[:-1])
    if path[:-1] == ("stages",):
        parent[path[-1]] = {
            key: parent[path[-1]][key] for key in ("name", "kind") if _has(parent[path[-1]], key)
        }
    elif _has(parent, path[-1]):
        del parent[path[-1]]


def _part(path: KeyPath) -> KeyPath:
    """The dataset, stage or section of the job that ``path`` lies in."""
    return path[:2] if path[0] in ("datasets", "stages") else path[:1]


def _fill_in(tree: dict[str, Any], part: KeyPath, *, may_stand_in: bool) -> None:
    """Put the least that is needed into a part that something was taken from.

    Args:
        may_stand_in: Whether another dataset may take the place of one: not if its name is what was refused.
    """
    if part[0] == "datasets" and len(part) == 2 and may_stand_in:
        tree["datasets"][part[1]] = DATASET
    elif part[0] == "stages" and len(part) == 2:
        tree["stages"][part[1]] = _filled(_lookup(tree, part), int(part[1]))
    elif part == ("tokenizer",) and isinstance(_lookup(tree, (*part, "train")), dict):
        # Its datasets are looked up even where another of its keys was refused.
        tree["tokenizer"]["train"] = {**TOKENIZER_TRAINING, **tree["tokenizer"]["train"]}


def _filled(stage: dict[str, Any], index: int) -> dict[str, Any]:
    kind = stage.get("kind", "train")
    least = {"train": TRAINING, "evaluate": EVALUATION}.get(kind, EXPORT)
    filled = {"name": f"{STAND_IN}-{index}", **least, **stage}
    for key, value in least.items():
        if isinstance(value, dict) and isinstance(stage.get(key), dict):
            filled[key] = {**value, **stage[key]}
    if kind == "train" and filled.get("model") is None and filled.get("init") is None:
        filled["model"] = {"config": {"model_type": STAND_IN}}
    return filled


def _lookup(node: Any, path: KeyPath) -> Any:
    for part in path:
        node = node[part] if _has(node, part) else None
    return node


def _has(node: Any, part: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and part in node
