"""The summary of a job's datasets for a person: tables, bars and beginnings of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launchers.cli_print import number_text, print_table
from orchestrator.counts import counted

# Characters of the longest bar of a histogram.
BAR_CHARS = 40


def print_summary(document: Mapping[str, Any]) -> None:
    """Print what ``summarize`` found, dataset by dataset."""
    for dataset in document["datasets"]:
        of = dataset["first_of_files"]
        part = "" if of is None else f", streamed, the first of {counted(of, 'file')}"
        print_table(f"{dataset['name']} ({dataset['source']}{part})", ("", "rows"), _steps(dataset))
        for skipped in dataset["skipped_first"]:
            print(f"    {skipped['place']}: {skipped['problem']}")
        if dataset["scrubbed"]:
            scrubbed = ", ".join(
                f"{number_text(count)} <{kind}>" for kind, count in dataset["scrubbed"].items()
            )
            print(f"  scrubbed: {scrubbed}")
        header = ("split", "rows", "duplicates", "characters", "tokens", "mean", "median", "longest")
        splits = [_split_row(name, split) for name, split in dataset["splits"].items()]
        print_table("splits", header, splits)
        _print_labels(dataset["splits"])
        _print_histogram(dataset["splits"])
        for sample in dataset["samples"]:
            print(f"  > {' '.join(sample.split())}")
        print()


def _steps(dataset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the source, and where they are left out."""
    steps = [
        ("in the source", dataset["rows"]),
        ("left out by filter", dataset["rows"] - dataset["filtered"]),
    ]
    steps += [("skipped: cannot be read or used", dataset["skipped"])]
    steps += [(f"dropped by {reason}", count) for reason, count in dataset["dropped"].items()]
    # What is neither in a split nor counted above was left out by max_rows.
    kept = sum(split["rows"] for split in dataset["splits"].values())
    rest = dataset["filtered"] - dataset["skipped"] - sum(dataset["dropped"].values()) - kept
    steps += [("left out by max_rows", rest), ("kept, in all splits", kept)]
    return [(name, number_text(count)) for name, count in steps if count or name.startswith(("in ", "kept"))]


def _split_row(name: str, split: Mapping[str, Any]) -> tuple[str, ...]:
    known = (name, *(number_text(split[key]) for key in ("rows", "duplicates", "chars")))
    tokens = split["tokens"]
    if tokens is None:
        return (*known, *["?" if split["rows"] else "-"] * 4)
    return (
        *known,
        ("about " if tokens["is_estimate"] else "") + number_text(tokens["total"]),
        f"{tokens['mean']:.1f}",
        f"{tokens['median']:g}",
        number_text(tokens["longest"]),
    )


def _print_labels(splits: Mapping[str, Any]) -> None:
    for name, split in splits.items():
        if split["labels"] is not None:
            labels = ", ".join(f"{label}: {number_text(count)}" for label, count in split["labels"].items())
            print(f"  labels of {name}: {labels}")


def _print_histogram(splits: Mapping[str, Any]) -> None:
    """Tokens of the texts of the first split that has rows, in ranges that double."""
    counted_splits = (
        (name, split["tokens"]) for name, split in splits.items() if split["tokens"] is not None
    )
    name, tokens = next(counted_splits, (None, None))
    if tokens is None:
        return
    of = f", of {number_text(tokens['sampled_rows'])} evenly spaced ones" if tokens["is_estimate"] else ""
    most = max(bar["rows"] for bar in tokens["histogram"])
    rows = [
        (f"{bar['from']}-{bar['to']}", number_text(bar["rows"]), "#" * round(BAR_CHARS * bar["rows"] / most))
        for bar in tokens["histogram"]
    ]
    print_table(f"tokens of {'training' if name == 'train' else name} rows{of}", ("tokens", "rows", ""), rows)
