"""A misspelt stage of a file that extends another is told by its name, not by all that it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.spec.jobs import complaints, load, write_job
from tests.unit.spec.test_load import SHARED

THERE = "Its stages: pretrain, tune, test."


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            "{name: tuen, optimizer: {lr: 0.2}}",
            [
                "name: no stage of 'base.yaml' is called 'tuen', so it merges with none, and alone it lacks"
                f" 'objective', 'data'. Did you mean 'tune'? {THERE}"
            ],
        ),
        (
            "{name: tuen, data: {seq_len: 32}}",
            [
                "name: no stage of 'base.yaml' is called 'tuen', so it merges with none, and alone it lacks"
                f" 'objective', 'data.mixture'. Did you mean 'tune'? {THERE}"
            ],
        ),
        (
            "{name: export, kind: export, form: tune}",
            [
                "name: no stage of 'base.yaml' is called 'export', so it merges with none, and alone it lacks"
                f" 'from'. {THERE}",
                "form: unknown key. Did you mean 'from'?",
            ],
        ),
    ],
)
def test_a_stage_that_merges_with_none_and_is_not_whole(
    tmp_path: Path, stage: str, expected: list[str]
) -> None:
    write_job(tmp_path, SHARED, "base.yaml")
    found = complaints(tmp_path, f"extends: base.yaml\nstages:\n  - {stage}\n")
    assert found == [f"job.yaml:3: stages[3].{message}" for message in expected]


def test_the_model_is_among_what_it_lacks(tmp_path: Path) -> None:
    write_job(tmp_path, SHARED.replace("  model: {config: {model_type: gpt2}}\n", ""), "base.yaml")
    whole = "objective: {name: causal_lm}, data: {mixture: {rfc: 1.0}, seq_len: 64}"
    text = f"extends: base.yaml\nstages:\n  - {{name: tuen, {whole}}}\n"
    assert complaints(tmp_path, text)[-1] == (
        "job.yaml:3: stages[3].name: no stage of 'base.yaml' is called 'tuen', so it merges with none, and"
        f" alone it lacks 'model' or 'init'. Did you mean 'tune'? {THERE}"
    )


def test_a_stage_that_is_whole_is_a_new_one(tmp_path: Path) -> None:
    write_job(tmp_path, SHARED, "base.yaml")
    stage = "{name: tuen, kind: evaluate, from: tune, datasets: [rfc], split: train}"
    job = load(tmp_path, f"extends: base.yaml\nstages: [{stage}]\n")
    assert [found.name for found in job.stages] == ["pretrain", "tune", "test", "tuen"]


def test_a_stage_of_a_file_that_extends_none_lacks_each_key(tmp_path: Path) -> None:
    text = SHARED + "  - {name: tset, kind: evaluate, from: tune}\n"
    where = f"job.yaml:{len(text.splitlines())}"
    expected = [f"{where}: stages[3].datasets: required, but missing; expected a list of text"]
    assert complaints(tmp_path, text) == expected
