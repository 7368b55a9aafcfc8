"""Datasets of the hub and of ``save_to_disk``, opened by the library ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.data.arrow import COPY_ROWS
from orchestrator.errors import DataError, SourceMissingError
from orchestrator.spec.datasets import HubDataset, SavedDataset

# What the library says of a Parquet file that begins with a group of no rows: it reads as many at a time.
EMPTY_GROUP = "BatchSize must be greater than 0"


def open_hub(name: str, dataset: HubDataset, cache_dir: Path) -> Any:
    """A dataset of the hub, fetched into ``cache_dir`` unless it is there.

    Raises:
        DataError: It cannot be loaded, or a local folder has its name.
    """
    try:
        try:
            return _load_hub(name, dataset, cache_dir)
        except Exception as error:
            if EMPTY_GROUP not in root_cause(error):
                raise
            return _load_hub(name, dataset, cache_dir, batch_size=COPY_ROWS)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{hub_text(name, dataset)} cannot be loaded: {root_cause(error)}. {_what_to_do(error)}"
        ) from error


def _what_to_do(error: BaseException) -> str:
    """About a hub dataset that cannot be loaded."""
    from datasets.exceptions import DatasetGenerationError

    # The first file is read before the library begins to generate anything.
    if isinstance(error, DatasetGenerationError) or "ArrowInvalid" in root_cause(error):
        return (
            "A file of it was fetched and cannot be read: it is damaged, or one that the library datasets"
            " cannot take. Set revision to a commit without it, or use files of your own."
        )
    return (
        "Check the id, the network and HF_TOKEN, or load it once where there is a network, save_to_disk it"
        " and use source 'saved'."
    )


def open_stream(name: str, dataset: HubDataset, cache_dir: Path, columns: Collection[str] = ()) -> Any:
    """A dataset of the hub as a ``datasets.IterableDataset`` whose features are known.

    No more than the beginning of a file is fetched.

    Args:
        columns: The columns to read; absent: all. Of Parquet files no others are fetched.

    Raises:
        SourceMissingError: The hub, or the dataset there, cannot be reached.
    """
    try:
        stream = _load_hub(name, dataset, cache_dir, streaming=True)
        if stream.features is None:
            stream = stream.cast(_first_features(stream))
        wanted = [column for column in stream.column_names if column in columns or not columns]
        if stream.info.builder_name == "parquet":
            of_parquet = {"columns": wanted, "batch_size": COPY_ROWS}
            stream = _load_hub(name, dataset, cache_dir, streaming=True, **of_parquet)
        return stream.select_columns(wanted)
    except DataError:
        raise
    except Exception as error:
        raise SourceMissingError(
            f"{hub_text(name, dataset)} cannot be streamed: {_one_line(error)}."
            " Check the id, the network and HF_TOKEN, and that its files have the same columns and types."
        ) from error


def _load_hub(name: str, dataset: HubDataset, cache_dir: Path, **options: Any) -> Any:
    """What the library makes of a dataset of the hub.

    Raises:
        DataError: A local folder has its name.
    """
    import datasets

    if Path(dataset.path).exists():
        raise DataError(
            f"datasets.{name}: path '{dataset.path}' is a folder or file here, expected a hub id such as"
            " 'stanfordnlp/imdb'. Use source 'saved', 'json', 'csv', 'parquet' or 'text' for local data."
        )
    return datasets.load_dataset(
        dataset.path,
        name=dataset.config_name,
        split=dataset.split,
        revision=dataset.revision,
        cache_dir=str(cache_dir.absolute() / "hub"),
        **options,
    )


def hub_text(name: str, dataset: HubDataset) -> str:
    """A dataset of the hub, for messages."""
    return (
        f"datasets.{name}: hub dataset '{dataset.path}' (config {dataset.config_name or 'default'}, split"
        f" '{dataset.split}', revision {dataset.revision or 'main'})"
    )


def _first_features(stream: Any) -> Any:
    """Features as the first rows have them, for formats whose files do not tell."""
    import datasets

    first = next(iter(stream.with_format("arrow").iter(COPY_ROWS)))
    return datasets.Features.from_arrow_schema(first.schema)


def saved_folder(name: str, dataset: SavedDataset) -> Path:
    """The folder of a saved dataset.

    Raises:
        SourceMissingError: It is not there.
    """
    folder = Path(dataset.path).expanduser().absolute()
    if not folder.is_dir():
        raise SourceMissingError(
            f"datasets.{name}: there is no folder {folder}, expected one written by Dataset.save_to_disk."
        )
    return folder


def open_saved(name: str, dataset: SavedDataset) -> Any:
    """A dataset that ``save_to_disk`` wrote; of a ``DatasetDict`` the split alone, whatever others hold.

    Raises:
        DataError: It cannot be opened, has no such split, or holds no rows.
    """
    import datasets

    folder = part = saved_folder(name, dataset)
    try:
        listed = folder / "dataset_dict.json"
        splits = sorted(json.loads(listed.read_text("utf-8"))["splits"]) if listed.is_file() else []
        if dataset.split in splits:
            part = folder / str(dataset.split)
        elif splits or dataset.split is not None:
            raise DataError(_wrong_split(name, folder, splits, dataset.split))
        state = part / "state.json"
        if state.is_file() and json.loads(state.read_text("utf-8"))["_data_files"] == []:
            raise DataError(f"datasets.{name}: the corpus is empty: 0 rows in {part}, expected text.")
        return datasets.Dataset.load_from_disk(str(part))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"datasets.{name}: {part} cannot be opened: {root_cause(error)}."
            " Expected a folder written by Dataset.save_to_disk."
        ) from error


def _wrong_split(name: str, folder: Path, splits: list[str], split: str | None) -> str:
    holds = f"holds splits {splits}" if splits else "holds one dataset without splits"
    what_to_do = "Set 'split' to one of them." if splits else "Remove 'split'."
    return f"datasets.{name}: {folder} {holds}, and split is {split!r}. {what_to_do}"


def root_cause(error: BaseException) -> str:
    """The error that the library wrapped, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines of the library: what matters is in our messages."""
    import datasets

    level = datasets.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
