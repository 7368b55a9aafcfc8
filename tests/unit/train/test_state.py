"""A stage goes on from a checkpoint only with what the checkpoint was written with."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.checkpoint.manager import CheckpointManager
from orchestrator.checkpoint.remote import Mirror, RemoteSteps
from orchestrator.checkpoint.saving import DirectSaver
from orchestrator.checkpoint.steps import step_name
from orchestrator.errors import CheckpointError
from orchestrator.spec.load import dump_resolved
from orchestrator.spec.optimization import Anomalies
from orchestrator.tracking.events import read_json_lines
from orchestrator.train.anomalies import Anomaly, AnomalyWatch
from orchestrator.train.saves import record_damage
from orchestrator.train.state import JOB_FILE, Start, restore
from tests.unit.spec.jobs import VALID, load

IDENTITY = {"seed": 1, "stage": "pretrain", "data.a": "1f", "data.b": "2f", JOB_FILE: ""}


class OneWeight:
    """An engine whose state is one tensor."""

    def __init__(self) -> None:
        self.weight = torch.zeros(3)

    def neutral_state(self) -> dict[str, Tensor]:
        return {"model.weight": self.weight}

    def neutral_state_loaded(self, state: dict[str, Tensor]) -> None:
        self.weight = state["model.weight"]


def saved(folder: Path, **state: object) -> CheckpointManager:
    manager = CheckpointManager(folder)
    manager.save(5, {"model.weight": torch.ones(3)}, {**IDENTITY, "step": 5, **state})
    return manager


def test_a_start_knows_its_step_and_who_saved_it(tmp_path: Path) -> None:
    engine = OneWeight()
    manager = CheckpointManager(tmp_path / "empty")
    assert restore(engine, manager, IDENTITY) == Start(0, None)  # type: ignore[arg-type]
    start = restore(engine, saved(tmp_path, world_size=3), IDENTITY)  # type: ignore[arg-type]
    assert start == Start(5, 3)
    assert engine.weight.tolist() == [1, 1, 1]


def test_checkpoints_of_earlier_versions_are_resumed_without_what_they_lack(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(5, {"model.weight": torch.ones(3)}, {"seed": 1, "stage": "pretrain", "step": 5})
    assert restore(OneWeight(), manager, IDENTITY) == Start(5, None)  # type: ignore[arg-type]


def test_a_checkpoint_of_a_job_that_trains_otherwise_is_refused_with_the_difference(tmp_path: Path) -> None:
    def resolved(*overrides: str) -> str:
        return dump_resolved(load(tmp_path, VALID, *overrides))

    manager = saved(tmp_path / "run", **{JOB_FILE: resolved()})
    other = ("resources.num_workers=2", "stages.pretrain.strategy={name: zero, stage: 2}", "name=elsewhere")
    same = {**IDENTITY, JOB_FILE: resolved(*other)}
    assert restore(OneWeight(), manager, same).step == 5  # type: ignore[arg-type]
    # The same files on another machine: what is in them is told by digests.
    here, there, hub = (resolved(f"tokenizer={{from: {name}}}") for name in ("/home/a/b", "/srv/b", "bert/b"))
    moved = saved(tmp_path / "moved", **{JOB_FILE: here})
    assert restore(OneWeight(), moved, {**IDENTITY, JOB_FILE: there}).step == 5  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"tokenizer\.from: a local file or folder -> "):
        restore(OneWeight(), moved, {**IDENTITY, JOB_FILE: hub})  # type: ignore[arg-type]


def test_anomalies_just_before_a_checkpoint_count_on(tmp_path: Path) -> None:
    start = restore(OneWeight(), saved(tmp_path, anomalies_in_a_row=2), IDENTITY)  # type: ignore[arg-type]
    watch = AnomalyWatch(Anomalies(nonfinite="skip", max_in_a_row=2), start.recent_losses, start.in_a_row)
    found = watch.judge(float("nan"), 1.0)
    assert isinstance(found, Anomaly)
    assert found.action == "stop"


def test_the_state_of_the_loss_scaler_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    scaler = {"scale": 2.0**19, "good_steps": 1999}
    start = restore(OneWeight(), saved(tmp_path, loss_scale=scaler), IDENTITY)  # type: ignore[arg-type]
    assert start.loss_scale == scaler


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.b": "3f"}, "written with data.b 3f, the job has 2f; set it back"),
        ({"seed": 2}, "written with seed 2, the job has 1; set it back"),
    ],
)
def test_other_data_and_another_trajectory_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        restore(OneWeight(), saved(tmp_path, **change), IDENTITY)  # type: ignore[arg-type]


def test_a_damaged_checkpoint_is_an_event_and_the_step_before_is_restored(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    folder = layout.stage("pretrain").checkpoints
    for step in (5, 6):
        CheckpointManager(folder).save(step, {"model.weight": torch.ones(3)}, {**IDENTITY, "step": step})
    (folder / step_name(6) / "state.json").unlink()
    manager = CheckpointManager(folder, on_damage=partial(record_damage, layout, "pretrain"))
    assert restore(OneWeight(), manager, IDENTITY) == Start(5, None)  # type: ignore[arg-type]
    (event,) = read_json_lines(layout.events)
    assert event.pop("time")
    assert event.pop("problem").startswith("state.json: missing")
    assert event == {
        "event": "checkpoint_damaged",
        "stage": "pretrain",
        "step": 6,
        "kept_as": "pretrain/checkpoints/quarantine-step-00000006",
    }
    assert (tmp_path / event["kept_as"]).is_dir()


def test_a_stage_of_damaged_checkpoints_alone_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    manager = saved(tmp_path)

    def damage(step: int) -> None:
        state = tmp_path / step_name(step) / "state.json"
        state.write_text(state.read_text() + " ")

    damage(5)
    # The first that there was: nothing but its interval is lost.
    assert restore(OneWeight(), manager, IDENTITY) == Start(0, None)  # type: ignore[arg-type]
    manager.save(10, {"model.weight": torch.ones(3)}, {**IDENTITY, "step": 10})
    damage(10)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint of the stage is good, and 2 are damaged"):
            restore(OneWeight(), manager, IDENTITY)  # type: ignore[arg-type]


def test_a_lost_folder_whose_remote_copies_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    remote = RemoteSteps(f"file://{tmp_path}/remote/job/pretrain")
    saver = DirectSaver(tmp_path / "lost", None, Mirror(remote, None, pytest.fail))
    for step in (3, 6, 9):
        saver.save(step, {"model.weight": torch.ones(3)}, {**IDENTITY, "step": step}, lambda: None)
        shard = tmp_path / "remote/job/pretrain" / step_name(step) / "shard-00000.bin"
        shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    manager = CheckpointManager(tmp_path / "new", remote=remote)
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            restore(OneWeight(), manager, IDENTITY)  # type: ignore[arg-type]
        names = ", ".join(f"{remote.url}/quarantine-{step_name(step)}" for step in (9, 6, 3))
        assert str(caught.value) == (
            f"no checkpoint of the stage is good, and 3 are damaged: {names}. Mend or bring back one under"
            " its name step-...; or, to start the stage over, move those of remote storage away, or give the"
            " job another name or checkpoint.remote"
        )
    assert len(list((tmp_path / "remote").rglob("shard-00000.bin"))) == 3
    whole = tmp_path / "lost" / step_name(6)
    whole.rename(tmp_path / "remote/job/pretrain" / step_name(6))
    assert restore(OneWeight(), manager, IDENTITY).step == 6  # type: ignore[arg-type]
