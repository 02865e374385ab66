"""Backward induction on a grid: quadrature, interpolation and maximisation over the inventory left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.impact import expected_cost_factor, impact_slope, permanent_shift
from flowoe_lib.market.model import Market, Order, volume_profile

__all__ = [
    "Optimum",
    "expectation",
    "interpolate_table",
    "normal_rule",
    "one_condition",
    "peak_between",
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
    jump: float = 1.0
    """Fractions at neighbouring nodes that differ by more are not averaged; no two differ by more than 1."""

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
"""Fractions at neighbouring nodes that differ by more belong to two different local optima.

There are several only where permanent impact is sub-linear."""


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

    ``unit`` [states, inventory] is interpolated by parabolas in sqrt(q') through three nodes; ``cost`` is
    exact. All nodes are compared first, because the problem is not concave under sub-linear permanent impact;
    then the two cells beside the best node are searched by halving.
    """
    n = unit.shape[-1]
    nodes = torch.arange(n)
    q = (nodes.double() / (n - 1)).square()
    sold = q[:, None] - q
    worth = (q * unit[:, None] - cost(q, sold.clamp_min(0))).masked_fill(sold < 0, -torch.inf)
    value, best = worth.max(-1)

    centre = best.clamp(1, n - 2)
    before, here, after = (unit.gather(1, centre + shift) for shift in (-1, 0, 1))
    tilt, bend = (after - before) / 2, (after + before) / 2 - here

    def refined(offset: Tensor) -> tuple[Tensor, Tensor]:
        left = ((centre + offset) / (n - 1)).square().clamp_max(q)
        sold = (q - left)[:, None]
        return left * (here + offset * (tilt + offset * bend)) - cost(left[:, None], sold)[:, 0], left

    low, high = (best - 1).clamp_min(0) - centre, torch.minimum(best + 1, nodes) - centre
    highest = peak_between(lambda offset: refined(offset)[0], low.double(), high.double(), HALVINGS)
    peak, left = refined(highest)
    return torch.maximum(value, peak), torch.where(peak > value, left, q[best])


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
    cost_multiplier: Tensor | None = None,
) -> Optimum:
    """Solve Bellman's equation from the close back to the open, in inventory and the states of the market.

    ``gain`` and ``risk`` of holding the order through a bucket are [] or [states, 1], and so is
    ``cost_multiplier`` of temporary impact in each bucket, [N or 1, states, 1]; by default it is that of a
    fixed schedule. ``step(k)`` maps f on the states to its conditional expectation one bucket later,
    [states, states], ``start`` to its expectation at the open, [1, states]. The table of the policy is
    [N - 1, inventory, states]; ``places`` locates an observation on the axes after inventory. Raises
    ValueError for impact with memory, whose state has a solver of its own. Source: Bellman (1957).
    """
    if market.impact.has_memory:
        raise ValueError(f"Impact.resilience = {float(market.impact.resilience):g}: must be infinite")
    dt, beta = 1 / n_buckets, market.impact.beta
    pace = order.size / volume_profile(market.liquidity, n_buckets)
    if cost_multiplier is None:
        cost_multiplier = expected_cost_factor(market).expand_as(start.T)
    slope = (impact_slope(market, pace, n_buckets).reshape(-1, 1, 1) * cost_multiplier)[..., None]

    def cost(k: int, left: Tensor, sold: Tensor) -> Tensor:
        shift = permanent_shift(market, order.size, sold, dt)
        return slope[k] * sold ** (1 + beta) + shift * (left + sold / 2)

    q = torch.linspace(0, 1, inventory_nodes, dtype=torch.float64).square()
    value = -cost(n_buckets - 1, torch.zeros_like(q), q)[:, 0]
    limit = torch.zeros_like(value[:, :1])
    table = value.new_empty(n_buckets - 1, *value.shape)
    for k in reversed(range(n_buckets - 1)):
        unit = gain - risk * q + step(k) @ torch.cat((limit, value[:, 1:] / q[1:]), 1)
        value, left = maximise(unit, partial(cost, k))
        # As q -> 0 trading is free: keep a remainder only if its continuation value is positive.
        limit = unit[:, :1].clamp_min(0)
        table[k, :, 1:] = 1 - left[:, 1:] / q[1:]
        table[k, :, 0] = table[k, :, 1]
    jump = JUMP if market.impact.delta < 1 else 1.0
    return Optimum(table.mT, places, float(start[0] @ value[:, -1]), jump)
