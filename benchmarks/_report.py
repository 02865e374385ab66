"""What the benchmarks share: timing by turns, and a table on the screen and in results/."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def by_turns(kernels: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Fewest seconds each kernel took; they take turns, so that a busy neighbour strikes all alike."""
    best = dict.fromkeys(kernels, float("inf"))
    for _ in range(repetitions):
        for name, run in kernels.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def report(name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print the table and write it to results/``name``.csv."""
    text = [header, *([f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    for row in text:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(text)
