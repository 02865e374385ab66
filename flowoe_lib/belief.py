"""The best that a policy can do where nobody is told the day's drift but everybody sees the price.

The drift mu ~ N(drift, drift_sd^2) is drawn once a day. At constant volatility its mean m given the price so
far, in the order's favour, is a Gaussian martingale: with s = drift_sd^2 / (1e8 theta) and R the return since
the arrival, m = (side drift + s R) / (1 + s t), and what m has still to learn falls with the variance of mu,
v = drift_sd^2 / (1 + s t), which m' - m ~ N(0, v - v') takes from. With q' = q - a what a trade leaves,

    J_k(q, m) = max_{0 <= q' <= q}  q' m dt - lambda 1e8 q'^2 theta dt - a h_k(a) - g(a) (q' + a / 2)
                                    + E[J_{k+1}(q', m') | m],

h the temporary and g the permanent impact: drift enters through its mean alone, since risk is charged for
unpredictable moves only. Source: Kalman and Bucy (1961), Journal of Basic Engineering 83, for the filter;
Almgren and Lorenz (2006), "Bayesian adaptive trading with a daily cycle", Journal of Trading 1, for trading
on it; Bellman (1957), Dynamic Programming.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowoe_lib.execution import Observation
from flowoe_lib.market import Market, Order, posterior_drift
from flowoe_lib.oracle import (
    backward_induction,
    expectation,
    interpolate_table,
    normal_rule,
    one_condition,
)

__all__ = ["BeliefOptimum", "solve_belief"]

BELIEF_REACH = 5.0
"""Beliefs are gridded over this many standard deviations of the close's either side of the open's."""


@dataclass(frozen=True)
class BeliefOptimum:
    """The optimal policy of one condition of hidden drift, and what it is worth.

    Follows :class:`flowoe_lib.execution.Policy`. It knows the market it was solved for and disregards
    what the observation says of it, the current variance included.
    """

    market: Market
    order: Order
    fraction: Tensor
    """Share of the remaining inventory to trade, [N - 1, inventory, belief], float64, on nodes uniform in
    sqrt(q) from 0 to 1, and in m around what is believed at the open."""
    reach: float
    """Distance of the outermost beliefs from that of the open, bps per day."""
    value_bps: float
    """Expected utility of the whole order."""

    def __call__(self, seen: Observation, noise: Tensor) -> Tensor:
        """The table at bucket ``seen.k``, interpolated, [paths]; ``noise`` is not used.

        Raises ValueError on a day of other than N buckets.
        """
        if seen.n_buckets != len(self.fraction) + 1:
            raise ValueError(f"an optimum of {len(self.fraction) + 1} buckets met a day of {seen.n_buckets}")
        belief = posterior_drift(self.market, self.order, seen.return_bps, seen.k / seen.n_buckets)
        learned = (belief - self.order.side * self.market.drift) / self.reach
        places = seen.inventory.sqrt(), (1 + learned) / 2
        return interpolate_table(self.fraction[seen.k].to(noise), places).clamp(0, 1)


def solve_belief(
    market: Market, order: Order, n_buckets: int, *, inventory_nodes: int = 41, belief_nodes: int = 61
) -> BeliefOptimum:
    """The optimum of one condition, fields of shape [], in float64 on the CPU.

    Variance is held at theta, whatever its cv. J / q is interpolated by cubic splines in m, on uniform
    nodes, and by parabolas in sqrt(q). Raises ValueError for a batch of conditions, fewer than one bucket, an
    axis of fewer than four nodes, drift that is not hidden, random depth or regimes.
    """
    if n_buckets < 1 or min(inventory_nodes, belief_nodes) < 4:
        nodes = f"{inventory_nodes} x {belief_nodes}"
        raise ValueError(f"{n_buckets} buckets, {nodes} nodes: must be at least 1, and 4 an axis")
    market, order = one_condition(market, order)
    if not market.drift_sd > 0:
        raise ValueError("Market.drift_sd = 0: must be > 0, known drift is not learned")
    if market.liquidity.depth_sd > 0:
        raise ValueError(f"Liquidity.depth_sd = {float(market.liquidity.depth_sd):g}: must be 0")
    if market.regimes.present:
        raise ValueError("Market.regimes: must be absent")

    dt, theta = 1 / n_buckets, market.heston.theta
    signal = market.drift_sd.square() / (1e8 * theta)
    unlearned = market.drift_sd.square() / (1 + signal * torch.linspace(0, 1, n_buckets + 1).double())
    reach = BELIEF_REACH * float((unlearned[0] - unlearned[-1]).sqrt())
    opening = order.side * market.drift
    m = opening + reach * torch.linspace(-1, 1, belief_nodes, dtype=torch.float64)
    normal, weights = normal_rule(101)
    shocks = (-unlearned.diff()).sqrt()
    risk = order.risk_aversion * 1e8 * theta * dt

    def carry(k: int, q: Tensor, ahead: Tensor) -> Tensor:
        step = expectation(m, m[:, None] + shocks[k] * normal, weights)
        return m[:, None] * dt - risk * q + step @ ahead

    value, table = backward_induction(
        market, order, n_buckets, inventory_nodes, torch.ones_like(m)[:, None], carry
    )
    at_open = expectation(m, opening.reshape(1, 1), torch.ones_like(m[:1]))
    return BeliefOptimum(market, order, table[..., 0], reach, float(at_open[0] @ value[:, 0]))
