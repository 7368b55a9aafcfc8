"""The chat template of a tokenizer: the job's, or its own, and what day it is told."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from orchestrator.data.cache import make_folder
from orchestrator.data.files import digest_values
from orchestrator.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_digest
from orchestrator.errors import DataError

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# A space after the colon belongs to the first word of the answer, as in any text. BEGIN and END are
# replaced by what the tokenizer begins texts and ends documents with.
PLAIN = (
    "{{ BEGIN }}"
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + (message['role'] | capitalize) + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ END }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ('\\n' if messages else '') + 'Assistant:' }}{% endif %}"
)
# What a program raises for the values it is given; RecursionError is a RuntimeError.
RENDER_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Of strftime, for days and for times, which are midnight.
DIRECTIVES = "aAbBcdDeFGHIjklmMpPrRSTuUVwWxXyYZ"


def prepare_chat_template(folder: Path, chat_template: str | None, cache_dir: Path) -> Path:
    """Folder of the tokenizer in ``folder`` with a chat template; that folder itself where it has its own.

    Args:
        folder: A prepared tokenizer.
        chat_template: ``plain``, ``chatml`` or a Jinja file; absent: the tokenizer's own.
        cache_dir: Where tokenizers are kept.

    Raises:
        DataError: There is no template, or the tokenizer lacks its special tokens.
    """
    tokenizer = load_tokenizer(folder)
    if chat_template is None:
        if not tokenizer.chat_template:
            raise DataError(
                f"supervised_finetuning needs a chat template, and the tokenizer in {folder} has none. Set"
                " objective.chat_template to 'plain', 'chatml' or a Jinja file."
            )
        refuse_broken(own_template(tokenizer), f"the chat template of the tokenizer in {folder}")
        return folder
    check_chat_template(chat_template)
    template = _template_text(tokenizer, chat_template)
    if tokenizer.chat_template == template:
        return folder
    key = {"tokenizer": tokenizer_digest(folder), "chat_template": template}
    tokenizer.chat_template = template
    target = cache_dir / "tokenizers" / digest_values(key)
    return make_folder(target, lambda made: save_tokenizer(tokenizer, made))


def _template_text(tokenizer: Any, chat_template: str) -> str:
    if chat_template == "plain":
        begins = bool(tokenizer.bos_token) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        end = tokenizer.eos_token or tokenizer.sep_token
        begin = json.dumps(tokenizer.bos_token if begins else "")
        return PLAIN.replace("BEGIN", begin).replace("END", json.dumps(end))
    if chat_template == "chatml":
        missing = sorted(set(CHATML_TOKENS) - tokenizer.get_vocab().keys())
        if missing:
            raise DataError(
                f"chat_template 'chatml' needs the tokens {', '.join(CHATML_TOKENS)}, and the tokenizer lacks"
                f" {', '.join(missing)}. Use chat_template 'plain', or a tokenizer made for conversations."
            )
        return CHATML
    return _read(chat_template)


def check_chat_template(chat_template: str | None) -> None:
    """Refuse a file that is no chat template, before anything is made for the stages before it.

    Args:
        chat_template: As the job names it; one without a file is fine.

    Raises:
        DataError: The file is missing, is not UTF-8, is empty, or Jinja does not understand it.
    """
    if chat_template is not None and chat_template not in ("plain", "chatml"):
        refuse_broken(_read(chat_template), f"objective.chat_template: {chat_template}")


def own_template(tokenizer: Any) -> str:
    """The one that a tokenizer uses unless told otherwise.

    Raises:
        DataError: It has several with names, and none of them is the default.
    """
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise DataError(
            f"the tokenizer has several chat templates ({', '.join(tokenizer.chat_template)}) and none is its"
            " default. Write one of them into a Jinja file, and set objective.chat_template to that."
        ) from error


def _read(chat_template: str) -> str:
    try:
        return Path(chat_template).read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"objective.chat_template '{chat_template}' is neither 'plain' nor 'chatml', and no such file is"
            " there."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"objective.chat_template: {chat_template} cannot be read ({error}), expected a file of UTF-8"
            " text."
        ) from error


def refuse_broken(template: str, where: str) -> None:
    """Raise ``DataError`` for a template that no conversation could be rendered by."""
    from jinja2 import TemplateError as JinjaError
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    if not template.strip():
        raise DataError(f"{where} is empty, so that conversations would have no tokens.")
    try:
        render_jinja_template(conversations=[[]], chat_template=template)
    except TemplateSyntaxError as error:
        fault = str(error.message).rstrip(".")
        raise DataError(f"{where}, line {error.lineno}: not valid Jinja: {fault}.") from error
    except SyntaxError as error:
        # Jinja makes a program of it, which has rules of its own: a 'break' stands in a loop.
        raise DataError(f"{where}: not valid Jinja: {error.msg}.") from error
    except (JinjaError, MemoryError, *RENDER_ERRORS) as error:
        if "no loader" in str(error):
            raise DataError(f"{where}: a template stands alone, and this one reads another file.") from error
        # A sound one may want messages, or special tokens.
        return


def on_a_day(template: str, day: str | None) -> str:
    """A template that takes ``day`` for today.

    Raises:
        DataError: It asks which day it is, and ``day`` is absent.
    """
    if "strftime_now" not in template:
        return template
    if day is None:
        raise DataError(
            "the chat template writes today's date (strftime_now), so rows would differ from day to day: set"
            f" objective.chat_date to the day that it is told instead, such as '{date.today()}'"
        )
    # A macro hides the global function of that name; values of one that is passed are plain data.
    texts = {f"%{code}": date.fromisoformat(day).strftime(f"%{code}") for code in DIRECTIVES}
    replaced = "".join(f".replace({json.dumps(code)}, {json.dumps(text)})" for code, text in texts.items())
    return (
        f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
    )


def has_other_template(folder: Path, other: Path) -> bool:
    """Whether two folders hold tokenizers with different chat templates; no, where one is not there."""
    try:
        return bool(load_tokenizer(folder).chat_template != load_tokenizer(other).chat_template)
    except DataError:
        return False
