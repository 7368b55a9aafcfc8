"""What ``orchestrator verify`` reports: the proofs of a run's stages as one JSON document.

Needs numpy and xxhash, and none of torch, transformers and Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launchers.runs import UnknownRunError
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.weights import weights_problem
from orchestrator.data.cache import damage
from orchestrator.spec.job import EvaluateStage, Job, TrainStage
from orchestrator.spec.load import load_resolved
from orchestrator.spec.messages import which_stage
from orchestrator.train.proof import StageProof, prove_stage


def verify_run(run_dir: Path, stage_name: str | None) -> dict[str, Any]:
    """Check checkpoints and ledgers of a run's training stages, all weights and all held-out rows.

    Args:
        stage_name: The training stage to check; absent: all of them.

    Returns:
        ``{name, ok, checkpoints: [{stage, step, ok, problem}], weights: [{stage, ok, problem}],
        held_out: [{stage, dataset, ok, problem}], ledger: {ok, rows, problem}, stages}``; ``stages`` has the
        same for each training stage, ``{name, ok, checkpoints, ledger}``, whose ledger has more fields: those
        of ``LedgerProof``.

    Raises:
        UnknownRunError: There is no such training stage.
        SpecError: The run's job.yaml cannot be read.
    """
    layout = RunLayout(run_dir)
    job = load_resolved(layout.job)
    proofs = [_prove(job, name, layout) for name in _training_stages(job, run_dir, stage_name)]
    stages = [_stage_document(proof) for proof in proofs]
    weights = [
        {"stage": found.name, "ok": problem is None, "problem": problem}
        for found in job.stages
        if stage_name in (None, found.name) and not isinstance(found, EvaluateStage)
        if layout.stage(found.name).result.exists()
        for problem in [weights_problem(layout.stage(found.name))]
    ]
    held_out = [
        {"stage": name, "dataset": dataset, "ok": problem is None, "problem": problem}
        for name in (found.name for found in job.stages if stage_name in (None, found.name))
        for dataset, problem in _held_out(layout.stage(name))
    ]
    problems = [proof.ledger.problem for proof in proofs if proof.ledger.problem is not None]
    return {
        "name": run_dir.resolve().name,
        "ok": all(proof.is_proved for proof in proofs)
        and all(found["ok"] for found in (*weights, *held_out)),
        "checkpoints": [
            {"stage": stage["name"], **found} for stage in stages for found in stage["checkpoints"]
        ],
        "weights": weights,
        "held_out": held_out,
        "ledger": {
            "ok": not problems,
            "rows": sum(proof.ledger.rows for proof in proofs),
            "problem": problems[0] if problems else None,
        },
        "stages": stages,
    }


def _training_stages(job: Job, run_dir: Path, wanted: str | None) -> list[str]:
    """Names of the stages to check."""
    names = [stage.name for stage in job.stages if isinstance(stage, TrainStage)]
    if wanted is None:
        return names
    if wanted not in names:
        hint = which_stage(wanted, names, plural="Its training stages")
        raise UnknownRunError(f"{run_dir} has no training stage '{wanted}'.{hint}")
    return [wanted]


def _prove(job: Job, name: str, layout: RunLayout) -> StageProof:
    """Check one stage by the job that it was last started with."""
    stage_layout = layout.stage(name)
    if stage_layout.job.is_file():
        begun = load_resolved(stage_layout.job)
        # It may have been of another kind before, with no start since.
        job = begun if isinstance(begun.stage(name), TrainStage) else job
    stage = job.stage(name)
    assert isinstance(stage, TrainStage)
    return prove_stage(job, stage, stage_layout)


def _held_out(stage: StageLayout) -> Iterator[tuple[str, str | None]]:
    """Datasets that a stage evaluates on, and what is wrong with their rows, every byte read."""
    try:
        folders: dict[str, str] = json.loads(stage.inputs.read_text(encoding="utf-8"))["evaluation"]
    except (OSError, ValueError, KeyError):
        # A stage that was not prepared; of one that has trained, the ledger's proof says what is wrong.
        return
    for dataset, folder in folders.items():
        problem = damage(Path(folder)) if Path(folder).is_dir() else "it is missing"
        yield dataset, None if problem is None else f"{folder}: {problem}; the next start makes them anew"


def _stage_document(proof: StageProof) -> dict[str, Any]:
    """The proof of one stage as JSON."""
    checkpoints = [
        {"step": found.step, "ok": found.problem is None, "problem": found.problem}
        for found in proof.checkpoints
    ]
    ledger = {"ok": proof.ledger.problem is None, **asdict(proof.ledger)}
    return {"name": proof.name, "ok": proof.is_proved, "checkpoints": checkpoints, "ledger": ledger}
