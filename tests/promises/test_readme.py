"""What README shows is what the project does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from launchers.cli import make_parser
from orchestrator.spec.load import load_job

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_job_file_of_readme_is_valid(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    path = tmp_path / "job.yaml"
    path.write_text(block.group(1))
    job = load_job(path, env={})
    assert [stage.name for stage in job.stages] == ["pretrain", "classify", "test", "export"]
    assert yaml.safe_load(block.group(1))["name"] == "reviews"


def test_the_commands_of_readme_are_the_commands() -> None:
    commands = next(action.choices for action in make_parser()._actions if getattr(action, "choices", None))
    shown = set(re.findall(r"^\| `orchestrator (\w+)", README, re.MULTILINE))
    assert shown == set(commands)


def test_every_path_of_the_file_tree_exists() -> None:
    tree = re.search(r"## The house\n\n```\n(.*?)```", README, re.DOTALL)
    assert tree is not None
    stack: list[str] = []
    for line in tree.group(1).splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        del stack[indent // 2 :]
        stack.append(name.rstrip("/"))
        assert (ROOT / "/".join(stack)).exists(), f"{'/'.join(stack)} is in README, not in the project"


def test_make_targets_of_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
