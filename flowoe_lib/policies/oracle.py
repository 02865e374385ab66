"""Optimal policies by dynamic programming: the oracle, and the optimum under a belief about hidden drift.

Utility U = E[P&L] - lambda E[sum_k q_{k+1}^2 1e8 int V ds] is additive over buckets. Its maximum over
policies that only sell and know the parameters therefore solves Bellman's equation. With q' = q - a the
inventory left after a trade a,

    J_k(q, V, L) = max_{0 <= q' <= q}  q' mu dt - lambda 1e8 q'^2 E[int V ds | V]
                   - a h_k(a, L) - g(a) (q' + a / 2) + E[J_{k+1}(q', V', L') | V, L],

where h is temporary and g permanent impact. With regimes, the regime takes the place of depth L as a state.
Source: Bellman (1957), Dynamic Programming; Almgren (2012), SIAM Journal on Financial Mathematics 3, for
execution under random volatility and liquidity.
"""

from dataclasses import dataclass

import torch
from scipy.special import gammainccinv, ndtr
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.impact import variance_cost
from flowoe_lib.market.model import Heston, Market, Order
from flowoe_lib.market.pre_trade import posterior_drift
from flowoe_lib.market.simulator import VarianceStep, qe_variance_step
from flowoe_lib.policies.dynamic_programming import (
    backward_induction,
    expectation,
    interpolate_table,
    normal_rule,
    one_condition,
    policy_jump,
    require_grid,
    steady_condition,
)

__all__ = [
    "LiquidityAxis",
    "Oracle",
    "look_up",
    "solve_belief",
    "solve_grid",
    "solve_oracle",
    "variance_axis",
]


VARIANCE_TAIL = 1e-6
"""Probability that variance lies beyond the grid, where the value is extrapolated linearly."""


DEPTH_SDS = 4.0
"""Half-width of the grid of log depth, in standard deviations."""


@dataclass(frozen=True)
class Oracle:
    """The optimal policy of one condition, and its value.

    A :class:`flowoe_lib.execution.execution.Policy`. It uses the market for which it was solved and ignores
    the market estimates in the observation.
    """

    fraction: Tensor
    """Fraction of the remaining inventory to trade, [N - 1, inventory, variance, depth], float64. Nodes are
    uniform in sqrt(q) from 0 to 1, in sqrt(V) from 0, and in l between ``depth_ends``."""
    variance_max: float
    """Last node of variance, per day."""
    depth_ends: tuple[float, float]
    """Highest and lowest log depth of the grid; with regimes, log depth of the calm and of the stressed one;
    both zero if depth is constant."""
    stressed_variance: float
    """Multiplier of variance at the last node of depth; one without regimes."""
    value_bps: float
    """Expected utility of the order under the stationary law of variance, depth and regime, bps."""
    jump: float = 1.0
    """Fractions at neighbouring nodes that differ by more are not averaged."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Interpolate the table at bucket ``obs.k``, [paths]; ``noise`` is not used.

        Raises ValueError if the day has another number of buckets.
        """
        first, last = self.depth_ends
        thin = torch.zeros_like(noise)
        if first != last:
            thin = ((first - obs.log_depth) / (first - last)).clamp(0, 1)
        variance = obs.variance / (1 + thin * (self.stressed_variance - 1))
        return look_up(self.fraction, obs, (variance / self.variance_max).sqrt(), thin, jump=self.jump)


def look_up(fraction: Tensor, obs: Observation, *state: Tensor, jump: float) -> Tensor:
    """Interpolate a table [N - 1, inventory, ...] of fractions at the observed inventory and ``state``.

    ``jump`` is that of :func:`flowoe_lib.policies.dynamic_programming.interpolate_table`.
    """
    if obs.n_buckets != len(fraction) + 1:
        raise ValueError(f"n_buckets = {obs.n_buckets}: must be {len(fraction) + 1}, as solved for")
    places = obs.inventory.sqrt(), *state
    return interpolate_table(fraction[obs.k].to(obs.inventory), places, jump).clamp(0, 1)


@dataclass(frozen=True)
class LiquidityAxis:
    """The state variable of liquidity on its nodes: depth, the regime, or an estimate of either."""

    ends: tuple[float, float]
    """First and last node."""
    cost_multiplier: Tensor
    """Expected multiplier of temporary impact, [N or 1, nodes]."""
    variance: Tensor
    """Expected multiplier of variance, [nodes]."""
    step: Tensor
    """Maps f on the nodes to its conditional expectation one bucket later, [N or 1, nodes, nodes]."""
    start: Tensor
    """Maps f on the nodes to its expectation at the open, [1, nodes]."""


def _depth_axis(market: Market, dt: float, nodes: int) -> LiquidityAxis:
    liquidity, beta = market.liquidity, market.impact.beta
    normal, weights = normal_rule(1001)
    half_width = DEPTH_SDS * float(liquidity.depth_sd)
    depth = torch.linspace(half_width, -half_width, nodes if half_width else 1, dtype=torch.float64)
    decay, shock = torch.exp(-liquidity.depth_reversion * dt), liquidity.depth_sd * normal
    following = decay * depth[:, None] + torch.sqrt(1 - decay**2) * shock
    cost_multiplier, later, first = (torch.exp(-beta * x) for x in (depth, following, shock[None]))
    step, start = expectation(cost_multiplier, later, weights), expectation(cost_multiplier, first, weights)
    ends = float(depth[0]), float(depth[-1])
    return LiquidityAxis(ends, cost_multiplier[None], torch.ones_like(depth), step[None], start)


def _regime_axis(market: Market, dt: float) -> LiquidityAxis:
    regimes = market.regimes
    if float(market.liquidity.depth_sd):
        raise ValueError("Liquidity.depth_sd > 0 and Market.regimes: must not both be present")
    if float(regimes.cost_multiplier) == 1:
        raise ValueError("Regimes.cost_multiplier = 1: must differ from 1, log depth identifies the regime")
    unchanged, share = torch.ones_like(regimes.cost_multiplier), regimes.stressed_share
    cost_multiplier = torch.stack((unchanged, regimes.cost_multiplier))
    chance = torch.stack((*regimes.jump(dt), share))
    law = torch.stack((1 - chance, chance), 1)
    variance = torch.stack((unchanged, regimes.volatility_multiplier.square()))
    calm, stressed = (-cost_multiplier.log() / market.impact.beta).tolist()
    return LiquidityAxis((calm, stressed), cost_multiplier[None], variance, law[None, :2], law[2:])


def solve_grid(
    market: Market,
    order: Order,
    n_buckets: int,
    inventory_nodes: int,
    variance_nodes: int,
    axis: LiquidityAxis,
) -> tuple[Tensor, float, float]:
    """Solve for the optimal policy in inventory, variance, which is observed, and the state of ``axis``.

    Returns the fractions to trade [N - 1, inventory, variance, axis], the last node of variance and the
    value of the order in bps.
    """
    heston, dt = market.heston, 1 / n_buckets
    v, step_v, start_v = variance_axis(heston, dt, variance_nodes)

    gain = order.side * market.drift * dt
    expected = VarianceStep.over(heston, dt).integral(v)
    risk = order.risk_aversion * 1e8 * expected[:, None] * axis.variance
    steps = axis.step.expand(n_buckets, -1, -1)

    def carry(k: int, q: Tensor, ahead: Tensor) -> Tensor:
        return gain - risk * q + torch.einsum("qvl,wv,ml->qwm", ahead, step_v, steps[k])

    if market.signal.present:
        raise ValueError(f"Signal.sd = {float(market.signal.sd):g}: must be 0, the signal is a state")
    if market.impact.variance_exponent > 0 and market.regimes.present:
        raise ValueError("Impact.variance_exponent > 0 and Market.regimes: must not both be present")
    cost_multiplier = variance_cost(market, v)[:, None] * axis.cost_multiplier[:, None]
    cost_multiplier = cost_multiplier.expand(n_buckets, -1, -1)
    value, table = backward_induction(market, order, n_buckets, inventory_nodes, cost_multiplier, carry)
    return table, float(v[-1]), float(start_v[0] @ value @ axis.start[0])


def variance_axis(heston: Heston, dt: float, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes of variance, uniform in its root, and the matrices of its expectations.

    The second result maps f on the nodes to its conditional expectation ``dt`` days later, [nodes, nodes],
    the third to its expectation at the open, [1, nodes].
    """
    normal, weights = normal_rule(1001)
    shape = float(1 / heston.cv**2)
    scale = float(heston.theta) / shape
    variance_max = scale * float(gammainccinv(shape, VARIANCE_TAIL))
    v = variance_max * torch.linspace(0, 1, nodes, dtype=torch.float64).square()
    step = VarianceStep.over(heston, dt)
    mean, conditional_variance = (moment.repeat_interleave(len(normal)) for moment in step.moments(v))
    next_v = qe_variance_step(mean, conditional_variance, normal.repeat(len(v))).reshape(len(v), -1)
    first_v = scale * torch.from_numpy(gammainccinv(shape, ndtr(-normal.numpy())))
    return v, expectation(v, next_v, weights), expectation(v, first_v[None], weights)


def solve_oracle(
    market: Market,
    order: Order,
    n_buckets: int,
    *,
    inventory_nodes: int = 41,
    variance_nodes: int = 25,
    depth_nodes: int = 13,
) -> Oracle:
    """Solve for the optimal policy of one condition by dynamic programming.

    The value per unit J / q is interpolated by cubic splines in V and in L^-beta, in which the utility of a
    schedule is affine or nearly so, and by parabolas in sqrt(q). Variance moves by the simulator's own step.
    Constant depth takes one node, regimes take two. A hidden drift enters with its mean.

    Parameters
    ----------
    market : Market
        Fields of shape [].
    order : Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.
    inventory_nodes, variance_nodes, depth_nodes : int
        Nodes of the grid on each axis, at least four.

    Returns
    -------
    flowoe_lib.policies.oracle.Oracle
        The policy, and ``value_bps``, the expected utility of the order in bps.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, regimes together
        with random depth or with impact that depends on variance, or regimes with the same temporary impact.

    References
    ----------
    Bellman (1957), Dynamic Programming; Almgren (2012), "Optimal trading with stochastic liquidity and
    volatility", SIAM Journal on Financial Mathematics 3.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> oracle = fo.solve_oracle(market, order, 13, inventory_nodes=21, variance_nodes=9)
    >>> round(oracle.value_bps, 1)
    -23.8
    """
    require_grid(n_buckets, inventory_nodes, variance_nodes, depth_nodes)
    market, order = one_condition(market, order)
    dt = 1 / n_buckets
    axis = _regime_axis(market, dt) if market.regimes.present else _depth_axis(market, dt, depth_nodes)
    table, variance_max, value = solve_grid(market, order, n_buckets, inventory_nodes, variance_nodes, axis)
    return Oracle(table, variance_max, axis.ends, float(axis.variance[-1]), value, policy_jump(market))


BELIEF_SDS = 5.0
"""Half-width of the grid of beliefs, in standard deviations of the belief at the close."""


@dataclass(frozen=True)
class BeliefOptimum:
    """The optimal policy of one condition with hidden drift, and its value.

    A :class:`flowoe_lib.execution.execution.Policy`. It uses the market for which it was solved and ignores
    the market estimates and the variance in the observation.
    """

    market: Market
    order: Order
    fraction: Tensor
    """Fraction of the remaining inventory to trade, [N - 1, inventory, belief], float64. Nodes are uniform in
    sqrt(q) from 0 to 1, and in m around its value at the open."""
    half_width: float
    """Half-width of the grid of beliefs, bps per day."""
    value_bps: float
    """Expected utility of the order, bps."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Interpolate the table at bucket ``obs.k``, [paths]; ``noise`` is not used.

        Raises ValueError if the day has another number of buckets.
        """
        belief = posterior_drift(self.market, self.order, obs.return_bps, obs.k / obs.n_buckets)
        learned = (belief - self.order.side * self.market.drift) / self.half_width
        return look_up(self.fraction, obs, (1 + learned) / 2, jump=policy_jump(self.market))


def solve_belief(
    market: Market, order: Order, n_buckets: int, *, inventory_nodes: int = 41, belief_nodes: int = 61
) -> BeliefOptimum:
    """Solve for the optimal policy of a trader who learns the hidden drift from prices.

    The state is inventory and the posterior mean m of the drift. Variance is constant at theta, whatever its
    cv. The value per unit J / q is interpolated by cubic splines in m, on uniform nodes, and by parabolas in
    sqrt(q). ``market`` and ``order`` have fields of shape []; the solution is in float64 on the CPU. Raises
    ValueError for a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, drift that
    is not hidden, random depth or regimes.
    """
    require_grid(n_buckets, inventory_nodes, belief_nodes)
    market, order = steady_condition(market, order)
    if not market.drift_sd > 0:
        raise ValueError("Market.drift_sd = 0: must be > 0, for there to be a hidden drift")

    dt, theta = 1 / n_buckets, market.heston.theta
    signal = market.drift_sd.square() / (1e8 * theta)
    posterior = market.drift_sd.square() / (1 + signal * torch.linspace(0, 1, n_buckets + 1).double())
    half_width = BELIEF_SDS * float((posterior[0] - posterior[-1]).sqrt())
    opening = order.side * market.drift
    m = opening + half_width * torch.linspace(-1, 1, belief_nodes, dtype=torch.float64)
    normal, weights = normal_rule(101)
    shocks = (-posterior.diff()).sqrt()
    risk = order.risk_aversion * 1e8 * theta * dt

    def carry(k: int, q: Tensor, ahead: Tensor) -> Tensor:
        step = expectation(m, m[:, None] + shocks[k] * normal, weights)
        return m[:, None] * dt - risk * q + step @ ahead

    unchanged = torch.ones_like(m)[:, None].expand(n_buckets, -1, -1)
    value, table = backward_induction(market, order, n_buckets, inventory_nodes, unchanged, carry)
    at_open = expectation(m, opening.reshape(1, 1), torch.ones_like(m[:1]))
    return BeliefOptimum(market, order, table[..., 0], half_width, float(at_open[0] @ value[:, 0]))
