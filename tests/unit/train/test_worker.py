"""What a worker refuses before it meets the others."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.checkpoint.layout import RunLayout
from orchestrator.spec.load import dump_resolved
from orchestrator.train.worker import main
from tests.unit.spec.jobs import VALID, load, write_job


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with a job of one worker."""
    return make_run(tmp_path, VALID)


def make_run(folder: Path, text: str) -> Path:
    """A run directory with the job of ``text``."""
    layout = RunLayout(folder / "run")
    layout.root.mkdir()
    write_job(layout.root, dump_resolved(load(folder, text)), layout.job.name)
    return layout.root


def test_a_stage_that_is_not_there_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--stage", "pretrian"]) == 2
    hint = "Did you mean 'pretrain'? Its stages: pretrain."
    expected = f"orchestrator: job 'tiny' has no stage 'pretrian'. {hint}\n"
    assert capsys.readouterr().err == expected


def test_another_number_of_processes_than_workers_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main([str(run_dir), "--stage", "pretrain"]) == 2
    assert capsys.readouterr().err == (
        "orchestrator: stage 'pretrain' was started on 3 processes, resources.num_workers is 1: start it with"
        " --nproc-per-node 1, or prepare it again with --set resources.num_workers=3\n"
    )


def test_a_stage_whose_input_stage_is_not_finished_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path, VALID + "  - {name: test, kind: export, from: pretrain}\n")
    assert main([str(run_dir), "--stage", "test"]) == 2
    assert capsys.readouterr().err == (
        "orchestrator: stage 'test' reads the weights of stage 'pretrain', which is not finished in"
        f" {run_dir}; run 'pretrain' first\n"
    )


def test_a_log_on_a_full_disk_is_no_story_of_its_own(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLayout(run_dir).stage("pretrain").log(0)
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    assert main([str(run_dir), "--stage", "pretrain"]) == 1
    root = logging.getLogger()
    (handler,) = [found for found in root.handlers if getattr(found, "baseFilename", "") == str(log)]
    try:
        capsys.readouterr()
        handler.handle(root.makeRecord("a", logging.INFO, "b", 1, "cannot be written", (), None))
        assert capsys.readouterr().err == ""
        handler.handle(root.makeRecord("a", logging.INFO, "b", 1, "%d", ("no number",), None))
        assert "Logging error" in capsys.readouterr().err
    finally:
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()
