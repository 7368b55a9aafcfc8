"""What a dataset cannot be asked for, streamed or read as rows of two kinds, is refused with the job file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.spec.fingerprint import spec_fingerprint
from tests.unit.spec.jobs import VALID, changed, complaints, first_stage, load

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


def with_regions(codes: str) -> str:
    """A job whose dataset has these ``phone_regions``, in line 10."""
    return VALID.replace("    files: data/*.txt\n", f"    files: data/*.txt\n    phone_regions: [{codes}]\n")


@pytest.mark.parametrize(
    ("region", "hint"),
    [
        ("UK", "Did you mean 'GB'?"),
        ("EL", "Did you mean 'GR'?"),
        ("EU", "Give one code for each country."),
        ("XX", "Give one code for each country."),
    ],
)
def test_a_country_without_phone_numbers_is_refused(region: str, hint: str, tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, with_regions(f"DE, {region}"))
    place, _, said = complaint.partition(": datasets.rfc.phone_regions[1]: ")
    assert place.startswith("job.yaml:")
    assert said == (
        "expected the code of a country (ISO 3166-1), such as 'US', 'GB' or 'DE', found"
        f" '{region}', of which no phone number is known. {hint}"
    )


def test_countries_with_phone_numbers_are_accepted(tmp_path: Path) -> None:
    job = load(tmp_path, with_regions("US, GB, GR, XK"))
    assert job.datasets["rfc"].phone_regions == ("US", "GB", "GR", "XK")


def test_a_name_that_stands_for_two_labels_is_refused(tmp_path: Path) -> None:
    names = "    label_column: label\n    label_names:\n      - spam\n      - ham\n      - spam\n"
    assert complaints(tmp_path, changed("    label_column: label\n", names)) == [
        "job.yaml:14: datasets.rfc.label_names[2]: 'spam' is the name of label 0 already, so no row would"
        " have label 2. Give each label a name of its own"
    ]


KINDS = """\
name: tiny
tokenizer: {from: gpt2}
datasets:
  web: {source: json, files: web.jsonl}
  qa:
    source: json
    files: qa.jsonl
    text_pair_column: a
    words_column: w
    messages_column: m
    label_column: y
    validation_fraction: 0.2
    test_fraction: 0.2
defaults:
  global_batch_size: 4
  micro_batch_size: 4
  strategy: {name: ddp}
  optimizer: {name: adamw, lr: 1e-3}
  schedule: {name: constant}
  limits: {max_steps: 1}
stages:
"""
LEARNED = KINDS.replace("{from: gpt2}", "{train: {algorithm: bpe, vocab_size: 512, datasets: [qa]}}")
COMPARED = KINDS.replace("web.jsonl}", "web.jsonl, decontaminate: {against: [qa]}}")
HELD_OUT = COMPARED.replace("validation_fraction: 0.2", "validation_fraction: 0.8")


def stage(name: str, objective: str, dataset: str = "qa", *, evaluates: bool = False) -> str:
    """A line for a training stage."""
    keys = f"objective: {{name: {objective}}}, init: {{pretrained: gpt2}}"
    data = f"data: {{mixture: {{{dataset}: 1.0}}, seq_len: 64}}"
    return f"  - {{name: {name}, {keys}, {data}{', evaluation: {datasets: [qa]}' * evaluates}}}\n"


def evaluate(name: str, split: str = "test") -> str:
    """A line for a stage that evaluates the stage ``name``."""
    return f"  - {{name: test, kind: evaluate, from: {name}, datasets: [qa], split: {split}}}\n"


def on_base(line: str) -> str:
    """A training stage that goes on with the weights of 'base'."""
    return line.replace("{pretrained: gpt2}", "{stage: base}")


BASE, ON_WEB = stage("base", "causal_lm"), stage("base", "causal_lm", "web", evaluates=True)
PAIRS = stage("pairs", "sequence_classification", evaluates=True)
TAGS = stage("tags", "token_classification, num_labels: 3")
CHAT = stage("chat", "supervised_finetuning", evaluates=True)
TWO_KINDS = {
    KINDS + BASE + on_base(CHAT): (
        "23: stages[1].evaluation.datasets[0]: dataset 'qa' is read as conversations here and as texts by"
        " stage 'base', which trains on it: rows held out as the one are not those held out as the other."
        " Split its files beforehand and make them two datasets, one to train on and one with"
        " validation_fraction: 1 to evaluate"
    ),
    KINDS + BASE + on_base(TAGS) + evaluate("tags"): (
        "24: stages[2].datasets[0]: dataset 'qa' is read as words here and as texts by stage 'base', which"
        " trains on it: rows held out as the one are not those held out as the other. Split its files"
        " beforehand and make them two datasets, one to train on and one with test_fraction: 1 to evaluate"
    ),
    LEARNED + ON_WEB: (
        "22: stages[0].evaluation.datasets[0]: dataset 'qa' is read as texts here and as conversations by"
        " tokenizer.train, which learns from it: rows held out as"
    ),
    COMPARED + ON_WEB: (
        "22: stages[0].evaluation.datasets[0]: dataset 'qa' is read as texts here and as conversations by"
        " decontaminate of dataset 'web': rows held out as"
    ),
}


@pytest.mark.parametrize("text", TWO_KINDS, ids=["conversations", "words", "tokenizer", "decontaminate"])
def test_rows_held_out_as_one_kind_are_not_learned_from_as_another(text: str, tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, text)
    assert complaint.startswith(f"job.yaml:{TWO_KINDS[text]}")


ACCEPTED = {
    "texts and pairs of them are one kind": KINDS + BASE + PAIRS + evaluate("pairs"),
    "the tokenizer reads the same kind": LEARNED + CHAT + evaluate("chat"),
    "nothing that is held out is evaluated": KINDS + BASE + on_base(TAGS) + evaluate("tags", "train"),
    "another model has learned it as another kind": KINDS + BASE + CHAT + TAGS + evaluate("tags"),
    "all is held out, whatever it is read as": HELD_OUT + ON_WEB + evaluate("base"),
    "only its own code knows what it reads": KINDS
    + BASE
    + on_base(stage("own", "'my:Objective'", evaluates=True)),
    "or what it trains on": KINDS + stage("base", "'my:Objective'") + on_base(CHAT),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_rows_of_one_kind_may_be_learned_from_and_evaluated(case: str, tmp_path: Path) -> None:
    load(tmp_path, ACCEPTED[case])


def test_a_stage_that_is_refused_for_its_objective_has_no_kind(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, KINDS + BASE + CHAT.replace("supervised_finetuning", "finetuning"))
    assert "stages[1].objective" in complaint


@pytest.mark.parametrize("mark", ['"', "\n", "\r", "", ",,", ",\n"])
def test_a_delimiter_that_csv_gives_another_meaning_is_refused(mark: str, tmp_path: Path) -> None:
    rows = VALID.replace("    source: text\n    files: data/*.txt\n", "    source: csv\n    files: a.csv\n")
    (complaint,) = complaints(
        tmp_path, rows.replace("a.csv\n", f"a.csv\n    delimiter: {json.dumps(mark)}\n")
    )
    assert "datasets.rfc.delimiter: " in complaint
    assert "expected one character that is no quote and no end of a line" in complaint
    for mark in (";", "\t", " ", "|"):
        load(tmp_path, rows.replace("a.csv\n", f"a.csv\n    delimiter: {json.dumps(mark)}\n"))


def test_a_weight_of_less_than_a_row_in_ten_thousand_is_refused(tmp_path: Path) -> None:
    other = VALID.replace("stages:\n", "  other: {source: text, files: a.txt}\nstages:\n")
    assert load(tmp_path, other.replace("{rfc: 1.0}", "{rfc: 1.0, other: 1.0e-4}"))
    tiny = other.replace("{rfc: 1.0}", "{rfc: 1.0, other: 1.0e-5}")
    (complaint,) = complaints(tmp_path, tiny)
    assert "stages[0].data.mixture.other: weight 1e-05 of 1.00001 is less than one row in 10,000" in complaint
    assert load(tmp_path, tiny.replace("seq_len: 64}", "seq_len: 64, mixture_unit: tokens}"))
    huge = complaints(tmp_path, other.replace("{rfc: 1.0}", "{rfc: 1.0e+308, other: 1.0e+308}"))
    assert ["of inf is less than" in complaint for complaint in huge] == [True, True]
