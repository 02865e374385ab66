"""Optimal policies by dynamic programming: the oracle, and the optimum under a belief about hidden drift.

Utility U = E[P&L] - lambda E[sum_k q_{k+1}^2 1e8 int V ds] is additive over buckets. Its maximum over
policies that only sell and know the parameters therefore solves Bellman's equation. With q' = q - a the
inventory left after a trade a,

    J_k(q, V, L) = max_{0 <= q' <= q}  q' mu dt - lambda 1e8 q'^2 E[int V ds | V]
                   - a h_k(a, L) - g(a) (q' + a / 2) + E[J_{k+1}(q', V', L') | V, L],

where h is temporary and g permanent impact. With regimes, the regime takes the place of depth L as a state.
Where impact has memory, its state E is added to the state.
Source: Bellman (1957), Dynamic Programming; Almgren (2012), SIAM Journal on Financial Mathematics 3, for
execution under random volatility and liquidity.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from scipy.special import gammainccinv, ndtr
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.execution.information import depth_filter
from flowoe_lib.market.impact import variance_cost
from flowoe_lib.market.model import Heston, Market, Order
from flowoe_lib.market.pre_trade import posterior_drift
from flowoe_lib.market.simulator import VarianceStep, qe_variance_step
from flowoe_lib.policies.dynamic_programming import Optimum, State, expectation, normal_rule, one_condition

IMPACT_NODES = 31
"""Nodes of the impact state, where impact has memory."""


VARIANCE_TAIL = 1e-6
"""Probability that variance lies beyond the grid, where the value is extrapolated linearly."""


DEPTH_SDS = 4.0
"""Half-width of the grid of log depth, in standard deviations."""


@dataclass(frozen=True)
class LiquidityAxis:
    """The state variable of liquidity on its nodes: depth, the regime, or an estimate of either."""

    place: Callable[[Observation], Tensor]
    """Where an observation is on the axis, from 0 (first node) to 1 (last)."""
    cost_multiplier: Tensor
    """Expected multiplier of temporary impact, [N or 1, nodes]."""
    variance: Tensor
    """Expected multiplier of variance, [nodes]."""
    step: Tensor
    """Maps f on the nodes to its conditional expectation one bucket later, [N or 1, nodes, nodes]."""
    start: Tensor
    """Maps f on the nodes to its expectation at the open, [1, nodes]."""


def _place_of_depth(first: float, last: float, obs: Observation) -> Tensor:
    """Where observed log depth is between the ``first`` node and the ``last``, 0 to 1."""
    return ((first - obs.log_depth) / ((first - last) or 1.0)).clamp(0, 1)


def depth_axis(market: Market, n_buckets: int, nodes: int, noise_sd: float = 0.0) -> LiquidityAxis:
    """Log depth displayed with noise, as its filtered estimate m_k, whose error variance is deterministic."""
    liquidity, beta = market.liquidity, market.impact.beta
    normal, weights = normal_rule(1001)
    decay = torch.exp(-liquidity.depth_reversion / n_buckets)
    gains, variances = depth_filter(liquidity, n_buckets, noise_sd)
    error, update_sd = variances * (1 - gains), (gains * variances).sqrt()
    half_width = DEPTH_SDS * float((liquidity.depth_sd.square() - error).amax().sqrt())
    estimate = torch.linspace(half_width, -half_width, nodes if half_width else 1, dtype=torch.float64)
    cost = torch.exp(-beta * estimate)
    following = torch.exp(-beta * (decay * estimate[:, None] + update_sd[:, None, None] * normal))
    # The step of bucket k includes the update at the start of bucket k + 1.
    step = expectation(cost, following.flatten(0, 1), weights).unflatten(0, (n_buckets, -1)).roll(-1, 0)
    start = expectation(cost, torch.exp(-beta * update_sd[0] * normal)[None], weights)
    cost_multiplier = cost * torch.exp(beta.square() * error[:, None] / 2)
    place = partial(_place_of_depth, half_width, -half_width)
    return LiquidityAxis(place, cost_multiplier, torch.ones_like(cost), step, start)


def probability_of_stress(obs: Observation) -> Tensor:
    """Where an observation is between calm, 0, and stressed, 1. Raises ValueError without ``regimes``."""
    if obs.regimes is None:
        raise ValueError("Observation.regimes = None: must hold the probability of stress")
    return obs.regimes.stressed.expand_as(obs.inventory)


def _regime_axis(market: Market, dt: float) -> LiquidityAxis:
    regimes = market.regimes
    if float(market.liquidity.depth_sd):
        raise ValueError("Liquidity.depth_sd > 0 and Market.regimes: must not both be present")
    unchanged, share = torch.ones_like(regimes.cost_multiplier), regimes.stressed_share
    cost_multiplier = torch.stack((unchanged, regimes.cost_multiplier))
    chance = torch.stack((*regimes.jump(dt), share))
    law = torch.stack((1 - chance, chance), 1)
    variance = torch.stack((unchanged, regimes.volatility_multiplier.square()))
    return LiquidityAxis(probability_of_stress, cost_multiplier[None], variance, law[None, :2], law[2:])


def _places_on_grid(
    variance_max: float, stressed: float, place: Callable[[Observation], Tensor], obs: Observation
) -> tuple[Tensor, Tensor]:
    """Where an observation is in variance without the regime's multiplier, ``stressed``, and in liquidity."""
    liquidity = place(obs)
    return (obs.variance / (1 + liquidity * (stressed - 1)) / variance_max).sqrt(), liquidity


def solve_grid(
    market: Market,
    order: Order,
    n_buckets: int,
    nodes: tuple[int, int],
    axis: LiquidityAxis,
    impact_nodes: int = IMPACT_NODES,
) -> Optimum:
    """Solve for the optimal policy in inventory, variance, which is observed, and the state of ``axis``.

    Where impact has memory, its state is added. ``nodes`` are the numbers of nodes of inventory and of
    variance, ``impact_nodes`` that of impact.
    """
    if market.impact.variance_exponent > 0 and market.regimes.present:
        raise ValueError("Impact.variance_exponent > 0 and Market.regimes: must not both be present")
    heston, dt = market.heston, 1 / n_buckets
    v, step_v, start_v = variance_axis(heston, dt, nodes[1])
    gain = order.side * market.drift * dt
    expected = VarianceStep.over(heston, dt).integral(v)
    risk = order.risk_aversion * 1e8 * torch.outer(expected, axis.variance).reshape(-1, 1)
    cost_multiplier = torch.kron(variance_cost(market, v)[:, None], axis.cost_multiplier[..., None])
    steps = axis.step.expand(n_buckets, -1, -1)

    def step(k: int) -> Tensor:
        return torch.kron(step_v, steps[k])

    places = partial(_places_on_grid, float(v[-1]), float(axis.variance[-1]), axis.place)
    state = State(gain, risk, step, torch.kron(start_v, axis.start), places, cost_multiplier)
    optimum = state.solve(market, order, n_buckets, nodes[0], impact_nodes)
    return replace(optimum, fraction=optimum.fraction.unflatten(-1, (len(v), -1)))


def place_of_variance(highest: float, obs: Observation) -> tuple[Tensor]:
    """Where observed variance is on the nodes of :func:`variance_axis`, up to the ``highest``, 0 to 1."""
    return ((obs.variance / highest).sqrt(),)


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
    impact_nodes: int = IMPACT_NODES,
) -> Optimum:
    """Solve for the optimal policy of one condition by dynamic programming.

    The value per unit J / q is interpolated by cubic splines in V and in L^-beta, in which the utility of a
    schedule is affine or nearly so, and in sqrt(q), evaluated on a finer grid. Trades are compared on a grid
    of their share of the inventory, and the best is refined by halving. Variance moves by the simulator's own
    step. Constant depth takes one node, regimes take two. A hidden drift enters with its mean. Under impact
    with memory its state E is added, with cubic splines in sqrt(E / (1 - q)); since impact decays, q + E is
    at most one.

    Parameters
    ----------
    market : Market
        Fields of shape [].
    order : Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.
    inventory_nodes, variance_nodes, depth_nodes, impact_nodes : int
        Nodes of the grid on each axis, at least four.

    Returns
    -------
    flowoe_lib.policies.dynamic_programming.Optimum
        The policy, and ``value_bps``, the expected utility of the order in bps. With regimes, the policy uses
        the ``regimes`` of the observation, and refuses one without them.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, a signal, regimes
        together with random depth or with impact that depends on variance.

    References
    ----------
    Bellman (1957), Dynamic Programming; Almgren (2012), "Optimal trading with stochastic liquidity and
    volatility", SIAM Journal on Financial Mathematics 3; Alfonsi, Fruth, Schied (2010), Quantitative Finance
    10, for impact with memory.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> oracle = fo.solve_oracle(market, order, 13, inventory_nodes=21, variance_nodes=9)
    >>> round(oracle.value_bps, 1)
    -23.8
    """
    nodes = inventory_nodes, variance_nodes, depth_nodes, impact_nodes
    market, order = one_condition(market, order, n_buckets, *nodes, lacks=("Signal.sd",))
    if market.regimes.present:
        axis = _regime_axis(market, 1 / n_buckets)
    else:
        axis = depth_axis(market, n_buckets, depth_nodes)
    return solve_grid(market, order, n_buckets, (inventory_nodes, variance_nodes), axis, impact_nodes)


BELIEF_SDS = 5.0
"""Half-width of the grid of beliefs, in standard deviations of the belief at the close."""


def _place_of_belief(market: Market, order: Order, half_width: float, obs: Observation) -> tuple[Tensor]:
    """Where the posterior mean of the drift is on nodes around the prior mean, 0 to 1."""
    belief = posterior_drift(market, order, obs.return_bps, obs.k / obs.n_buckets)
    return ((1 + (belief - order.side * market.drift) / half_width) / 2,)


def solve_belief(
    market: Market, order: Order, n_buckets: int, *, inventory_nodes: int = 41, belief_nodes: int = 61
) -> Optimum:
    """Solve for the optimal policy of a trader who learns the hidden drift from prices.

    The state is inventory, the posterior mean m of the drift and, where impact has memory, its state.
    Variance is constant at theta, whatever its cv. The value per unit J / q is interpolated by cubic splines
    in m, on uniform nodes, and in sqrt(q). ``market`` and ``order`` have fields of shape []; the solution is
    in float64 on the CPU. Raises ValueError for a batch of conditions, fewer than one bucket, an axis of
    fewer than four nodes, drift that is not hidden, random depth, regimes or a signal.
    """
    lacks = "Liquidity.depth_sd", "Market.regimes", "Signal.sd"
    nodes = inventory_nodes, belief_nodes
    market, order = one_condition(market, order, n_buckets, *nodes, needs=("Market.drift_sd",), lacks=lacks)
    dt, theta = 1 / n_buckets, market.heston.theta
    signal = market.drift_sd.square() / (1e8 * theta)
    posterior = market.drift_sd.square() / (1 + signal * torch.linspace(0, 1, n_buckets + 1).double())
    half_width = BELIEF_SDS * float((posterior[0] - posterior[-1]).sqrt())
    opening = order.side * market.drift
    m = opening + half_width * torch.linspace(-1, 1, belief_nodes, dtype=torch.float64)
    normal, weights = normal_rule(101)
    shocks = (-posterior.diff()).sqrt()
    risk = order.risk_aversion * 1e8 * theta * dt

    def step(k: int) -> Tensor:
        return expectation(m, m[:, None] + shocks[k] * normal, weights)

    places = partial(_place_of_belief, market, order, half_width)
    state = State(m[:, None] * dt, risk, step, expectation(m, opening.reshape(1, 1)), places)
    return state.solve(market, order, n_buckets, inventory_nodes, IMPACT_NODES)
