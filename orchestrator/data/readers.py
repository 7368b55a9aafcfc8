"""The library ``datasets``, called with the settings that keep rows as they are; the only import of it."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, SourceMissingError
from orchestrator.spec.datasets import HubDataset, SavedDataset


def read_files(kind: str, files: list[Path], cache: str, options: dict[str, Any]) -> Any:
    """Rows of text, JSON, CSV or Parquet files, from their Arrow copy under ``cache`` or made there."""
    import datasets

    escaped = [glob.escape(str(path)) for path in files]
    with warnings.catch_warnings():
        # pandas warns, and goes on, when a row has more fields than the header.
        warnings.filterwarnings("error", message="Length of header or names")
        return datasets.load_dataset(kind, data_files=escaped, split="train", cache_dir=cache, **options)


def join(parts: Sequence[Any]) -> Any:
    """The rows of all parts, one after the other."""
    import datasets

    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(list(parts))


def open_hub(name: str, dataset: HubDataset, cache_dir: Path) -> Any:
    """A dataset of the hub, fetched into ``cache_dir`` unless it is there.

    Raises:
        DataError: It cannot be loaded, or a local folder has its name.
    """
    import datasets

    if Path(dataset.path).exists():
        raise DataError(
            f"datasets.{name}: path '{dataset.path}' is a folder or file here, expected a hub id such as"
            " 'stanfordnlp/imdb'. Use source 'saved', 'json', 'csv', 'parquet' or 'text' for local data."
        )
    try:
        return datasets.load_dataset(
            dataset.path,
            name=dataset.config_name,
            split=dataset.split,
            revision=dataset.revision,
            cache_dir=str(cache_dir.absolute() / "hub"),
        )
    except Exception as error:
        raise DataError(
            f"datasets.{name}: hub dataset '{dataset.path}' (config {dataset.config_name or 'default'}, split"
            f" '{dataset.split}', revision {dataset.revision or 'main'}) cannot be loaded:"
            f" {_one_line(error)}. Check the id, the network and HF_TOKEN, or load it once"
            " where there is a network, save_to_disk it and use source 'saved'."
        ) from error


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
    """A dataset that ``save_to_disk`` wrote.

    Raises:
        DataError: It cannot be opened, or has no such split.
    """
    import datasets

    folder = saved_folder(name, dataset)
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"datasets.{name}: {folder} cannot be opened: {root_cause(error)}."
            " Expected a folder written by Dataset.save_to_disk."
        ) from error
    is_dict = isinstance(saved, datasets.DatasetDict)
    splits = sorted(saved) if is_dict else []
    if is_dict and dataset.split in saved:
        return saved[dataset.split]
    if is_dict or dataset.split is not None:
        holds = f"holds splits {splits}" if is_dict else "holds one dataset without splits"
        raise DataError(
            f"datasets.{name}: {folder} {holds}, and split is {dataset.split!r}."
            + (" Set 'split' to one of them." if is_dict else " Remove 'split'.")
        )
    return saved


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
