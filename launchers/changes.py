"""In what a stage's data differs from what it began with, in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.spec.fingerprint import with_compared
from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.reads import tokenizer_section

if TYPE_CHECKING:
    from orchestrator.train.inputs import StageInputs
    from orchestrator.train.preparing import PreparedData


def why_changed(
    job: Job, stage: TrainStage, before: StageInputs, data: PreparedData, changed: Sequence[str]
) -> str:
    """Which files changed, at most three, the tokenizer or the chat template; or that none did.

    Args:
        job: The job.
        stage: The stage.
        before: What it began with.
        data: What is prepared for it now.
        changed: Names of what has another digest: ``train.<dataset>``, ``tokenizer``.
    """
    from orchestrator.data.chat_template import has_other_template
    from orchestrator.data.files import changed_files

    if not any(before.files.values()):
        return "which of its files was not noted when it began"
    training = tokenizer_section(job, stage).train
    is_other_tokenizer = "tokenizer" in changed
    learned = training.datasets if training and is_other_tokenizer else ()
    names = with_compared(
        job, [*learned, *(name.removeprefix("train.") for name in changed if name != "tokenizer")]
    )
    both = [(before.files[name], data.files[name]) for name in names if name in before.files]
    lines = list(dict.fromkeys(chain.from_iterable(changed_files(*files) for files in both)))
    if is_other_tokenizer and not lines:
        lines.append("its files are the same, and the tokenizer is another one")
    elif not is_other_tokenizer and has_other_template(Path(before.tokenizer), data.tokenizer):
        lines.append("the chat template is another one")
    if lines:
        return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
    if any(list(earlier) != list(now) for earlier, now in both):
        return "its files are the same in another order, which is that of its rows"
    return "its files are the same, and this version of orchestrator prepares them in another way"
