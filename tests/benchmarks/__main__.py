"""``make bench``: ratios measured side by side in one run, with the machine's load and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from tests.benchmarks.exact import ACCUM, WORLD_SIZE, measure_exact
from tests.benchmarks.first_step import PARTS, measure_first_step
from tests.benchmarks.goodput import measure_goodput
from tests.benchmarks.loader import measure_loader
from tests.benchmarks.packing import measure_packing
from tests.benchmarks.saving import measure_saving
from tests.benchmarks.seek import measure_seek
from tests.benchmarks.startup import YARDSTICK, measure_startup
from tests.benchmarks.step_loop import measure_step_loop

PACKAGES = ("torch", "transformers", "datasets", "numpy", "pydantic")


def main() -> None:
    """Measure and print one table."""
    versions = "  ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}  {versions}")
    print(f"{len(os.sched_getaffinity(0))} cores, load {' '.join(f'{x:.1f}' for x in os.getloadavg())}")
    print(f"{'measured':<58}{'ours':>14}{'theirs':>14}{'ratio':>8}  wanted")
    step = measure_step_loop()
    row(
        "training loop / plain PyTorch loop, tokens/s",
        step["ours"],
        step["plain"],
        "at least 0.97",
        step["ratio"],
    )
    row("of a step waiting for its rows / all of it, s", step["data_wait"], step["step"], "next to nothing")
    for name, exact in measure_exact().items():
        row(
            f"a step under exact / standard, {name}, {WORLD_SIZE} workers x {ACCUM}, s",
            exact["exact"],
            exact["standard"],
            "what it costs",
            exact["ratio"],
        )
    loader = measure_loader()
    for name, theirs in (("datasets", "datasets map-style"), ("file_loop", "slices of a token file")):
        measured = loader["ours_tokens_per_second"], loader[f"{name}_tokens_per_second"]
        row(f"loader / {theirs}, tokens/s", *measured, "at least 8")
    for kind, seek in measure_seek().items():
        name = f"open + first batch, 10 M documents / 10 k, {kind}, s"
        row(name, seek["many"], seek["few"], "at most 1.2", seek["many_to_few"])
        name = f"resume at 90% of an epoch / at 1%, {kind}, s"
        row(name, seek["late"], seek["early"], "at most 1.1", seek["late_to_early"])
    packing = measure_packing()
    row(
        "best-fit rows of 512 / one review per row, positions used",
        packing["best_fit_efficiency"],
        packing["unpacked_efficiency"],
        "ours at least 0.995",
    )
    row(
        "best-fit plan / item by item, s per million documents",
        packing["plan_seconds_per_million"],
        packing["by_item_seconds_per_million"],
        "ours at most 0.1",
    )
    saving = measure_saving()
    for key, which in (("first_stall", "first save"), ("stall", "any save")):
        row(
            f"training held up / plain copy of the bytes, {which}, s",
            saving[f"{key}_seconds"],
            saving["copy_seconds"],
            "at most 1.5",
            saving[key],
        )
    row(
        "what its digests add to a save / all of it, s",
        saving["digest_seconds"],
        saving["save_seconds"],
        "at most 0.05",
    )
    row(
        "500 steps with a checkpoint / without, s",
        saving["saving_interval_seconds"],
        saving["interval_seconds"],
        "at most 1.02",
        saving["slowdown"],
    )
    goodput = measure_goodput()
    row(
        f"useful time of a run killed {goodput['failures']:.0f} times / Young-Daly optimum",
        goodput["goodput"],
        goodput["optimum"],
        "at least 0.90",
    )
    started = measure_first_step()
    row(
        "one step of a run / an empty TorchTrainer.fit, warm Ray, s",
        started["run"],
        started["bare"],
        "at most 1.10",
    )
    row("second stage / first, to the end of one step, s", started["second"], started["first"], "at most 0.6")
    parts = ", ".join(f"{name} {started[name]:.1f} s" for name in PARTS)
    print(f"  the first stage's start: {parts}")
    startup = measure_startup()
    yardstick = startup.pop(YARDSTICK)["best_seconds"]
    for name, measured in startup.items():
        row(f"{name} / import yaml, pydantic, s", measured["best_seconds"], yardstick, "below 2")


def row(name: str, ours: float, theirs: float, wanted: str, ratio: float | None = None) -> None:
    """Print one line; the ratio is that of the two numbers unless it was measured itself."""
    digits = 0 if theirs > 100 else 3 if theirs > 0.01 else 5
    shown = ours / theirs if ratio is None else ratio
    print(f"{name:<58}{ours:>14,.{digits}f}{theirs:>14,.{digits}f}{shown:>8.2f}  {wanted}")


if __name__ == "__main__":
    main()
