"""From words and their tags to tokens, of which the first of each word carries its tag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.contracts import IGNORE_INDEX, RowLayout
from orchestrator.data.encode import Encoded, Encoder
from orchestrator.data.labels import LabelIds


class WordEncoder(Encoder):
    """Encodes lists of words; their tokens are those of the words joined with spaces.

    A word's later tokens, special tokens and what is cut at ``seq_len`` have no tag, as in Hugging Face's
    ``run_ner``; so does a word that the tokenizer makes no token of.
    """

    def __init__(self, layout: RowLayout, tokenizer: Any, tags: LabelIds) -> None:
        """Check that layout and tokenizer fit.

        Args:
            tags: Ids of tags.

        Raises:
            DataError: As for texts.
        """
        super().__init__(layout, tokenizer)
        self._tags = tags

    def encode(self, documents: Sequence[Any]) -> Iterator[Encoded | None]:
        """One result for each pair of words and known tags, in order; ``None`` where no word has a token."""
        spaced = [_spaced(words) for words, _ in documents]
        encodings = self._backend.encode_batch(spaced, is_pretokenized=True)
        for encoding, (_, tags) in zip(encodings, documents, strict=True):
            if len(encoding.ids) <= self._num_added:
                yield None
                continue
            ids = [self._tags.id_of(tag) for tag in tags]
            begun = [None if word is None else ids[word] for word in first_words(encoding)]
            targets = [IGNORE_INDEX if target is None else target for target in begun]
            yield Encoded(encoding.ids, bool(encoding.overflowing), targets=targets)

    def encode_words(self, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
        """Tokens of some words, and for each the number of the word that begins with it."""
        encoding = self._backend.encode(_spaced(words), is_pretokenized=True)
        return list(encoding.ids), first_words(encoding)


def _spaced(words: Sequence[str]) -> list[str]:
    """Words as they follow each other in a text: byte-level tokens carry the space before them."""
    return [word if number == 0 else f" {word}" for number, word in enumerate(words)]


def first_words(encoding: Any) -> list[int | None]:
    """For each token the number of the word that begins with it; ``None`` for all other tokens."""
    numbers: list[int | None] = encoding.word_ids
    return [
        None if place and number == numbers[place - 1] else number for place, number in enumerate(numbers)
    ]
