"""SIGKILL of one rank in forward, backward, optimizer step and loader: one run that survives all four."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launchers.verification import verify_run
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines
from tests.distributed.training import different, end_of
from tests.e2e.commands import RUN_SECONDS, succeed
from tests.e2e.test_head_loss import workers_of
from tests.e2e.test_kill_and_resume import MAX_STEPS, SAVE_EVERY, write_job

# At the start of this number, rank 1 kills itself at its seventh visit to the place.
PLACES = ("forward", "backward", "optimizer", "loader")
VISITS = 7
PLUGIN = '''
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from orchestrator.objectives.causal_lm import CausalLM
from orchestrator.spec.training import CausalLMObjective
from orchestrator.train.prefetch import Prefetcher

INNER = CausalLMObjective(name="causal_lm")
STARTS = Path(__file__).with_name("starts")


class Deadly(CausalLM):
    """Counts its visits to a place, and ends in one of them."""

    def __init__(self, section, tokens, label_names):
        super().__init__(INNER, tokens, [])
        self.visits = self.steps = 0
        self.place = None
        if dist.is_initialized() and dist.get_rank() == 1:
            places, number = section.options["places"], len(STARTS.read_text()) if STARTS.exists() else 0
            self.place = places[number] if number < len(places) else None
            STARTS.write_text("x" * (number + 1))
        if self.place == "optimizer":
            register_optimizer_step_pre_hook(lambda *arguments: self.visit())
        if self.place == "loader":
            pinned = Prefetcher._pinned
            Prefetcher._pinned = lambda prefetcher, batch: (self.visit(), pinned(prefetcher, batch))[1]

    @classmethod
    def row_layout(cls, section, data):
        return super().row_layout(INNER, data)

    def loss_sums(self, model, batch):
        self.steps += model.training
        if self.place == "forward":
            self.visit()
        sums = super().loss_sums(model, batch)
        if self.place == "backward":
            sums.register_hook(lambda gradient: self.visit())
        return sums

    def visit(self):
        self.visits += 1
        if self.visits == VISITS:
            Path(__file__).with_name(f"died.{self.place}").write_text(str(self.steps))
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.mark.ray
@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["fsdp2", "zero3"])
def test_a_rank_that_is_killed_anywhere_in_a_step_costs_an_interval_at_most(
    stage: str, tmp_path: Path
) -> None:
    runs, home = tmp_path / "runs", tmp_path / "home"
    (tmp_path / "deadly.py").write_text(PLUGIN.replace("VISITS", str(VISITS)))
    for name, places in (("killed", list(PLACES)), ("whole", [])):
        path = write_job(tmp_path, name, [stage])
        job = yaml.safe_load(path.read_text())
        job["resources"]["max_failures"] = len(PLACES)
        # In the background, one that is under way when a rank dies is lost as well.
        job["defaults"]["checkpoint"]["asynchronous"] = False
        job["defaults"]["objective"] = {"name": "deadly:Deadly", "options": {"places": places}}
        path.write_text(yaml.safe_dump(job, sort_keys=False))
        (tmp_path / "starts").unlink(missing_ok=True)
        # A start for each place, and the last.
        seconds = RUN_SECONDS * (len(places) + 1)
        succeed("run", path, "--runs-dir", runs, home=home, cwd=tmp_path, seconds=seconds)
    assert {path.suffix[1:] for path in tmp_path.glob("died.*")} == set(PLACES)

    killed, whole = RunLayout(runs / "killed"), RunLayout(runs / "whole")
    assert different(*(end_of(run.stage(stage)) for run in (killed, whole))) == []
    begun = [
        event["step"] for event in read_json_lines(killed.events) if event["event"] == "training_started"
    ]
    assert len(begun) == len(PLACES) + 1
    for place, start, again in zip(PLACES, begun[:-1], begun[1:], strict=True):
        # One micro-batch a step, and the last one was not completed.
        completed = start + int((tmp_path / f"died.{place}").read_text()) - 1
        assert 0 <= completed - again <= SAVE_EVERY, (place, begun)
    assert begun[-1] > begun[1] > 0, "each must have gone on from a checkpoint"
    proof = json.loads(json.dumps(verify_run(killed.root, None)))
    assert proof["ok"]
    assert proof["stages"][0]["ledger"]["rows"] == MAX_STEPS * 8
    assert workers_of(killed) == []
