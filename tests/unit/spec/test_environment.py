"""Variables in job files, and secrets kept out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from tests.unit.spec.jobs import VALID, changed, complaints, first_stage, load

REFUSED = (
    "looks like a secret's value, and a job file is copied into the run directory. Remove it here"
    " (and revoke it if the file was shared); export it as an environment variable instead, such"
    " as HF_TOKEN or WANDB_API_KEY"
)


def test_a_variable_is_typed_after_it_is_put_in(tmp_path: Path) -> None:
    text = VALID.replace("seed: 17", 'seed: "${SEED:-4}"').replace("lr: 1e-3", "lr: ${LR}")
    job = load(tmp_path, text.replace("name: tiny", "name: run-${N}"), LR="5e-4", N="7")
    assert (job.name, job.seed, first_stage(job).optimizer.lr) == ("run-7", 4, 5e-4)
    assert load(tmp_path, text, SEED="9", LR="1", N="0").seed == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [("$${A} $B", "${A} $B"), ("$${A:-$${B}}", "${A:-${B}}"), ("$${A ${B}", "${A b"), ("$$${A}", "$${A}")],
)
def test_a_doubled_dollar_is_a_plain_one(text: str, expected: str, tmp_path: Path) -> None:
    job = load(tmp_path, changed("{model_type: gpt2}", f"{{model_type: own, x: '{text}'}}"), B="b")
    model = first_stage(job).model
    assert model is not None and model.config["x"] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "${SEED}",
            "environment variable 'SEED' is not set. Set it, or give a default: '${SEED:-...}'",
        ),
        (
            "${SE ED}",
            "expected '${NAME}' or '${NAME:-default}' after a '${'; write '$${' for a plain '${'",
        ),
        (
            "${OPEN",
            "expected '${NAME}' or '${NAME:-default}' after a '${'; write '$${' for a plain '${'",
        ),
        ("${WORD}", "expected a whole number, found 'seven'"),
        (
            "${WORD:-${OTHER}}",
            "the default of '${WORD:-...}' holds another '${', and variables do not nest. Give plain"
            " text as the default",
        ),
        (
            "${WORD:-$${x}}",
            "the default of '${WORD:-...}' holds another '${', and variables do not nest. Give plain"
            " text as the default",
        ),
        (
            "${WANDB_API_KEY:-x}",
            "environment variable 'WANDB_API_KEY' looks like a secret, and a job file is copied"
            " into the run directory. Take it out of the file: what needs 'WANDB_API_KEY' reads it"
            " from the environment",
        ),
    ],
)
def test_a_variable_that_cannot_be_put_in_is_refused(value: str, expected: str, tmp_path: Path) -> None:
    text = changed("seed: 17", f"seed: {value}")
    env = {"WORD": "seven", "WANDB_API_KEY": "s3cret"}
    assert complaints(tmp_path, text, env=env) == [f"job.yaml:2: seed: {expected}"]


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "API_KEY"])
def test_a_secret_variable_never_enters_the_job(name: str, tmp_path: Path) -> None:
    (message,) = complaints(tmp_path, changed("seed: 17", f"seed: ${{{name}}}"), env={name: "1"})
    assert f"'{name}' looks like a secret" in message


@pytest.mark.parametrize("name", ["TOKENIZER", "MAX_TOKENS", "MONKEY", "KEYBOARD"])
def test_a_name_that_only_resembles_a_secret_is_fine(name: str, tmp_path: Path) -> None:
    job = load(tmp_path, changed("seed: 17", f"seed: ${{{name}}}"), **{name: "3"})
    assert job.seed == 3


@pytest.mark.parametrize(
    "line",
    [
        "api_key: 0123456789abcdef",
        "wandb-api-key: 0123456789abcdef0123456789abcdef01234567",
        "token: abc",
        "hf_token: abc",
        "password: hunter2",
        "note: hf_abcdefghijklmnopqrstuvwx",
        "header: 'Bearer abcdefghijklmnopqrst'",
        "note: eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc",
        "Authorization: zzzz",
        "note: sk-abcdefghijklmnopqrstuvwx",
        "note: AKIAABCDEFGHIJKLMNOP",
        "note: ghp_abcdefghijklmnopqrstuvwx0123456789",
        "note: '-----BEGIN RSA PRIVATE KEY-----'",
        "note: https://me:hunter2@example.org/data",
        "note: /data/https:/me:hunter2@example.org/data",
    ],
)
def test_what_looks_like_a_secret_is_refused_without_its_value(line: str, tmp_path: Path) -> None:
    key, _, value = line.partition(": ")
    found = complaints(tmp_path, changed("seed: 17", line))
    assert found == [f"job.yaml:2: {key}: {REFUSED}"]
    assert value.strip("'") not in found[0]


def test_a_key_of_wandb_is_refused_where_only_names_of_wandb_stand(tmp_path: Path) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    found = complaints(tmp_path, changed("seed: 17", f"tracking: {{wandb: {{project: p, tags: [{key}]}}}}"))
    assert found == [f"job.yaml:2: tracking.wandb.tags[0]: {REFUSED}"]


def with_options(options: str) -> str:
    """The valid job with options of a plug-in."""
    return changed("{name: ddp}", f"{{name: 'my.module:Engine', options: {options}}}")


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ("{api_token: 123456789}", [".api_token"]),
        ("{password: 1234}", [".password"]),
        ("{hf_token: 1.5}", [".hf_token"]),
        ("{token: 123456789}", [".token"]),
        ("{api_keys: [abc, 123, [def]]}", [".api_keys[0]", ".api_keys[1]", ".api_keys[2][0]"]),
        ("{secrets: [abc], passwords: {x: [y]}}", [".secrets[0]"]),
        ("{deep: [{client-secret: abc}]}", [".deep[0].client-secret"]),
    ],
)
def test_a_number_or_a_list_under_a_secrets_name_is_refused(
    options: str, keys: list[str], tmp_path: Path
) -> None:
    found = complaints(tmp_path, with_options(options))
    assert found == [f"job.yaml:18: stages[0].strategy.options{key}: {REFUSED}" for key in keys]


@pytest.mark.parametrize(
    "options",
    [
        "{max_tokens: 512, num_tokens: 1000000000, tokenizer: gpt2, pad_token_id: 0, special_tokens: [a, b]}",
        "{token: 50256, tokens: 4096, key: 3, keys: [1, 2]}",
        "{hub_token: false, api_key: null, password: '', use_auth_token: true, secret: {name: X}}",
        "{token: 0.5, api_keys: [], credentials: [null, true]}",
    ],
)
def test_numbers_and_switches_that_are_no_secrets_are_fine(options: str, tmp_path: Path) -> None:
    load(tmp_path, with_options(options))


@pytest.mark.parametrize("value", ["a", "[a, b]", "123456789"])
def test_a_column_may_be_called_like_a_secret(value: str, tmp_path: Path) -> None:
    filters = f"{{token: {value}, api_key: {value}, password: {value}}}"
    job = load(tmp_path, changed("label_column: label", f"filter: {filters}"))
    assert list(job.datasets["rfc"].filter) == ["token", "api_key", "password"]


def test_a_dataset_may_be_called_like_a_secret(tmp_path: Path) -> None:
    load(tmp_path, VALID.replace("rfc", "password"))


def test_a_secrets_value_in_a_filter_is_refused(tmp_path: Path) -> None:
    value = "hf_abcdefghijklmnopqrstuvwx"
    found = complaints(tmp_path, changed("label_column: label", f"filter: {{language: {value}}}"))
    assert found == [f"job.yaml:10: datasets.rfc.filter.language: {REFUSED}"]


def test_a_secret_given_on_the_command_line_is_refused_too(tmp_path: Path) -> None:
    value = "hf_abcdefghijklmnopqrstuvwx"
    found = complaints(tmp_path, VALID, overrides=(f"stages.pretrain.optimizer.name={value}",))
    assert found == [f"--set: stages[0].optimizer.name: {REFUSED}"]


@pytest.mark.parametrize(
    "config",
    [
        "{model_type: own, pad_token_id: 0, eos_token: '<|endoftext|>', bos_token: '<s>'}",
        "{model_type: own, key: value, note: 'a token of thanks'}",
    ],
)
def test_model_settings_about_tokens_are_no_secrets(config: str, tmp_path: Path) -> None:
    first_stage(load(tmp_path, changed("{model_type: gpt2}", config)))


def test_a_pinned_commit_is_no_secret(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    text = changed(
        "  train: {algorithm: bpe, vocab_size: 512, datasets: [rfc]}", f"  from: gpt2\n  revision: '{commit}'"
    )
    job = load(tmp_path, text)
    assert job.tokenizer is not None and job.tokenizer.revision == commit


def test_secrets_do_not_hide_other_problems(tmp_path: Path) -> None:
    text = changed("seed: 17", "api_key: abc").replace("lr: 1e-3", "lr: fast")
    assert complaints(tmp_path, text) == [
        f"job.yaml:2: api_key: {REFUSED}",
        "job.yaml:21: stages[0].optimizer.lr: expected a number, found 'fast'",
    ]


def test_errors_carry_their_problems(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, changed("seed: 17", "seed: x"))
    assert caught.value.problems[0].as_dict() == {
        "file": str(tmp_path / "job.yaml"),
        "line": 2,
        "key": "seed",
        "message": "expected a whole number, found 'x'",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{rfc: 1.0}", "{rfc: 1.0, SECRET: 1.0}"),
        ("  rfc:\n", "  SECRET:\n"),
        ("label_column: label", "label_column: label\n    filter: {SECRET: 1}"),
        ("{name: ddp}", "{name: ddp, SECRET: 1}"),
        ("datasets: [rfc]", "datasets: [SECRET]"),
    ],
)
def test_a_secret_that_stands_as_a_name_is_in_no_message(old: str, new: str, tmp_path: Path) -> None:
    secret = "hf_" + "a1B2" * 6
    found = complaints(tmp_path, changed(old, new.replace("SECRET", secret)))
    assert any("looks like a secret's value" in line for line in found)
    assert secret not in "".join(found)
