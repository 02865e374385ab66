"""Seconds that demonstrations, imitation, refinement and evaluation take in one thread.

Each is measured beside two references in the same run: a fixed number of matrix products, so that
machines can be compared, and the same network on the same number of states with nothing around it
(forward, backward and Adam in training, forward in evaluation), which is what the market costs on top of.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from _report import by_turns, report
from torch import Tensor

from flowoe_lib.evaluation.scorecard import CHUNK, Evaluation, evaluate
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.features import FEATURES
from flowoe_lib.market.model import Condition, Heston, Liquidity, Market, Order, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.replanning import replanned
from flowoe_lib.policies.schedules import static_optimal
from flowoe_lib.randomness import generator
from flowoe_lib.training.imitation import demonstrate, imitate
from flowoe_lib.training.refinement import refine

# The grid of notebook 1 and the scale of notebooks 3 to 5.
N, KAPPA, RHO = 39, 2.0, -0.8
DEMONSTRATED, IMITATIONS, MINIBATCH, REFINEMENTS, BATCH = 256, 1000, 1024, 120, 576
EVALUATED = 50_000
PRODUCTS, SIDE = 20, 512


def grid() -> list[Condition]:
    """Three volatilities, two depths, two volatilities of volatility."""
    conditions = []
    for vol, illiquidity, cv in product((0.007, 0.02, 0.04), (1.0, 3.0), (0.5, 1.3)):
        heston = Heston(scalar(vol**2), scalar(KAPPA), scalar(cv), scalar(RHO))
        market = Market(heston, liquidity=Liquidity(scalar(illiquidity)))
        name = f"{vol}/{illiquidity}/{cv}"
        conditions.append(Condition("benchmark", name, market, Order(scalar(0.1), scalar(5e-4))))
    return conditions


def matrix_products() -> None:
    a = torch.ones(SIDE, SIDE)
    for _ in range(PRODUCTS):
        a @ a


def network(states: int) -> tuple[EndpointField, Tensor, Tensor, Tensor]:
    draws = generator(0, "benchmark")
    observed = torch.randn(states, len(FEATURES), generator=draws)
    x, t = torch.randn(states, generator=draws), torch.rand(states, generator=draws)
    return EndpointField(draws), observed, x, t


def training_step(states: int, forwards: int = 0) -> Callable[[], None]:
    """One step of the network alone, after ``forwards`` evaluations without gradient."""
    field, observed, x, t = network(states)
    optimiser = torch.optim.Adam(field.parameters(), 1e-3)

    def run() -> None:
        encoded = field.encode(observed)
        with torch.no_grad():
            for _ in range(forwards):
                field(x, t, encoded)
        loss = field(x, t, encoded).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return run


def decisions(states: int, steps: int) -> Callable[[], None]:
    """The evaluations of ``steps`` solver steps."""
    field, observed, x, t = network(states)

    def run() -> None:
        with torch.no_grad():
            encoded = field.encode(observed)
            for _ in range(steps):
                field(x, t, encoded)

    return run


def main() -> None:
    torch.set_num_threads(1)
    conditions = grid()
    condition = conditions[4]
    shown = demonstrate(SCHEDULE_EXPERTS, conditions, DEMONSTRATED, N, 1)
    field = EndpointField(generator(1, "benchmark"))
    wide = TrainingRange(kappa=(KAPPA, KAPPA), rho=RHO)
    days = Evaluation(n_paths=EVALUATED, n_buckets=N, seed=1)
    policies: dict[str, Policy] = {
        "static optimum": static_optimal(condition.market, condition.order, N),
        "re-planned schedule": replanned,
        "flow policy, K = 1": FlowPolicy(field, 1),
        "flow policy, K = 4": FlowPolicy(field, 4),
    }

    # What to time, and how often the network alone is to be run for the same work.
    tasks: dict[str, tuple[Callable[[], object], Callable[[], None] | None, int]] = {
        f"demonstrations of {len(SCHEDULE_EXPERTS)} experts, {DEMONSTRATED} paths in 12 conditions": (
            lambda: demonstrate(SCHEDULE_EXPERTS, conditions, DEMONSTRATED, N, 1),
            None,
            0,
        ),
        f"imitation, {IMITATIONS} iterations": (
            lambda: imitate(shown, IMITATIONS, 1, minibatch=MINIBATCH),
            training_step(MINIBATCH),
            IMITATIONS,
        ),
        f"refinement, {REFINEMENTS} iterations": (
            lambda: refine(field, wide, N, REFINEMENTS, 1, paths=BATCH),
            training_step((N - 1) * BATCH, forwards=1),
            REFINEMENTS,
        ),
    }
    for name, policy in policies.items():
        steps = policy.steps if isinstance(policy, FlowPolicy) else 0
        tasks[f"{EVALUATED:,} paths of the {name}"] = (
            partial(evaluate, {name: policy}, condition, days, "benchmark"),
            decisions(CHUNK, steps) if steps else None,
            (N - 1) * EVALUATED // CHUNK,
        )

    rows: list[list[object]] = []
    for name, (run, alone, times) in tasks.items():
        references: dict[str, Callable[[], object]] = {"products": matrix_products}
        if alone:
            references["network"] = alone
        before = by_turns(references, 10)
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        after = by_turns(references, 10)
        best = {key: min(before[key], after[key]) for key in references}
        over_network = seconds / (best["network"] * times) if alone else "-"
        rows.append([name, seconds, seconds / best["products"], over_network])
    products = f"over {PRODUCTS} products {SIDE}x{SIDE}"
    report("training", ("task", "seconds", products, "over the network alone"), rows)


if __name__ == "__main__":
    main()
