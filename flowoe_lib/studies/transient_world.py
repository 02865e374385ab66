"""The world of impact with memory: its conditions, training, schedules and scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from flowoe_lib.evaluation.scorecard import Contender, Evaluation, Scores, score_condition
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.information import Information, exact
from flowoe_lib.market.batching import one_by_one
from flowoe_lib.market.model import Condition, Market, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import MarketPaths
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, TrainingRun
from flowoe_lib.policies.random_policy import uniform_scores
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import static_optimal, twap
from flowoe_lib.policies.transient import alfonsi_fruth_schied, solve_transient
from flowoe_lib.randomness import generator
from flowoe_lib.training.imitation import demonstrate, imitate
from flowoe_lib.training.refinement import refine

__all__ = [
    "imitate_experts",
    "opponents_in",
    "refine_twice",
    "score",
    "transient_conditions",
    "unaware_of_memory",
    "with_half_life",
]


HALF_LIVES = (0.05, 0.15, 0.4)
"""Half-lives of impact, in days."""


DEMONSTRATORS = {name: SCHEDULE_EXPERTS[name] for name in ("twap", "almgren_chriss", "static_optimal", "mpc")}
"""Experts that are imitated; the last two plan with the memory of impact."""


PATHS, FINE_RATE = 1152, 2e-2
"""Simulated days in each iteration of refinement, and the learning rate of its last stage."""


def with_half_life(market: Market, half_life: float) -> Market:
    """The market with temporary impact of this half-life, in days; 0 is impact without memory.

    An even schedule costs the same at every half-life.
    """
    resilience = scalar(math.log(2) / half_life if half_life else math.inf)
    return replace(market, impact=replace(market.impact, resilience=resilience))


def transient_conditions(grid: Sequence[Condition]) -> list[Condition]:
    """The conditions of the grid with normal liquidity, by turns at each of ``HALF_LIVES``.

    Of three volatilities and two cv, each half-life has two conditions, which differ in both.
    """
    normal, out = [c for c in grid if "/normal/" in c.name], []
    for i, c in enumerate(normal):
        half_life = HALF_LIVES[(i // 2 + i % 2) % len(HALF_LIVES)]
        name = c.name.replace("/normal/", f"/half-life {half_life:g}/")
        out.append(Condition("transient", name, with_half_life(c.market, half_life), c.order))
    return out


def unaware_of_memory(paths: MarketPaths, market: Market, draws: torch.Generator) -> Information:
    """Full information, except that the trader believes impact to be gone by the next bucket."""
    return exact(paths, with_half_life(market, 0.0), draws)


def imitate_experts(
    drawn: TrainingRange, n_buckets: int, demonstrated: int, iterations: int, seed: int
) -> TrainingRun:
    """Imitate ``DEMONSTRATORS`` in ``demonstrated`` conditions of a range."""
    shown = drawn.draw(demonstrated, generator(seed, "transient demonstrations"))
    conditions = one_by_one("transient", map(str, range(demonstrated)), *shown)
    return imitate(demonstrate(DEMONSTRATORS, conditions, 2, n_buckets, seed), iterations, seed)


def refine_twice(
    start: EndpointField, drawn: TrainingRange, n_buckets: int, coarse: int, fine: int, seed: int
) -> TrainingRun:
    """Refine on days of a third of the buckets, then on whole days."""
    rough = refine(start, drawn, n_buckets // 3, coarse, seed, PATHS).field
    return refine(rough, drawn, n_buckets, fine, seed + 1, PATHS, FINE_RATE)


def opponents_in(condition: Condition, n_buckets: int, learned: Mapping[str, Policy]) -> dict[str, Policy]:
    """The opponents in a condition, those that ``learned`` there included; one of them ignores memory."""
    problem = condition.market, condition.order, n_buckets
    return {
        "random": uniform_scores,
        "twap": twap,
        "almgren_chriss": almgren_chriss(*problem),
        "static_unaware": static_optimal(with_half_life(condition.market, 0.0), *problem[1:]),
        "static_optimal": static_optimal(*problem),
        "alfonsi_fruth_schied": alfonsi_fruth_schied(*problem),
        "mpc": mpc,
        **learned,
    }


Fields = Mapping[int, EndpointField]
"""Networks by training seed."""


def score(
    condition: Condition,
    opponents: Mapping[str, Policy],
    imitated: Fields,
    refined: Fields,
    unaware: Fields,
    evaluation: Evaluation,
) -> Scores:
    """:func:`flowoe_lib.evaluation.scorecard.score_condition` of all policies.

    "limit" is the optimum; "flow_unaware" and "mpc_unaware" trade as if impact had no memory.
    """
    contenders = [
        *(Contender(FlowPolicy(f, 1), "flow_imitation", 1, s) for s, f in imitated.items()),
        *(Contender(FlowPolicy(f, k), "flow_refined", k, s) for k in (1, 8) for s, f in refined.items()),
    ]
    limit = solve_transient(condition.market, condition.order, evaluation.n_buckets)
    blind = [Contender(FlowPolicy(f, 1), "flow_unaware", 1, s) for s, f in unaware.items()]
    blind += [Contender(mpc, "mpc_unaware")]
    informed = [Contender(limit, "limit"), *(replace(x, perceive=unaware_of_memory) for x in blind)]
    return score_condition(condition, opponents, contenders, evaluation, informed=informed)
