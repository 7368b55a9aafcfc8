"""The names a job file may use are those the registry can load."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.registry import REGISTRY, Kind
from orchestrator.spec.compile import PLUGIN, members_of, unwrap
from orchestrator.spec.training import Objective, Strategy


@pytest.mark.parametrize(("kind", "union"), [("objective", Objective), ("strategy", Strategy)])
def test_every_name_in_the_job_file_is_registered(kind: Kind, union: Any) -> None:
    members = members_of(unwrap(union)[0], "name")
    assert {name for name in members if name != PLUGIN} == set(REGISTRY[kind])
