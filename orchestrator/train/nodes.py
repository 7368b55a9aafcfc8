"""Whether the nodes of a stage's workers may train together, asked before anything is read; collective."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.checkpoint.peers import tell_all
from orchestrator.errors import DataError, LaunchError
from orchestrator.nodes import complaint, describe
from orchestrator.tracking.events import replace_text
from orchestrator.train.agreement import AgreedError
from orchestrator.train.inputs import StageInputs


def find_unseen(layout: RunLayout) -> list[str]:
    """One text for each node that does not see the run directory."""
    host = socket.gethostname()
    own = None if layout.job.exists() else f"node '{host}' does not see the run directory {layout.root}"
    return list(dict.fromkeys(text for text in tell_all(own) if text is not None))


def check_nodes(layout: RunLayout, stage: StageLayout) -> None:
    """Refuse nodes with other versions than the driver's, or that do not see what the stage reads.

    Rank 0 adds what the nodes are to ``environment.json``.

    Raises:
        AgreedError: On every rank, naming each such node.
    """
    environment: dict[str, Any] = {}
    try:
        environment = json.loads(layout.environment.read_text("utf-8"))
        own = complaint(environment, _paths(StageInputs.read(stage)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        own = (
            f"{layout.environment}, which has the driver's versions, is missing or damaged ({error}). Run"
            " 'orchestrator prepare JOB' (or 'orchestrator run JOB'), which write it anew"
        )
    except DataError as error:
        own = str(error)
    found = tell_all((own, {**describe(), **_accelerators()}))
    problems = list(dict.fromkeys(problem for problem, _ in found if problem is not None))
    if problems:
        raise AgreedError(LaunchError("\n".join(problems)))
    if dist.get_rank() == 0:
        nodes = {node["host"]: node for _, node in found}
        replace_text(layout.environment, json.dumps({**environment, "nodes": nodes}, indent=1))


def _paths(inputs: StageInputs) -> list[str]:
    """Folders that workers read; weights may also be an id of the hub."""
    weights = [] if inputs.weights is None or not Path(inputs.weights).is_absolute() else [inputs.weights]
    tokenizer = [inputs.tokenizer] if inputs.tokenizer else []
    return [*tokenizer, *inputs.train.values(), *inputs.evaluation.values(), *weights]


def _accelerators() -> Mapping[str, Any]:
    """GPUs of this process's machine, and the NCCL that joins them."""
    if not torch.cuda.is_available():
        return {"gpus": [], "nccl": None}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"gpus": gpus, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}  # type: ignore[no-untyped-call]
