"""Seconds to redraw the page of notebook 00, beside matplotlib drawing four empty figures of that size.

A redraw is all that happens in the kernel once a slider has moved: solving the schedules, trading the days
with the policy, and drawing the pictures. Settings differ from one redraw to the next.
"""

import io
import time
from collections.abc import Callable
from itertools import cycle
from statistics import median

import torch
from _report import report
from matplotlib.figure import Figure

from flowoe_lib.desk.explorer import Settings
from flowoe_lib.desk.explorer_page import PANELS, SIZE, Page
from flowoe_lib.training.pretrained import load_pretrained

REPETITIONS = 30
PAGE, EMPTY = "redraw of the page", "four empty figures"


def empty_figures() -> None:
    for _ in PANELS:
        figure = Figure(figsize=SIZE)
        figure.subplots()
        figure.savefig(io.BytesIO(), format="png", dpi=120)


def main() -> None:
    torch.set_num_threads(1)
    page = Page(load_pretrained(), 2025, Settings())
    betas = cycle([0.5, 0.55, 0.6, 0.65, 0.7])

    def move() -> None:
        page.sliders["beta"].value = next(betas)

    kernels: dict[str, Callable[[], object]] = {PAGE: move, EMPTY: empty_figures}
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(REPETITIONS):
        for name, run in kernels.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: median(times) for name, times in seconds.items()}
    rows = [[name, middle[name], max(seconds[name]), middle[name] / middle[EMPTY]] for name in kernels]
    report("explore", ("what", "median seconds", "most seconds", f"over {EMPTY}"), rows)


if __name__ == "__main__":
    main()
