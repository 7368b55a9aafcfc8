"""What is refused before DeepSpeed is asked, and a DeepSpeed that is not the one expected."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from orchestrator.errors import PlanError
from orchestrator.spec.strategies import ZeROStrategy
from orchestrator.strategies.zero_driver import check_offload, check_optimizer
from orchestrator.strategies.zero_partitions import GroupPartitions
from orchestrator.strategies.zero_start import import_deepspeed


def test_offload_to_host_memory_is_accepted() -> None:
    section = ZeROStrategy(name="zero", stage=3, offload_param={"device": "cpu"})
    check_offload({"stage": 3, "offload_param": {"device": "cpu"}}, section)


def test_adafactor_is_refused_where_zero_flattens_matrices() -> None:
    optimizer = torch.optim.Adafactor([torch.nn.Parameter(torch.zeros(2, 2))])
    check_optimizer(optimizer, stage=0)
    with pytest.raises(PlanError, match="optimizer adafactor under strategy zero, stage 1: it factors"):
        check_optimizer(optimizer, stage=1)


def test_a_missing_deepspeed_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(PlanError) as caught:
        import_deepspeed(torch.device("cpu"))
    assert str(caught.value) == (
        "strategy zero: import of deepspeed halted; None in sys.modules; install deepspeed 0.19.8, or use"
        " strategy fsdp2"
    )


def test_a_deepspeed_without_the_attributes_that_are_read_is_refused() -> None:
    optimizer = SimpleNamespace(averaged_gradients={}, cpu_offload=False, micro_step_id=-1)
    with pytest.raises(PlanError) as caught:
        GroupPartitions(optimizer)
    assert str(caught.value) == (
        "DeepSpeed's SimpleNamespace has no ['single_partition_of_fp32_groups', 'average_tensor',"
        " 'update_lp_params', 'zero_grad'], which this engine reads; install deepspeed 0.19.8, or use"
        " strategy fsdp2"
    )


def test_a_deepspeed_whose_methods_take_other_arguments_is_refused() -> None:
    optimizer = SimpleNamespace(
        averaged_gradients={},
        cpu_offload=False,
        micro_step_id=-1,
        single_partition_of_fp32_groups=[],
        average_tensor=lambda tensor: None,
        update_lp_params=lambda: None,
        zero_grad=lambda set_to_none=True: None,
    )
    with pytest.raises(PlanError) as caught:
        GroupPartitions(optimizer)
    assert str(caught.value) == (
        "DeepSpeed's SimpleNamespace has ['average_tensor'] with other arguments than this engine gives,"
        " expected {'average_tensor': 2}; install deepspeed 0.19.8, or use strategy fsdp2"
    )
    optimizer.average_tensor = lambda *arguments: None
    GroupPartitions(optimizer)
