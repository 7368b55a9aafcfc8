"""Workers leave and come while a stage trains: the same rows, the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchers.verification import verify_run
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.train.ledger import read_ledger
from tests.distributed.training import different, end_of
from tests.e2e.commands import started, succeed
from tests.e2e.ray_cluster import ray_cluster
from tests.e2e.test_kill_and_resume import write_job

SLOW = """
import time

from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.spec.training import CausalLMObjective

INNER = CausalLMObjective(name="causal_lm")


class Slow(CausalLM):
    def __init__(self, section, tokens, label_names):
        super().__init__(INNER, tokens, [])
        self.seconds = section.options["seconds"]

    @classmethod
    def row_layout(cls, section, data):
        return super().row_layout(INNER, data)

    def loss_sums(self, model, batch):
        time.sleep(self.seconds)
        return super().loss_sums(model, batch)
"""
STAGE, MAX_STEPS = "fsdp2", 200


def slow_job(folder: Path, name: str, workers: Any) -> Path:
    """A stage of ``MAX_STEPS`` steps of half a second."""
    (folder / "slow.py").write_text(SLOW)
    path = write_job(folder, name, [STAGE])
    job = yaml.safe_load(path.read_text())
    job["resources"] = {"num_workers": workers, "max_failures": 10}
    job["defaults"] |= {
        "objective": {"name": "slow:Slow", "options": {"seconds": 0.5}},
        "limits": {"max_steps": MAX_STEPS},
    }
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def wait_until(holds: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_a_node_that_is_lost_and_one_that_joins_change_nothing(tmp_path: Path) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    run = RunLayout(runs / "elastic")
    path = slow_job(tmp_path, "elastic", {"min": 1, "max": 2})

    def saved_by(workers: int) -> bool:
        records = read_ledger(run.stage(STAGE).ledger)
        return bool(records) and records[-1].world_size == workers

    with ray_cluster() as cluster:
        cluster.start("head")
        cluster.start("second")
        variables = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        command = ("run", path, "--runs-dir", runs)
        with started(*command, home=home, cwd=tmp_path, variables=variables) as driver:
            wait_until(lambda: saved_by(2))
            cluster.kill("second")
            wait_until(lambda: saved_by(1))
            cluster.start("third")
            wait_until(lambda: saved_by(2))
            output, errors = driver.communicate(timeout=300)
        assert driver.returncode == 0, errors + output
    numbers = [record.world_size for record in read_ledger(run.stage(STAGE).ledger)]
    assert sorted(set(numbers)) == [1, 2]
    assert verify_run(run.root, None)["ok"]
    reference = slow_job(tmp_path, "reference", 2)
    fast = ("--set", f"stages.{STAGE}.objective.options.seconds=0.0")
    succeed("run", reference, *fast, "--runs-dir", runs, home=home, cwd=tmp_path)
    both = (RunLayout(runs / name).stage(STAGE) for name in ("elastic", "reference"))
    assert different(*map(end_of, both)) == []
