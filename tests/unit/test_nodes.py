"""What a node is, and why another one may not take part."""

from __future__ import annotations

import platform
import subprocess
from copy import deepcopy
from importlib import metadata
from pathlib import Path

import torch

from orchestrator import nodes
from orchestrator.nodes import complaint, describe, differences


def test_a_machine_is_described_as_it_is() -> None:
    found = describe()
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == metadata.version("torch") == torch.__version__
    assert found["cpus"] >= 1
    assert differences(found, describe()) == []


def test_the_commit_is_that_of_the_code() -> None:
    root = Path(nodes.__file__).parents[1]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    asked = subprocess.run(command, capture_output=True, text=True)
    expected = asked.stdout.strip() if asked.returncode == 0 else None
    found = describe()["commit"]
    assert (found and found.removesuffix("-dirty")) == expected


def test_other_versions_are_named_and_files_that_differ_from_the_commit_are_not() -> None:
    here = {**describe(), "commit": "a" * 40}
    there = deepcopy(here)
    there["packages"] |= {"torch": "1.0", "deepspeed": "not installed"}
    there |= {"python": "3.9.1", "host": "other", "cpus": 1000, "commit": "a" * 40 + "-dirty"}
    torch_here, deepspeed_here = here["packages"]["torch"], here["packages"]["deepspeed"]
    assert differences(here, there) == [
        f"Python 3.9.1 where the driver has {here['python']}",
        f"torch 1.0 where the driver has {torch_here}",
        f"deepspeed not installed where the driver has {deepspeed_here}",
    ]
    for unknown in ({**here, "commit": None}, here):
        assert differences(unknown, {**here, "commit": None}) == []
    there = {**here, "commit": "b" * 40}
    assert differences(here, there) == [f"orchestrator at commit {'b' * 40} where the driver has {'a' * 40}"]


def test_a_complaint_names_the_node_the_driver_and_the_path(tmp_path: Path) -> None:
    driver = {**describe(), "host": "head"}
    assert complaint(driver, [tmp_path]) is None
    driver["packages"] = {**driver["packages"], "numpy": "0.1"}
    found = complaint(driver, [tmp_path, tmp_path / "rows", tmp_path / "weights"])
    assert found is not None
    assert found.startswith(f"node '{describe()['host']}' has numpy ")
    assert f"where the driver has 0.1; no {tmp_path}/rows, no {tmp_path}/weights. Install the same" in found
    assert found.endswith("as the driver on 'head' does.")
