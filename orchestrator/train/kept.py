"""What was prepared for a stage before: it stands in for sources that are gone since, and for them alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.data.chat_template import has_other_template
from orchestrator.data.files import digest_file
from orchestrator.data.prepare import verify
from orchestrator.data.tokenizer import gives_same_tokens
from orchestrator.errors import DataError, SourceMissingError
from orchestrator.spec.datasets import Tokenizer
from orchestrator.train.inputs import StageInputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A stage's inputs of an earlier start, for the same keys of the job, with every byte as it was."""

    inputs: StageInputs

    @classmethod
    def find(cls, layout: StageLayout, spec_fingerprint: str) -> Kept | None:
        """Those of a stage; ``None``: there are none, they are of other keys, or they are damaged."""
        try:
            inputs = StageInputs.read(layout)
        except DataError:
            return None
        if inputs.spec_fingerprint != spec_fingerprint:
            return None
        for folder in (inputs.tokenizer, *inputs.train.values(), *inputs.evaluation.values()):
            if (problem := verify(Path(folder))) is not None:
                name = layout.root.name
                logger.warning("stage '%s': what was prepared before is damaged: %s", name, problem)
                return None
        return cls(inputs)

    def tokenizer(self, section: Tokenizer, missing: SourceMissingError) -> Path:
        """Folder of the one that was trained on datasets of which one is gone.

        Raises:
            DataError: Another file of theirs has changed.
        """
        for name in section.train.datasets if section.train else ():
            self._refuse_changed_files(name, missing)
        return Path(self.inputs.tokenizer)

    def rows(self, name: str, split: str, tokenizer: Path, missing: SourceMissingError) -> Path:
        """Folder of the rows of a dataset of which a file is gone.

        Raises:
            SourceMissingError: There are none.
            DataError: Another file of it has changed, or the tokenizer is another one.
        """
        folders = self.inputs.evaluation if name in self.inputs.evaluation else self.inputs.train
        if split == "train" and name in self.inputs.train:
            folders = self.inputs.train
        if name not in folders:
            raise missing
        self._refuse_changed_files(name, missing)
        before = Path(self.inputs.tokenizer)
        if not gives_same_tokens(before, tokenizer):
            changes = [line for dataset in self.inputs.files for line in self._changed_files(dataset)]
            raise _changed(missing, ["the tokenizer is another one", *dict.fromkeys(changes)])
        if has_other_template(before, tokenizer):
            raise _changed(missing, ["the chat template is another one"])
        return Path(folders[name])

    def files(self, name: str) -> Mapping[str, str]:
        """Digests by path of the files that a dataset was made from."""
        return self.inputs.files.get(name, {})

    def _refuse_changed_files(self, name: str, missing: SourceMissingError) -> None:
        if changes := self._changed_files(name):
            raise _changed(missing, changes)

    def _changed_files(self, name: str) -> list[str]:
        """Files of a dataset that are there and not what they were; one that lies elsewhere now is none."""
        files = [(Path(path), digest) for path, digest in self.files(name).items()]
        changed = [path for path, digest in files if path.is_file() and digest_file(path) != digest]
        return [f"{path} has other content since" for path in changed]


def _changed(missing: SourceMissingError, changes: Sequence[str]) -> DataError:
    """Why what was prepared before is not what the job asks for now."""
    named = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    return DataError(
        f"{missing} What was prepared before cannot stand in for it: {named}. Bring back what is gone, or"
        " undo that change."
    )
