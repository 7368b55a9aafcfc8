"""Small corpora and sections for the tests of the data room, from seeded generators."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.contracts import RowLayout
from orchestrator.data.catalog import Catalog
from orchestrator.data.prepare import prepare_rows
from orchestrator.data.selection import Split
from orchestrator.data.sources import find_source
from orchestrator.data.tokenizer import prepare_tokenizer
from orchestrator.spec.datasets import Dataset, Tokenizer

WORDS = [
    "".join(random.Random(index).choices("abcdefghijklmnoprstuvw", k=2 + index % 7)) for index in range(300)
]


def section(**keys: Any) -> Dataset:
    """A dataset section of a job file."""
    return TypeAdapter(Dataset).validate_python(keys)


def make_texts(num_rows: int, *, seed: int = 0, longest: int = 40) -> list[str]:
    """Sentences of words whose frequencies fall off as in a language; all distinct."""
    generator = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    return [
        f"{row} " + " ".join(generator.choices(WORDS, weights, k=generator.randint(1, longest))) + "."
        for row in range(num_rows)
    ]


def write_csv(path: Path, columns: dict[str, list[Any]], delimiter: str = ",") -> Path:
    """A CSV file with a header line."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def text_corpus(folder: Path, num_rows: int = 400, **keys: Any) -> Dataset:
    """A section over a file of JSON lines with generated texts."""
    path = write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in make_texts(num_rows)])
    return section(source="json", files=str(path), **keys)


def train_small(folder: Path, algorithm: str = "bpe", vocab_size: int = 400, **keys: Any) -> Path:
    """Folder of a tokenizer trained on ``text_corpus``."""
    training = {"algorithm": algorithm, "vocab_size": vocab_size, "datasets": ["corpus"], **keys}
    datasets = {"corpus": text_corpus(folder)}
    return prepare_tokenizer(
        Tokenizer.model_validate({"train": training}), Catalog(datasets, folder / "cache")
    )


def prepared(
    name: str,
    dataset: Dataset,
    split: Split,
    layout: RowLayout,
    tokenizer: Path,
    cache: Path,
    **options: Any,
) -> Path:
    """The prepared folder of one split of a dataset."""
    return prepare_rows(find_source(name, dataset, cache), split, layout, tokenizer, **options)
