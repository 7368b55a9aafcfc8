"""First weights from checkpoints that DeepSpeed and torch write by themselves, on two ranks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from orchestrator.errors import CheckpointError
from orchestrator.train.imported import import_weights
from tests.distributed.odd_model import spoil
from tests.distributed.training import build_engine, build_model, different, train
from tests.support import run_ranks

WRITERS: dict[str, dict[str, Any]] = {
    **{f"zero {stage}": {"name": "zero", "stage": stage} for stage in (1, 2, 3)},
    "zero 2 bf16": {"name": "zero", "stage": 2, "param_dtype": "bfloat16"},
    "dcp": {"name": "fsdp2"},
    "dcp of a whole trainer": {"name": "fsdp2"},
}


def write(root: str) -> dict[str, dict[str, Tensor]]:
    """A checkpoint of each writer after a step; on rank 0 the weights it should hold."""
    found = {}
    for name, strategy in WRITERS.items():
        engine: Any = build_engine(build_model("gpt2"), strategy)
        found[name] = train(engine, "gpt2", range(1)).weights
        folder = Path(root, name)
        if strategy["name"] == "zero":
            engine.model.save_checkpoint(str(folder), tag="step1")
            continue
        state: dict[str, Any] = get_model_state_dict(engine.model)
        if name != "dcp":
            optimizer = get_optimizer_state_dict(engine.model, engine._optimizer)
            state = {"app": {"model": state, "optim": optimizer, "step": 1}}
        dcp.save(state, checkpoint_id=folder)
    return found


@functools.cache
def written(root: Path) -> dict[str, dict[str, Tensor]]:
    """From one start of processes."""
    found: dict[str, dict[str, Tensor]] = run_ranks(write, 2, str(root))[0]
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imports")


def read(folder: Path, name: str) -> dict[str, Tensor]:
    """The weights of a model that had none, in this process without a process group."""
    model = spoil(build_model("gpt2"))
    import_weights(model, folder, "dcp" if "dcp" in name else "deepspeed")
    return {key: value.detach() for key, value in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_weights_are_those_that_the_other_program_saved(
    root: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = written(root)[name]
    capfd.readouterr()
    assert different(read(root / name, name), expected) == []
    assert capfd.readouterr().out == ""
    if "zero" in name:
        assert different(read(root / name / "step1", name), expected) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero 3", "dcp"])
def test_a_checkpoint_of_another_model_is_refused_with_what_differs(root: Path, name: str) -> None:
    written(root)
    kind: Any = "dcp" if name == "dcp" else "deepspeed"
    with pytest.raises(CheckpointError, match=r"parameters differ in name or shape, first 'bert\.embeddings"):
        import_weights(build_model("bert"), root / name, kind)
    smaller: Any = build_model("gpt2")
    del smaller.transformer.h[1]
    before = {key: value.clone() for key, value in smaller.named_parameters()}
    with pytest.raises(CheckpointError, match=r"first 'transformer\.h\.1\..*' is in it alone"):
        import_weights(smaller, root / name, kind)
    assert all(torch.equal(value, before[key]) for key, value in smaller.named_parameters())


@pytest.mark.slow
def test_a_folder_that_deepspeed_did_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="DeepSpeed cannot read it as a checkpoint of ZeRO 1 to 3"):
        import_weights(build_model("gpt2"), tmp_path, "deepspeed")
