"""Trading on a signal: the optimum by dynamic programming, and in closed form where impact is linear.

The state is inventory, impact with memory, and the estimate m of the signal in the order's favour, which
follows m_{k+1} = a m_k + e_{k+1} with independent normal innovations e_k of known variance, whether the
signal is observed exactly or with noise (:func:`flowoe_lib.market.signal.kalman`). Variance and depth are not
part of the state: if they are random, the optimum is that of a trader who observes neither.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.impact import planned_slope
from flowoe_lib.market.model import Market, Order
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.signal import kalman
from flowoe_lib.market.simulator import VarianceStep
from flowoe_lib.policies.dynamic_programming import Optimum, State, expectation, normal_rule, one_condition
from flowoe_lib.policies.oracle import BELIEF_SDS, IMPACT_NODES

LACKS = "Market.drift_sd", "Market.regimes"
"""Parts of a market for which there is no optimum beside a signal."""


SPAN, URGENCIES = 5.0, 13
"""Urgencies for which :func:`solve_on_estimates` plans: from 1/5 to 5 times that of the condition."""


COARSE = {"inventory_nodes": 25, "impact_nodes": 17, "signal_nodes": 21}
"""The grid of each of them."""


def _place_of_signal(half_width: float, obs: Observation) -> tuple[Tensor]:
    """Where the estimate of the signal is on nodes around zero, 0 to 1."""
    return ((1 + obs.signal.expand_as(obs.inventory) / half_width) / 2,)


def solve_signal(
    market: Market,
    order: Order,
    n_buckets: int,
    *,
    inventory_nodes: int = 41,
    impact_nodes: int = IMPACT_NODES,
    signal_nodes: int = 61,
) -> Optimum:
    """Solve for the optimal policy of a trader who observes a signal, by dynamic programming.

    The value per unit J / q is interpolated by cubic splines in m, on uniform nodes, and in sqrt(q). Under
    impact with memory, its state is added to the grid as in :func:`flowoe_lib.policies.oracle.solve_oracle`.
    If variance or depth is random, this is the optimum of a trader who observes neither.

    Parameters
    ----------
    market, order : Market, Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.
    inventory_nodes, impact_nodes, signal_nodes : int
        Nodes of the grid on each axis, at least four.

    Returns
    -------
    flowoe_lib.policies.dynamic_programming.Optimum
        The policy, and ``value_bps``, the expected utility of the order in bps.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, no signal, hidden
        drift or regimes.

    References
    ----------
    Bellman (1957), Dynamic Programming; Cartea, Jaimungal (2016), "Incorporating order-flow into optimal
    execution", Mathematics and Financial Economics 10.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.02), fo.scalar(-0.6))
    >>> signal = fo.market.model.Signal(sd=fo.scalar(100))
    >>> order = fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> optimum = fo.policies.signal.solve_signal(fo.Market(heston, signal=signal), order, 13)
    >>> round(optimum.value_bps, 1)
    -16.8
    """
    nodes = inventory_nodes, impact_nodes, signal_nodes
    market, order = one_condition(market, order, n_buckets, *nodes, needs=("Signal.sd",), lacks=LACKS)
    dt = 1 / n_buckets
    decay, ahead = torch.exp(-market.signal.reversion * dt), dt * market.signal.mean_ahead(0, dt)
    gains, variances = kalman(market.signal, n_buckets)
    shocks = (gains * variances).sqrt()
    # The estimate is most dispersed at the close.
    estimated = market.signal.sd.square() - variances * (1 - gains)
    half_width = BELIEF_SDS * float(estimated.amax().sqrt())
    m = half_width * torch.linspace(-1, 1, signal_nodes, dtype=torch.float64)
    normal, weights = normal_rule(101)
    drift = ahead * m[:, None] + order.side * market.drift * dt
    risk = order.risk_aversion * 1e8 * market.heston.theta * dt

    def step(k: int) -> Tensor:
        return expectation(m, decay * m[:, None] + shocks[k + 1] * normal, weights)

    start = expectation(m, shocks[0] * normal[None], weights)
    state = State(drift, risk, step, start, partial(_place_of_signal, half_width))
    return state.solve(market, order, n_buckets, inventory_nodes, impact_nodes)


def _places_on_estimates(
    places: Callable[[Observation], tuple[Tensor, ...]], planned: PreTrade, obs: Observation
) -> tuple[Tensor, ...]:
    """Where an observation is on the axes of the state, and on that of log urgency, 0 to 1."""
    market, remaining = obs.market, 1 - obs.k / obs.n_buckets
    span = market.liquidity.depth_reversion * remaining
    cost_multiplier = torch.exp(market.impact.beta * obs.log_depth * torch.expm1(-span) / span)
    forecast = VarianceStep.over(market.heston, remaining).integral(obs.variance) / remaining
    urgency = obs.pre_trade.urgency * forecast / market.heston.theta / cost_multiplier
    place = (urgency.clamp_min(1e-9) / planned.urgency.clamp_min(1e-9)).log() / (2 * math.log(SPAN)) + 0.5
    signal = obs.signal * (planned.cost_bps / obs.pre_trade.cost_bps / cost_multiplier)
    return (*places(replace(obs, signal=signal)), place.expand_as(obs.inventory))


def solve_on_estimates(market: Market, order: Order, n_buckets: int) -> Optimum:
    """Solve :func:`solve_signal` for traders who estimate volatility and illiquidity, at many urgencies.

    The utility of a policy in units of cost depends on volatility and illiquidity through
    :func:`flowoe_lib.market.pre_trade.urgency` and through the ratio of signal to cost. The policy uses those
    that the trader estimates, with variance and depth at their forecasts over the rest of the day. So it
    allows for later observations of the signal, but takes estimates and forecasts for certain. Arguments and
    ``value_bps`` are those of :func:`solve_signal`.
    """
    aversions = order.risk_aversion * SPAN ** torch.linspace(-1, 1, URGENCIES)
    solved = [solve_signal(market, replace(order, risk_aversion=a), n_buckets, **COARSE) for a in aversions]
    places = partial(_places_on_estimates, solved[0].places, PreTrade.of(market, order))
    table = torch.stack([one.fraction for one in solved], -1)
    return replace(solved[URGENCIES // 2], fraction=table, places=places)


@dataclass(frozen=True)
class LinearQuadratic:
    """The optimal policy under linear impact, which is linear in inventory and signal, and its value.

    A :class:`flowoe_lib.execution.execution.Policy`: of q it keeps ``kept`` q + ``tilt`` m until the next
    bucket, limited to trades between nothing and all of q.
    """

    kept: Tensor
    """[N - 1]."""
    tilt: Tensor
    """In units of the order per bps and day of signal, [N - 1]."""
    value_bps: float
    """Expected utility under linear impact without limits to trades, bps."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory to trade, [paths]; ``noise`` is not used."""
        left = self.kept[obs.k] + self.tilt[obs.k] * obs.signal / obs.inventory.clamp_min(1e-12)
        return (1 - left).clamp(0, 1).to(noise).expand_as(noise)


def solve_linear_quadratic(market: Market, order: Order, n_buckets: int) -> LinearQuadratic:
    """Solve the linear-quadratic problem: impact linear in the trade, or linearised at an even pace.

    The value is -A q^2 + B m q + C m^2 + D, whose coefficients follow from those of the next bucket by a
    Riccati recursion. With cost c a^2 of a trade a, risk r q'^2 and drift b m q' of what is left,

        q' = (2 c q + h m) / (2 G),  G = r + c + A',  h = b + a B'.

    Parameters
    ----------
    market, order : Market, Order
        Fields of shape []; permanent impact is linear.
    n_buckets : int
        Number of buckets N of the day.

    Returns
    -------
    flowoe_lib.policies.signal.LinearQuadratic
        The policy and its value in bps.

    Raises
    ------
    ValueError
        For a batch of conditions, no signal, any other drift or regimes.

    References
    ----------
    Cartea, Jaimungal (2016), Mathematics and Financial Economics 10; Lehalle, Neuman (2019), "Incorporating
    signals into optimal trading", Finance and Stochastics 23, in continuous time.
    """
    lacks = *LACKS, "Market.drift"
    market, order = one_condition(market, order, n_buckets, needs=("Signal.sd",), lacks=lacks)
    dt = 1 / n_buckets
    cost = planned_slope(market, order, n_buckets) * dt ** (market.impact.beta - 1)
    risk = order.risk_aversion * 1e8 * market.heston.theta * dt
    decay, gain = torch.exp(-market.signal.reversion * dt), dt * market.signal.mean_ahead(0, dt)
    gains, variances = kalman(market.signal, n_buckets)
    shocks = gains * variances
    holding = cost[-1]
    cross = square = constant = torch.zeros_like(holding)
    kept, tilt = [], []
    for k in reversed(range(n_buckets - 1)):
        curvature, slope = risk + cost[k] + holding, gain + decay * cross
        kept.append(cost[k] / curvature)
        tilt.append(slope / (2 * curvature))
        constant = constant + square * shocks[k + 1]
        square = slope.square() / (4 * curvature) + decay.square() * square
        holding, cross = cost[k] * (1 - kept[-1]), kept[-1] * slope
    permanent = market.permanent_cost_bps(order.size) / 2
    value = square * shocks[0] + constant - holding - permanent
    return LinearQuadratic(torch.stack(kept[::-1]), torch.stack(tilt[::-1]), float(value))
