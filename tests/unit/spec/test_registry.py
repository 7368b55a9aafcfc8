"""The names a job file may use are those the registry can load; others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import PlanError
from orchestrator.registry import REGISTRY, Kind, resolve
from orchestrator.spec.compile import PLUGIN, members_of, unwrap
from orchestrator.spec.strategies import Strategy
from orchestrator.spec.training import Objective


@pytest.mark.parametrize(("kind", "union"), [("objective", Objective), ("strategy", Strategy)])
def test_every_name_in_the_job_file_is_registered(kind: Kind, union: Any) -> None:
    members = members_of(unwrap(union)[0], "name")
    assert {name for name in members if name != PLUGIN} == set(REGISTRY[kind])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "fsdp",
            "strategy 'fsdp' is not one of ['ddp', 'fsdp2', 'zero']. Did you mean 'fsdp2'?"
            " Your own is 'package.module:Name'.",
        ),
        (
            "no_such_module:Engine",
            "strategy 'no_such_module:Engine': No module named 'no_such_module'. Install it in this"
            " environment, or correct the name.",
        ),
        ("json:Engine", "strategy 'json:Engine': module 'json' has no 'Engine'."),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(name: str, expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve("strategy", name)
    assert str(caught.value) == expected
