"""What a row of a source is made of: which columns, whether they are sound, and its text.

A section may name columns for several kinds of stages; ``section_for`` leaves those that one kind reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.contracts import RowLayout
from orchestrator.data.csv_values import label_in
from orchestrator.data.labels import label_problem
from orchestrator.data.record import undecodable
from orchestrator.spec.datasets import Dataset, DatasetSection, PackageDataset

OPTIONAL_KEYS = (
    "text_pair_column",
    "words_column",
    "messages_column",
    "prompt_column",
    "completion_column",
    "label_column",
    "label_names",
)
CONVERSATION_KEYS = ("messages_column", "prompt_column", "completion_column")
LABEL_KEYS = ("label_column", "label_names")
TEXT_FIELDS = ("text", "text_pair", "prompt", "completion")
# What other formats call the assistant.
LIKE_ASSISTANT = ("assistant", "gpt", "bot", "model", "ai", "chatgpt")
# Characters of a value that a message shows.
SHOWN = 200


class Undecoded(bytes):
    """A text that is not UTF-8."""


Batch = Mapping[str, list[Any]]
"""Rows, field by field."""


def kind_of(dataset: Dataset) -> str:
    """The format of a section's files, or the source itself where it is no files."""
    return dataset.format if isinstance(dataset, PackageDataset) else dataset.source


def is_all_text(dataset: Dataset) -> bool:
    """Whether values are texts, whatever they stand for (``csv_values.py``)."""
    return kind_of(dataset) == "csv"


def wanted_columns(dataset: Dataset) -> tuple[str, ...]:
    """All columns that a section names, for whatever kind of stage."""
    named = [getattr(dataset, key) for key in ("text_column", *OPTIONAL_KEYS) if key.endswith("_column")]
    return tuple(dict.fromkeys([*(column for column in named if column is not None), *dataset.filter]))


def section_for(dataset: Dataset, layout: RowLayout) -> Dataset:
    """The section with the columns alone that rows of this layout are made from.

    What nobody reads must not be able to spoil a run, nor to divide the cache.
    """
    kept: tuple[str, ...] = ()
    if layout.document == "conversation":
        kept = CONVERSATION_KEYS
    elif layout.document == "words":
        kept = ("words_column", *LABEL_KEYS)
    elif layout.labelled:
        kept = ("text_pair_column", *LABEL_KEYS)
    return dataset.model_copy(update={key: None for key in OPTIONAL_KEYS if key not in kept})


def columns_of(dataset: DatasetSection) -> dict[str, str]:
    """The section's key by field of a row: conversations before words before texts."""
    if dataset.messages_column is not None:
        keys = {"messages": "messages_column"}
    elif dataset.prompt_column is not None:
        keys = {"prompt": "prompt_column", "completion": "completion_column"}
    elif dataset.words_column is not None:
        keys = {"words": "words_column"}
    else:
        keys = {"text": "text_column", "text_pair": "text_pair_column"}
    keys["label"] = "label_column"
    return {field: key for field, key in keys.items() if getattr(dataset, key) is not None}


def documents_of(batch: Batch) -> list[Any]:
    """What an encoder takes, one for each row: a text, a pair of texts, words with tags, or messages."""
    if "messages" in batch:
        return [[_given(message) for message in as_messages(value)] for value in batch["messages"]]
    if "prompt" in batch:
        pairs = zip(batch["prompt"], batch["completion"], strict=True)
        return [as_conversation(prompt, completion) for prompt, completion in pairs]
    if "words" in batch:
        return list(zip(batch["words"], batch["label"], strict=True))
    if "text_pair" in batch:
        return list(zip(batch["text"], batch["text_pair"], strict=True))
    return batch["text"]


def as_conversation(prompt: str, completion: str) -> list[dict[str, str]]:
    """One question and its answer as messages."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def as_messages(value: Any) -> Any:
    """A conversation from JSON text, as ``conversion.py`` keeps it so that no row shapes another's.

    What is no JSON, or nested too deeply to be read, is given as the text it is.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _given(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without keys that only others of the source have; who calls a tool may say nothing."""
    return {"content": "", **{key: value for key, value in message.items() if value is not None}}


def texts_of(batch: Batch) -> list[str]:
    """All text of each row, such as a tokenizer learns from."""
    return ["\n".join(texts) for texts in field_texts(batch)]


def field_texts(batch: Batch) -> list[list[str]]:
    """The texts of each row one by one: its fields, or what each message says."""
    if "messages" in batch:
        return [
            [message.get("content") or "" for message in as_messages(value)] for value in batch["messages"]
        ]
    if "words" in batch:
        return [[" ".join(words)] for words in batch["words"]]
    columns = [batch[field] for field in TEXT_FIELDS if field in batch]
    return [list(texts) for texts in zip(*columns, strict=True)]


def count_chars(batch: Batch) -> list[int]:
    """Characters of each row's texts, messages or words, without what joins them."""
    if "words" in batch:
        return [sum(map(len, words)) for words in batch["words"]]
    return [sum(map(len, texts)) for texts in field_texts(batch)]


def split_texts(batch: Batch) -> list[str]:
    """What chooses the split of each row: its text, whatever it is paired with; of others the whole row."""
    return batch["text"] if "text" in batch else identities(batch)


def identities(batch: Batch) -> list[str]:
    """A string for each row that is the same for equal rows: a text itself, others as JSON."""
    if "text" in batch and "text_pair" not in batch:
        return batch["text"]
    if "words" in batch:
        return [json.dumps(words) for words in batch["words"]]
    # What has no place in JSON, such as the time of a message in a Parquet file, as its text.
    return [json.dumps(document, sort_keys=True, default=str) for document in documents_of(batch)]


def problems(dataset: Dataset, batch: Batch) -> Iterator[str | None]:
    """What is wrong with each row; ``None`` for a sound one."""
    fields = list(batch)
    for values in zip(*batch.values(), strict=True):
        yield _problem(dataset, dict(zip(fields, values, strict=True)))


def _problem(dataset: Dataset, row: Mapping[str, Any]) -> str | None:
    for field in TEXT_FIELDS:
        if field in row and not isinstance(row[field], str):
            column = getattr(dataset, f"{field}_column")
            return f"column '{column}' holds {_shown(row[field])}, expected a string"
    if "messages" in row:
        return _conversation_problem(str(dataset.messages_column), row["messages"])
    if "label" in row and (problem := _label_problem(dataset, row["label"])):
        return problem
    if "words" in row:
        return _words_problem(dataset, row["words"], row.get("label"))
    return None


def _label_problem(dataset: Dataset, label: Any) -> str | None:
    """A label that is missing, no UTF-8, or no name of the section; lists of numbers are looked at later."""
    column, names = dataset.label_column, dataset.label_names
    if label is None or label == "":
        return f"column '{column}' holds no label"
    undecoded = next((one for one in (label if _is_list(label) else [label]) if isinstance(one, bytes)), None)
    if undecoded is not None:
        return undecoded_problem(str(column), undecoded)
    if names is not None and _is_list(label):
        return _names_problem(f"column '{column}'", label, names)
    value = label_in(label, names) if is_all_text(dataset) else label
    if names is not None and isinstance(value, str | int) and label_problem(value, names, None):
        return f"column '{column}' holds {label!r}, expected one of {list(names)[:10]}"
    return None


def undecoded_problem(column: str, value: bytes) -> str:
    """What is wrong with a text that is not UTF-8."""
    return f"column '{column}' holds {_shown(value)}, which is not UTF-8"


def _names_problem(where: str, labels: Sequence[Any], names: Sequence[str]) -> str | None:
    """A name in a list of labels or tags that is none of the section's."""
    for number, label in enumerate(labels):
        if isinstance(label, str) and label not in names:
            return f"{where}, item {number} (counted from 0) is {label!r}, expected one of {list(names)[:10]}"
    return None


def _conversation_problem(column: str, value: Any) -> str | None:
    messages = as_messages(value)
    try:
        # Half a character is JSON as an escape, and no UTF-8.
        is_escaped = isinstance(value, str) and "\\u" in value
        half = undecodable(json.dumps(messages, ensure_ascii=False)) if is_escaped else None
        return _messages_problem(column, messages) if half is None else f"column '{column}': {half}"
    except RecursionError:
        return f"column '{column}' holds {_shown(value)}, which is nested too deeply to be read"


def _messages_problem(column: str, messages: Any) -> str | None:
    if not _is_list(messages) or len(messages) == 0:
        return f"column '{column}' holds {_shown(messages)}, expected a list of messages"
    for number, message in enumerate(messages):
        given = message if isinstance(message, Mapping) else {}
        undecoded = _undecoded({key: said for key, said in given.items() if key not in ("role", "content")})
        if undecoded is not None:
            where = f"column '{column}', message {number} (counted from 0)"
            return f"{where} holds {_shown(undecoded)}, which is not UTF-8"
        for key in ("role", "content"):
            value = message.get(key) if isinstance(message, Mapping) else None
            if (
                key == "content"
                and value is None
                and isinstance(message, Mapping)
                and message.get("tool_calls")
            ):
                continue
            if key == "role" and str(value).lower() in LIKE_ASSISTANT and value != "assistant":
                return (
                    f"column '{column}', message {number} (counted from 0) has role {value!r}, of which"
                    " nothing would be learned, expected 'assistant'"
                )
            if not isinstance(value, str):
                return (
                    f"column '{column}', message {number} (counted from 0) has {key} {_shown(value)},"
                    " expected a string"
                )
    return None


def _undecoded(value: Any) -> Undecoded | None:
    """A text somewhere in a value that is not UTF-8."""
    if isinstance(value, str):
        return None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := _undecoded(item)) is not None), None)
    return value if isinstance(value, Undecoded) else None


def _words_problem(dataset: DatasetSection, words: Any, tags: Any) -> str | None:
    column = dataset.words_column
    if not _is_list(words) or len(words) == 0:
        return f"column '{column}' holds {_shown(words)}, expected a list of words"
    for number, word in enumerate(words):
        if not isinstance(word, str):
            return f"column '{column}', word {number} (counted from 0) is {_shown(word)}, expected a string"
    if dataset.label_column is None:
        return None
    if not _is_list(tags) or len(tags) != len(words):
        found = f"{len(tags)} tags" if _is_list(tags) else _shown(tags)
        return (
            f"column '{dataset.label_column}' holds {found} for {len(words)} words, expected a tag for each"
        )
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
