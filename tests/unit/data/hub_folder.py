"""A folder in the hub's place: the library ``datasets`` itself streams ``some/web`` from its files."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.unit.data.corpus import make_texts

COMMIT = "c" * 40


def put_in_hubs_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``folder``, made, and what the hub knows of ``some/web``; it knows nothing else."""
    folder.mkdir()
    load_dataset = datasets.load_dataset

    def from_folder(path: str, **options: Any) -> Any:
        if "data_files" in options:
            return load_dataset(path, **options)
        if path != "some/web":
            raise OSError(f"404: no dataset {path}")
        return load_dataset(str(folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return folder


def make_records(num_rows: int = 90) -> list[dict[str, Any]]:
    """Rows of every kind: repeated texts, texts without a token, long ones, an address, another language."""
    records = []
    for row, text in enumerate(make_texts(num_rows)):
        if row % 9 == 4:
            text = records[row // 2]["text"]
        if row % 13 == 6:
            text = ""
        if row % 17 == 8:
            text += " mail me at someone@example.org"
        turns = [{"role": "user", "content": f"{row}?"}, {"role": "assistant", "content": text or "."}]
        records.append(
            {
                "id": row,
                "text": text,
                "lang": "de" if row % 5 == 0 else "en",
                "label": row % 3,
                "labels": [row % 3, (row + 1) % 3][: row % 3],
                "messages": turns,
            }
        )
    return records


def write_files(folder: Path, records: Sequence[dict[str, Any]], kind: str = "parquet") -> None:
    """The records in four files of different sizes, one of them without a row."""
    ends = [0, len(records) // 5, len(records) // 2, len(records) // 2, len(records)]
    features = datasets.Dataset.from_list(list(records)).features
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        part = records[start:end]
        path = folder / f"train-{number:05d}-of-00004.{kind}"
        if kind == "parquet":
            columns = {name: [record[name] for record in part] for name in records[0]}
            datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in part), "utf-8")
        else:
            with path.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, ["text", "label"], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(part)
