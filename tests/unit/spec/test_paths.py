"""Paths start at the folder of the file that names them, whatever that folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data.files import find_files
from orchestrator.errors import SourceMissingError
from orchestrator.spec.load import load_job
from tests.unit.spec.jobs import VALID, write_job


@pytest.mark.parametrize("files", ["data/*.txt", "data/x.txt", "./data/[x].txt"])
def test_a_folder_whose_name_looks_like_a_pattern_is_no_pattern(files: str, tmp_path: Path) -> None:
    for folder in ("exp[1]", "exp1"):
        (tmp_path / folder / "data").mkdir(parents=True)
        (tmp_path / folder / "data" / "x.txt").write_text(folder)
    text = VALID.replace("files: data/*.txt", f"files: '{files}'")
    job = load_job(write_job(tmp_path / "exp[1]", text))
    dataset = job.datasets["rfc"]
    assert [path.read_text() for path in find_files("rfc", dataset)] == ["exp[1]"]  # type: ignore[arg-type]
    (tmp_path / "exp[1]" / "data" / "x.txt").unlink()
    dataset = load_job(tmp_path / "exp[1]" / "job.yaml").datasets["rfc"]
    with pytest.raises(SourceMissingError):
        find_files("rfc", dataset)  # type: ignore[arg-type]


def test_a_home_folder_is_one_from_everywhere_and_a_name_is_spelt_the_same_when_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.txt").write_text("home")
    (tmp_path / "exp[1]").mkdir()
    path = write_job(tmp_path / "exp[1]", VALID.replace("files: data/*.txt", "files: ~/*.txt"))
    (found,) = find_files("rfc", load_job(path).datasets["rfc"])  # type: ignore[arg-type]
    assert found.read_text() == "home"
    path = write_job(tmp_path / "exp[1]", VALID.replace("files: data/*.txt", "files: x[1].txt"))
    missing = load_job(path).datasets["rfc"]
    path = write_job(tmp_path / "exp[1]", VALID.replace("files: data/*.txt", "files: x.txt"))
    gone = load_job(path).datasets["rfc"]
    (tmp_path / "exp[1]" / "x.txt").write_text("there")
    assert load_job(path).datasets["rfc"] == gone != missing
