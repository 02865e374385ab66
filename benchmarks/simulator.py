"""Throughput of the simulator, beside QuantLib's generator of the same scheme and beside its random numbers.

Path-steps a second in chunks of the same shape, in one thread of one process and of two at once:

- ``simulate`` draws variance, integrated variance, its forecast and the price move of every bucket;
- QuantLib's GaussianMultiPathGenerator runs a HestonProcess under QuadraticExponentialMartingale, the same
  scheme by Andersen, from the mean of the variance, and nobody reads the paths it makes;
- the ceiling only draws the two normals that a step needs, into memory that is there already.
"""

import math
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import QuantLib as ql
import torch
from _report import report

from flowoe_lib.market.model import Heston, Market, scalar
from flowoe_lib.market.simulator import simulate

PATHS, STEPS, QUANTLIB_PATHS, REPETITIONS = 32_768, 39, 2_048, 60
# The stressed market of notebook 1, at both of its volatilities of volatility.
THETA, KAPPA, RHO = 4e-4, 2.0, -0.8
CVS = (0.5, 1.3)
OURS, QUANTLIB, CEILING = "simulate", "QuantLib", "normals alone"

Kernels = dict[str, tuple[int, Callable[[], object]]]
"""What to time, and how many path-steps one call of it makes."""


def quantlib_paths(cv: float) -> Callable[[], object]:
    today = ql.Date(1, 1, 2025)
    ql.Settings.instance().evaluationDate = today
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, ql.Actual365Fixed()))
    spot, xi = ql.QuoteHandle(ql.SimpleQuote(1.0)), cv * math.sqrt(2 * KAPPA * THETA)
    scheme = ql.HestonProcess.QuadraticExponentialMartingale
    process = ql.HestonProcess(flat, flat, spot, THETA, KAPPA, THETA, xi, RHO, scheme)
    uniforms = ql.UniformRandomSequenceGenerator(STEPS * process.factors(), ql.UniformRandomGenerator(1))
    normals = ql.GaussianRandomSequenceGenerator(uniforms)
    times = [k / STEPS for k in range(STEPS + 1)]
    paths = ql.GaussianMultiPathGenerator(process, times, normals, False)

    def run() -> None:
        for _ in range(QUANTLIB_PATHS):
            paths.next()

    return run


def kernels(cv: float) -> Kernels:
    stream = torch.Generator().manual_seed(1)
    market = Market(Heston(scalar(THETA), scalar(KAPPA), scalar(cv), scalar(RHO)))
    row = torch.empty(PATHS)

    def normals() -> None:
        for _ in range(2 * STEPS):
            row.normal_(generator=stream)

    return {
        OURS: (PATHS * STEPS, lambda: simulate(market, PATHS, STEPS, stream)),
        QUANTLIB: (QUANTLIB_PATHS * STEPS, quantlib_paths(cv)),
        CEILING: (PATHS * STEPS, normals),
    }


Spans = dict[str, list[tuple[float, float]]]
"""Start and end of every repetition of each kernel, on the clock that all processes share."""


def work(cv: float, barrier: Barrier, out: "Queue[Spans]") -> None:
    torch.set_num_threads(1)
    made = kernels(cv)
    spans: Spans = {name: [] for name in made}
    for _ in range(REPETITIONS):
        for name, (_, run) in made.items():
            barrier.wait()
            start = time.perf_counter()
            run()
            spans[name].append((start, time.perf_counter()))
    out.put(spans)


def throughput(cv: float, processes: int) -> dict[str, float]:
    """Path-steps a second of all processes together, in the best repetition."""
    context = get_context("spawn")
    barrier, out = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=work, args=(cv, barrier, out)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    spans: list[Spans] = [out.get() for _ in workers]
    for worker in workers:
        worker.join()
    rates = {}
    for name, (steps, _) in kernels(cv).items():
        together = zip(*(s[name] for s in spans), strict=True)
        fastest = min(max(end for _, end in rep) - min(start for start, _ in rep) for rep in together)
        rates[name] = processes * steps / fastest
    return rates


def main() -> None:
    rows: list[list[object]] = []
    for cv in CVS:
        for processes in (1, 2):
            rates = throughput(cv, processes)
            for name, rate in rates.items():
                rows.append([cv, processes, name, rate / 1e6, rate / rates[QUANTLIB], rate / rates[CEILING]])
    header = ("cv", "processes", "what", "million path-steps/s", "over QuantLib", "of the ceiling")
    report("simulator", header, rows)


if __name__ == "__main__":
    main()
