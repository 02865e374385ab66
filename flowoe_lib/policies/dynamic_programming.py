"""Backward induction on a grid: quadrature, interpolation and maximisation over the inventory left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.impact import impact_slope, permanent_shift
from flowoe_lib.market.model import Market, Order, volume_profile

__all__ = [
    "Optimum",
    "backward_induction",
    "expectation",
    "interpolate_table",
    "normal_rule",
    "one_condition",
    "peak_between",
    "policy_jump",
    "require_grid",
    "solve_estimate",
    "steady_condition",
]


@dataclass(frozen=True)
class Optimum:
    """The optimal policy of one condition, as a table over the state, and its value.

    A :class:`flowoe_lib.execution.execution.Policy`. It uses the market for which it was solved and ignores
    the market estimates in the observation.
    """

    fraction: Tensor
    """Fraction of the remaining inventory to trade, [N - 1, inventory, ...], float64. Nodes are uniform in
    sqrt(q) from 0 to 1, and in each of ``places`` from 0 to 1."""
    places: Callable[[Observation], tuple[Tensor, ...]]
    """Where an observation is on each axis of the table after inventory, from 0 (first node) to 1 (last)."""
    value_bps: float
    """Expected utility of the order under the stationary law of the state, bps."""
    jump: float = torch.inf
    """Fractions at neighbouring nodes that differ by more are not averaged."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Interpolate the table at bucket ``obs.k``, [paths]; ``noise`` is not used.

        Raises ValueError if the day has another number of buckets.
        """
        if obs.n_buckets != len(self.fraction) + 1:
            raise ValueError(f"n_buckets = {obs.n_buckets}: must be {len(self.fraction) + 1}, as solved for")
        table = self.fraction[obs.k].to(obs.inventory)
        return interpolate_table(table, (obs.inventory.sqrt(), *self.places(obs)), self.jump).clamp(0, 1)


HALVINGS = 9
"""Halvings of the two cells around the best node; the error of the value is quadratic in the last width."""


JUMP = 0.25
"""Fractions at neighbouring nodes that differ by more belong to two different local optima."""


def policy_jump(market: Market) -> float:
    """The jump for :func:`interpolate_table`: below 1 where permanent impact allows several optima."""
    return JUMP if float(market.impact.delta) < 1 else 1.0


def interpolate_table(table: Tensor, places: Sequence[Tensor], jump: float = torch.inf) -> Tensor:
    """Multilinear interpolation of ``table`` at ``places``, one tensor [paths] for each axis.

    Nodes are uniform over [0, 1]; outside it the table is constant. In a cell whose corners differ by more
    than ``jump`` the nearest corner is used, because the average of two optimal trades need not be optimal.
    Returns [paths].
    """
    corners = [(torch.ones_like(places[0]), torch.zeros_like(places[0], dtype=torch.long))]
    for place, nodes in zip(places, table.shape, strict=True):
        at = place.clamp(0, 1) * (nodes - 1)
        low = at.long()
        share = at - low
        sides = ((1 - share, low), (share, (low + 1).clamp(max=nodes - 1)))
        corners = [(w * part, i * nodes + node) for w, i in corners for part, node in sides]
    flat = table.flatten()
    weights, corner = (torch.stack(part) for part in zip(*corners, strict=True))
    values = flat[corner]
    nearest = values.gather(0, weights.argmax(0, keepdim=True))[0]
    split = values.amax(0) - values.amin(0) > jump
    return torch.where(split, nearest, (weights * values).sum(0))


def one_condition(market: Market, order: Order) -> tuple[Market, Order]:
    """Convert both to float64 on the CPU without gradients; ValueError unless every field has shape []."""

    def single(field: Tensor) -> Tensor:
        if field.dim():
            raise ValueError(f"a field has shape {list(field.shape)}: must be one condition, shape []")
        return field.detach().double().cpu()

    return map_tensors(single, market), map_tensors(single, order)


def steady_condition(market: Market, order: Order) -> tuple[Market, Order]:
    """:func:`one_condition`; ValueError if depth is random or there are regimes."""
    market, order = one_condition(market, order)
    if market.liquidity.depth_sd > 0:
        raise ValueError(f"Liquidity.depth_sd = {float(market.liquidity.depth_sd):g}: must be 0")
    if market.regimes.present:
        raise ValueError("Market.regimes: must be absent")
    return market, order


def require_grid(n_buckets: int, *nodes: int) -> None:
    """Raise ValueError unless there is a bucket, and at least four ``nodes`` on every axis."""
    if n_buckets < 1 or min(nodes) < 4:
        grid = " x ".join(map(str, nodes))
        raise ValueError(f"{n_buckets} buckets, {grid} nodes: must be at least 1, and 4 an axis")


def normal_rule(draws: int) -> tuple[Tensor, Tensor]:
    """Points and weights of the trapezoid rule for expectations over a standard normal, each [draws]."""
    normal = torch.linspace(-8, 8, draws, dtype=torch.float64)
    return normal, torch.softmax(-normal.square() / 2, 0)


def expectation(nodes: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The matrix [rows, nodes] that maps f on ``nodes`` to sum_d weights_d f(points_d), points [rows, draws].

    f is interpolated by a cubic spline, exact for linear functions, so means are preserved. Outside the
    nodes it is extrapolated linearly.
    """
    if len(nodes) == 1:
        return nodes.new_ones(len(points), 1)
    spline = CubicSpline(nodes.numpy(), torch.eye(len(nodes)).numpy())
    inside = points.clamp(nodes[0], nodes[-1])
    beyond = (points - inside)[..., None] * torch.from_numpy(spline(inside.numpy(), 1))
    return weights @ (torch.from_numpy(spline(inside.numpy())) + beyond)


def peak_between(f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, halvings: int) -> Tensor:
    """Where ``f``, which rises and then falls, is highest between ``low`` and ``high``, by halving."""
    for _ in range(halvings):
        middle, nudge = (low + high) / 2, (high - low) / 50
        rising = f(middle + nudge) > f(middle - nudge)
        low, high = torch.where(rising, middle - nudge, low), torch.where(rising, high, middle + nudge)
    return (low + high) / 2


def maximise(unit: Tensor, cost: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Maximise q' unit(q') - cost(q', q - q') over 0 <= q' <= q at each node q; returns maximum and q'.

    ``unit`` [inventory, state, state] is interpolated by parabolas in sqrt(q') through three nodes; ``cost``
    is exact. All nodes are compared first, because the problem is not concave under sub-linear permanent
    impact; then the two cells beside the best node are searched by halving.
    """
    n = len(unit)
    rows = torch.arange(n).reshape(-1, 1, 1)
    q = (rows.double() / (n - 1)).square()
    sold = q[:, None] - q
    worth = (q * unit - cost(q, sold.clamp_min(0))).masked_fill(sold < 0, -torch.inf)
    value, best = worth.max(1)

    centre = best.clamp(1, n - 2)
    before, here, after = (unit.gather(0, centre + shift) for shift in (-1, 0, 1))
    tilt, bend = (after - before) / 2, (after + before) / 2 - here

    def refined(offset: Tensor) -> tuple[Tensor, Tensor]:
        left = ((centre + offset) / (n - 1)).square().clamp_max(q)
        return left * (here + offset * (tilt + offset * bend)) - cost(left, q - left), left

    low, high = ((best - 1).clamp_min(0) - centre).double(), (torch.minimum(best + 1, rows) - centre).double()
    peak, left = refined(peak_between(lambda offset: refined(offset)[0], low, high, HALVINGS))
    return torch.maximum(value, peak), torch.where(peak > value, left, q.flatten()[best])


def backward_induction(
    market: Market,
    order: Order,
    n_buckets: int,
    inventory_nodes: int,
    cost_multiplier: Tensor,
    carry: Callable[[int, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Solve Bellman's equation from the close back to the open, in inventory and two state variables.

    ``cost_multiplier`` [N, state, state] multiplies temporary impact. ``carry(k, q, ahead)`` is the value per
    unit of inventory before the price move of bucket k, if q [inventory, 1, 1] is held through it and
    ``ahead`` is the value per unit after it; both values are [inventory, state, state]. Returns the value of
    the whole order, bps, [state, state], and the fraction of the remaining inventory to trade,
    [N - 1, inventory, state, state], on nodes uniform in sqrt(q). Raises ValueError for impact with memory,
    whose state has a solver of its own. Source: Bellman (1957).
    """
    if market.impact.has_memory:
        raise ValueError(f"Impact.resilience = {float(market.impact.resilience):g}: must be infinite")
    dt, beta = 1 / n_buckets, market.impact.beta
    pace = order.size / volume_profile(market.liquidity, n_buckets)
    slope = impact_slope(market, pace, n_buckets)

    def cost(k: int, left: Tensor, sold: Tensor) -> Tensor:
        shift = permanent_shift(market, order.size, sold, dt)
        return slope[k] * cost_multiplier[k] * sold ** (1 + beta) + shift * (left + sold / 2)

    q = torch.linspace(0, 1, inventory_nodes, dtype=torch.float64).square().reshape(-1, 1, 1)
    value = -cost(n_buckets - 1, torch.zeros_like(q), q)
    limit = torch.zeros_like(value[:1])
    table = value.new_empty(n_buckets - 1, *value.shape)
    for k in reversed(range(n_buckets - 1)):
        unit = carry(k, q, torch.cat((limit, value[1:] / q[1:])))
        value, left = maximise(unit, partial(cost, k))
        # As q -> 0 trading is free: keep a remainder only if its continuation value is positive.
        limit = unit[:1].clamp_min(0)
        table[k, 1:] = 1 - left[1:] / q[1:]
        table[k, 0] = table[k, 1]
    return value[-1], table


def solve_estimate(
    market: Market,
    order: Order,
    n_buckets: int,
    inventory_nodes: int,
    gain: Tensor,
    risk: Tensor,
    step: Callable[[int], Tensor],
    start: Tensor,
    places: Callable[[Observation], tuple[Tensor, ...]],
) -> Optimum:
    """Solve for the optimal policy in inventory and an estimate, on which impact does not depend.

    ``gain`` and ``risk`` of holding the order through a bucket are [] or [nodes, 1]. ``step(k)`` maps f on
    the nodes of the estimate to its conditional expectation one bucket later, [nodes, nodes], ``start`` to
    its expectation at the open, [1, nodes].
    """

    def carry(k: int, q: Tensor, ahead: Tensor) -> Tensor:
        return gain - risk * q + step(k) @ ahead

    unchanged = torch.ones_like(start.T).expand(n_buckets, -1, -1)
    value, table = backward_induction(market, order, n_buckets, inventory_nodes, unchanged, carry)
    return Optimum(table[..., 0], places, float(start[0] @ value[:, 0]), policy_jump(market))
