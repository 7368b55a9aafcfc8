"""A file that is no chat template is refused as that, not as the fault of a conversation."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data.chat_template import check_chat_template, has_other_template, prepare_chat_template
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import DataError

FAULTS = {
    "latin-1": ("{{ 'caf\u00e9' }}".encode("latin-1"), r"chat\.jinja cannot be read \('utf-8' codec"),
    "empty": (b" \n", r"chat\.jinja is empty, so that conversations would have no tokens"),
    "open block": (b"a\n{% if x %}", r"chat\.jinja, line 2: not valid Jinja: Unexpected end of template"),
    "only a BOM": (b"\xef\xbb\xbf", r"chat\.jinja is empty, so that conversations would have no tokens"),
    "break outside a loop": (b"{% break %}", r"chat\.jinja: not valid Jinja: 'break' outside loop\.$"),
    "unknown tag": (b"{% zebra %}", r"line 1: not valid Jinja: Encountered unknown tag 'zebra'\.$"),
    "another file": (b"{% include 'a.jinja' %}", r"chat\.jinja: a template stands alone, and this one reads"),
    "no such filter": (b"{{ messages | zebra }}", r"line 1: not valid Jinja: No filter named 'zebra'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_no_template_is_named(fault: str, bpe: Path, tmp_path: Path) -> None:
    content, message = FAULTS[fault]
    path = tmp_path / "chat.jinja"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        check_chat_template(str(path))
    with pytest.raises(DataError, match=message):
        prepare_chat_template(bpe, str(path), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages[0].content }}",
        "{{ raise_exception('who speaks?') }}",
        "{{ bos_token + messages[0]['role'] }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
    ],
)
def test_a_template_that_wants_messages_is_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(text)
    check_chat_template(str(path))
    check_chat_template("plain")
    check_chat_template(None)


def test_the_tokenizer_s_own_broken_template_is_named(bpe: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    tokenizer.chat_template = "{% for message in messages %}"
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match=r"chat template of the tokenizer in .*broken, line 1: not valid"):
        prepare_chat_template(tmp_path / "broken", None, tmp_path)


def test_several_templates_without_a_default_are_named(bpe: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe)
    tokenizer.chat_template = {"tools": "{{ messages }}", "rag": "{{ messages }}"}
    tokenizer.save_pretrained(tmp_path / "several")
    with pytest.raises(DataError, match=r"several chat templates \((tools, rag|rag, tools)\) and none"):
        prepare_chat_template(tmp_path / "several", None, tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_template(bpe: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}", encoding="utf-8-sig")
    assert load_tokenizer(prepare_chat_template(bpe, str(path), tmp_path)).chat_template == "{{ messages }}"


def test_templates_are_told_apart(bpe: Path, tmp_path: Path) -> None:
    plain = prepare_chat_template(bpe, "plain", tmp_path)
    assert has_other_template(bpe, plain)
    assert not has_other_template(plain, plain)
    assert not has_other_template(plain, tmp_path / "gone")
