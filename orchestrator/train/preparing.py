"""Tokenizer and rows of a stage, made once before its workers start, or found in the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from transformers import PretrainedConfig

from orchestrator.contracts import RowLayout, TokenInfo
from orchestrator.data.catalog import Catalog
from orchestrator.data.chat_template import prepare_chat_template
from orchestrator.data.conversations import ConversationEncoder
from orchestrator.data.prepare import prepare_rows
from orchestrator.data.prepared import Meta, content_digest
from orchestrator.data.selection import Split
from orchestrator.data.tokenizer import (
    load_tokenizer,
    prepare_tokenizer,
    token_info,
    vocabulary_digest,
)
from orchestrator.errors import DataError, SourceMissingError
from orchestrator.models import check_fit, load_config, make_config
from orchestrator.spec.job import EvaluateStage, Job, TrainStage
from orchestrator.spec.reads import chat_template, tokenizer_section, trained_stage
from orchestrator.train.kept import Kept, num_outputs, row_layout, source_names

Progress = Callable[[str, int, int], None]
"""What is prepared, rows done, rows in all."""
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """The data part of a stage's inputs."""

    tokenizer: Path
    train: Mapping[str, Path]
    evaluation: Mapping[str, Path]
    label_names: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]
    """Digests by path of the files that each dataset was made from."""
    gone: tuple[str, ...] = ()
    """What is said of sources that are gone, and in whose place stands what was prepared before."""

    def summaries(self) -> list[str]:
        """One line for each training dataset: its rows, and how full they are."""
        return [f"{name}: {Meta.open(folder).summary()}" for name, folder in self.train.items()]

    def digests(self) -> dict[str, str]:
        """Content digest of everything prepared, by name."""
        folders = {f"train.{name}": path for name, path in self.train.items()}
        folders |= {f"evaluation.{name}": path for name, path in self.evaluation.items()}
        # Not the folder's name, which is another one where a new version prepares the same content.
        rows = {name: content_digest(path) for name, path in folders.items()}
        return {"tokenizer": vocabulary_digest(self.tokenizer), **rows}


def prepare_data(
    job: Job,
    stage: TrainStage | EvaluateStage,
    catalog: Catalog,
    on_progress: Progress,
    find_kept: Callable[[], Kept | None] = lambda: None,
) -> PreparedData:
    """Train or load the stage's tokenizer and tokenise its datasets, or find both in the cache.

    Args:
        find_kept: Asked where a source is gone, for what was prepared before.

    Raises:
        SourceMissingError: A source is gone, and nothing was prepared from it for this very stage.
        DataError: A source, a label or the tokenizer is unfit.
    """
    trained = stage if isinstance(stage, TrainStage) else trained_stage(job, stage.from_)
    made = _Making(job, trained, catalog, on_progress, find_kept)
    tokenizer = made.tokenizer()
    labels = made.label_names(tokenizer) if made.layout.labelled else None
    files = {name: made.files(name) for name in source_names(job, stage)}
    if isinstance(stage, EvaluateStage):
        held_out = {name: made.rows(name, stage.split, tokenizer, labels) for name in stage.datasets}
        return PreparedData(tokenizer, {}, held_out, labels or (), files, tuple(made.gone))
    train = {name: made.rows(name, "train", tokenizer, None) for name in trained.data.mixture}
    names = stage.evaluation.datasets if stage.evaluation else ()
    held_out = {name: made.rows(name, "validation", tokenizer, labels) for name in names}
    return PreparedData(tokenizer, train, held_out, labels or (), files, tuple(made.gone))


@dataclass(frozen=True)
class _Making:
    """Makes what a stage reads; where a source is gone, finds what was made of it before."""

    job: Job
    trained: TrainStage
    """The stage, or the one that it evaluates."""
    catalog: Catalog
    on_progress: Progress
    find_kept: Callable[[], Kept | None]
    gone: dict[str, None] = field(default_factory=dict)
    """What is said of sources that are gone."""

    @cached_property
    def layout(self) -> RowLayout:
        """What a row is."""
        return row_layout(self.trained)

    def tokenizer(self) -> Path:
        """Folder of the tokenizer, which fits the model."""
        section, trained = tokenizer_section(self.job, self.trained), self.trained
        folder = self._or_kept(
            lambda: prepare_tokenizer(section, self.catalog),
            lambda kept, missing: kept.tokenizer(missing),
        )
        if self.layout.document == "conversation":
            folder = prepare_chat_template(folder, chat_template(self.job, trained), self.catalog.cache_dir)
            if not ConversationEncoder(self.layout, load_tokenizer(folder)).has_end_of_turn():
                logger.warning(
                    "stage '%s': its chat template ends an answer with no special token of the tokenizer, so"
                    " the model does not learn to stop; have it write {{ eos_token }} there",
                    trained.name,
                )
        tokens = token_info(load_tokenizer(folder))
        check_fit(
            _model_config(self.job, trained, tokens), tokens, trained.data.seq_len, f"stage '{trained.name}'"
        )
        return folder

    def label_names(self, tokenizer: Path) -> tuple[str, ...]:
        """Those that the rows which the stage is trained on have in common."""

        def find() -> tuple[str, ...]:
            mixture = self.trained.data.mixture
            folders = {name: self._make_rows(name, "train", tokenizer, None) for name in mixture}
            return _common_labels(self.trained, folders)

        return self._or_kept(find, lambda kept, missing: kept.label_names(missing))

    def rows(self, name: str, split: Split, tokenizer: Path, label_names: tuple[str, ...] | None) -> Path:
        """Folder of the rows of a dataset's split."""
        return self._or_kept(
            lambda: self._make_rows(name, split, tokenizer, label_names),
            lambda kept, missing: kept.rows(name, split, tokenizer, missing),
        )

    def files(self, name: str) -> Mapping[str, str]:
        """Digests by path of the files that a dataset is made from."""
        return self._or_kept(lambda: self.catalog.files(name), lambda kept, missing: kept.files(name))

    def _make_rows(
        self, name: str, split: Split, tokenizer: Path, label_names: tuple[str, ...] | None
    ) -> Path:
        # How many rows a file has is known when it was read.
        estimate = ", total estimated" if getattr(self.job.datasets[name], "streaming", False) else ""
        return prepare_rows(
            self.catalog.find(name),
            split,
            self.layout,
            tokenizer,
            label_names=label_names,
            num_labels=num_outputs(self.trained),
            tasks=self.catalog.tasks,
            on_progress=lambda done, total: self.on_progress(f"{name} ({split}{estimate})", done, total),
        )

    def _or_kept(self, make: Callable[[], T], find: Callable[[Kept, SourceMissingError], T]) -> T:
        try:
            return make()
        except SourceMissingError as missing:
            kept = self.find_kept()
            if kept is None:
                raise
            found = find(kept, missing)
            self.gone[str(missing)] = None
            return found


def _model_config(job: Job, stage: TrainStage, tokens: TokenInfo) -> PretrainedConfig:
    """Configuration of the model that a stage trains, known before any weights are."""
    if stage.model is not None and stage.model.factory == "auto":
        return make_config(stage.model.config, tokens)
    if stage.model is not None:
        # A user's own factory decides its shape; the worker checks what it makes.
        return PretrainedConfig(vocab_size=tokens.vocab_size)
    assert stage.init is not None
    if stage.init.stage is not None:
        return _model_config(job, trained_stage(job, stage.init.stage), tokens)
    return load_config(str(stage.init.pretrained), stage.init)


def _common_labels(stage: TrainStage, folders: Mapping[str, Path]) -> tuple[str, ...]:
    """The label names that all prepared datasets share, one for each output of the stage's classifier.

    Raises:
        DataError: Two datasets name their labels differently, or there are fewer than outputs.
    """
    names = {name: Meta.open(folder).label_names for name, folder in folders.items()}
    if len(set(names.values())) > 1:
        listed = "; ".join(f"{name} {list(labels)[:10]}" for name, labels in names.items())
        raise DataError(
            f"stage '{stage.name}': its datasets have different labels: {listed}. Give each of them the same"
            " label_names"
        )
    (common,), num_labels = set(names.values()), num_outputs(stage)
    if num_labels is not None and num_labels > len(common):
        raise DataError(
            f"stage '{stage.name}': objective.num_labels is {num_labels}, but {sorted(folders)} have"
            f" {len(common)} labels: {', '.join(common[:10])}. Set num_labels: {len(common)}, or name the"
            " others in label_names."
        )
    return common
