"""Schedules fixed before the open: TWAP, VWAP and the static optimum under concave impact."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.batching import align, map_tensors
from flowoe_lib.market.impact import impact_path, permanent_shift, planned_slope, temporary_cost
from flowoe_lib.market.model import Condition, Market, Order
from flowoe_lib.market.pre_trade import urgency
from flowoe_lib.policies.dynamic_programming import State, interpolate_table
from flowoe_lib.policies.trajectory import best_trades

CUTS, ROUNDS = 64, 34
"""The bracket of the root is divided by 64, 34 times: the marginal cost at the end of an urgent order is as
small as 2^-200 of the first bracket."""


GRID = 161, 61
"""Nodes of inventory and, with memory, of impact, for the optimum under sub-linear permanent impact."""


@dataclass(frozen=True)
class Schedule:
    """A policy that follows a fixed schedule of inventory."""

    inventory: Tensor
    """Planned q_0 = 1 to q_N = 0, [N + 1] or [N + 1, paths]."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Planned trade over planned inventory, [paths]; it applies from any inventory."""
        now, after = self.inventory[obs.k], self.inventory[obs.k + 1]
        return (1 - after / now.clamp_min(1e-30)).clamp(0, 1).to(noise.dtype).expand_as(noise)


@dataclass(frozen=True)
class EstimatedSchedule:
    """A policy that follows the schedule for the urgency estimated on each path.

    Conditions that differ only in volatility, illiquidity, size and risk aversion share one family of
    schedules, indexed by :func:`flowoe_lib.market.pre_trade.urgency` and interpolated linearly.
    """

    log_urgency: Tensor
    """Uniform nodes of log urgency, [members]."""
    inventory: Tensor
    """Planned q_0 = 1 to q_N = 0 of each member, [N + 1, members]."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Planned trade over planned inventory, [paths]."""
        nodes = self.log_urgency
        place = (obs.pre_trade.urgency.clamp_min(1e-9).log().double() - nodes[0]) / (nodes[1] - nodes[0])
        place = place.clamp(0, len(nodes) - 1)
        below = place.long().clamp_max(len(nodes) - 2)
        plans = self.inventory[obs.k : obs.k + 2]
        plan = torch.lerp(plans[:, below], plans[:, below + 1], place - below)
        return (1 - plan[1] / plan[0].clamp_min(1e-30)).clamp(0, 1).to(noise.dtype).expand_as(noise)

    @classmethod
    def around(
        cls, schedule: Callable[[Market, Order, int], Schedule], condition: Condition, n_buckets: int
    ) -> "EstimatedSchedule":
        """Solve ``schedule`` for urgencies from a fifth to five times that of the condition."""
        factors = torch.linspace(-math.log(5), math.log(5), 33, dtype=torch.float64)
        market, order = align(condition.market, condition.order)
        lifted = replace(order, risk_aversion=order.risk_aversion * factors.exp())
        plans = schedule(market, lifted, n_buckets).inventory
        return cls(urgency(market, order).clamp_min(1e-9).log() + factors, plans)


def twap(obs: Observation, noise: Tensor) -> Tensor:
    """Trade an equal amount in each of the remaining buckets: the time-weighted average price (TWAP).

    Parameters
    ----------
    obs : flowoe_lib.execution.execution.Observation
        What the trader observes at the start of the bucket.
    noise : Tensor, [paths]
        Not used, apart from its shape.

    Returns
    -------
    Tensor, [paths]
        Fraction of the remaining inventory to trade, 1 / (number of remaining buckets).

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> days = fo.simulate(market, 1_000, 39, fo.generator(1, "days"))
    >>> done = fo.execute(fo.twap, days, market, order, fo.generator(1, "noise"))
    >>> round(done.utility_bps(order).mean().item(), 1)
    -26.2
    """
    return torch.full_like(noise, 1 / (obs.n_buckets - obs.k))


def vwap(obs: Observation, noise: Tensor) -> Tensor:
    """Trade in proportion to the forecast of volume: the volume-weighted average price (VWAP).

    Parameters
    ----------
    obs : flowoe_lib.execution.execution.Observation
        What the trader observes at the start of the bucket.
    noise : Tensor, [paths]
        Not used, apart from its shape.

    Returns
    -------
    Tensor, [paths]
        Fraction of the remaining inventory to trade.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> days = fo.simulate(market, 1_000, 39, fo.generator(1, "days"))
    >>> done = fo.execute(fo.policies.schedules.vwap, days, market, order, fo.generator(1, "noise"))
    >>> round(done.inventory[20, 0].item(), 3)
    0.487
    """
    left = obs.volume[obs.k :]
    return (left[0] / left.sum(0)).expand_as(noise)


def expected_cost(market: Market, order: Order, inventory: Tensor) -> Tensor:
    """Exact -E[P&L] of a schedule, bps, for ``inventory`` [N + 1, ...].

    Depth follows its stationary lognormal law, which gives E[L^-beta] in closed form.
    """
    market, order = align(market, order, inventory.shape[1:])
    n = len(inventory) - 1
    traded, left = -inventory.diff(dim=0), inventory[1:]
    dt, beta = 1 / n, market.impact.beta
    slope = planned_slope(market, order, n)
    impact = impact_path(traded, torch.exp(-market.impact.resilience * dt), torch.zeros_like(beta))
    permanent = permanent_shift(market, order.size, traded, dt) * (left + traded / 2)
    temporary = slope * temporary_cost(impact[:-1], traded.clamp_min(0), beta)
    return (temporary + permanent - order.side * market.drift * dt * left).sum(0)


def expected_risk(market: Market, inventory: Tensor) -> Tensor:
    """Exact E[sum_k q_{k+1}^2 1e8 int V ds] of a schedule, bps^2: the variance of P&L without drift."""
    return 1e8 * market.heston.theta / (len(inventory) - 1) * inventory[1:].square().sum(0)


def expected_utility(market: Market, order: Order, inventory: Tensor) -> Tensor:
    """Exact E[P&L] - lambda E[risk] of a schedule, bps, for ``inventory`` [N + 1, ...]."""
    return -expected_cost(market, order, inventory) - order.risk_aversion * expected_risk(market, inventory)


def static_optimal(market: Market, order: Order, n_buckets: int) -> Schedule:
    """Solve for the best fixed schedule under concave temporary impact.

    With linear permanent impact the first-order conditions link neighbouring buckets,
    M_j - M_{j+1} = 2 R q_{j+1} - mu dt with M_j = (1 + beta) slope_j a_j^beta and R = lambda 1e8 theta dt.
    The marginal cost M of the last bucket therefore determines the whole schedule; the value under which the
    schedule sells exactly the order is found by bracketing. Under impact with memory
    :func:`flowoe_lib.policies.trajectory.best_trades` finds it. Sub-linear permanent impact makes the problem
    non-convex; dynamic programming on a grid of inventory, and of impact where it has memory, then finds the
    best of its local optima.

    Parameters
    ----------
    market : Market
        Fields of shape [] or [conditions].
    order : Order
        Fields of shape [] or [conditions].
    n_buckets : int
        Number of buckets N of the day.

    Returns
    -------
    flowoe_lib.policies.schedules.Schedule
        Inventory in fractions of the order, [N + 1, ...], float64.

    References
    ----------
    Almgren (2003), "Optimal execution with nonlinear impact functions and trading-enhanced risk", Applied
    Mathematical Finance 10, generalised to a volume profile, random depth and drift.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> [round(q, 2) for q in fo.static_optimal(market, order, 4).inventory.tolist()]
    [1.0, 0.53, 0.28, 0.12, 0.0]
    """
    market, order = align(market, order)
    dt, beta = 1 / n_buckets, market.impact.beta
    slope = planned_slope(market, order, n_buckets)
    risk = order.risk_aversion * 1e8 * market.heston.theta * dt
    drift = order.side * market.drift * dt

    if market.impact.has_memory:
        decay, whole = torch.exp(-market.impact.resilience * dt), torch.ones_like(risk)
        pull, gain = (x + torch.zeros_like(slope) for x in (2 * risk, drift))
        traded = best_trades(slope, decay, beta, pull, gain, whole, torch.zeros_like(whole))
        inventory = torch.cat((whole[None], 1 - traded.cumsum(0)))
        inventory[-1] = 0
    else:
        inventory = _without_memory(slope, beta, risk, drift)
    columns = inventory.reshape(n_buckets + 1, -1)
    for i in (market.impact.delta < 1).flatten().nonzero().flatten().tolist():
        one, its = (map_tensors(lambda x, i=i: x.flatten()[i], part) for part in (market, order))
        columns[:, i] = _best_on_grid(one, its, n_buckets)
    return Schedule(inventory)


def _without_memory(slope: Tensor, beta: Tensor, risk: Tensor, drift: Tensor) -> Tensor:
    """Inventory [N + 1, ...] of the best schedule without memory, by bracketing the last marginal cost."""
    n_buckets = len(slope)

    def backwards(marginal: Tensor) -> Tensor:
        left = [torch.zeros_like(marginal)]
        for k in reversed(range(n_buckets)):
            traded = (marginal.clamp_min(0) / ((1 + beta) * slope[k])) ** (1 / beta)
            left.append(left[-1] + traded)
            marginal = marginal + 2 * risk * left[-1] - drift
        return torch.stack(left[::-1])

    reach = n_buckets * drift.abs()
    low, high = -reach, (1 + beta) * slope.amax(0) + reach
    cuts = torch.linspace(0, 1, CUTS + 1, dtype=low.dtype).reshape(-1, *[1] * low.dim())
    for _ in range(ROUNDS):
        trial = low + (high - low) * cuts
        first = (backwards(trial)[0] < 1).sum(0, keepdim=True).clamp(1, CUTS)
        low, high = (trial.gather(0, place)[0] for place in (first - 1, first))
    inventory = backwards(high)
    return inventory / inventory[0]


def _best_on_grid(market: Market, order: Order, n_buckets: int) -> Tensor:
    """Inventory [N + 1] of the best schedule, with errors of the grid; market and order have shape []."""
    dt, one = 1 / n_buckets, torch.ones(1, 1, dtype=torch.float64)
    gain, risk = order.side * market.drift * dt, order.risk_aversion * 1e8 * market.heston.theta * dt
    alone = State(gain, risk, lambda k: one, one, lambda obs: ())
    optimum = alone.solve(market, order, n_buckets, *GRID)
    decay = torch.exp(-market.impact.resilience * dt)
    left, impact = [one[0]], torch.zeros_like(one[0])
    for fraction in optimum.fraction[..., 0]:
        held = left[-1]
        places = held.sqrt(), (impact / (1 - held).clamp_min(1e-12)).sqrt()
        traded = held * interpolate_table(fraction, places[: fraction.dim()], optimum.jump)
        left.append(held - traded)
        impact = (impact + traded) * decay
    return torch.cat([*left, torch.zeros_like(left[0])])
