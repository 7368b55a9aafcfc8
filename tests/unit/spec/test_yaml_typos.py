"""The line that was probably mistyped, where the parser gives up at it or at one after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.spec.jobs import VALID, changed, complaints

SCALAR = "while scanning a simple key, could not find expected ':'"
VALUES = "mapping values are not allowed in this context"
FLOW = "while parsing a flow mapping, did not find expected ',' or '}'"
TOKEN = "while scanning for the next token, found character that cannot start any token"
TYPOS = {
    ("    objective: ", "\tobjective: "): (
        "13: while scanning a plain scalar, found a tab character that violates indentation",
        "13 is indented with a tab; YAML indents with spaces.",
    ),
    ("    micro_batch_size: 4", "    micro_batch_size:4"): (
        f"18: {SCALAR}",
        "17 lacks a space after the colon of 'micro_batch_size:'.",
    ),
    ("seed: 17", "seed = 17"): (f"3: {SCALAR}", "2 has no colon after 'seed'."),
    ("datasets:\n", "datasets\n"): (f"6: {SCALAR}", "5 has no colon after 'datasets'."),
    ("    source: text", "    source text"): (f"8: {VALUES}", "7 has no colon after 'source'."),
    ("  - name: pretrain", "  -name: pretrain"): (
        f"13: {VALUES}",
        "12 lacks a space after the dash of '-name'.",
    ),
    ("    micro_batch_size: 4", "     micro_batch_size: 4"): (
        f"17: {VALUES}",
        "17 is indented by 5 spaces, deeper than line 16 (4), which has a value: one of them is indented"
        " wrongly.",
    ),
    ("    micro_batch_size: 4", "   micro_batch_size: 4"): (
        "17: while parsing a block collection, did not find expected '-' indicator",
        "17 is indented by 3 spaces, where 0 or 4 would fit.",
    ),
    ("    micro_batch_size: 4", "micro_batch_size: 4"): (
        f"18: {VALUES}",
        "18 is indented by 4 spaces, deeper than line 17 (0), which has a value: one of them is indented"
        " wrongly.",
    ),
    ("      lr: 1e-3", "     lr: 1e-3"): (
        "21: while parsing a block mapping, did not find expected key",
        "21 is indented by 5 spaces, where 4 or 6 would fit.",
    ),
    ("seq_len: 64}", "seq_len: 64"): (f"16: {FLOW}", "15 opens '{' and does not close it."),
    ("datasets: [rfc]}", "datasets: [rfc}"): (
        "4: while parsing a flow sequence, did not find expected ',' or ']'",
        "4 opens '[' and does not close it.",
    ),
    ("{rfc: 1.0}, seq_len", "{rfc: 1.0} seq_len"): (f"15: {FLOW}", "15 lacks a comma before 'seq_len'."),
    ("cosine, warmup", "cosine warmup"): (f"22: {FLOW}", "22 lacks a comma before 'warmup_steps'."),
    ("data/*.txt", '"data/*.txt'): (
        "24: while scanning a quoted scalar, found unexpected end of stream",
        '8 opens a quote (") and does not close it.',
    ),
    ("data/*.txt", "*.txt"): (
        "8: while scanning an alias, did not find expected alphabetic or numeric character",
        "8 has a text that begins with '*', a mark of YAML's own; put it in quotes.",
    ),
    ("data/*.txt", "@x"): (
        f"8: {TOKEN}",
        "8 has a text that begins with '@', a mark of YAML's own; put it in quotes.",
    ),
    ("data/*.txt", "data: x"): (f"8: {VALUES}", "8 has ': ' in a text; put the text in quotes."),
}


@pytest.mark.parametrize(("typo", "told"), TYPOS.items(), ids=[told for _, told in TYPOS.values()])
def test_the_line_and_its_mistake_are_named(
    typo: tuple[str, str], told: tuple[str, str], tmp_path: Path
) -> None:
    where, _, problem = told[0].partition(": ")
    expected = [f"job.yaml:{where}: not valid YAML: {problem}. Line {told[1]}"]
    assert complaints(tmp_path, changed(*typo)) == expected


def test_comments_and_brackets_over_several_lines_are_not_blamed(tmp_path: Path) -> None:
    model = "    model: {config: {\n# here:we go\n      model_type: gpt2,\n      n_layer: 2 n_head: 2}}\n"
    (told,) = complaints(tmp_path, changed("    model: {config: {model_type: gpt2}}\n", model))
    assert told.endswith(f"{FLOW}. Line 17 lacks a comma before 'n_head'.")
    model = model.replace("2 n_head: 2}}", "2]}")
    (told,) = complaints(tmp_path, changed("    model: {config: {model_type: gpt2}}\n", model))
    assert told == f"job.yaml:17: not valid YAML: {FLOW}"


def test_a_space_that_is_missing_in_brackets_makes_no_key(tmp_path: Path) -> None:
    found = complaints(tmp_path, changed("{name: causal_lm}", "{name:causal_lm}"))
    assert found[0] == "job.yaml:13: stages[0].objective: expected a space after the colon of 'name:'"
    # In quotes it is meant.
    found = complaints(tmp_path, VALID + '"a:b": null\n')
    assert [told.partition(" Valid")[0] for told in found] == ["job.yaml:24: a:b: unknown key."]
