"""The tokenizer of a stage: trained or loaded once, kept as a folder that ``AutoTokenizer`` loads.

Owns everything that is asked of a tokenizer outside encoding; training is ``vocabulary.py``.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.contracts import TokenInfo
from orchestrator.data.cache import make_folder
from orchestrator.data.catalog import Catalog
from orchestrator.data.fields import texts_of
from orchestrator.data.files import digest_file, digest_values
from orchestrator.data.rows import find_rows
from orchestrator.data.vocabulary import train_tokenizer
from orchestrator.errors import DataError
from orchestrator.spec.datasets import Tokenizer, TokenizerTraining

# Raised when training gives other bytes for the same text, so that old folders are not taken for
# new ones.
TRAINING_VERSION = 2
BATCH_ROWS = 1000
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
# What tokenizers are stored in; a folder of weights holds other files besides.
VOCABULARY_FILES = (
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
TOKENIZER_FILES = (*VOCABULARY_FILES, "chat_template*")
# Markers of a token that begins a word: byte-level space, newline, tab and return, and
# SentencePiece's space.
BYTE_LEVEL_STARTS = ("\u0120", "\u010a", "\u0109", "\u010d")
METASPACE_STARTS = ("\u2581", "\n", "\t", "<0x0A>")

log = logging.getLogger(__name__)


def prepare_tokenizer(section: Tokenizer, catalog: Catalog) -> Path:
    """Folder of the tokenizer that ``section`` asks for, made once.

    Args:
        section: The ``tokenizer`` section.
        catalog: The job's datasets; training reads the training rows of those it names. The tokenizer's
            folder is named by its content or by the content it is trained on.

    Raises:
        DataError: A dataset or tokenizer is missing or unfit.
    """
    folder = catalog.cache_dir / "tokenizers"
    if section.train is not None:
        return _prepare_trained(section.train, catalog, folder)
    tokenizer = _load(str(section.from_), revision=section.revision, trust_remote_code=False)
    content = {
        "backend": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "class": type(tokenizer).__name__,
        "chat_template": str(tokenizer.chat_template),
    }
    if tokenizer.split_special_tokens:
        # Only then, so that others keep their folders.
        content["split_special_tokens"] = True
    return make_folder(folder / digest_values(content), lambda target: save_tokenizer(tokenizer, target))


def _prepare_trained(training: TokenizerTraining, catalog: Catalog, folder: Path) -> Path:
    # Labels are not read, so a missing one must not spoil the training.
    sources = [catalog.find(name).without_labels() for name in training.datasets]
    key = {
        "version": TRAINING_VERSION,
        "training": training.model_dump(mode="json", exclude={"datasets"}),
        "sources": [source.digest for source in sources],
    }

    def build(target: Path) -> None:
        texts = [find_rows(source, "train", catalog.tasks).open() for source in sources]

        def batches() -> Iterator[list[str]]:
            for rows in texts:
                for batch in rows.iter(BATCH_ROWS):
                    yield texts_of(batch)

        save_tokenizer(train_tokenizer(training, batches), target)

    return make_folder(folder / digest_values(key), build)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The ``transformers`` tokenizer in ``folder``, its own truncation and padding switched off.

    A tokenizer without a padding token gets its end token as one, as users of GPT-2 expect; padded
    positions are masked, so the choice shows nowhere in training.

    Raises:
        DataError: It cannot be loaded, is not backed by the ``tokenizers`` library, or has no end
            token.
    """
    return _load(str(folder), revision=None, trust_remote_code=trust_remote_code)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write ``tokenizer`` into ``folder``; the same tokenizer always gives the same bytes."""
    tokenizer = copy.deepcopy(tokenizer)
    # Where it was loaded from is not part of what it is.
    tokenizer.init_kwargs.pop("name_or_path", None)
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        # The tokenizers library says what the system said in words alone.
        if (code := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error


def _load(origin: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    if Path(origin).is_dir():
        tokenizer_digest(Path(origin))
    elif not HUB_ID.fullmatch(origin):
        # Asked about it, the hub would be tried for a minute first.
        raise DataError(
            f"tokenizer '{origin}': there is no such folder, and it is no hub id such as 'gpt2' or"
            " 'google-bert/bert-base-uncased'."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            origin, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise DataError(
            f"tokenizer '{origin}' cannot be loaded: {' '.join(str(error).split())} Expected a"
            " folder with tokenizer.json, or the id of a hub model that can be reached."
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer '{origin}' is a {type(tokenizer).__name__} without tokenizer.json,"
            " expected one backed by the tokenizers library. Convert it, or train one with tokenizer.train."
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if end_id(tokenizer) is None:
        raise DataError(
            f"tokenizer '{origin}' has neither eos_token nor sep_token among {tokenizer.special_tokens_map},"
            " expected one to end documents with. Set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
    return tokenizer


def end_id(tokenizer: Any) -> int | None:
    """Id of the token that ends a document: the end token, or else BERT's separator."""
    found: int | None = tokenizer.eos_token_id
    return found if found is not None else tokenizer.sep_token_id


def token_info(tokenizer: Any) -> TokenInfo:
    """What an objective must know; where words cannot be told, no token continues one."""
    vocab: dict[str, int] = tokenizer.get_vocab()
    vocab_size = max(vocab.values()) + 1
    special_ids = set(tokenizer.all_special_ids) | {
        token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    continues = _continues_word(tokenizer.backend_tokenizer.model, vocab, vocab_size)
    continues[sorted(special_ids)] = False
    return TokenInfo(
        vocab_size=vocab_size,
        pad_id=tokenizer.pad_token_id,
        eos_id=int(end_id(tokenizer) or 0),
        mask_id=tokenizer.mask_token_id,
        special_ids=tuple(sorted(special_ids)),
        continues_word=continues,
    )


def _continues_word(model: Any, vocab: Mapping[str, int], vocab_size: int) -> np.ndarray:
    """Bool ``(vocab_size,)``: by WordPiece's prefix, or by the absence of a space marker."""
    continues = np.zeros(vocab_size, dtype=bool)
    prefix = getattr(model, "continuing_subword_prefix", None)
    if type(model).__name__ == "WordPiece" and prefix:
        for token, token_id in vocab.items():
            continues[token_id] = token.startswith(prefix) and token != prefix
        return continues
    for starts in (BYTE_LEVEL_STARTS, METASPACE_STARTS):
        if any(token.startswith(starts[0]) for token in vocab):
            for token, token_id in vocab.items():
                continues[token_id] = not token.startswith(starts)
            return continues
    return continues


def for_classification(tokenizer: Any) -> Any:
    """A tokenizer whose plain call on a text gives the rows that a classifier is trained on.

    BERT's adds its own special tokens and stays as it is. One that adds none gets the end token
    appended, so that a decoder reads its answer from a position that has seen the whole text.
    """
    tokenizer = copy.deepcopy(tokenizer)
    backend = tokenizer.backend_tokenizer
    if backend.num_special_tokens_to_add(False) > 0:
        return tokenizer
    from tokenizers import processors

    token_id = end_id(tokenizer)
    token = tokenizer.convert_ids_to_tokens(token_id)
    template = processors.TemplateProcessing(
        single=f"$A {token}", pair=f"$A {token} $B:1 {token}:1", special_tokens=[(token, token_id)]
    )
    before = [] if backend.post_processor is None else [backend.post_processor]
    backend.post_processor = processors.Sequence([*before, template])
    return tokenizer


def tokenizer_digest(folder: Path) -> str:
    """Digest of the names and bytes of a folder's tokenizer files, and of no other file.

    Raises:
        DataError: The folder holds no tokenizer file.
    """
    return _digest(folder, TOKENIZER_FILES)


def vocabulary_digest(folder: Path) -> str:
    """The same of the files that say what tokens mean: without the chat template, which makes texts.

    Raises:
        DataError: The folder holds no tokenizer file.
    """
    return _digest(folder, VOCABULARY_FILES)


def gives_same_tokens(folder: Path, other: Path) -> bool:
    """Whether the tokenizers in two folders make the same of a text, in whatever words their files say it.

    Raises:
        DataError: A folder holds no tokenizer.
    """
    if folder == other or vocabulary_digest(folder) == vocabulary_digest(other):
        return True
    first, second = load_tokenizer(folder), load_tokenizer(other)
    said = [
        (found.backend_tokenizer.to_str(), found.special_tokens_map, found.split_special_tokens)
        for found in (first, second)
    ]
    return said[0] == said[1]


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    paths = {path.name: path for pattern in patterns for path in folder.glob(pattern)}
    if not paths:
        raise DataError(f"{folder} holds no tokenizer file ({', '.join(patterns)}), expected tokenizer.json.")
    return digest_values({name: digest_file(path) for name, path in paths.items()})
