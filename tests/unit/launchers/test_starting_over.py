"""What starts over finds all that it reads first."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.starting_over import refuse_missing_sources
from orchestrator.errors import PlanError
from orchestrator.spec.job import Job
from tests.unit.launchers.test_preparation import make_many


@pytest.mark.parametrize("gone", ["words", "rows", "more", "held", "other"])
def test_what_is_only_compared_with_or_gives_label_names_is_looked_for_as_well(
    gone: str, tmp_path: Path
) -> None:
    keys = make_many(tmp_path).model_dump(mode="json", by_alias=True)
    test = {
        "name": "test",
        "kind": "evaluate",
        "from": "classify",
        "datasets": ["held"],
        "split": "validation",
    }
    keys["stages"][0]["evaluation"] = None
    keys["stages"].append(test)
    job = Job.model_validate(keys)
    for stage in job.stages:
        refuse_missing_sources(job, [stage])
    (tmp_path / f"{gone}.jsonl").unlink()
    for stage in job.stages:
        with pytest.raises(
            PlanError, match=f"to start over: .* no file '{gone}.jsonl' .* Nothing has been moved"
        ):
            refuse_missing_sources(job, [stage])


def test_an_empty_folder_of_saved_rows_is_none(tmp_path: Path) -> None:
    keys = make_many(tmp_path).model_dump(mode="json", by_alias=True)
    saved = tmp_path / "saved"
    keys["datasets"]["words"] = {"source": "saved", "path": str(saved)}
    job = Job.model_validate(keys)
    for make in (lambda: None, saved.mkdir):
        make()
        with pytest.raises(PlanError, match=r"datasets\.words: path: there is nothing in"):
            refuse_missing_sources(job, job.stages)
    (saved / "state.json").touch()
    refuse_missing_sources(job, job.stages)
