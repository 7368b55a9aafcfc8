"""Tensors of a checkpoint that ``torch.distributed.checkpoint`` (DCP) wrote by itself, as first weights.

Its index, the file ``.metadata``, is a pickle, and a pickle may run any code. Here one is read by an
unpickler that makes DCP's own descriptions and nothing else; the tensors are read by torch's
``weights_only`` loader, which is as narrow.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from orchestrator.errors import CheckpointError

INDEX = ".metadata"
ALLOWED: Mapping[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch": frozenset({"Size"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "collections": frozenset({"OrderedDict"}),
    "pathlib": frozenset({"PosixPath", "PurePosixPath"}),
    "pathlib._local": frozenset({"PosixPath", "PurePosixPath"}),
}
"""By module, what an index is made of; dtypes besides."""


class IndexUnpickler(pickle.Unpickler):
    """Makes what an index holds, and refuses everything else before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that a pickle asks for.

        Raises:
            UnpicklingError: An index holds no such thing.
        """
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no index of torch's needs")


class TrustlessReader(FileSystemReader):
    """Reads a checkpoint folder without unpickling freely."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            CheckpointError: It is missing, or is no index.
        """
        metadata = read_index_file(Path(self.path))
        # Indexes of earlier versions of torch lack it.
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_index_file(folder: Path) -> Metadata:
    """The index of a checkpoint folder.

    Raises:
        CheckpointError: It is missing, or holds something else.
    """
    path = folder / INDEX
    try:
        metadata = IndexUnpickler(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not there; give the folder that torch.distributed.checkpoint.save wrote"
        ) from error
    # A damaged pickle may raise almost anything from the constructors it calls.
    except Exception as error:
        raise CheckpointError(f"{path}: expected the index of a torch checkpoint, but {error}") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{path}: expected the index of a torch checkpoint, found {type(metadata)}")
    return metadata


def tensor_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shape of every tensor by name.

    Raises:
        CheckpointError: The index cannot be read.
    """
    entries = read_index_file(folder).state_dict_metadata
    return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def read_torch_dcp(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Whole tensors by name, in this process alone.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    entries = read_index_file(folder).state_dict_metadata
    wanted: dict[str, Tensor] = {}
    for name in names:
        entry = entries[name]
        assert isinstance(entry, TensorStorageMetadata)
        wanted[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    try:
        with warnings.catch_warnings():
            # One process is meant: each rank reads for itself.
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
            load(wanted, storage_reader=TrustlessReader(folder), no_dist=True)
    except (CheckpointException, OSError) as error:
        raise CheckpointError(f"{folder}: could not be read: {error}") from error
    return wanted
