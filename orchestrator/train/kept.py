"""What was prepared for a stage before stands in for sources that are gone, where all else is as it was.

All else: the keys of the job that rows depend on, the versions of the code that makes them, and every file
that is still there. What could be made again from those files is made again; it comes out the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.contracts import RowLayout
from orchestrator.data.catalog import Catalog
from orchestrator.data.chat_template import has_other_template
from orchestrator.data.files import changed_files, digest_file, present_files
from orchestrator.data.prepare import verify
from orchestrator.data.prepared import FORMAT_VERSION
from orchestrator.data.tokenizer import TRAINING_VERSION, gives_same_tokens
from orchestrator.data.versions import ROWS
from orchestrator.errors import DataError, SourceMissingError
from orchestrator.registry import resolve
from orchestrator.spec.datasets import Dataset
from orchestrator.spec.fingerprint import LOCATION, difference, with_compared
from orchestrator.spec.job import EvaluateStage, Job, TrainStage
from orchestrator.spec.reads import chat_template, dataset_names, tokenizer_section, trained_stage
from orchestrator.train.inputs import StageInputs


def row_layout(stage: TrainStage) -> RowLayout:
    """What a row of a training stage is."""
    layout: RowLayout = resolve("objective", stage.objective.name).row_layout(stage.objective, stage.data)
    return layout


def num_outputs(stage: TrainStage) -> int | None:
    """Outputs of a stage's classifier; ``None`` for another objective."""
    return getattr(stage.objective, "num_outputs", None)


def source_names(job: Job, stage: TrainStage | EvaluateStage) -> list[str]:
    """Datasets whose content bears on what a stage reads: also those that it takes only label names from."""
    names = dataset_names(job, stage)
    if isinstance(stage, EvaluateStage):
        trained = trained_stage(job, stage.from_)
        names += trained.data.mixture if row_layout(trained).labelled else ()
    return with_compared(job, names)


def rows_keys(job: Job, stage: TrainStage | EvaluateStage) -> dict[str, Any]:
    """What a stage's tokenizer and rows depend on beside the content of its sources, as JSON has it."""
    trained = stage if isinstance(stage, TrainStage) else trained_stage(job, stage.from_)
    training = tokenizer_section(job, trained).train
    keys = {
        # One that is loaded is compared by what it is.
        "tokenizer": None if training is None else training.model_dump(mode="json"),
        "chat_template": chat_template(job, trained) is not None,
        "datasets": {name: _dataset_keys(job.datasets[name]) for name in source_names(job, stage)},
        "rows": asdict(row_layout(trained)),
        "num_labels": num_outputs(trained),
        "split": stage.split if isinstance(stage, EvaluateStage) else None,
        "versions": {**ROWS, "format": FORMAT_VERSION, "tokenizer": TRAINING_VERSION},
    }
    return dict(json.loads(json.dumps(keys)))


def _dataset_keys(dataset: Dataset) -> dict[str, Any]:
    """Keys that rows depend on; without those that are not set, since a later version may have more."""
    # The same rows, whichever way they are read or checked.
    found = dataset.model_dump(mode="json", exclude=["streaming", "sha256"])
    keys = {key: value for key, value in found.items() if value is not None}
    if isinstance(keys.get("files"), str):
        keys["files"] = [keys["files"]]
    return keys


@dataclass(frozen=True)
class Kept:
    """A stage's inputs of an earlier start."""

    inputs: StageInputs
    cache_dir: Path
    changes: Sequence[str]
    """What differs now from what they were made from, beside what is gone."""

    @classmethod
    def find(
        cls, layout: StageLayout, job: Job, stage: TrainStage | EvaluateStage, catalog: Catalog
    ) -> Kept | None:
        """Those of a stage; ``None``: there are none, or their list is damaged."""
        try:
            inputs = StageInputs.read(layout)
        except DataError:
            return None
        changes = changes_since(inputs.rows_keys, inputs.files, job, stage, catalog.files)
        return cls(inputs, catalog.cache_dir, changes)

    def refuse_changed(self, missing: SourceMissingError) -> None:
        """Raise ``DataError`` if they are not what would be made of all that is there and what is gone."""
        if self.changes:
            raise _unfit(missing, self.changes)

    def tokenizer(self, missing: SourceMissingError) -> Path:
        """Folder of the one that was trained on what is gone.

        Raises:
            DataError: It is damaged, or all else is not as it was.
        """
        return self._whole(self.inputs.tokenizer, missing)

    def rows(self, name: str, split: str, tokenizer: Path, missing: SourceMissingError) -> Path:
        """Folder of the rows of a dataset of which a file is gone.

        Raises:
            SourceMissingError: There are none.
            DataError: They are damaged, the tokenizer is another one, or all else is not as it was.
        """
        # A stage that evaluates reads rows of any split, and trains on none.
        trains = split == "train" and self.inputs.train
        folders = self.inputs.train if trains else self.inputs.evaluation
        if name not in folders:
            raise missing
        folder = self._whole(folders[name], missing)
        before = self._whole(self.inputs.tokenizer, missing)
        if not gives_same_tokens(before, tokenizer):
            raise _unfit(missing, ["the tokenizer is another one"])
        if has_other_template(before, tokenizer):
            raise _unfit(missing, ["the chat template is another one"])
        return folder

    def label_names(self, missing: SourceMissingError) -> tuple[str, ...]:
        """Those of the rows of which some are gone."""
        self.refuse_changed(missing)
        return self.inputs.label_names

    def files(self, name: str) -> Mapping[str, str]:
        """Digests by path of the files that a dataset was made from."""
        return self.inputs.files.get(name, {})

    def _whole(self, recorded: str, missing: SourceMissingError) -> Path:
        """A folder, wherever the cache lies now."""
        self.refuse_changed(missing)
        folder = Path(recorded)
        moved = self.cache_dir.joinpath(*folder.parts[-2:])
        folder = moved if moved.exists() else folder
        if (problem := verify(folder)) is not None:
            raise _unfit(missing, [f"{folder} is damaged or gone: {problem}"])
        return folder


def changes_since(
    before_keys: Mapping[str, Any],
    before_files: Mapping[str, Mapping[str, str]],
    job: Job,
    stage: TrainStage | EvaluateStage,
    files_now: Callable[[str], Mapping[str, str]],
) -> list[str]:
    """In what a stage's job, and the sources that are there, differ from what it was prepared from.

    A dataset whose files are all there may lie elsewhere now; of one with a file that is gone, the others
    must be those that were there, in their places.

    Args:
        before_keys: ``rows_keys`` of then.
        before_files: Digests by path, by dataset, of then.
        job: The job.
        stage: The stage.
        files_now: Digests by path of a dataset; raises ``SourceMissingError``.
    """
    if not isinstance(before_keys.get("datasets"), dict):
        return ["another version of orchestrator prepared it, which did not note from what"]
    keys, before = rows_keys(job, stage), copy.deepcopy(dict(before_keys))
    # One that is read since, or no longer, is nothing that rows of the others depend on.
    shared = [name for name in keys["datasets"] if name in before["datasets"]]
    for each in (keys, before):
        each["datasets"] = {name: each["datasets"][name] for name in shared}
    lines = []
    for name in shared:
        dataset, files = job.datasets[name], before_files.get(name, {})
        try:
            now = files_now(name)
            if list(now.values()) != list(files.values()):
                lines += changed_files(files, now) or [f"the files of '{name}' are in another order"]
            moves = LOCATION.get(dataset.source)
            for section in (keys["datasets"], before["datasets"]):
                section[name].pop(moves, None)
        except SourceMissingError:
            now = {str(path): digest_file(path) for path in present_files(dataset)}
            lines += changed_files({path: files[path] for path in files if path in now}, now)
    return [*difference(before, keys), *dict.fromkeys(lines)]


def _unfit(missing: SourceMissingError, changes: Sequence[str]) -> DataError:
    """Why what was prepared before is not what the job asks for now."""
    named = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    return DataError(
        f"{missing} What was prepared before cannot stand in for it: {named}. Bring back what is gone, or"
        " undo that change."
    )
