"""Imports that take seconds: beside other work, and with no search for garbage in what stays for good."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Thread


@contextmanager
def imported_meanwhile(module: str) -> Iterator[None]:
    """Import a module in a thread beside the block, which ends with both."""
    with large_imports():
        importing = Thread(target=import_module, args=(module,))
        importing.start()
        try:
            yield
        finally:
            importing.join()


@contextmanager
def large_imports() -> Iterator[None]:
    """Let Python's cyclic garbage collector rest during imports, and never visit again what they have made.

    Not for blocks within one another.

    Each import of torch or transformers makes a million objects that stay; collections while they are made
    were a sixth of the time, and the last one, as the process ends, most of a second.
    """
    num_modules = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > num_modules:
            gc.freeze()
        gc.enable()
