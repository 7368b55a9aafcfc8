"""What a job's datasets hold and what becomes of their rows; the content of ``orchestrator data``.

Rows are found by the code that preparation finds them by, and kept in the same cache, so what is shown is
what is trained on, and a run that follows does not look at it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchers.pins import pinned, read_pins
from launchers.ray_tasks import RayTasks
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.registry import resolve
from orchestrator.spec.datasets import Tokenizer
from orchestrator.spec.job import EvaluateStage, Job, TrainStage
from orchestrator.spec.plan import stage_order
from orchestrator.spec.reads import tokenizer_section

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.data.catalog import Catalog
    from orchestrator.data.rows import Rows
    from orchestrator.data.selection import Split
    from orchestrator.data.sources import Source
    from orchestrator.data.tasks import Tasks
    from orchestrator.data.texts import TextPart

# Rows of a split whose tokens are counted: 10,000 reviews take 3 s on one core, and give the mean to 1%.
SAMPLE_ROWS = 10_000
BATCH_ROWS = 1000
NUM_SAMPLES = 3
SAMPLE_CHARS = 160
# Beyond these the others are left out: a column of a million values is no label.
MOST_LABELS = 50


def summarize(job: Job, *, runs_dir: Path, on_dataset: Callable[[str], None]) -> dict[str, Any]:
    """Everything ``data`` prints, as one JSON document.

    Args:
        on_dataset: Called with the name of each dataset before it is read.

    Raises:
        DataError: A source or tokenizer is missing or unfit.
    """
    # Here and not above: it imports numpy and xxhash, which other commands never need.
    from orchestrator.data.catalog import Catalog

    run = RunLayout(runs_dir.resolve() / job.name)
    job = pinned(job, read_pins(run.pins))
    datasets = []
    with RayTasks(run.cache) as tasks:
        catalog = Catalog(job.datasets, run.cache, tasks)
        for name in job.datasets:
            on_dataset(name)
            datasets.append(_summarize_dataset(job, name, catalog))
    return {"name": job.name, "datasets": datasets}


def _summarize_dataset(job: Job, name: str, catalog: Catalog) -> dict[str, Any]:
    from orchestrator.data.shards import StreamedSource, copied_shard

    readers = _readers(job, name)
    source = _as_read(catalog.find(name), readers)
    if not isinstance(source, StreamedSource):
        return {"name": name, "first_of_files": None, **_summarize_source(job, source, readers, catalog)}
    # To look at all of its rows is to read it whole, and then they would be gone again.
    with copied_shard(source.narrow(), 0) as shard:
        found = _summarize_source(job, shard, readers, catalog)
    return {"name": name, "first_of_files": source.num_shards, **found}


def _summarize_source(
    job: Job, source: Source, readers: Sequence[TrainStage], catalog: Catalog
) -> dict[str, Any]:
    from orchestrator.data.rows import find_rows, look_for_rows
    from orchestrator.data.selection import splits_of

    found = {split: look_for_rows(source, split, catalog.tasks) for split in splits_of(source.dataset)}
    if not any(len(rows.numbers) for rows in found.values()):
        # It says why there are none.
        find_rows(source, next(iter(found)), catalog.tasks)
    splits = {split: _labelled(rows, split, readers) for split, rows in found.items()}
    num_unlabelled = sum(len(found[split].numbers) - len(rows.numbers) for split, rows in splits.items())
    count_tokens = _token_counter(job, readers, catalog)
    # Those of the split of training rows, where the section has one.
    counts = next(iter(splits.values())).counts
    return {
        "source": source.dataset.source,
        "rows": counts.num_rows,
        "filtered": counts.num_filtered,
        "skipped": counts.num_skipped,
        "skipped_first": [{"place": place, "problem": problem} for place, problem in counts.skipped],
        "dropped": {**counts.dropped, **({"label_column": num_unlabelled} if num_unlabelled else {})},
        "scrubbed": dict(counts.scrubbed),
        "splits": {
            split: {
                "rows": len(rows.numbers),
                **_read_texts(rows, catalog.tasks),
                "tokens": _tokens(rows, count_tokens) if count_tokens and len(rows.numbers) else None,
                "labels": None if source.dataset.label_column is None else _labels(rows),
            }
            for split, rows in splits.items()
        },
        "samples": _samples(next(rows for rows in splits.values() if len(rows.numbers))),
    }


def _as_read(source: Source, readers: Sequence[TrainStage]) -> Source:
    """The source with the columns that stages read; of several kinds of stages, those with labels."""
    from orchestrator.data.fields import section_for

    layouts = [
        resolve("objective", stage.objective.name).row_layout(stage.objective, stage.data)
        for stage in readers
    ]
    if not layouts:
        return source.without_labels()
    layout = next((layout for layout in layouts if layout.labelled), layouts[0])
    return source.with_section(section_for(source.dataset, layout))


def _labelled(rows: Rows, split: Split, readers: Sequence[TrainStage]) -> Rows:
    """The rows whose label the first stage that classifies can use; all where none does.

    Raises:
        DataError: A label cannot be used and is not to be skipped, as preparation would.
    """
    from orchestrator.data.labelling import find_labels

    for stage in readers:
        layout = resolve("objective", stage.objective.name).row_layout(stage.objective, stage.data)
        if layout.labelled and len(rows.numbers):
            num_labels = getattr(stage.objective, "num_outputs", None)
            return find_labels(rows, rows.open(), split, layout, None, num_labels)[0]
    return rows


def _readers(job: Job, name: str) -> list[TrainStage]:
    """Training stages that read a dataset, or whose weights are evaluated on it, in their order."""
    found = []
    for stage in stage_order(job):
        if isinstance(stage, TrainStage):
            read = (*stage.data.mixture, *(stage.evaluation.datasets if stage.evaluation else ()))
            found += [stage] if name in read else []
        elif isinstance(stage, EvaluateStage) and name in stage.datasets:
            trained = job.stage(stage.from_)
            assert isinstance(trained, TrainStage)
            found.append(trained)
    return found


def _token_counter(
    job: Job, readers: Sequence[TrainStage], catalog: Catalog
) -> Callable[[list[str]], list[int]] | None:
    """Counts tokens as the first stage that reads a dataset does; ``None`` without a tokenizer."""
    from orchestrator.data.tokenizer import load_tokenizer, prepare_tokenizer

    section: Tokenizer | None = tokenizer_section(job, readers[0]) if readers else job.tokenizer
    if section is None:
        return None
    backend = load_tokenizer(prepare_tokenizer(section, catalog)).backend_tokenizer

    def count(texts: list[str]) -> list[int]:
        return [len(found.ids) for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return count


def _tokens(rows: Rows, count_tokens: Callable[[list[str]], list[int]]) -> dict[str, Any]:
    """Tokens of a split and a histogram of its texts' lengths; of many rows, evenly spaced ones are read."""
    import numpy as np

    from orchestrator.data.texts import cut_rows

    step = -(-len(rows.numbers) // SAMPLE_ROWS)
    sample = rows.numbers[::step]
    lengths = np.concatenate(
        [count_tokens(list(part.texts())) for part in cut_rows(rows.source, sample, BATCH_ROWS)]
    )
    total = int(lengths.sum()) if step == 1 else round(float(lengths.mean()) * len(rows.numbers))
    return {
        "total": total,
        "is_estimate": step > 1,
        "sampled_rows": len(lengths),
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "histogram": _histogram(lengths),
    }


def _read_texts(rows: Rows, tasks: Tasks) -> dict[str, int]:
    """Characters of a split, and rows whose text an earlier one has; all rows with one text share a split."""
    import numpy as np

    from orchestrator.data.examination import RANGE_ROWS
    from orchestrator.data.selection import hash_texts, unique_rows
    from orchestrator.data.texts import cut_rows

    parts = cut_rows(rows.source, rows.numbers, RANGE_ROWS)
    found = [(0, hash_texts([])), *tasks.map(_read_part, parts)]
    num_unique = len(unique_rows(np.concatenate([hashes for _, hashes in found])))
    return {"chars": sum(chars for chars, _ in found), "duplicates": len(rows.numbers) - num_unique}


def _read_part(part: TextPart) -> tuple[int, np.ndarray]:
    """Characters of some rows, and their texts' hashes as ``hash_texts`` returns them."""
    import numpy as np

    from orchestrator.data.fields import count_chars, texts_of
    from orchestrator.data.selection import hash_texts

    chars, hashes = 0, list[np.ndarray]()
    for batch in part.batches():
        chars += sum(count_chars(batch))
        hashes.append(hash_texts(texts_of(batch)))
    return chars, np.concatenate(hashes)


def _histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Rows by length, in ranges that double: ``from`` and ``to`` are tokens, both included."""
    import numpy as np

    classes = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    found = np.bincount(classes)
    first = int(np.flatnonzero(found)[0])
    return [
        {"from": 2 ** (power - 1) + 1 if power else 0, "to": 2**power, "rows": int(found[power])}
        for power in range(first, len(found))
    ]


def _labels(rows: Rows) -> dict[str, int]:
    """Rows of each label, the most frequent first; of lists of labels each counts."""
    counts: Counter[str] = Counter()
    for label in rows.open()["label"][:]:
        counts.update(_label_text(value) for value in (label if isinstance(label, list) else [label]))
    return dict(counts.most_common(MOST_LABELS))


def _label_text(label: Any) -> str:
    """A label; a whole number as such, also where one fraction made the column one of floats."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _samples(rows: Rows) -> list[str]:
    """The beginnings of a few texts, evenly spaced."""
    import numpy as np

    from orchestrator.data.texts import TextPart

    places = np.linspace(0, len(rows.numbers) - 1, min(NUM_SAMPLES, len(rows.numbers))).astype(np.int64)
    texts = TextPart(rows.source, rows.numbers[places]).texts()
    return [text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + "..." for text in texts]
