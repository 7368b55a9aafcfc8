"""Tokenizers that tests of the data room read and do not change, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.corpus import train_small


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``bpe`` and ``wordpiece`` lie, with the corpus they are trained on."""
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session")
def bpe(folder: Path) -> Path:
    """A tokenizer like GPT-2's."""
    return train_small(folder, "bpe")


@pytest.fixture(scope="session")
def wordpiece(folder: Path) -> Path:
    """A tokenizer like BERT's."""
    return train_small(folder, "wordpiece", lowercase=True)
