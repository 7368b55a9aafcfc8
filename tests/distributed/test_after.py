"""data.after: a stage goes on in the datasets where the stage before it ended, and that is proved."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchers.cli import main
from launchers.verification import verify_run
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.data.mixture import Mixture
from orchestrator.data.prepared import Meta
from orchestrator.data.replay import rows_of_steps
from orchestrator.spec.load import load_resolved
from orchestrator.spec.plan import plan_batch
from orchestrator.train.inputs import StageInputs
from orchestrator.train.ledger import read_ledger
from tests.support import run_ranks
from tests.unit.data.corpus import make_texts

pytestmark = pytest.mark.slow
STEPS = {"first": 5, "second": 6}


def write_job(folder: Path, **second: Any) -> Path:
    for number, name in enumerate(("books", "web")):
        (folder / f"{name}.txt").write_text("\n".join(make_texts(60, seed=number)))
    model = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 32}
    shared = {
        "objective": {"name": "causal_lm"},
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "strategy": {"name": "ddp"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "checkpoint": {"every_steps": 2},
    }
    mixtures = {"first": {"books": 0.8, "web": 0.2}, "second": {"books": 0.3, "web": 0.7}}
    stages = [
        {
            "name": name,
            **shared,
            **({"model": {"config": model}} if name == "first" else {"init": {"stage": "first"}}),
            "data": {"mixture": mixtures[name], "seq_len": 32, **(second if name == "second" else {})},
            "limits": {"max_steps": STEPS[name]},
        }
        for name in STEPS
    ]
    job = {
        "name": "run",
        "resources": {"num_workers": 2},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 300, "datasets": ["books"]}},
        "datasets": {name: {"source": "text", "files": f"{name}.txt"} for name in ("books", "web")},
        "stages": stages,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def run(root: str) -> list[str]:
    from orchestrator.train.worker import run_stage

    return [run_stage(Path(root), stage) for stage in STEPS]


def rows_read(layout: RunLayout) -> Counter[tuple[str, int]]:
    """How often each row was read, by dataset and number, over both stages."""
    job = load_resolved(layout.job)
    counts: Counter[tuple[str, int]] = Counter()
    for stage in job.stages:
        inputs = StageInputs.read(layout.stage(stage.name))
        metas = {name: Meta.open(Path(folder)) for name, folder in inputs.train.items()}
        mixture = Mixture.of_prepared(stage.data.mixture, "rows", metas, inputs.begun)  # type: ignore[union-attr]
        cursor = rows_of_steps(plan_batch(stage, job.resources), range(STEPS[stage.name]))  # type: ignore[arg-type]
        sources, rows, _ = mixture.locate_rows(cursor, seed=job.seed)
        counts.update((mixture.names[source], int(row)) for source, row in zip(sources, rows, strict=True))
    return counts


def test_a_stage_reads_on_where_the_one_before_it_ended(tmp_path: Path) -> None:
    path = write_job(tmp_path, after="first")
    layout = RunLayout(tmp_path / "runs" / "run")
    assert main(["prepare", str(path), "--runs-dir", str(tmp_path / "runs")]) == 0
    assert run_ranks(run, 2, str(layout.root)) == [["finished", "finished"]] * 2
    inputs = json.loads(layout.stage("second").inputs.read_text())
    sizes = {name: Meta.open(Path(folder)).num_rows for name, folder in inputs["train"].items()}
    found = rows_read(layout)
    assert sum(found.values()) == 8 * sum(STEPS.values())
    for name, size in sizes.items():
        times = {count for (dataset, _), count in found.items() if dataset == name}
        total = sum(count for (dataset, _), count in found.items() if dataset == name)
        assert times <= {total // size, total // size + 1}, "no row again before all were read"
    ends = {name: read_ledger(layout.stage(name).ledger)[-1].sources or {} for name in STEPS}
    starts = read_ledger(layout.stage("second").ledger)[0].sources or {}
    assert {name: first for name, (first, _) in starts.items()} == {
        name: end for name, (_, end) in ends["first"].items()
    }
    assert verify_run(layout.root, None)["ok"]

    layout.stage("second").inputs.write_text(json.dumps({**inputs, "begun": {"books": 0, "web": 0}}))
    problem = verify_run(layout.root, None)["ledger"]["problem"]
    end = ends["first"]["books"][1]
    expected = f"it begins with draw 0, and stage 'first' ended before draw {end}"
    assert problem == f"stage 'second', step 1, source 'books': {expected}"


def test_a_stage_begins_anew_without_it(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    assert main(["prepare", str(path), "--runs-dir", str(tmp_path / "runs")]) == 0
    found = rows_read(RunLayout(tmp_path / "runs" / "run"))
    assert max(found.values()) == 2, "the same rows again"
