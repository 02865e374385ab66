"""The best that a policy can do: backward induction on time, inventory, variance, and depth or regime.

U = E[P&L] - lambda E[sum_k q_{k+1}^2 1e8 int V ds] is additive over buckets, so its optimum over policies
that only sell and know their condition solves Bellman's equation. With q' = q - a what a trade leaves,

    J_k(q, V, L) = max_{0 <= q' <= q}  q' mu dt - lambda 1e8 q'^2 E[int V ds | V]
                   - a h_k(a, L) - g(a) (q' + a / 2) + E[J_{k+1}(q', V', L') | V, L],

h the temporary and g the permanent impact; a regime stands where depth does. Source: Bellman (1957),
Dynamic Programming; Almgren (2012), SIAM Journal on Financial Mathematics 3, for execution under random
volatility and liquidity.
"""

from dataclasses import dataclass

import torch
from scipy.special import gammainccinv, ndtr
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.model import Market, Order
from flowoe_lib.market.pre_trade import posterior_drift
from flowoe_lib.market.simulator import VarianceStep, qe_variance_step
from flowoe_lib.policies.dynamic_programming import (
    backward_induction,
    expectation,
    interpolate_table,
    normal_rule,
    one_condition,
)

__all__ = ["BeliefOptimum", "Oracle", "solve_belief", "solve_oracle"]


VARIANCE_TAIL = 1e-6
"""Chance that the stationary variance lies beyond the grid, where the value is continued linearly."""


DEPTH_REACH = 4.0
"""Log depth is gridded over this many standard deviations either side."""


@dataclass(frozen=True)
class Oracle:
    """The optimal policy of one condition, and what it is worth.

    Follows :class:`flowoe_lib.execution.execution.Policy`. It knows the market it was solved for and
    disregards what the observation says of it.
    """

    fraction: Tensor
    """Share of the remaining inventory to trade, [N - 1, inventory, variance, depth], float64, on nodes
    uniform in sqrt(q) from 0 to 1, in sqrt(V) from 0, and in l between ``depth_ends``."""
    variance_max: float
    """Last node of variance, per day."""
    depth_ends: tuple[float, float]
    """Deepest and thinnest log depth, or those of the calm and the stressed regime where there are any; both
    zero where depth is constant."""
    stressed_variance: float
    """What variance is multiplied by at the last node of depth: one without regimes."""
    value_bps: float
    """Expected utility of the whole order, from the stationary law of variance, depth and regime."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """The table at bucket ``seen.k``, interpolated, [paths]; ``noise`` is not used.

        Raises ValueError on a day of other than N buckets.
        """
        if obs.n_buckets != len(self.fraction) + 1:
            raise ValueError(f"an oracle of {len(self.fraction) + 1} buckets met a day of {obs.n_buckets}")
        first, last = self.depth_ends
        thin = torch.zeros_like(noise)
        if first != last:
            thin = ((first - obs.log_depth) / (first - last)).clamp(0, 1)
        variance = obs.variance / (1 + thin * (self.stressed_variance - 1))
        places = obs.inventory.sqrt(), (variance / self.variance_max).sqrt(), thin
        return interpolate_table(self.fraction[obs.k].to(noise), places).clamp(0, 1)


@dataclass(frozen=True)
class _Axis:
    """What moves liquidity, on nodes: random depth, or the regime."""

    depth: Tensor
    """Log depth, [nodes]."""
    cost_multiplier: Tensor
    """What temporary impact is multiplied by, [nodes]."""
    variance: Tensor
    """What variance is multiplied by, [nodes]."""
    step: Tensor
    """From f on the nodes to its expectation one bucket later, [nodes, nodes]."""
    start: Tensor
    """From f on the nodes to its expectation at the open, [1, nodes]."""


def _depth_axis(market: Market, dt: float, nodes: int, normal: Tensor, weights: Tensor) -> _Axis:
    liquidity, beta = market.liquidity, market.impact.beta
    reach = DEPTH_REACH * float(liquidity.depth_sd)
    depth = torch.linspace(reach, -reach, nodes if reach else 1, dtype=torch.float64)
    decay, shock = torch.exp(-liquidity.depth_reversion * dt), liquidity.depth_sd * normal
    following = decay * depth[:, None] + torch.sqrt(1 - decay**2) * shock
    cost_multiplier, later, first = (torch.exp(-beta * x) for x in (depth, following, shock[None]))
    step, start = expectation(cost_multiplier, later, weights), expectation(cost_multiplier, first, weights)
    return _Axis(depth, cost_multiplier, torch.ones_like(cost_multiplier), step, start)


def _regime_axis(market: Market, dt: float) -> _Axis:
    regimes = market.regimes
    if float(market.liquidity.depth_sd):
        raise ValueError("Liquidity.depth_sd > 0 and Market.regimes: must not both be present")
    if float(regimes.cost_multiplier) == 1:
        raise ValueError("Regimes.cost_multiplier = 1: must differ from 1, the regime is read off log depth")
    unchanged, share = torch.ones_like(regimes.cost_multiplier), regimes.stressed_share
    cost_multiplier = torch.stack((unchanged, regimes.cost_multiplier))
    chance = torch.stack((*regimes.jump(dt), share))
    law = torch.stack((1 - chance, chance), 1)
    variance = torch.stack((unchanged, regimes.volatility_multiplier.square()))
    return _Axis(-cost_multiplier.log() / market.impact.beta, cost_multiplier, variance, law[:2], law[2:])


def solve_oracle(
    market: Market,
    order: Order,
    n_buckets: int,
    *,
    inventory_nodes: int = 41,
    variance_nodes: int = 25,
    depth_nodes: int = 13,
) -> Oracle:
    """The optimum of one condition, fields of shape [], in float64 on the CPU.

    J / q is interpolated by cubic splines in V and in L^-beta, in which the utility of a schedule is
    affine, or nearly, and by parabolas in sqrt(q). The variance step is the simulator's own. Where depth is
    constant its axis has one node, and where there are regimes two, the calm and the stressed one. Hidden
    drift counts with its mean. Raises ValueError for a batch of conditions, fewer than one bucket, an axis of
    fewer than four nodes, regimes beside random depth, or regimes that do not differ in temporary impact, by
    which they are told apart.
    """
    if n_buckets < 1 or min(inventory_nodes, variance_nodes, depth_nodes) < 4:
        nodes = f"{inventory_nodes} x {variance_nodes} x {depth_nodes}"
        raise ValueError(f"{n_buckets} buckets, {nodes} nodes: must be at least 1, and 4 an axis")
    market, order = one_condition(market, order)
    heston, dt = market.heston, 1 / n_buckets
    normal, weights = normal_rule(1001)

    shape = float(1 / heston.cv**2)
    scale = float(heston.theta) / shape
    variance_max = scale * float(gammainccinv(shape, VARIANCE_TAIL))
    v = variance_max * torch.linspace(0, 1, variance_nodes, dtype=torch.float64).square()
    step = VarianceStep.over(heston, dt)
    mean, conditional_variance = (moment.repeat_interleave(len(normal)) for moment in step.moments(v))
    next_v = qe_variance_step(mean, conditional_variance, normal.repeat(len(v))).reshape(len(v), -1)
    first_v = scale * torch.from_numpy(gammainccinv(shape, ndtr(-normal.numpy())))
    step_v, start_v = expectation(v, next_v, weights), expectation(v, first_v[None], weights)

    by_regime = market.regimes.present
    axis = _regime_axis(market, dt) if by_regime else _depth_axis(market, dt, depth_nodes, normal, weights)
    gain = order.side * market.drift * dt
    risk = order.risk_aversion * 1e8 * step.integral(v)[:, None] * axis.variance

    def carry(k: int, q: Tensor, ahead: Tensor) -> Tensor:
        return gain - risk * q + torch.einsum("qvl,wv,ml->qwm", ahead, step_v, axis.step)

    value, table = backward_induction(
        market, order, n_buckets, inventory_nodes, axis.cost_multiplier.expand(len(v), -1), carry
    )
    ends = float(axis.depth[0]), float(axis.depth[-1])
    return Oracle(
        table, variance_max, ends, float(axis.variance[-1]), float(start_v[0] @ value @ axis.start[0])
    )


BELIEF_REACH = 5.0
"""Beliefs are gridded over this many standard deviations of the close's either side of the open's."""


@dataclass(frozen=True)
class BeliefOptimum:
    """The optimal policy of one condition of hidden drift, and what it is worth.

    Follows :class:`flowoe_lib.execution.execution.Policy`. It knows the market it was solved for and
    disregards what the observation says of it, the current variance included.
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

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """The table at bucket ``seen.k``, interpolated, [paths]; ``noise`` is not used.

        Raises ValueError on a day of other than N buckets.
        """
        if obs.n_buckets != len(self.fraction) + 1:
            raise ValueError(f"an optimum of {len(self.fraction) + 1} buckets met a day of {obs.n_buckets}")
        belief = posterior_drift(self.market, self.order, obs.return_bps, obs.k / obs.n_buckets)
        learned = (belief - self.order.side * self.market.drift) / self.reach
        places = obs.inventory.sqrt(), (1 + learned) / 2
        return interpolate_table(self.fraction[obs.k].to(noise), places).clamp(0, 1)


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
