"""A fetched hub dataset; the hub, which cannot be here, is a folder of files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.data.sources import Source, find_source
from tests.unit.data.corpus import section
from tests.unit.data.hub_folder import COMMIT, make_records, put_in_hubs_place, write_files


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "other bytes": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "gone": lambda path: path.unlink(),
}


def find(cache: Path, revision: str | None = COMMIT) -> Source:
    return find_source("web", section(source="hub", path="some/web", revision=revision), cache)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_copy_of_a_folder_in_the_hubs_place_is_named_and_made_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(put_in_hubs_place(tmp_path / "web", monkeypatch), make_records())
    cache = tmp_path / "cache"
    texts = find(cache).open()["text"][:]
    digest = find(cache).digest
    (copy,) = (cache / "hub").rglob("*.arrow")
    with caplog.at_level(logging.WARNING):
        assert find(cache).digest == digest
        assert caplog.messages == []
        DAMAGE[how](copy)
        found = find(cache)
    (message,) = caplog.messages
    assert message.startswith("datasets.web: hub dataset 'some/web' (")
    assert f"its copy {copy} {'is gone' if how == 'gone' else 'holds other bytes'}" in message
    assert found.digest == digest
    assert found.open()["text"][:] == texts


def test_without_a_revision_the_copy_is_what_the_library_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = put_in_hubs_place(tmp_path / "web", monkeypatch)
    write_files(hub, make_records())
    before = find(tmp_path / "cache", revision=None)
    assert len(before.open()) == 90
    write_files(hub, make_records(80))
    after = find(tmp_path / "cache", revision=None)
    assert len(after.open()) == 80
    assert before.digest != after.digest
