"""Peak memory as paths grow a hundredfold: days are simulated, executed and reduced a chunk at a time.

Each size runs in a fresh process, whose peak resident set is compared with the smallest one's and with
the memory of all paths together. Fails where memory grows with the number of paths.
"""

import resource
import subprocess
import sys
import time

from _report import report

SIZES = (50_000, 500_000, 5_000_000)
STEPS = 39
ALLOWED_MIB = 32


def peak_mib() -> float:
    """Largest resident set of this process so far; Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def run(n_paths: int) -> None:
    """Mean and standard deviation of a schedule's profit over ``n_paths`` days."""
    # Imported here alone: a process starts out with the peak of the one that made it.
    import torch

    from flowoe_lib.evaluation.scorecard import Evaluation, market_days
    from flowoe_lib.execution.execution import execute
    from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
    from flowoe_lib.policies.schedules import static_optimal
    from flowoe_lib.randomness import generator

    torch.set_num_threads(1)
    market = Market(Heston(scalar(4e-4), scalar(2.0), scalar(0.5), scalar(-0.8)))
    order = Order(scalar(0.1), scalar(5e-4))
    condition = Condition("benchmark", "base", market, order)
    policy, draws = static_optimal(market, order, STEPS), generator(1, "benchmark noise")
    days = Evaluation(n_paths=n_paths, n_buckets=STEPS, seed=1)
    total = torch.zeros(2, dtype=torch.float64)
    for paths in market_days(condition, days, "benchmark"):
        pnl = execute(policy, paths, market, order, draws).pnl_bps.double()
        total += torch.stack((pnl.sum(), pnl.square().sum()))
    mean = total[0].item() / n_paths
    print(peak_mib(), mean, (total[1].item() / n_paths - mean**2) ** 0.5)


def main() -> None:
    rows: list[list[object]] = []
    for n_paths in SIZES:
        start = time.perf_counter()
        out = subprocess.run(
            [sys.executable, __file__, str(n_paths)], check=True, capture_output=True, text=True
        )
        peak, mean, spread = map(float, out.stdout.split())
        kept = n_paths * STEPS * 4 * 4 / 2**20
        rows.append([f"{n_paths:,}", peak, kept, mean, spread, time.perf_counter() - start])
    report("memory", ("paths", "peak MiB", "MiB if kept", "mean bps", "std bps", "seconds"), rows)
    growth = max(float(str(row[1])) for row in rows) - float(str(rows[0][1]))
    if growth > ALLOWED_MIB:
        raise SystemExit(f"peak memory grew by {growth:.0f} MiB: more than {ALLOWED_MIB}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(int(sys.argv[1]))
    else:
        main()
