"""Rows of text and labels from any source of a job file, through Hugging Face ``datasets``.

The only module that imports ``datasets``. ``load_rows`` goes through these steps:

1. find the files and digest their bytes; the Arrow copy lives under that digest, so it cannot be
   stale
2. read them into a memory-mapped ``datasets.Dataset``
3. keep the rows that the filter names, and of their columns the text and the label
4. check every kept row
5. choose the rows of the split by the hash of their text
"""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.data.columns import check_rows, filter_rows, select_columns
from orchestrator.data.files import FileDataset, digest_file, digest_values, find_files
from orchestrator.data.selection import Split, needs_hashes, select_rows
from orchestrator.errors import DataError, SourceMissingError
from orchestrator.spec.datasets import (
    CSVDataset,
    Dataset,
    HubDataset,
    JSONDataset,
    PackageDataset,
    SavedDataset,
    TextDataset,
)

# Places of files and checks of them: the same content elsewhere is the same data.
KEYS_WITHOUT_CONTENT = {"files", "path", "distribution", "file", "sha256"}


def load_rows(name: str, dataset: Dataset, split: Split, cache_dir: Path) -> Any:
    """Rows of one split of dataset ``name``.

    Args:
        name: The dataset's name in the job file, for messages.
        dataset: Its section.
        split: Which of its rows.
        cache_dir: Folder for Arrow copies of the sources.

    Returns:
        A map-style, memory-mapped ``datasets.Dataset`` with the column ``text`` (strings) and,
        where ``label_column`` is set, ``label`` (values as they stand in the source).

    Raises:
        DataError: The source is missing, empty, unreadable or lacks a column, a text or label is
            null or of the wrong type, or no row is left.
    """
    with _quiet():
        source = _open_source(name, dataset, cache_dir)
        if len(source) == 0:
            raise DataError(f"datasets.{name}: {_empty(dataset)}")
        rows, numbers = filter_rows(name, dataset, source)
        rows = select_columns(name, dataset, rows)
        hashes = check_rows(name, dataset, rows, numbers)
        if needs_hashes(dataset):
            rows = rows.select(select_rows(hashes, dataset, split))
        elif split != "train":
            rows = rows.select([])
    if len(rows) == 0:
        raise DataError(
            f"datasets.{name}: split '{split}' has none of {len(numbers)} rows with validation_fraction"
            f" {dataset.validation_fraction} and test_fraction {dataset.test_fraction}."
            + (" Lower them." if split == "train" else f" Raise {split}_fraction.")
        )
    return rows


def distinct_labels(name: str, dataset: Dataset, cache_dir: Path) -> list[Any]:
    """The distinct labels of all splits together, sorted; filtered rows do not count."""
    with _quiet():
        source = _open_source(name, dataset, cache_dir)
        rows, _ = filter_rows(name, dataset, source)
        rows = select_columns(name, dataset, rows)
        return sorted(set(rows.unique("label")) - {None})


def source_digest(name: str, dataset: Dataset, cache_dir: Path) -> str:
    """Digest of a dataset's content: the bytes of its files and the keys that shape its rows.

    Where the files lie does not matter. A hub dataset is fetched first and digested as its Arrow
    files.
    """
    keys = dataset.model_dump(mode="json", exclude=KEYS_WITHOUT_CONTENT)
    return digest_values({"keys": keys, "content": _content(name, dataset, cache_dir)})


def _content(name: str, dataset: Dataset, cache_dir: Path) -> list[str]:
    """Digests of the files that hold the dataset, in order."""
    if isinstance(dataset, HubDataset):
        with _quiet():
            source = _open_hub(name, dataset, cache_dir)
        return [digest_file(Path(part["filename"])) for part in source.cache_files]
    if isinstance(dataset, SavedDataset):
        folder = _saved_folder(name, dataset)
        parts = sorted(path for path in folder.rglob("*") if path.is_file())
        return [f"{part.relative_to(folder).as_posix()} {digest_file(part)}" for part in parts]
    return [digest_file(path) for path in find_files(name, dataset)]


def _open_source(name: str, dataset: Dataset, cache_dir: Path) -> Any:
    if isinstance(dataset, HubDataset):
        return _open_hub(name, dataset, cache_dir)
    if isinstance(dataset, SavedDataset):
        return _open_saved(name, dataset)
    return _open_files(name, dataset, cache_dir)


def _open_files(name: str, dataset: FileDataset, cache_dir: Path) -> Any:
    """The rows of text, JSON, CSV or Parquet files; an unreadable file is named."""
    files = find_files(name, dataset)
    content = digest_values({"content": [digest_file(path) for path in files]})
    cache = str(cache_dir.absolute() / "arrow" / content)
    kind, options = _reader(dataset)
    try:
        return _load_files(kind, files, cache, options)
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"datasets.{name}: {_empty(dataset)}") from error
        place, cause = _place(dataset), error
        if len(files) > 1:
            # The library seldom says which file it was.
            place, cause = next(_unreadable(kind, files, cache, options), (place, cause))
        raise DataError(
            f"datasets.{name}: {place} cannot be read as {kind}: {_root_cause(cause)}."
            f" Expected {kind} files of one shape, in UTF-8."
        ) from cause


def _reader(dataset: FileDataset) -> tuple[str, dict[str, Any]]:
    """The library's name of the format, and the options that the section sets."""
    kind = dataset.format if isinstance(dataset, PackageDataset) else dataset.source
    options: dict[str, Any] = {}
    if kind == "csv":
        # pandas would read the texts "NA", "null" and "None" as missing.
        options["keep_default_na"] = False
        # A first row with one field too many would else shift every column by one.
        options["index_col"] = False
    if isinstance(dataset, CSVDataset):
        options["delimiter"] = dataset.delimiter
    if isinstance(dataset, TextDataset):
        options["sample_by"] = dataset.sample_by
    if isinstance(dataset, JSONDataset) and dataset.field is not None:
        options["field"] = dataset.field
    return kind, options


def _load_files(kind: str, files: list[Path], cache: str, options: dict[str, Any]) -> Any:
    import datasets

    escaped = [glob.escape(str(path)) for path in files]
    with warnings.catch_warnings():
        # pandas warns, and goes on, when a row has more fields than the header.
        warnings.filterwarnings("error", message="Length of header or names")
        return datasets.load_dataset(kind, data_files=escaped, split="train", cache_dir=cache, **options)


def _unreadable(
    kind: str, files: list[Path], cache: str, options: dict[str, Any]
) -> Iterator[tuple[str, Exception]]:
    """Files that cannot be read on their own, each with the reason."""
    for path in files:
        try:
            _load_files(kind, [path], cache, options)
        except Exception as error:
            yield str(path), error


def _open_hub(name: str, dataset: HubDataset, cache_dir: Path) -> Any:
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


def _saved_folder(name: str, dataset: SavedDataset) -> Path:
    folder = Path(dataset.path).expanduser().absolute()
    if not folder.is_dir():
        raise SourceMissingError(
            f"datasets.{name}: there is no folder {folder}, expected one written by Dataset.save_to_disk."
        )
    return folder


def _open_saved(name: str, dataset: SavedDataset) -> Any:
    import datasets

    folder = _saved_folder(name, dataset)
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"datasets.{name}: {folder} cannot be opened: {_root_cause(error)}."
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


def _empty(dataset: Dataset) -> str:
    return f"the corpus is empty: 0 rows in {_place(dataset)}, expected text."


def _root_cause(error: BaseException) -> str:
    """The error that the library wrapped, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")


def _place(dataset: Dataset) -> str:
    """Where the section says its data lies, for messages."""
    if isinstance(dataset, HubDataset | SavedDataset):
        return dataset.path
    if isinstance(dataset, PackageDataset):
        return f"{dataset.distribution}: {dataset.file}"
    return dataset.files if isinstance(dataset.files, str) else ", ".join(dataset.files)


@contextmanager
def _quiet() -> Iterator[None]:
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
