"""In what a stage's data differs from what it began with, in words."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.train.inputs import StageInputs
    from orchestrator.train.preparing import PreparedData


def why_changed(before: StageInputs, data: PreparedData) -> str:
    """Which files changed, at most three; or that none did."""
    from orchestrator.data.chat_template import has_other_template
    from orchestrator.data.files import changed_files

    if not any(before.files.values()):
        return "which of its files was not noted when it began"

    both = [(before.files[name], now) for name, now in data.files.items() if name in before.files]
    lines = list(dict.fromkeys(chain.from_iterable(changed_files(*files) for files in both)))
    if lines:
        return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
    if before.data_digests.get("tokenizer") != data.digests()["tokenizer"]:
        return "its files are the same, and the tokenizer is another one"
    if has_other_template(Path(before.tokenizer), data.tokenizer):
        return "its files are the same, and the chat template is another one"
    if any(list(earlier) != list(now) for earlier, now in both):
        return "its files are the same in another order, which is that of its rows"
    return "its files are the same, and this version of orchestrator prepares them in another way"
