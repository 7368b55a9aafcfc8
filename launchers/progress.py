"""How far a run is, for a person: a live line in a terminal, plain lines elsewhere.

Follows the stage's ``metrics.jsonl``, so it shows the same on every launcher.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launchers.stage_news import StageNews
from orchestrator.checkpoint.layout import RunLayout, StageLayout
from orchestrator.counts import counted
from orchestrator.tracking.events import read_events

POLL_SECONDS = 0.5
# Workers of one machine start within 15 to 30 s; after this long they wait for something.
PATIENCE_SECONDS = 60
SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/lr": "lr {:.2e}",
    "train/grad_norm": "grad norm {:.2f}",
    "train/tokens_per_second": "{:,.0f} tokens/s",
    "eval/loss": "eval loss {:.4f}",
    "eval/perplexity": "perplexity {:.1f}",
    "eval/accuracy": "accuracy {:.3f}",
    "eval/precision": "precision {:.3f}",
    "eval/recall": "recall {:.3f}",
    "eval/f1": "F1 {:.3f}",
    "eval/matthews_correlation": "Matthews {:.3f}",
    "export/bytes": "{:,.0f} bytes",
}


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """The metrics a person wants to see, in one line; those that are not finite are ``None``."""
    shown = ((form, metrics[key]) for key, form in SHOWN.items() if key in metrics)
    texts = [form.format(math.nan if value is None else value) for form, value in shown]
    for key, value in metrics.items():
        # With several datasets each has its own: eval/<dataset>/<metric>.
        kind, _, rest = key.partition("/")
        dataset, _, name = rest.rpartition("/")
        form = SHOWN.get(f"{kind}/{name}") if dataset else None
        if form:
            texts.append(f"{dataset}: {form.format(math.nan if value is None else value)}")
    return "  ".join(texts)


class ProgressDisplay:
    """Shows progress on ``stream``; live when it is a terminal."""

    def __init__(self, stream: TextIO, run: RunLayout) -> None:
        """Show the run ``run``."""
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._run = run
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._following: list[StageNews] = []
        self._prepared = ""
        self._percent = -1

    def prepare(self, stage: str, what: str, done: int, total: int) -> None:
        """One line at every tenth of the rows, with the rate and the remaining time."""
        percent = 10 * (10 * done // max(total, 1))
        if what != self._prepared:
            self._prepared, self._percent = what, -1
            self._prepare_began, self._prepare_from = time.monotonic(), done
        if percent != self._percent:
            self._percent = percent
            seconds = time.monotonic() - self._prepare_began
            pace = _pace(done - self._prepare_from, total - done, seconds)
            self._line(stage, f"tokenising {what}: {done:,} of {counted(total, 'row')}{pace}")

    def skip(self, stage: str) -> None:
        """One line."""
        self._line(stage, "finished before, skipped")

    def note(self, stage: str, message: str) -> None:
        """One line."""
        self._line(stage, message)

    def start(self, stages: Sequence[str]) -> None:
        """Follow metrics and events of the stages, in this order, until ``end``."""
        self._line(stages[0], "starting workers")
        self._ended.clear()
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        # All now, so that nothing which a later stage writes is taken for known.
        self._following = [StageNews(stage, self._run) for stage in stages]
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def end(self, outcome: str) -> None:
        """Stop following and print how the last stage ended."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._following:
            self._line(self._following[0].stage, outcome)

    def _line(self, stage: str, message: str) -> None:
        """Print one line above the live one."""
        self._console.print(Text(f"[{stage}] {message}"))

    def _follow(self) -> None:
        """Show what is new, again and again."""
        first, began = self._following[0].stage, time.time()
        patience: float = PATIENCE_SECONDS
        while not self._ended.wait(POLL_SECONDS):
            self._show_news()
            if time.time() > began + patience:
                patience = math.inf
                if not _has_started(self._run.stage(first), began):
                    waited = f"no worker has started in {PATIENCE_SECONDS} s"
                    self._line(first, f"{waited}: {_where()} has no free room, or is slow")
        # Twice: a file that was made anew is read at the second look.
        self._show_news()
        self._show_news()

    def _show_news(self) -> None:
        """Print events and metrics that were written since the last look; go on to the stage that is next."""
        while self._following:
            news = self._following[0]
            for message in news.messages():
                self._line(news.stage, message)
            for _ in range(2 if news.is_finished else 1):
                for metrics in news.metrics():
                    self._show(news.stage, metrics)
            if not news.is_finished:
                return
            self._line(news.stage, "finished")
            self._following.pop(0)

    def _show(self, stage: str, metrics: Mapping[str, float]) -> None:
        """One logged step: the live line in a terminal, a plain line elsewhere."""
        text = f"[{stage}] step {metrics['step']}{self._of_max(stage)}  {format_metrics(metrics)}"
        if self._live is not None and "train/loss" in metrics:
            self._live.update(Text(text))
        else:
            self._console.print(Text(text))

    def _of_max(self, stage: str) -> str:
        """`` of N`` once the workers have said how many steps there are."""
        started = [
            record["max_steps"]
            for record in read_events(self._run.events)
            if record["event"] == "training_started" and record["stage"] == stage
        ]
        return f" of {started[-1]}" if started else ""


def _where() -> str:
    """What the workers wait for."""
    address = os.environ.get("RAY_ADDRESS")
    return f"the cluster at {address} ('ray status' shows what it does)" if address else "this machine"


def _pace(done: int, left: int, seconds: float) -> str:
    """Rows per second and the time that the rest takes at that rate; nothing before there is a rate."""
    if not done or not left or seconds <= 0:
        return ""
    rate = done / seconds
    minutes, rest = divmod(round(left / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f", {rate:,.0f} rows/s, {hours}:{minutes:02}:{rest:02} left"


def _has_started(layout: StageLayout, began: float) -> bool:
    """Whether rank 0 has opened its log since ``began``, seconds since the epoch."""
    log = layout.log(0)
    return log.exists() and log.stat().st_mtime >= began
