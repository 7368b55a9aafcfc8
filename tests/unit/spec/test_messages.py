"""Every class of error in a job file, in full: where, what was expected, what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.spec.jobs import VALID, changed, complaints, first_stage, load

NAMED = "one of 'adamw', 'sgd', 'adafactor'"

MISTAKES = {
    changed("warmup_steps: 2", "warmup_step: 2"): (
        "22: stages[0].schedule.warmup_step: unknown key. Did you mean 'warmup_steps'?"
    ),
    changed("seed: 17", "zebra: 1"): (
        "2: zebra: unknown key. Valid keys: name, seed, reproducibility, resources, tokenizer, datasets,"
        " stages, tracking, launcher, sweep, defaults, extends."
    ),
    changed("lr: 1e-3", "lr: fast"): ("21: stages[0].optimizer.lr: expected a number, found 'fast'"),
    changed("seq_len: 64", "seq_len: '64'"): (
        "15: stages[0].data.seq_len: expected a whole number, found '64'"
    ),
    changed("seed: 17", "seed: true"): "2: seed: expected a whole number, found true",
    changed("seed: 17", "seed:"): "2: seed: expected a whole number, found null",
    changed("seed: 17", "seed: 1.5"): "2: seed: expected a whole number, found 1.5",
    changed("seed: 17", "seed: -1"): "2: seed: expected at least 0, found -1",
    changed("lr: 1e-3", "lr: 0"): ("21: stages[0].optimizer.lr: expected a number above 0, found 0"),
    changed("lr: 1e-3", "lr: .inf"): ("21: stages[0].optimizer.lr: expected a finite number, found inf"),
    changed("validation_fraction: 0.1", "validation_fraction: 1.5"): (
        "9: datasets.rfc.validation_fraction: expected at most 1, found 1.5"
    ),
    changed("seed: 17", "seed: 17\nresources: {gpus_per_worker: 2}"): (
        "3: resources.gpus_per_worker: expected at most 1, found 2"
    ),
    changed("name: adamw", "name: adam"): (
        f"20: stages[0].optimizer.name: expected {NAMED}, found 'adam'. Did you mean 'adamw'?"
    ),
    changed("      name: adamw\n", ""): (
        f"19: stages[0].optimizer.name: required, but missing; expected {NAMED}"
    ),
    changed("{name: ddp}", "{name: deepspeed}"): (
        "18: stages[0].strategy.name: expected one of 'ddp', 'fsdp2', 'zero' or your own"
        " 'package.module:Name', found 'deepspeed'"
    ),
    changed("{name: ddp}", "{name: 'my-module:Engine'}"): (
        "18: stages[0].strategy.name: expected your own 'package.module:Name', found 'my-module:Engine'"
    ),
    changed("{name: ddp}", "ddp"): (
        "18: stages[0].strategy: expected a section with the key 'name', found 'ddp'"
    ),
    changed("{name: ddp}", "{name: zero, stage: 4}"): (
        "18: stages[0].strategy.stage: expected one of 0, 1, 2, 3, found 4"
    ),
    changed("{name: ddp}", "{name: ddp, param_dtype: bfloat}"): (
        "18: stages[0].strategy.param_dtype: expected one of 'float32', 'bfloat16', 'float16', found"
        " 'bfloat'. Did you mean 'bfloat16'?"
    ),
    changed("  - name: pretrain", "  - name: pretrain\n    kind: trian"): (
        "13: stages[0].kind: expected one of 'train', 'evaluate', 'export', found 'trian'."
        " Did you mean 'train'?"
    ),
    changed("    global_batch_size: 16\n", ""): (
        "12: stages[0].global_batch_size: required, but missing; expected a whole number"
    ),
    changed("    limits: {max_steps: 10}\n", ""): (
        "12: stages[0].limits: required, but missing; expected a section of keys"
    ),
    changed("name: tiny", "name: Tiny Job"): (
        "1: name: expected a name of up to 64 lower-case letters, digits, '.', '_' and '-', found 'Tiny Job'"
    ),
    changed("  rfc:\n", "  RFC:\n"): (
        "6: datasets.RFC: expected a name of up to 64 lower-case letters, digits, '.', '_' and"
        " '-', found 'RFC'"
    ),
    changed("files: data/*.txt", "files: 3"): (
        "8: datasets.rfc.files: expected text or a list of text, found 3"
    ),
    changed("files: data/*.txt", "files: []"): (
        "8: datasets.rfc.files: expected text or a list of text, found an empty list"
    ),
    changed("      lr: 1e-3", "      lr: 1e-3\n      betas: [0.9, 0.9, 0.9]"): (
        "22: stages[0].optimizer.betas: expected a length of at most 2, found a list"
    ),
    changed("{max_steps: 10}", "{max_steps: 10, max_epochs: 1}"): (
        "23: stages[0].limits: give exactly one of 'max_steps', 'max_tokens', 'max_epochs',"
        " found 'max_steps' and 'max_epochs'"
    ),
    changed("    model: {config: {model_type: gpt2}}\n", ""): (
        "12: stages[0]: give 'model' (from scratch, or the shape of init.checkpoint) or"
        " init.stage / init.pretrained (which bring their own model), found neither"
    ),
    changed("  train: {algorithm: bpe, vocab_size: 512, datasets: [rfc]}", "  revision: main"): (
        "3: tokenizer: give exactly one of 'train' and 'from', found neither"
    ),
    changed("{model_type: gpt2}", "{n_layer: 2, model_typ: gpt2}"): (
        "14: stages[0].model: config needs 'model_type', a name such as 'gpt2', 'llama' or 'bert', found"
        " null (its keys: model_typ, n_layer)"
    ),
    changed("{model_type: gpt2}", "{model_type: 2}"): (
        "14: stages[0].model: config needs 'model_type', a name such as 'gpt2', 'llama' or 'bert', found"
        " 2 (its keys: model_type)"
    ),
    changed("model: {config: {model_type: gpt2}}", "init: {pretrained: a/b, trust_remote_code: true}"): (
        "14: stages[0].init: trust_remote_code: true needs a pinned 'revision', the commit whose code may"
        " run here, found null"
    ),
    changed("name: adamw\n", "name: sgd\n      nesterov: true\n      momentum: 0\n"): (
        "19: stages[0].optimizer: nesterov: true needs a momentum above 0, found 0; give one, such as"
        " 'momentum: 0.9', or leave nesterov out"
    ),
    changed("{name: ddp}", "{name: zero, stage: 0, offload_optimizer: {device: cpu}}"): (
        "18: stages[0].strategy: offload_optimizer needs stage 1, 2 or 3, found stage 0"
    ),
    changed("{name: ddp}", "{name: zero, stage: 1, param_dtype: bfloat16}"): (
        "18: stages[0].strategy: param_dtype bfloat16 needs stage 2 or 3, found stage 1: below that DeepSpeed"
        " keeps no float32 master weights the checkpoint could hold"
    ),
    changed("{name: ddp}", "{name: zero, stage: 0, param_dtype: float16}"): (
        "18: stages[0].strategy: param_dtype float16 needs stage 1, 2 or 3, found stage 0, whose gradients"
        " DeepSpeed cannot sum in float32; set a stage, or strategy ddp"
    ),
    changed("{name: ddp}", "{name: fsdp2, reduce_dtype: float16}"): (
        "18: stages[0].strategy.reduce_dtype: expected one of 'float32', 'bfloat16', found 'float16'."
        " Did you mean 'bfloat16'?"
    ),
    changed("{name: ddp}", "{name: ddp, param_dtype: float16}\n    loss_scale: {initial: 5000}"): (
        "19: stages[0].loss_scale: initial 5000 is not a power of two, so that scaling would round gradients."
        " Nearest: 4096 or 8192"
    ),
    changed("{name: ddp}", "{name: ddp, param_dtype: float16}\n    loss_scale: {initial: 0.5}"): (
        "19: stages[0].loss_scale.initial: expected at least 1, found 0.5"
    ),
    changed("{name: ddp}", "{name: ddp, param_dtype: float16}\n    loss_scale: {growth_interval: 0}"): (
        "19: stages[0].loss_scale.growth_interval: expected at least 1, found 0"
    ),
    changed("{name: ddp}", "{name: ddp}\n    loss_scale: {initial: 1024}"): (
        "19: stages[0].loss_scale: belongs to strategy.param_dtype 'float16', found 'float32'; leave it out,"
        " or set that dtype"
    ),
    changed("{name: ddp}", "{name: 'mine.engine:Engine'}\n    loss_scale: {}"): (
        "19: stages[0].loss_scale: belongs to strategy.param_dtype 'float16', found your own strategy"
        " 'mine.engine:Engine'; leave it out, or set that dtype"
    ),
    changed("{name: ddp}", "{name: zero, stage: 3, offload_optimizer: {device: nvme, nvme_path: /x}}"): (
        "18: stages[0].strategy: offload_optimizer.device: expected 'cpu', found 'nvme': on NVMe neither the"
        " clip nor a checkpoint can reach gradients and optimizer state; offload_param may be on nvme"
    ),
    changed("{name: ddp}", "{name: zero, stage: 3, offload_param: {device: cpu, nvme_path: /x}}"): (
        "18: stages[0].strategy.offload_param: nvme_path belongs to device 'nvme' and is needed there; device"
        " is 'cpu'"
    ),
    changed("validation_fraction: 0.1", "validation_fraction: 0.5\n    test_fraction: 0.75"): (
        "6: datasets.rfc: validation_fraction 0.5 + test_fraction 0.75 = 1.25 is more than all rows; their"
        " sum must be at most 1"
    ),
    changed("vocab_size: 512", "vocab_size: 512, lowercase: true"): (
        "4: tokenizer.train: lowercase: true needs algorithm 'wordpiece', found 'bpe'"
    ),
    changed("{name: ddp}", "{name: zero, stage: 2, offload_param: {device: cpu}}"): (
        "18: stages[0].strategy: offload_param needs stage 3, found stage 2"
    ),
    "name: a\nstages: []\n": ("2: stages: expected a length of at least 1, found an empty list"),
    "name: a\nstages: {x: 1}\n": "2: stages: expected a list, found a section of keys",
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.items(), ids=MISTAKES.values())
def test_mistake_is_named_with_its_place_and_what_was_expected(
    text: str, expected: str, tmp_path: Path
) -> None:
    assert complaints(tmp_path, text) == [f"job.yaml:{expected}"]


def test_the_job_that_mistakes_are_made_in_is_valid(tmp_path: Path) -> None:
    assert first_stage(load(tmp_path, VALID)).optimizer.lr == 1e-3


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = VALID.replace("seed: 17", "sed: 17").replace("lr: 1e-3", "lr: no").replace("ddp", "dpp")
    assert complaints(tmp_path, text) == [
        "job.yaml:2: sed: unknown key. Did you mean 'seed'?",
        "job.yaml:18: stages[0].strategy.name: expected one of 'ddp', 'fsdp2', 'zero' or your own"
        " 'package.module:Name', found 'dpp'. Did you mean 'ddp'?",
        "job.yaml:21: stages[0].optimizer.lr: expected a number, found 'no'",
    ]


def test_a_stage_with_a_mistake_does_not_make_the_list_too_short(tmp_path: Path) -> None:
    assert len(complaints(tmp_path, changed("seq_len: 64", "seq_len: 0"))) == 1


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    (message,) = complaints(tmp_path, changed("seed: 17", f"seed: {'x' * 200}"))
    assert message == f"job.yaml:2: seed: expected a whole number, found '{'x' * 60}...'"
