"""From conversations to tokens by a chat template, and which of them the assistant has to learn.

A template is a program, so where an assistant's turn begins and ends is found by running it: on the
messages before the turn with the prompt to answer, and on the messages up to its end. Both must give the
first tokens of the whole conversation; a template for which they do not is refused, since training would
then learn something else than what is asked of the model afterwards.

Legend of shapes: S tokens of a conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.contracts import RowLayout
from orchestrator.data.chat_template import RENDER_ERRORS, on_a_day, own_template
from orchestrator.data.encode import Encoded, Encoder, Unfit

Messages = Sequence[Mapping[str, Any]]


class TemplateError(Exception):
    """A conversation that a template cannot render, or not so that turns are told apart."""


class ConversationEncoder(Encoder):
    """Encodes conversations; targets are 1 for tokens to learn and 0 for others."""

    def __init__(self, layout: RowLayout, tokenizer: Any) -> None:
        """Take a tokenizer with a chat template.

        Raises:
            DataError: The template writes today's date, and the job does not say which day that is.
        """
        super().__init__(layout, tokenizer)
        self._tokenizer = tokenizer
        self._template = on_a_day(own_template(tokenizer), layout.chat_date)
        self._special_ids = np.array(sorted(self.info.special_ids))

    def encode(self, documents: Sequence[Any]) -> Iterator[Encoded | Unfit | None]:
        """One result for each conversation, in order: cut at ``seq_len``, and unfit if no target is left."""
        for messages in documents:
            yield self._encode_one(messages)

    def _encode_one(self, messages: Messages) -> Encoded | Unfit | None:
        try:
            ids = self.tokens(messages)
            self._refuse_lost_calls(messages, ids)
            if self.layout.train_on == "all":
                learned = np.ones(len(ids), dtype=np.uint8)
            else:
                learned = self._answers(messages, ids)
        except TemplateError as error:
            return Unfit(str(error), is_fault=True)
        if len(ids) == 0:
            return None
        kept = learned[: self.layout.seq_len]
        # No token predicts the first one.
        if not kept[1:].any():
            where = f"the first {len(kept)} of {len(ids)} tokens"
            return Unfit(f"none of {where} is to be learned", is_fault=False)
        return Encoded(ids[: self.layout.seq_len].tolist(), len(ids) > len(kept), targets=kept.tolist())

    def _refuse_lost_calls(self, messages: Messages, ids: np.ndarray) -> None:
        """Refuse a conversation whose calls of tools are no part of its tokens.

        Raises:
            TemplateError: It has calls, and has the same tokens without them.
        """
        calls = [number for number, message in enumerate(messages) if message.get("tool_calls")]
        if not calls:
            return
        spoken = [{key: said for key, said in turn.items() if key != "tool_calls"} for turn in messages]
        try:
            without = self.tokens(spoken)
        except TemplateError:
            # What it refuses without the calls does not leave them out.
            return
        if np.array_equal(without, ids):
            raise TemplateError(
                f"message {calls[0]} (counted from 0) calls a tool, and the chat template leaves calls out:"
                " the answer would be learned as an empty one. Set objective.chat_template to one that writes"
                " tool_calls"
            )

    def tokens(self, messages: Messages, *, asks: bool = False) -> np.ndarray:
        """Tokens of some messages, int64 ``(S,)``; followed by the prompt to answer, if it ``asks``.

        Raises:
            TemplateError: The template refuses the messages.
        """
        from jinja2 import TemplateError as JinjaError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            if messages:
                text = self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, chat_template=self._template, add_generation_prompt=asks
                )
            else:
                # What stands before an answer that begins a conversation; the method above refuses to say.
                ((text,), _) = render_jinja_template(
                    conversations=[[]],
                    chat_template=self._template,
                    add_generation_prompt=asks,
                    **self._tokenizer.special_tokens_map,
                )
            ids = self._backend.encode(text, add_special_tokens=False).ids
        except (JinjaError, *RENDER_ERRORS) as error:
            roles = ", ".join(str(message["role"]) for message in messages[:10]) or "none"
            raise TemplateError(
                f"the chat template cannot render {len(messages)} messages (roles: {roles}): {error}"
            ) from error
        return np.array(ids, dtype=np.int64)

    def end_of_turn_ids(self) -> list[int]:
        """Special tokens that end an answer, so that a model that gives one has finished."""
        return sorted({*self._ends_of_an_answer(), self.info.eos_id})

    def has_end_of_turn(self) -> bool:
        """Whether the template ends an answer with a special token; else a model is not taught to stop."""
        try:
            return bool(self._ends_of_an_answer())
        except TemplateError:
            # It wants other conversations than this one.
            return True

    def _ends_of_an_answer(self) -> list[int]:
        question = {"role": "user", "content": "a"}
        begin = len(self.tokens([question], asks=True))
        answered = self.tokens([question, {"role": "assistant", "content": "b"}])[begin:]
        special: list[int] = answered[np.isin(answered, self._special_ids)].tolist()
        return special

    def _answers(self, messages: Messages, ids: np.ndarray) -> np.ndarray:
        """1 for the tokens of the assistant's turns, uint8 ``(S,)``."""
        learned = np.zeros(len(ids), dtype=np.uint8)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.tokens(messages[:number], asks=True)
            begin = len(before)
            if num_common(ids, before) < begin:
                raise TemplateError(_not_a_prefix(number, "begins"))
            after = self.tokens(messages[: number + 1])
            end = self._end_of_turn(after, begin)
            if end < begin or num_common(ids, after) < end:
                raise TemplateError(_not_a_prefix(number, "ends"))
            learned[begin:end] = 1
        return learned

    def _end_of_turn(self, ids: np.ndarray, begin: int) -> int:
        """Where a turn that begins at ``begin`` ends: space after its last special token is no part of it."""
        special = np.flatnonzero(np.isin(ids[begin:], self._special_ids))
        if len(special) == 0:
            return len(ids)
        end = begin + int(special[-1]) + 1
        return len(ids) if self._tokenizer.decode(ids[end:].tolist()).strip() else end


def num_common(first: np.ndarray, second: np.ndarray) -> int:
    """Number of equal tokens that both begin with."""
    shorter = min(len(first), len(second))
    differing = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differing[0]) if len(differing) else shorter


def _not_a_prefix(number: int, event: str) -> str:
    return (
        f"message {number} (counted from 0): the tokens up to where the assistant's turn {event} are not the"
        " first tokens of the whole conversation, so that its tokens cannot be told. Either the chat template"
        " writes a turn otherwise when more follows it (set objective.chat_template to one that does not, or"
        " train_on to 'all'), or space stands where an answer begins or ends, in the answer or in the"
        " template, and the tokenizer joins it to a word on the other side: have the template write that"
        " space together with the answer, not before it"
    )
