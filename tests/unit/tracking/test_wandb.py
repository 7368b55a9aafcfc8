"""A real offline W&B run, read back with wandb's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import TrackingError
from orchestrator.spec.trackers import Wandb
from orchestrator.tracking.wandb import WandbTracker

pytest.importorskip("wandb")
WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def start(folder: Path) -> WandbTracker:
    return WandbTracker(
        Wandb(project="tests", mode="offline", tags=("a", "b")),
        run_id="abc123-pretrain",
        name="job/pretrain",
        group="job",
        config={"lr": 0.1},
        folder=folder,
    )


def inspect(folder: Path) -> list[dict[str, Any]]:
    """Every record of every offline run below ``folder``, oldest run first."""
    records = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        output = subprocess.run(
            [WANDB, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True
        ).stdout
        records += [json.loads(line) for line in output.splitlines() if line.strip()]
    return records


def test_wandb_that_cannot_be_imported_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackingError) as caught:
        start(tmp_path)
    assert str(caught.value) == (
        "tracking.wandb: import of wandb halted; None in sys.modules; pip install 'orchestrator[wandb]', or"
        " leave tracking.wandb out"
    )


@pytest.mark.slow
def test_a_resumed_stage_continues_the_same_wandb_run(tmp_path: Path) -> None:
    for steps in ((10, 20), (30,)):
        tracker = start(tmp_path)
        for step in steps:
            tracker.log(step, {"train/loss": 1.0 / step})
        tracker.finish("finished")
    text = json.dumps(inspect(tmp_path))
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert {file.name for file in files} == {"run-abc123-pretrain.wandb"}
    assert len(files) == 2
    for expected in ("abc123-pretrain", "job/pretrain", '"job"', "train/loss"):
        assert expected in text
