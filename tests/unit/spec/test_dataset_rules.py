"""What a streamed dataset cannot be asked for is refused when the job file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.spec.fingerprint import spec_fingerprint
from tests.unit.spec.jobs import VALID, complaints, first_stage, load

HUB = "    source: hub\n    path: some/web\n    streaming: true\n"
STREAMED = VALID.replace("    source: text\n    files: data/*.txt\n", HUB).replace(
    "  train: {algorithm: bpe, vocab_size: 512, datasets: [rfc]}", "  from: gpt2"
)
OTHER = "  other: {source: text, files: a.txt, decontaminate: {against: [rfc]}}\nstages:\n"


def test_a_streamed_dataset_is_accepted(tmp_path: Path) -> None:
    assert load(tmp_path, STREAMED).datasets["rfc"].source == "hub"


@pytest.mark.parametrize("key", ["near_duplicates: {}", "decontaminate: {against: [rfc]}", "words_column: w"])
def test_what_needs_rows_side_by_side_is_refused(key: str, tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, STREAMED.replace(HUB, f"{HUB}    {key}\n"))
    assert complaint.startswith("job.yaml:")
    found = key.partition(":")[0]
    assert complaint.endswith(
        f"datasets.rfc: streaming: true reads each file once and keeps no rows, and found {found}, for which"
        " rows must be at hand; leave that out, or set streaming: false and let the dataset be"
        " downloaded whole"
    )


def test_nothing_learns_from_or_compares_with_rows_that_are_not_kept(tmp_path: Path) -> None:
    said = (
        "dataset 'rfc' has streaming: true and keeps no rows, and this reads all its texts. Name another"
        " dataset, such as one of a few of its files, or set its streaming to false"
    )
    trained = VALID.replace("    source: text\n    files: data/*.txt\n", HUB)
    assert complaints(tmp_path, trained) == [f"job.yaml:4: tokenizer.train.datasets[0]: {said}"]
    (complaint,) = complaints(tmp_path, STREAMED.replace("stages:\n", OTHER))
    assert complaint.endswith(f"datasets.other.decontaminate.against[0]: {said}")


def test_rows_are_the_same_whichever_way_they_are_read(tmp_path: Path) -> None:
    streamed = load(tmp_path, STREAMED)
    kept = load(tmp_path, STREAMED.replace("    streaming: true\n", ""))
    assert spec_fingerprint(streamed, first_stage(streamed)) == spec_fingerprint(kept, first_stage(kept))
