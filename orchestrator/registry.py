"""Names that a job file may use for plug-ins, and where each lives.

Nothing is imported until it is asked for, so reading a job file stays cheap. A value of the form
``package.module:Name`` loads the user's own plug-in. To add one of ours: one new file, one line here.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from orchestrator.errors import PlanError

Kind = Literal["objective", "strategy", "model", "tracker", "launcher"]

REGISTRY: Mapping[Kind, Mapping[str, str]] = MappingProxyType(
    {
        "objective": {
            "causal_lm": "orchestrator.objectives.causal_lm:CausalLM",
            "masked_lm": "orchestrator.objectives.masked_lm:MaskedLM",
            "sequence_classification": (
                "orchestrator.objectives.sequence_classification:SequenceClassification"
            ),
            "token_classification": "orchestrator.objectives.token_classification:TokenClassification",
            "supervised_finetuning": "orchestrator.objectives.supervised_finetuning:SupervisedFinetuning",
        },
        "strategy": {
            "ddp": "orchestrator.strategies.ddp:DDPEngine",
            "fsdp2": "orchestrator.strategies.fsdp2:FSDP2Engine",
            "zero": "orchestrator.strategies.zero:ZeROEngine",
        },
        "model": {"auto": "orchestrator.models:build_auto_model"},
        "tracker": {
            "jsonl": "orchestrator.tracking.jsonl:JSONLTracker",
            "wandb": "orchestrator.tracking.wandb:WandbTracker",
        },
        "launcher": {
            "local": "launchers.local:LocalLauncher",
            "ray": "launchers.ray:RayLauncher",
            "slurm": "launchers.slurm:SlurmLauncher",
            "kuberay": "launchers.kuberay:KuberayLauncher",
        },
    }
)


def is_plugin(name: str) -> bool:
    """Whether ``name`` points at a user's own code (``package.module:Name``)."""
    module, _, attribute = name.partition(":")
    return bool(attribute) and all(part.isidentifier() for part in [*module.split("."), attribute])


def resolve(kind: Kind, name: str) -> Any:
    """Import and return what ``name`` stands for.

    Raises:
        PlanError: No such name, or the user's module cannot be imported.
    """
    known = REGISTRY[kind]
    if name not in known and not is_plugin(name):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise PlanError(
            f"{kind} '{name}' is not one of {sorted(known)}.{hint} Your own is 'package.module:Name'."
        )
    module, _, attribute = known.get(name, name).partition(":")
    if name not in known and "" not in sys.path and os.getcwd() not in sys.path:
        # The user's own modules lie beside their job files, where the command is typed.
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise PlanError(
            f"{kind} '{name}': {error}. Install it in this environment, or correct the name."
        ) from error
    except AttributeError as error:
        raise PlanError(f"{kind} '{name}': module '{module}' has no '{attribute}'.") from error
