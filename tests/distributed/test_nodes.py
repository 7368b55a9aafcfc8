"""Nodes that are unlike the driver's end a stage before its first step, on all ranks alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.tracking.events import read_json_lines
from tests.distributed.test_anomalies import STAGE, prepare
from tests.support import run_ranks

PLAIN = {"objective": {"name": "causal_lm"}, "limits": {"max_steps": 4}}


def start(folder: str, unlike: str) -> str:
    """How a stage ends whose last rank stands in for one on another node."""
    import torch.distributed as dist

    from orchestrator import nodes
    from orchestrator.train.agreement import AgreedError
    from orchestrator.train.worker import run_stage

    run = Path(folder, "runs", "run")
    if dist.get_rank() == 1:
        described = {**nodes.describe(), "host": "second"}
        if unlike == "versions":
            described["packages"] = {**described["packages"], "torch": "1.0"}
        if unlike == "run directory":
            run = Path(folder, "elsewhere", "run")
        for module in ("orchestrator.nodes", "orchestrator.train.nodes"):
            __import__(module, fromlist=["describe"]).describe = lambda: described
    try:
        return run_stage(run, STAGE)
    except AgreedError as error:
        return f"{error.exit_code} {error}"


@pytest.mark.parametrize("unlike", ["nothing", "versions", "run directory"])
def test_a_node_unlike_the_drivers_is_refused_on_every_rank(unlike: str, tmp_path: Path) -> None:
    prepare(tmp_path, "run", num_workers=2, **PLAIN)
    layout = RunLayout(tmp_path / "runs" / "run")
    outcomes = run_ranks(start, 2, str(tmp_path), unlike)
    assert len(set(outcomes)) == 1
    failed = [event for event in read_json_lines(layout.events) if event["event"] == "rank_failed"]
    if unlike == "nothing":
        assert outcomes[0] == "finished"
        nodes = json.loads(layout.environment.read_text())["nodes"]
        assert "second" in nodes and len(nodes) == 2
        assert nodes["second"]["nccl"] is None
        return
    expected = {"versions": "1 node 'second' has torch 1.0 where the driver has "}.get(unlike, "1 node '")
    assert outcomes[0].startswith(expected)
    assert f"{failed[0]['exit_code']} {failed[0]['message']}" == outcomes[0]
    if unlike == "run directory":
        assert f"does not see the run directory {tmp_path}/elsewhere/run: put it where" in outcomes[0]
    assert not list(layout.stage(STAGE).checkpoints.glob("*"))


@pytest.mark.parametrize("content", [None, "", '{"packages": ', "[]"])
def test_a_missing_or_damaged_environment_is_named(content: str | None, tmp_path: Path) -> None:
    prepare(tmp_path, "run", num_workers=1, **PLAIN)
    environment = RunLayout(tmp_path / "runs" / "run").environment
    environment.unlink()
    if content is not None:
        environment.write_text(content)
    (outcome,) = run_ranks(start, 1, str(tmp_path), "nothing")
    assert outcome.startswith(f"1 {environment}, which has the driver's versions, is missing or damaged (")
    prepare(tmp_path, "run", num_workers=1, **PLAIN)
    assert run_ranks(start, 1, str(tmp_path), "nothing") == ["finished"]


def test_a_stage_whose_rows_are_gone_names_the_folder(tmp_path: Path) -> None:
    prepare(tmp_path, "run", num_workers=2, **PLAIN)
    layout = RunLayout(tmp_path / "runs" / "run")
    inputs = json.loads(layout.stage(STAGE).inputs.read_text())
    rows = Path(inputs["train"]["corpus"])
    rows.rename(rows.with_name("moved"))
    outcomes = run_ranks(start, 2, str(tmp_path), "nothing")
    assert len(set(outcomes)) == 1
    assert f"has no {rows}" in outcomes[0]
