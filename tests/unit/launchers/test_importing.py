"""Modules are imported beside other work, and what they made is left alone by the garbage collector."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from launchers.importing import imported_meanwhile, large_imports

MODULE = """
import threading

import slow_module_gate

name = threading.current_thread().name
slow_module_gate.opened.wait(10)
made = [[]]
"""


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """The other tests' objects are not kept."""
    yield
    gc.unfreeze()


def test_a_module_is_imported_beside_the_block_and_is_there_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_module_gate.py").write_text("import threading\n\nopened = threading.Event()\n")
    (tmp_path / "slow_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("slow_module_gate", "slow_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import slow_module_gate  # type: ignore[import-not-found]

    with imported_meanwhile("slow_module"):
        # Only from inside the block can the import go on.
        slow_module_gate.opened.set()
    assert sys.modules["slow_module"].name != threading.current_thread().name
    assert not any(found is sys.modules["slow_module"].made for found in gc.get_objects())


def test_the_collector_rests_during_imports_and_works_after_them_even_where_they_fail() -> None:
    with pytest.raises(ModuleNotFoundError), large_imports():
        assert not gc.isenabled()
        import_module("no_such_module_anywhere")
    assert gc.isenabled()


def test_where_nothing_was_imported_nothing_is_kept_from_the_collector() -> None:
    before = gc.get_freeze_count()
    with large_imports():
        import_module("threading")
    assert gc.get_freeze_count() == before
