"""Sections of a job against each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.spec.jobs import VALID, changed, complaints, load

TUNE = """\
  - name: tune
    objective: {name: sequence_classification}
    init: {stage: pretrain}
    data: {mixture: {rfc: 1.0}, seq_len: 64}
    global_batch_size: 16
    micro_batch_size: 4
    strategy: {name: ddp}
    optimizer: {name: adamw, lr: 1e-3}
    schedule: {name: constant}
    limits: {max_steps: 10}
"""
EVALUATE = "  - {name: test, kind: evaluate, from: pretrain, datasets: [rfc], split: validation}\n"

MISTAKES = {
    changed("datasets: [rfc]", "datasets: [rcf]"): (
        "4: tokenizer.train.datasets[0]: no dataset is called 'rcf'. Did you mean 'rfc'?"
    ),
    changed("{rfc: 1.0}", "{rfc: 1.0, other: 1.0}"): (
        "15: stages[0].data.mixture.other: no dataset is called 'other'. Datasets: rfc."
    ),
    VALID + "    checkpoint: {every_steps: 4, keep_best: {metric: eval/loss}}\n": (
        "24: stages[0].checkpoint.keep_best: compares evaluations at the steps of checkpoints, and the"
        " stage's evaluation is missing; set evaluation: {datasets: [...], every_steps: 4}"
    ),
    VALID + "    checkpoint: {every_steps: 4, weights: best}\n": (
        "24: stages[0].checkpoint: weights 'best' needs keep_best: {metric: ...} to know which is"
    ),
    VALID
    + "    checkpoint: {every_steps: 4, keep_best: {metric: eval/loss}}\n"
    + "    evaluation: {datasets: [rfc], every_steps: 3}\n": (
        "24: stages[0].checkpoint.keep_best: compares evaluations at the steps of checkpoints, and the"
        " stage's evaluation has every_steps 3, which does not divide checkpoint.every_steps 4; set"
        " evaluation.every_steps 4"
    ),
    VALID.replace("global_batch_size: 16", "global_batch_size: 18"): (
        "16: stages[0].global_batch_size: global_batch_size 18 is not a multiple of micro_batch_size 4 x"
        " dp_degree 1 = 4.\nNearest: 16 or 20."
    ),
    changed("{model_type: gpt2}", "{model_type: gpt2, n_positions: 64}")
    + TUNE.replace("seq_len: 64", "seq_len: 128"): (
        "27: stages[1].data.seq_len: seq_len 128 is longer than n_positions 64 of the model of stage"
        " 'pretrain'"
    ),
    VALID + "    evaluation: {datasets: [rfx]}\n": (
        "24: stages[0].evaluation.datasets[0]: no dataset is called 'rfx'. Did you mean 'rfc'?"
    ),
    changed("    validation_fraction: 0.1\n", "") + "    evaluation: {datasets: [rfc]}\n": (
        "23: stages[0].evaluation.datasets[0]: dataset 'rfc' has no validation rows: its"
        " validation_fraction is 0. Give it one, such as 'datasets.rfc.validation_fraction: 0.1';"
        " 1 holds out all of it"
    ),
    VALID + EVALUATE.replace(", split: validation", ""): (
        "24: stages[1].datasets[0]: dataset 'rfc' has no test rows: its test_fraction is 0."
        " Give it one, such as 'datasets.rfc.test_fraction: 0.1'; 1 holds out all of it"
    ),
    VALID + EVALUATE.replace("[rfc]", "[rfd]"): (
        "24: stages[1].datasets[0]: no dataset is called 'rfd'. Did you mean 'rfc'?"
    ),
    VALID + EVALUATE.replace("from: pretrain", "from: pertrain"): (
        "24: stages[1].from: no stage is called 'pertrain'. Did you mean 'pretrain'?"
    ),
    VALID + EVALUATE + "  - {name: export, kind: export, from: test}\n": (
        "25: stages[2].from: 'test' is of kind 'evaluate', which makes no weights"
    ),
    VALID + EVALUATE.replace("name: test", "name: pretrain"): (
        "24: stages[1].name: 'pretrain' is also the name of stages[0]"
    ),
    VALID + EVALUATE.replace("name: test", "name: job.yaml"): (
        "24: stages[1].name: 'job.yaml' is a file of the run directory; give the stage another name"
    ),
    VALID + TUNE.replace("seq_len: 64}", "seq_len: 64, packing: best_fit, document_mask: false}"): (
        "27: stages[1].data.document_mask: sequence_classification needs its packed documents apart; leave"
        " document_mask out"
    ),
    VALID
    + TUNE.replace("seq_len: 64}", "seq_len: 64, packing: best_fit}").replace(
        "{name: ddp}", "{name: ddp, compile: true}"
    ): (
        "30: stages[1].strategy.compile: a model compiled as a whole cannot take sequence_classification's"
        " packed rows; set compile to false, use strategy fsdp2, which compiles blocks, or leave packing out"
    ),
    VALID + TUNE.replace("seq_len: 64}", "seq_len: 64, document_mask: true}"): (
        "27: stages[1].data.document_mask: sequence_classification puts one document in each row: there is"
        " nothing to confine; leave it out"
    ),
    changed("{name: causal_lm}", "{name: masked_lm, next_sentence: true}").replace(
        "seq_len: 64}", "seq_len: 64, packing: best_fit}"
    ): (
        "15: stages[0].data.packing: masked_lm with next_sentence puts one pair of segments in each row,"
        " which 'best_fit' cannot pack; leave packing out"
    ),
    changed("seq_len: 64}", "seq_len: 64, packing: none, document_mask: true}"): (
        "15: stages[0].data: document_mask: true needs rows of several documents, and packing none puts one"
        " in each; set packing to 'best_fit' or 'cut', or leave document_mask out"
    ),
    changed("seq_len: 64}", "seq_len: 64, after: pretrain}"): (
        "15: stages[0].data.after: 'pretrain' is no stage that the weights come from; those are none: set"
        " init: {stage: ...}"
    ),
    VALID + TUNE.replace("seq_len: 64}", "seq_len: 32, packing: cut, after: pretrain}"): (
        "27: stages[1].data.after: rows of 'pretrain' have seq_len 64 and these 32, so none of these is one"
        " of those; leave it out"
    ),
    VALID + TUNE.replace("seq_len: 64}", "seq_len: 64, after: pertrain}"): (
        "27: stages[1].data.after: 'pertrain' is no stage that the weights come from; those are 'pretrain'"
    ),
    changed("seq_len: 64}", "seq_len: 64, packing: bestfit}"): (
        "15: stages[0].data.packing: expected one of 'cut', 'best_fit', 'none' or true or false, found"
        " 'bestfit'"
    ),
    VALID + TUNE.replace("stage: pretrain", "stage: tune"): (
        "26: stages[1].init.stage: stages wait for each other: tune -> tune"
    ),
    changed("    label_column: label\n", "") + TUNE: (
        "26: stages[1].data.mixture.rfc: dataset 'rfc' has no label_column, which"
        " sequence_classification reads. Give it one, such as 'datasets.rfc.label_column: label'"
    ),
    changed("label_column: label\n", "label_column: label\n    label_names: [a, b, c]\n") + TUNE: (
        "28: stages[1].data.mixture.rfc: dataset 'rfc' has 3 label_names, and the objective of"
        " stage 'tune' has num_labels 2; they must be equal"
    ),
    changed("{name: causal_lm}", "{name: masked_lm, next_sentence: true}").replace(
        "seq_len: 64}", "seq_len: 64, mixture_unit: tokens}"
    ): (
        "15: stages[0].data.mixture_unit: rows of next_sentence are pairs that have no fixed tokens;"
        " give data.mixture in rows"
    ),
    changed("tokenizer:\n  train: {algorithm: bpe, vocab_size: 512, datasets: [rfc]}\n", ""): (
        "12: stages[0].model: a model from scratch needs a tokenizer: add a 'tokenizer' section,"
        " such as 'tokenizer: {from: gpt2}'"
    ),
    changed("{model_type: gpt2}", "{model_type: gpt2, n_positions: 32}"): (
        "15: stages[0].data.seq_len: seq_len 64 is longer than the model's n_positions 32"
    ),
    changed("{model_type: gpt2}", "{model_type: roberta, max_position_embeddings: 65, pad_token_id: 1}"): (
        "15: stages[0].data.seq_len: seq_len 64 is longer than the model's max_position_embeddings 65,"
        " of which 'roberta' uses 63"
    ),
    changed("{model_type: gpt2}", "{model_type: camembert, max_position_embeddings: 64}"): (
        "15: stages[0].data.seq_len: seq_len 64 is longer than the model's max_position_embeddings 64,"
        " of which 'camembert' uses 63"
    ),
    changed("{model_type: gpt2}", "{model_type: gpt2, vocab_size: 100}"): (
        "14: stages[0].model.config.vocab_size: vocab_size 100 is smaller than the tokenizer's"
        " 512; leave it out to use the tokenizer's"
    ),
    changed("{name: ddp}", "{name: fsdp2, replicate_degree: 2}"): (
        "18: stages[0].strategy.replicate_degree: replicate_degree 2 does not divide num_workers 1"
    ),
    changed("name: adamw", "name: adafactor").replace("{name: ddp}", "{name: zero}"): (
        "20: stages[0].optimizer.name: adafactor factors matrices, which zero 1 to 3 flatten; use"
        " strategy zero with stage 0, ddp or fsdp2, or the optimizer adamw"
    ),
    changed("warmup_steps: 2", "warmup_steps: 11"): (
        "22: stages[0].schedule: warmup_steps = 11 is longer than the stage, which has 10 steps"
    ),
    changed("{name: cosine, warmup_steps: 2}", "{name: wsd, warmup_steps: 6, decay_steps: 5}"): (
        "22: stages[0].schedule: warmup_steps + decay_steps = 11 is longer than the stage, which has 10 steps"
    ),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.items(), ids=MISTAKES.values())
def test_a_contradiction_between_sections_is_named(text: str, expected: str, tmp_path: Path) -> None:
    assert complaints(tmp_path, text) == [f"job.yaml:{expected}"]


def test_stages_that_wait_for_each_other_are_all_named(tmp_path: Path) -> None:
    first = TUNE.replace("stage: pretrain", "stage: more")
    second = TUNE.replace("name: tune", "name: more").replace("stage: pretrain", "stage: tune")
    assert complaints(tmp_path, VALID + first + second) == [
        "job.yaml:26: stages[1].init.stage: stages wait for each other: tune -> more -> tune",
        "job.yaml:36: stages[2].init.stage: stages wait for each other: more -> tune -> more",
    ]


def test_a_stage_behind_a_circle_is_not_blamed(tmp_path: Path) -> None:
    circle = TUNE.replace("stage: pretrain", "stage: tune")
    behind = TUNE.replace("name: tune", "name: more").replace("stage: pretrain", "stage: tune")
    assert complaints(tmp_path, VALID + circle + behind) == [
        "job.yaml:26: stages[1].init.stage: stages wait for each other: tune -> tune"
    ]


@pytest.mark.parametrize(
    "text",
    [
        VALID + TUNE + EVALUATE,
        changed("name: adamw", "name: adafactor").replace("{name: ddp}", "{name: zero, stage: 0}"),
        changed("warmup_steps: 2", "warmup_steps: 10"),
        VALID + "    evaluation: {datasets: [rfc]}\n",
        changed("{model_type: gpt2}", "{model_type: roberta, max_position_embeddings: 66, pad_token_id: 1}"),
        changed("{model_type: gpt2}", "{model_type: bert, max_position_embeddings: 64}"),
    ],
)
def test_what_fits_is_accepted(text: str, tmp_path: Path) -> None:
    load(tmp_path, text)


def test_a_dataset_is_compared_with_one_that_exists_and_is_not_itself(tmp_path: Path) -> None:
    text = changed("    label_column: label\n", "    decontaminate: {against: [rfcs]}\n")
    assert complaints(tmp_path, text) == [
        "job.yaml:10: datasets.rfc.decontaminate.against[0]: no dataset is called 'rfcs'. Did you mean 'rfc'?"
    ]
    own = text.replace("rfcs", "rfc")
    assert load(tmp_path, own).datasets["rfc"].decontaminate is not None
    assert complaints(tmp_path, own.replace("    validation_fraction: 0.1\n", "")) == [
        "job.yaml:9: datasets.rfc.decontaminate.against[0]: dataset 'rfc' holds out no rows, so all of its"
        " training rows would be dropped. Name another dataset, or give it a test_fraction"
    ]
