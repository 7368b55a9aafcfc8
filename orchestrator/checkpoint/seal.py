"""Commit and verification of a checkpoint folder; importable without torch.

``manifest.json`` lists every file with its size and digest. ``COMPLETE`` appears last, by a rename, and holds
the digest of the manifest. So nothing in the folder is parsed before its digest was compared, and damage is
found in every file of it, in the manifest and ``COMPLETE`` as well. Damaged is also what was sealed and
is no checkpoint, as a bug might write it.

``COMPLETE`` waits under another name before the manifest is there. So a manifest without either name tells
of a ``COMPLETE`` that was lost, and never of a save, or of a removal, that was interrupted.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from orchestrator.checkpoint.steps import COMPLETE, STEP_PATTERN, step_name
from orchestrator.errors import CheckpointError

MANIFEST = "manifest.json"
WAITING = f"{COMPLETE}.tmp"
STATE = "state.json"
EMPTIED = f"no {COMPLETE} and no {MANIFEST}, though the ledger has its steps"
"""What is wrong with a folder that is unsealed and whose step was committed."""
METADATA = "metadata.json"
"""Where the tensors are; ``storage.py`` reads it."""
FORMAT = "orchestrator-tensors-1"
# Large enough that hashing (about 6 GB/s a core) and not the loop decides the speed.
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class FileDigest:
    """Size and content of one file."""

    bytes: int
    xxh3_128: str


def digest_file(path: Path) -> FileDigest:
    """Size and digest of a file's content."""
    digest = xxhash.xxh3_128()
    num_bytes = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            num_bytes += len(block)
    return FileDigest(num_bytes, digest.hexdigest())


def digest_bytes(content: bytes) -> FileDigest:
    """Size and digest of a file with this content."""
    return FileDigest(len(content), xxhash.xxh3_128(content).hexdigest())


def json_bytes(value: Any) -> bytes:
    """``value`` as JSON, the same bytes for equal values."""
    return json.dumps(value, indent=1, sort_keys=True).encode()


def write_json(path: Path, value: Any) -> FileDigest:
    """Write ``value`` as JSON through to the disk; the digest of what was meant to be written."""
    return write_bytes(path, json_bytes(value))


def write_bytes(path: Path, content: bytes) -> FileDigest:
    """Write a file through to the disk; the digest of what was meant to be written."""
    write_through(path, content)
    return digest_bytes(content)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: It holds something else.
    """
    return _parse(str(path), read_file(path))


def _parse(where: str, content: bytes) -> dict[str, Any]:
    """As ``read_json``, of a file's content."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not JSON: {error}; it was not written by a save") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: found a {type(value).__name__}, expected a JSON object")
    return value


def _parse_state(content: bytes) -> dict[str, Any]:
    """What ``state.json`` says, its step at least."""
    state = _parse(STATE, content)
    if type(state.get("step")) is not int:
        raise CheckpointError(f"{STATE}: found step {state.get('step')!r}, expected a number of steps")
    return state


def read_file(path: Path) -> bytes:
    """A regular file's content; of another kind, such as a pipe, there may never be an end.

    Raises:
        CheckpointError: It is of another kind.
    """
    if not path.is_file() and path.exists():
        raise CheckpointError(f"{path}: found a {_kind(path)}, expected a regular file")
    return path.read_bytes()


def _kind(path: Path) -> str:
    """What else than a regular file is there."""
    kinds = {"folder": Path.is_dir, "named pipe": Path.is_fifo, "socket": Path.is_socket}
    return next((kind for kind, is_kind in kinds.items() if is_kind(path)), "device")


def write_through(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(path: Path, files: Mapping[str, FileDigest]) -> None:
    """Make the checkpoint in ``path``, whose ``files`` are on the disk, complete."""
    manifest = json_bytes({name: asdict(files[name]) for name in files})
    write_through(path / WAITING, digest_bytes(manifest).xxh3_128.encode())
    write_through(path / MANIFEST, manifest)
    sync_folder(path)
    os.replace(path / WAITING, path / COMPLETE)
    sync_folder(path)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a checkpoint; one whose removal is interrupted is not complete, nor taken for damaged."""
    if (path / COMPLETE).exists():
        os.replace(path / COMPLETE, path / WAITING)
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def has_lost_complete(path: Path) -> bool:
    """Whether the folder was complete once and is not any more, though nobody removes it.

    A save and a removal rename between two looks. Had one done so, ``WAITING`` and the manifest would not be
    found as they were before.
    """
    names = (MANIFEST, WAITING, COMPLETE, WAITING, MANIFEST)
    return all((path / name).is_file() == (name == MANIFEST) for name in names)


def is_unsealed(path: Path) -> bool:
    """Whether nothing tells that the folder was ever complete, nor that a save or a removal got so far."""
    return not any((path / name).exists() for name in (COMPLETE, WAITING, MANIFEST))


def verify(path: Path) -> str | None:
    """What is wrong with the checkpoint in ``path``; ``None``: it is what was written."""
    try:
        return _find_problem(path)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or path}: {error.strerror or error}"


def _find_problem(path: Path) -> str | None:
    """The first difference between the folder and what was sealed."""
    if has_lost_complete(path):
        return f"no {COMPLETE} file, though it was complete once: somebody or something has removed it"
    if not (path / COMPLETE).is_file():
        return f"no {COMPLETE} file, so it was interrupted while saving"
    files = _files_in(read_file(path / COMPLETE), read_file(path / MANIFEST))
    problems = (_file_problem(path, name, expected) for name, expected in files.items())
    problem = next((problem for problem in problems if problem is not None), None)
    return problem or _step_problem(path) or _index_problem(path, files)


def _files_in(sealed: bytes, manifest: bytes) -> dict[str, FileDigest]:
    """Files of a manifest that is as it was sealed.

    Raises:
        CheckpointError: It is not, or lists no checkpoint.
    """
    digest = xxhash.xxh3_128(manifest).hexdigest()
    if sealed != digest.encode():
        raise CheckpointError(f"{MANIFEST}: digest {digest}, {COMPLETE} says {sealed[:64]!r}")
    files = {}
    for name, entry in _parse(MANIFEST, manifest).items():
        try:
            files[name] = FileDigest(**entry)
        except TypeError as error:
            raise CheckpointError(
                f"{MANIFEST}: '{name}' is {entry!r}, expected its size and digest"
            ) from error
    missing = [name for name in (STATE, METADATA) if name not in files]
    if missing:
        raise CheckpointError(f"{MANIFEST}: lists no {missing[0]}, found {', '.join(files) or 'nothing'}")
    return files


def _file_problem(path: Path, name: str, expected: FileDigest) -> str | None:
    if not (path / name).is_file():
        return f"{name}: missing, expected {expected.bytes} bytes"
    return _difference(name, digest_file(path / name), expected)


def _difference(name: str, found: FileDigest, expected: FileDigest) -> str | None:
    if found == expected:
        return None
    return (
        f"{name}: {found.bytes} bytes with digest {found.xxh3_128}, expected {expected.bytes} bytes"
        f" with digest {expected.xxh3_128}"
    )


def _step_problem(path: Path) -> str | None:
    """A sound checkpoint under the name of another step."""
    step = _parse_state(read_file(path / STATE))["step"]
    if STEP_PATTERN.fullmatch(path.name) is None or step_name(step) == path.name:
        return None
    return f"{STATE}: of step {step}, and the folder is called {path.name}"


def _index_problem(path: Path, files: Mapping[str, FileDigest]) -> str | None:
    """An index that says nothing, leaves out a part of a tensor, or names bytes that no file has."""
    index = _parse(METADATA, read_file(path / METADATA))
    if index.get("format") != FORMAT:
        # A name of another version is refused when it is read, and not damaged.
        said = index.get("format")
        return None if isinstance(said, str) else f"{METADATA}: found format {said!r}, expected '{FORMAT}'"
    try:
        for name, entry in index["tensors"].items():
            chunks, volume = entry["chunks"], math.prod(entry["shape"])
            volumes = [math.prod(chunk["sizes"]) for chunk in chunks]
            element = sum(chunk["length"] for chunk in chunks) // max(volume, 1)
            if sum(volumes) != volume or (volume and element < 1):
                return f"{METADATA}: the chunks of '{name}' are not all of its {volume} numbers"
            for chunk, numbers in zip(chunks, volumes, strict=True):
                begin, end = chunk["position"], chunk["position"] + chunk["length"]
                if begin < 0 or end > files[chunk["file"]].bytes or end - begin != numbers * element:
                    return (
                        f"{METADATA}: '{name}' has bytes {begin} to {end} of {chunk['file']}, which has"
                        f" {files[chunk['file']].bytes}, for {numbers} numbers"
                    )
    except (KeyError, TypeError, AttributeError) as error:
        return f"{METADATA}: {error!r}, expected tensors with their chunks in the files of {MANIFEST}"
    return None


def read_state(path: Path) -> dict[str, Any]:
    """What was saved beside the tensors of a complete checkpoint, once its digest is compared.

    Raises:
        CheckpointError: It is not what was written.
    """
    try:
        contents = [read_file(path / name) for name in (COMPLETE, MANIFEST, STATE)]
    except OSError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return sealed_state(str(path), *contents)


def sealed_state(where: str, sealed: bytes, manifest: bytes, state: bytes) -> dict[str, Any]:
    """As ``read_state``, of the contents of ``COMPLETE``, ``manifest.json`` and ``state.json``.

    Args:
        where: The folder, for messages.

    Raises:
        CheckpointError: They do not belong together.
    """
    try:
        problem = _difference(STATE, digest_bytes(state), _files_in(sealed, manifest)[STATE])
        if problem is None:
            return _parse_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    raise CheckpointError(f"{where}: {problem}")
