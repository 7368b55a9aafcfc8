"""Job files for tests: one that is valid, and ways to make it wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.load import load_job

VALID = """\
name: tiny
seed: 17
tokenizer:
  train: {algorithm: bpe, vocab_size: 512, datasets: [rfc]}
datasets:
  rfc:
    source: text
    files: data/*.txt
    validation_fraction: 0.1
    label_column: label
stages:
  - name: pretrain
    objective: {name: causal_lm}
    model: {config: {model_type: gpt2}}
    data: {mixture: {rfc: 1.0}, seq_len: 64}
    global_batch_size: 16
    micro_batch_size: 4
    strategy: {name: ddp}
    optimizer:
      name: adamw
      lr: 1e-3
    schedule: {name: cosine, warmup_steps: 2}
    limits: {max_steps: 10}
"""


def write_job(folder: Path, text: str, name: str = "job.yaml") -> Path:
    """``text`` as a job file in ``folder``."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def write_data(folder: Path) -> None:
    """A file where ``VALID`` in ``folder`` looks for its texts."""
    (folder / "data").mkdir()
    (folder / "data" / "rfc.txt").write_text("text\n", encoding="utf-8")


def changed(old: str, new: str) -> str:
    """``VALID`` with ``old`` replaced, which must be in it once."""
    assert VALID.count(old) == 1, old
    return VALID.replace(old, new)


def complaints(
    folder: Path, text: str, *, overrides: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> list[str]:
    """What loading ``text`` complains about, without the folder."""
    path = write_job(folder, text)
    with pytest.raises(SpecError) as caught:
        load_job(path, overrides=overrides, env=env or {})
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def load(folder: Path, text: str = VALID, *overrides: str, **env: str) -> Job:
    """The job in ``text``."""
    return load_job(write_job(folder, text), overrides=overrides, env=env)


def first_stage(job: Job) -> TrainStage:
    """The job's first stage, which trains."""
    stage = job.stages[0]
    assert isinstance(stage, TrainStage)
    return stage
