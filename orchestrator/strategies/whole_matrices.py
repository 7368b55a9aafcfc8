"""An update of sharded parameters by an optimizer that must see whole matrices (Adafactor).

torch's Adafactor cannot compute on DTensors. Its state is small, a row and a column for each matrix, so every
rank keeps it whole, gathers one parameter and its gradient at a time, makes the update that a single process
would make, and keeps its own shard: the same bits as without sharding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from orchestrator.strategies.optimizer_state import materialized_state
from orchestrator.strategies.plain import gather


def step_whole_matrices(optimizer: torch.optim.Adafactor, device: torch.device) -> None:
    """Make one step of ``optimizer`` on parameters that are DTensors; collective.

    Args:
        device: Where the process group communicates.
    """
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            assert isinstance(parameter.grad, DTensor)
            whole = nn.Parameter(gather(parameter.detach(), device))
            whole.grad = gather(parameter.grad, device)
            single = torch.optim.Adafactor([{"params": [whole], **options}])
            state = materialized_state(optimizer, group, parameter)
            single.state[whole] = state
            single.step()  # type: ignore[no-untyped-call]
            # Every rank has computed the same, so each takes its shard without communicating.
            shard = distribute_tensor(
                whole.detach(), parameter.device_mesh, parameter.placements, src_data_rank=None
            )
            parameter.detach().to_local().copy_(shard.to_local())
