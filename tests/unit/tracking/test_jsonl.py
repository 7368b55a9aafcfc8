"""metrics.jsonl and events.jsonl survive kills and resumes."""

from pathlib import Path

from orchestrator.tracking.events import append_event, read_json_lines
from orchestrator.tracking.jsonl import JSONLTracker


def steps_in(path: Path) -> list[int]:
    return [record["step"] for record in read_json_lines(path)]


def test_resuming_drops_the_lines_of_steps_that_will_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JSONLTracker(path, resume_step=0)
    for step in (10, 20, 30):
        tracker.log(step, {"train/loss": 1.0})
    tracker.finish("failed")
    tracker = JSONLTracker(path, resume_step=20)
    tracker.log(30, {"train/loss": 0.5})
    tracker.finish("finished")
    assert steps_in(path) == [10, 20, 30]
    assert list(read_json_lines(path))[-1]["train/loss"] == 0.5


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20, "train/lo')
    assert steps_in(path) == [10]
    JSONLTracker(path, resume_step=10).finish("finished")
    assert path.read_text() == '{"step": 10}\n'


def test_events_are_appended_with_their_time(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    append_event(path, "run_started", pid=1)
    append_event(path, "checkpoint", stage="a", step=5)
    first, second = read_json_lines(path)
    assert (first["event"], second["event"], second["step"]) == ("run_started", "checkpoint", 5)
    assert first["time"] <= second["time"]
