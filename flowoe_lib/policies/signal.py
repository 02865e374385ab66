"""Trading on a signal: the optimum by dynamic programming, and in closed form where impact is linear.

The state is inventory and the estimate m of the signal in the order's favour, which follows
m_{k+1} = a m_k + e_{k+1} with independent normal innovations e_k of known variance, whether the signal is
observed exactly or with noise (:func:`flowoe_lib.market.signal.kalman`). Variance is constant.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.impact import impact_slope
from flowoe_lib.market.model import Market, Order, volume_profile
from flowoe_lib.market.signal import kalman
from flowoe_lib.policies.dynamic_programming import (
    Optimum,
    expectation,
    normal_rule,
    one_condition,
    require_grid,
    solve_estimate,
)
from flowoe_lib.policies.oracle import BELIEF_SDS

__all__ = ["LinearQuadratic", "solve_linear_quadratic", "solve_signal"]


def _place_of_signal(half_width: float, obs: Observation) -> tuple[Tensor]:
    """Where the estimate of the signal is on nodes around zero, 0 to 1."""
    return ((1 + obs.signal.expand_as(obs.inventory) / half_width) / 2,)


def solve_signal(
    market: Market, order: Order, n_buckets: int, *, inventory_nodes: int = 41, signal_nodes: int = 61
) -> Optimum:
    """Solve for the optimal policy of a trader who observes a signal, by dynamic programming.

    The value per unit J / q is interpolated by cubic splines in m, on uniform nodes, and by parabolas in
    sqrt(q). Variance is constant at theta, whatever its cv.

    Parameters
    ----------
    market, order : Market, Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.
    inventory_nodes, signal_nodes : int
        Nodes of the grid on each axis, at least four.

    Returns
    -------
    flowoe_lib.policies.dynamic_programming.Optimum
        The policy, and ``value_bps``, the expected utility of the order in bps.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, no signal, hidden
        drift, random depth or regimes.

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
    require_grid(n_buckets, inventory_nodes, signal_nodes)
    market, order = one_condition(market, order)
    _require_signal(market)
    dt = 1 / n_buckets
    decay, gain = torch.exp(-market.signal.reversion * dt), dt * market.signal.mean_ahead(0, dt)
    gains, variances = kalman(market.signal, n_buckets)
    shocks = (gains * variances).sqrt()
    # The estimate is most dispersed at the close.
    estimated = market.signal.sd.square() - variances * (1 - gains)
    half_width = BELIEF_SDS * float(estimated.amax().sqrt())
    m = half_width * torch.linspace(-1, 1, signal_nodes, dtype=torch.float64)
    normal, weights = normal_rule(101)
    drift = gain * m[:, None] + order.side * market.drift * dt
    risk = order.risk_aversion * 1e8 * market.heston.theta * dt

    def step(k: int) -> Tensor:
        return expectation(m, decay * m[:, None] + shocks[k + 1] * normal, weights)

    start, places = expectation(m, shocks[0] * normal[None], weights), partial(_place_of_signal, half_width)
    return solve_estimate(market, order, n_buckets, inventory_nodes, drift, risk, step, start, places)


def _require_signal(market: Market) -> None:
    if not market.signal.present:
        raise ValueError("Signal.sd = 0: must be > 0, for there to be a signal")
    if market.drift_sd > 0 or market.liquidity.depth_sd > 0 or market.regimes.present:
        raise ValueError("Market: must have no hidden drift, constant depth and no regimes beside a signal")


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
        For a batch of conditions, no signal, any other drift, random depth or regimes.

    References
    ----------
    Cartea, Jaimungal (2016), Mathematics and Financial Economics 10; Lehalle, Neuman (2019), "Incorporating
    signals into optimal trading", Finance and Stochastics 23, in continuous time.
    """
    market, order = one_condition(market, order)
    _require_signal(market)
    if market.drift != 0:
        raise ValueError(f"Market.drift = {float(market.drift):g}: must be 0 beside a signal")
    dt = 1 / n_buckets
    pace = order.size / volume_profile(market.liquidity, n_buckets)
    cost = impact_slope(market, pace, n_buckets) * dt ** (market.impact.beta - 1)
    cost = cost.expand(n_buckets)
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
