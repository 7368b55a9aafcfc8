"""What a stage reads, as its workers find it: tokenizer, prepared rows, first weights.

Written to ``inputs.json``; workers read that file and the folders it names, and need neither
``datasets`` nor the job's source files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.checkpoint.layout import StageLayout
from orchestrator.errors import DataError
from orchestrator.tracking.events import replace_text


@dataclass(frozen=True)
class StageInputs:
    """Folders a stage's workers read."""

    fingerprint: str
    spec_fingerprint: str
    tokenizer: str
    train: Mapping[str, str]
    """Prepared training rows by dataset."""
    evaluation: Mapping[str, str]
    """Prepared held-out rows by dataset."""
    label_names: tuple[str, ...]
    weights: str | None
    """Folder or hub id of the first weights; absent: from scratch or from a checkpoint."""
    run_id: str
    """What trackers call the stage; the same over restarts."""
    data_digests: Mapping[str, str]
    """Content digest of everything prepared, by name."""
    input_fingerprints: Mapping[str, str]
    """Fingerprints of the stages whose weights it starts from, by name."""
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Digests by path of the files that each dataset was prepared from; absent: it is not made of files."""
    rows_keys: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the job, and versions, that tokenizer and rows were made by (``kept.py``)."""
    begun: Mapping[str, int] = field(default_factory=dict)
    """Rows that datasets have given in the stages before, where this one goes on in them."""

    def write(self, path: Path) -> None:
        """Write atomically."""
        replace_text(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, layout: StageLayout) -> StageInputs:
        """Read what ``write`` wrote.

        Raises:
            DataError: The stage was not prepared, or the file is damaged.
        """
        prepare = "Run 'orchestrator prepare JOB' (or 'orchestrator run JOB') first."
        try:
            fields = json.loads(layout.inputs.read_text(encoding="utf-8"))
            return TypeAdapter(cls).validate_python(fields)
        except FileNotFoundError as error:
            raise DataError(
                f"{layout.inputs} is missing: the stage '{layout.root.name}' was not prepared. {prepare}"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise DataError(f"{layout.inputs} is damaged ({problem}): delete it. {prepare}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{layout.inputs} is damaged ({error}): delete it. {prepare}") from error
