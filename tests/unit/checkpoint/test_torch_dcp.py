"""A plain torch checkpoint is read without running anything that its pickle holds."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from orchestrator.checkpoint.torch_dcp import read_torch_dcp, tensor_shapes
from orchestrator.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self._trace),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What ``torch.distributed.checkpoint.save`` writes of tensors, a number and a nested section."""
    state = {
        "model": {"weight": torch.arange(6.0).view(2, 3), "half": torch.ones(4, dtype=torch.bfloat16)},
        "step": 7,
    }
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_tensors_are_read_by_name(folder: Path) -> None:
    assert tensor_shapes(folder) == {"model.weight": torch.Size([2, 3]), "model.half": torch.Size([4])}
    found = read_torch_dcp(folder, ["model.weight", "model.half"])
    assert torch.equal(found["model.weight"], torch.arange(6.0).view(2, 3))
    assert found["model.half"].dtype == torch.bfloat16


def test_a_bomb_in_the_index_does_not_go_off(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(CheckpointError, match=r"\.metadata: expected the index .* it asks for posix\.mkdir"):
        tensor_shapes(folder)
    assert not trace.exists()


def test_a_bomb_in_the_place_of_tensors_does_not_go_off(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for path in folder.glob("*.distcp"):
        path.write_bytes(pickle.dumps(Bomb(trace)).ljust(path.stat().st_size, b"\0"))
    with pytest.raises(CheckpointError, match="could not be read"):
        read_torch_dcp(folder, ["model.weight"])
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(pickle.dumps([1, 2]), "found <class 'list'>"), (b"\x80", "expected the index of a torch checkpoint")],
)
def test_what_is_no_index_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        tensor_shapes(folder)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.metadata is not there; give the folder that"):
        tensor_shapes(tmp_path)
