"""Records that every JSON parser reads, and that a crash does not tear."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from orchestrator.tracking.events import append_event, json_text, read_events, read_json_lines


def test_numbers_that_json_does_not_know_become_null() -> None:
    record = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf,)], "c": {"d": math.nan, "e": 2}}
    expected = {"a": None, "b": [None, 1.5, [None]], "c": {"d": None, "e": 2}}
    assert json.loads(json_text(record), parse_constant=lambda name: f"not JSON: {name}") == expected


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_event(path, "run_started", loss=math.nan)
    with path.open("a") as file:
        file.write('{"event": "run_fin')
    (record,) = read_json_lines(path)
    assert (record["event"], record["loss"]) == ("run_started", None)
    append_event(path, "run_started")
    append_event(path, "run_finished")
    assert [record["event"] for record in read_events(path)] == ["run_started", "run_started", "run_finished"]


def test_a_disk_that_fills_up_is_said() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        append_event(Path("/dev/full"), "run_started")


def test_a_line_that_a_full_disk_takes_a_part_of_is_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
    append_event(tmp_path / "events.jsonl", "run_started")
    assert [record["event"] for record in read_events(tmp_path / "events.jsonl")] == ["run_started"]


def test_a_line_that_is_no_event_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sound = {"time": "2026-01-01T00:00:00.000+00:00", "event": "checkpoint", "stage": "a", "step": 3}
    damaged = [
        {**sound, "event": None},
        {**sound, "time": "2026-01-01T00:00"[:-3] + ":"},
        {**sound, "counted_until": 3},
        {**sound, "step": "3"},
        {**sound, "seconds": {"compute": "1"}},
        {key: value for key, value in sound.items() if key != "stage"},
        {key: value for key, value in sound.items() if key != "event"},
    ]
    lines = [json.dumps(record) for record in (sound, *damaged, sound)]
    path.write_text("\n".join([*lines, "[]", "3", "no JSON", '{"event": "run_fin']))
    assert list(read_events(path)) == [sound, sound]
    assert list(read_events(tmp_path / "absent.jsonl")) == []
