"""The world of a signal: its conditions, training and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import torch

from flowoe_lib.evaluation.scorecard import Contender, Evaluation, Scores, score_condition
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.information import CONSTANT_CV
from flowoe_lib.market.model import BPS, Condition, Market, Order, Signal, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.random_policy import uniform_scores
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.policies.schedules import static_optimal, twap
from flowoe_lib.policies.signal import solve_linear_quadratic, solve_signal

__all__ = ["SignalRange", "opponents_in", "score", "share_of_value", "signal_conditions", "with_signal"]


STRENGTHS = {"strong": 0.3, "weak": 0.1}
"""Standard deviation of the drift of a whole day, in daily standard deviations of the price."""


NOISES = {"exact": 0.0, "noisy": 2.0}
"""Standard deviation of the noise of an observation, in those of the signal."""


BLIND, LIMIT = "static_optimal", "limit"
"""The optimum of traders without the signal, and with it."""


def with_signal(market: Market, strength: torch.Tensor, noise: torch.Tensor) -> Market:
    """The market with a signal of this strength and noise, in the units of ``STRENGTHS`` and ``NOISES``."""
    reversion = Signal().reversion
    # Variance of the mean of mu over the day, in units of its stationary variance.
    lasting = 2 * (reversion + torch.expm1(-reversion)) / reversion.square()
    sd = strength * BPS * market.heston.theta.sqrt() / lasting.sqrt()
    return replace(market, signal=Signal(sd, reversion, noise * sd))


def signal_conditions(grid: Sequence[Condition]) -> list[Condition]:
    """The volatilities of the grid at normal liquidity and constant variance, with every signal."""
    calmest = min(c.market.heston.cv for c in grid)
    steady = [c for c in grid if "/normal/" in c.name and c.market.heston.cv == calmest]
    out = []
    for c, (strength, sd), (noise, of_sd) in product(steady, STRENGTHS.items(), NOISES.items()):
        heston = replace(c.market.heston, cv=scalar(CONSTANT_CV))
        market = with_signal(replace(c.market, heston=heston), scalar(sd), scalar(of_sd))
        out.append(Condition("signal", f"{c.name.split('/')[0]}/{strength}/{noise}", market, c.order))
    return out


@dataclass(frozen=True)
class SignalRange(TrainingRange):
    """A training range with a signal on all paths, on half of them with noise."""

    strength: float = 0.4
    noise: float = 4.0
    """Largest strength and noise, in the units of ``STRENGTHS`` and ``NOISES``."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Market, Order]:
        """Draw ``n`` markets and orders: fields of shape [n]."""
        market, order = super().draw(n, generator)
        strength, kind, noise = torch.rand(3, n, generator=generator, device=generator.device)
        return with_signal(market, self.strength * strength, self.noise * noise * (kind < 0.5)), order


def opponents_in(condition: Condition, n_buckets: int, learned: Mapping[str, Policy]) -> dict[str, Policy]:
    """The opponents in a condition, those that ``learned`` there included; the static ones see no signal."""
    problem = condition.market, condition.order, n_buckets
    return {
        "random": uniform_scores,
        "twap": twap,
        "almgren_chriss": almgren_chriss(*problem),
        BLIND: static_optimal(*problem),
        "replanned": replanned,
        "linear_quadratic": solve_linear_quadratic(*problem),
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
    evaluation: Evaluation,
) -> Scores:
    """:func:`flowoe_lib.evaluation.scorecard.score_condition` of all policies; "limit" is the optimum."""
    contenders = [
        *(Contender(FlowPolicy(f, 1), "flow_imitation", 1, s) for s, f in imitated.items()),
        *(Contender(FlowPolicy(f, k), "flow_refined", k, s) for k in (1, 8) for s, f in refined.items()),
    ]
    limit = solve_signal(condition.market, condition.order, evaluation.n_buckets)
    return score_condition(condition, opponents, contenders, evaluation, informed=[Contender(limit, LIMIT)])


def share_of_value(scorecard: pd.DataFrame) -> pd.Series:
    """Share of the signal's value that each row earns, (U - U_blind) / (U_limit - U_blind).

    U_blind is the utility of the static optimum, the best policy that does not observe the signal.
    """
    utility = scorecard.pivot_table("utility_bps", "condition", "policy")
    blind, limit = (scorecard["condition"].map(utility[name]) for name in (BLIND, LIMIT))
    return (scorecard["utility_bps"] - blind) / (limit - blind)
