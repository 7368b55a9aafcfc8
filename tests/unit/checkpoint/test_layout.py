"""Where a run keeps what, and when its workers gave their last sign."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.checkpoint.layout import StageLayout


def test_the_last_sign_of_killed_workers_is_not_what_those_after_them_write(tmp_path: Path) -> None:
    layout = StageLayout(tmp_path / "pretrain")
    assert layout.last_written() is None
    layout.log(0).parent.mkdir(parents=True)
    for path, seconds in ((layout.metrics, 10), (layout.log(0), 20), (layout.log(1), 3_000)):
        path.touch()
        os.utime(path, (seconds, seconds))
    # Rank 1 of the next start may have begun its log before rank 0 looks.
    assert layout.last_written() == "1970-01-01T00:00:20.000+00:00"
