"""Schedules fixed before the open: by the clock, by volume, or at the optimum of cost and risk."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.batching import align
from flowoe_lib.market.impact import expected_depth_cost, permanent_shift
from flowoe_lib.market.model import Condition, Market, Order, volume_profile
from flowoe_lib.market.pre_trade import urgency

__all__ = [
    "EstimatedSchedule",
    "Schedule",
    "expected_cost",
    "expected_risk",
    "expected_utility",
    "static_optimal",
    "twap",
    "vwap",
]


CUTS, ROUNDS = 64, 34
"""The bracket is cut in 64 and narrowed to one part, 34 times: an urgent order's last marginal cost is
so close to zero that only some 2^-200 of the first bracket holds it apart."""


@dataclass(frozen=True)
class Schedule:
    """Trade the same share of what is left in each bucket on every path."""

    inventory: Tensor
    """Planned q_0 = 1 to q_N = 0, [N + 1] or [N + 1, paths]."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Planned trade over planned inventory, so a schedule joined midway keeps its shape."""
        now, after = self.inventory[obs.k], self.inventory[obs.k + 1]
        return (1 - after / now.clamp_min(1e-30)).clamp(0, 1).to(noise.dtype).expand_as(noise)


@dataclass(frozen=True)
class EstimatedSchedule:
    """The schedule for the urgency that the pre-trade estimates of each path say.

    Conditions that differ in volatility, illiquidity, size and risk aversion alone share one family of
    schedules, ordered by :func:`flowoe_lib.market.pre_trade.urgency`; it is interpolated linearly.
    """

    log_urgency: Tensor
    """Uniform, [members]."""
    inventory: Tensor
    """Planned q_0 = 1 to q_N = 0 of each member, [N + 1, members]."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Planned trade over planned inventory, [paths]."""
        nodes = self.log_urgency
        place = (obs.pre_trade.urgency.clamp_min(1e-9).log().double() - nodes[0]) / (nodes[1] - nodes[0])
        place = place.clamp(0, len(nodes) - 1)
        below = place.long().clamp_max(len(nodes) - 2)
        now, after = (
            torch.lerp(plan[below], plan[below + 1], place - below)
            for plan in self.inventory[obs.k : obs.k + 2]
        )
        return (1 - after / now.clamp_min(1e-30)).clamp(0, 1).to(noise.dtype).expand_as(noise)

    @classmethod
    def around(
        cls, schedule: Callable[[Market, Order, int], Schedule], condition: Condition, n_buckets: int
    ) -> "EstimatedSchedule":
        """The family of ``schedule`` for urgencies up to five times the condition's, and down to a fifth."""
        factors = torch.linspace(-math.log(5), math.log(5), 33, dtype=torch.float64)
        market, order = align(condition.market, condition.order)
        lifted = replace(order, risk_aversion=order.risk_aversion * factors.exp())
        plans = schedule(market, lifted, n_buckets).inventory
        return cls(urgency(market, order).clamp_min(1e-9).log() + factors, plans)


def twap(obs: Observation, noise: Tensor) -> Tensor:
    """Time-weighted average price: an equal share of the rest in each bucket left."""
    return torch.full_like(noise, 1 / (obs.n_buckets - obs.k))


def vwap(obs: Observation, noise: Tensor) -> Tensor:
    """Volume-weighted average price: trade in proportion to the forecast volume profile."""
    left = obs.volume[obs.k :]
    return (left[0] / left.sum(0)).expand_as(noise)


def expected_cost(market: Market, order: Order, inventory: Tensor) -> Tensor:
    """Exact -E[P&L] of a schedule, bps, for ``inventory`` [N + 1, ...].

    Depth is at its stationary law, so E[L^-beta] is that of a lognormal.
    """
    market, order = align(market, order, inventory.shape[1:])
    n = len(inventory) - 1
    traded, left = -inventory.diff(dim=0), inventory[1:]
    dt, beta = 1 / n, market.impact.beta
    pace = order.size / volume_profile(market.liquidity, n)
    slope = market.temporary_cost_bps(pace) * expected_depth_cost(market) * dt ** (-beta)
    permanent = permanent_shift(market, order.size, traded, dt) * (left + traded / 2)
    temporary = slope * traded.clamp_min(0) ** (1 + beta)
    return (temporary + permanent - order.side * market.drift * dt * left).sum(0)


def expected_risk(market: Market, inventory: Tensor) -> Tensor:
    """Exact E[sum_k q_{k+1}^2 1e8 int V ds] of a schedule, bps^2; its root is the sd of driftless P&L."""
    return 1e8 * market.heston.theta / (len(inventory) - 1) * inventory[1:].square().sum(0)


def expected_utility(market: Market, order: Order, inventory: Tensor) -> Tensor:
    """Exact E[P&L] - lambda E[risk] of a schedule, bps, for ``inventory`` [N + 1, ...]."""
    return -expected_cost(market, order, inventory) - order.risk_aversion * expected_risk(market, inventory)


def static_optimal(market: Market, order: Order, n_buckets: int) -> Schedule:
    """Best schedule under concave temporary impact, Almgren (2003) generalised, in float64.

    Fields of ``market`` and ``order`` of shape [] or [conditions]; the schedule is [N + 1, ...].
    With linear permanent impact the first-order conditions link neighbouring buckets,
    M_j - M_{j+1} = 2 R q_{j+1} - mu dt with M_j = (1 + beta) slope_j a_j^beta, so the last bucket's
    marginal cost M determines the whole schedule, and the one that sells exactly the order is bracketed.
    Sub-linear permanent impact makes the problem non-convex: it is then descended on from there, to
    a local optimum.
    """
    market, order = align(market, order)
    dt, beta = 1 / n_buckets, market.impact.beta
    pace = order.size / volume_profile(market.liquidity, n_buckets)
    slope = market.temporary_cost_bps(pace) * expected_depth_cost(market) * dt ** (-beta)
    risk = order.risk_aversion * 1e8 * market.heston.theta * dt
    drift = order.side * market.drift * dt

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
    inventory = inventory / inventory[0]
    if bool((market.impact.delta < 1).any()):
        inventory = _descend(market, order, inventory)
    return Schedule(inventory)


def _descend(market: Market, order: Order, inventory: Tensor) -> Tensor:
    """Local optimum of :func:`expected_utility` near ``inventory``, over softmax shares."""
    logits = (-inventory.diff(dim=0)).clamp_min(1e-9).log().requires_grad_()

    def planned() -> Tensor:
        traded = torch.softmax(logits, 0)
        return torch.cat(
            (torch.ones_like(traded[:1]), 1 - traded.cumsum(0)[:-1], torch.zeros_like(traded[:1]))
        )

    search = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = -expected_utility(market, order, planned()).sum()
        value.backward()
        return value

    search.step(loss)
    return planned().detach()
