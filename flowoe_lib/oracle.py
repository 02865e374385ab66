"""The best that a policy can do: backward induction on time, inventory, variance, and depth or regime.

U = E[P&L] - lambda E[sum_k q_{k+1}^2 1e8 int V ds] is additive over buckets, so its optimum over policies
that only sell and know their condition solves Bellman's equation. With q' = q - a what a trade leaves,

    J_k(q, V, L) = max_{0 <= q' <= q}  q' mu dt - lambda 1e8 q'^2 E[int V ds | V]
                   - a h_k(a, L) - g(a) (q' + a / 2) + E[J_{k+1}(q', V', L') | V, L],

h the temporary and g the permanent impact; a regime stands where depth does. Source: Bellman (1957),
Dynamic Programming; Almgren (2012), SIAM Journal on Financial Mathematics 3, for execution under random
volatility and liquidity.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.interpolate import CubicSpline
from scipy.special import gammainccinv, ndtr
from torch import Tensor

from flowoe_lib.execution import Observation
from flowoe_lib.market import Market, Order, map_tensors, permanent_shift, volume_profile
from flowoe_lib.simulator import VarianceStep, qe_variance_step

__all__ = [
    "Oracle",
    "backward_induction",
    "capture_interval",
    "expectation",
    "interpolate_table",
    "maximise",
    "normal_rule",
    "one_condition",
    "solve",
]

VARIANCE_TAIL = 1e-6
"""Chance that the stationary variance lies beyond the grid, where the value is continued linearly."""
DEPTH_REACH = 4.0
"""Log depth is gridded over this many standard deviations either side."""
HALVINGS = 9
"""Halvings of the two cells around the best node; the value errs by the square of what remains."""


def interpolate_table(table: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Multilinear interpolation of ``table``, one axis a place, at ``places`` from 0 to 1, each [paths].

    Nodes are uniform over [0, 1], beyond which the table is constant. Shape [paths].
    """
    corners = [(torch.ones_like(places[0]), torch.zeros_like(places[0], dtype=torch.long))]
    for place, nodes in zip(places, table.shape, strict=True):
        at = place.clamp(0, 1) * (nodes - 1)
        low = at.long()
        share = at - low
        sides = ((1 - share, low), (share, (low + 1).clamp(max=nodes - 1)))
        corners = [(w * part, i * nodes + node) for w, i in corners for part, node in sides]
    flat = table.flatten()
    return torch.stack([w * flat[i] for w, i in corners]).sum(0)


@dataclass(frozen=True)
class Oracle:
    """The optimal policy of one condition, and what it is worth.

    Follows :class:`flowoe_lib.execution.Policy`. It knows the market it was solved for and disregards
    what the observation says of it.
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

    def __call__(self, seen: Observation, noise: Tensor) -> Tensor:
        """The table at bucket ``seen.k``, interpolated, [paths]; ``noise`` is not used.

        Raises ValueError on a day of other than N buckets.
        """
        if seen.n_buckets != len(self.fraction) + 1:
            raise ValueError(f"an oracle of {len(self.fraction) + 1} buckets met a day of {seen.n_buckets}")
        first, last = self.depth_ends
        thin = torch.zeros_like(noise)
        if first != last:
            thin = ((first - seen.log_depth) / (first - last)).clamp(0, 1)
        variance = seen.variance / (1 + thin * (self.stressed_variance - 1))
        places = seen.inventory.sqrt(), (variance / self.variance_max).sqrt(), thin
        return interpolate_table(self.fraction[seen.k].to(noise), places).clamp(0, 1)


def one_condition(market: Market, order: Order) -> tuple[Market, Order]:
    """Both in float64 on the CPU, without gradients. Raises ValueError unless every field has shape []."""

    def single(field: Tensor) -> Tensor:
        if field.dim():
            raise ValueError(f"a field has shape {list(field.shape)}: must be one condition, shape []")
        return field.detach().double().cpu()

    return map_tensors(single, market), map_tensors(single, order)


def normal_rule(draws: int) -> tuple[Tensor, Tensor]:
    """Points and weights of the trapezoid rule for expectations over a standard normal, each [draws]."""
    normal = torch.linspace(-8, 8, draws, dtype=torch.float64)
    return normal, torch.softmax(-normal.square() / 2, 0)


def expectation(nodes: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The matrix [rows, nodes] from f on ``nodes`` to sum_d weights_d f(points_d), points [rows, draws].

    f is read off a cubic spline that keeps straight lines, hence means, and is continued linearly.
    """
    if len(nodes) == 1:
        return nodes.new_ones(len(points), 1)
    spline = CubicSpline(nodes.numpy(), torch.eye(len(nodes)).numpy())
    inside = points.clamp(nodes[0], nodes[-1])
    beyond = (points - inside)[..., None] * torch.from_numpy(spline(inside.numpy(), 1))
    return weights @ (torch.from_numpy(spline(inside.numpy())) + beyond)


def maximise(unit: Tensor, cost: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Maximum over 0 <= q' <= q of q' unit(q') - cost(q', q - q') at each node q, and the q' that reaches it.

    ``unit`` [inventory, state, state] is read as a parabola in sqrt(q') through three nodes, ``cost``
    is exact. The best node is found among all, since the problem is not concave under sub-linear
    permanent impact, then the two cells beside it are halved.
    """
    n = len(unit)
    rows = torch.arange(n).reshape(-1, 1, 1)
    held = (rows.double() / (n - 1)).square()
    sold = held[:, None] - held
    worth = (held * unit - cost(held, sold.clamp_min(0))).masked_fill(sold < 0, -torch.inf)
    value, best = worth.max(1)

    centre = best.clamp(1, n - 2)
    before, here, after = (unit.gather(0, centre + shift) for shift in (-1, 0, 1))
    tilt, bend = (after - before) / 2, (after + before) / 2 - here

    def refined(offset: Tensor) -> tuple[Tensor, Tensor]:
        kept = ((centre + offset) / (n - 1)).square().clamp_max(held)
        return kept * (here + offset * (tilt + offset * bend)) - cost(kept, held - kept), kept

    low, high = ((best - 1).clamp_min(0) - centre).double(), (torch.minimum(best + 1, rows) - centre).double()
    for _ in range(HALVINGS):
        middle, nudge = (low + high) / 2, (high - low) / 50
        rising = refined(middle + nudge)[0] > refined(middle - nudge)[0]
        low, high = torch.where(rising, middle - nudge, low), torch.where(rising, high, middle + nudge)
    peak, kept = refined((low + high) / 2)
    return torch.maximum(value, peak), torch.where(peak > value, kept, held.flatten()[best])


def backward_induction(
    market: Market,
    order: Order,
    n_buckets: int,
    inventory_nodes: int,
    dear: Tensor,
    carry: Callable[[int, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Bellman's equation solved from the close to the open, in the inventory and two axes of state.

    ``dear`` [state, state] multiplies temporary impact. ``carry(k, q, ahead)`` is what a unit kept through
    bucket k is worth when q [inventory, 1, 1] are kept and units are worth ``ahead`` after it, both worths
    [inventory, state, state]. Returns the value of the whole order, bps, [state, state], and the share of the
    remaining inventory to trade, [N - 1, inventory, state, state], on nodes uniform in sqrt(q). Source:
    Bellman (1957).
    """
    dt, beta = 1 / n_buckets, market.impact.beta
    pace = order.size / volume_profile(market.liquidity, n_buckets)
    slope = market.temporary_cost_bps(pace) * dt ** (-beta)

    def cost(k: int, kept: Tensor, sold: Tensor) -> Tensor:
        shift = permanent_shift(market, order.size, sold, dt)
        return slope[k] * dear * sold ** (1 + beta) + shift * (kept + sold / 2)

    q = torch.linspace(0, 1, inventory_nodes, dtype=torch.float64).square().reshape(-1, 1, 1)
    value = -cost(n_buckets - 1, torch.zeros_like(q), q)
    crumb = torch.zeros_like(value[:1])
    table = value.new_empty(n_buckets - 1, *value.shape)
    for k in reversed(range(n_buckets - 1)):
        unit = carry(k, q, torch.cat((crumb, value[1:] / q[1:])))
        value, kept = maximise(unit, partial(cost, k))
        # A last crumb costs nothing to sell: it stays where that earns more than leaving at once.
        crumb = unit[:1].clamp_min(0)
        table[k, 1:] = 1 - kept[1:] / q[1:]
        table[k, 0] = table[k, 1]
    return value[-1], table


@dataclass(frozen=True)
class _Axis:
    """What moves liquidity, on nodes: random depth, or the regime."""

    depth: Tensor
    """Log depth, [nodes]."""
    dear: Tensor
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
    dear, later, first = (torch.exp(-beta * x) for x in (depth, following, shock[None]))
    step, start = expectation(dear, later, weights), expectation(dear, first, weights)
    return _Axis(depth, dear, torch.ones_like(dear), step, start)


def _regime_axis(market: Market, dt: float) -> _Axis:
    regimes = market.regimes
    if float(market.liquidity.depth_sd):
        raise ValueError("Liquidity.depth_sd > 0 and Market.regimes: must not both be present")
    if float(regimes.cost) == 1:
        raise ValueError("Regimes.cost = 1: must differ from 1, the regime is read off log depth")
    unchanged, share = torch.ones_like(regimes.cost), regimes.stressed_share
    dear = torch.stack((unchanged, regimes.cost))
    chance = torch.stack((*regimes.jump(dt), share))
    law = torch.stack((1 - chance, chance), 1)
    variance = torch.stack((unchanged, regimes.volatility.square()))
    return _Axis(-dear.log() / market.impact.beta, dear, variance, law[:2], law[2:])


def solve(
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
    mean, spread = (moment.repeat_interleave(len(normal)) for moment in step.moments(v))
    next_v = qe_variance_step(mean, spread, normal.repeat(len(v))).reshape(len(v), -1)
    first_v = scale * torch.from_numpy(gammainccinv(shape, ndtr(-normal.numpy())))
    step_v, start_v = expectation(v, next_v, weights), expectation(v, first_v[None], weights)

    by_regime = market.regimes.present
    axis = _regime_axis(market, dt) if by_regime else _depth_axis(market, dt, depth_nodes, normal, weights)
    gain = order.side * market.drift * dt
    risk = order.risk_aversion * 1e8 * step.integral(v)[:, None] * axis.variance

    def carry(k: int, q: Tensor, ahead: Tensor) -> Tensor:
        return gain - risk * q + torch.einsum("qvl,wv,ml->qwm", ahead, step_v, axis.step)

    value, table = backward_induction(
        market, order, n_buckets, inventory_nodes, axis.dear.expand(len(v), -1), carry
    )
    ends = float(axis.depth[0]), float(axis.depth[-1])
    return Oracle(
        table, variance_max, ends, float(axis.variance[-1]), float(start_v[0] @ value @ axis.start[0])
    )


def capture_interval(policy: Tensor, twap: Tensor, oracle: Tensor) -> tuple[float, float, float]:
    """Capture (U_policy - U_TWAP) / (U_oracle - U_TWAP) and the ends of its 95 % interval.

    From utilities of the same paths, bps, [paths]. The interval is the delta method's: the capture errs
    like the mean of (policy - twap) - capture (oracle - twap) over the mean gap. Raises ValueError for
    other shapes, fewer than two paths, or an oracle that does not beat TWAP on them.
    """
    if not (policy.dim() == 1 and policy.shape == twap.shape == oracle.shape and len(policy) > 1):
        shapes = ", ".join(str(list(x.shape)) for x in (policy, twap, oracle))
        raise ValueError(f"utilities of shape {shapes}: must be [paths], the same two or more paths")
    gain, gap = (x.double() - twap.double() for x in (policy, oracle))
    mean_gap = float(gap.mean())
    if not mean_gap > 0:
        raise ValueError(f"oracle - TWAP = {mean_gap:g} bps: must be > 0")
    capture = float(gain.mean()) / mean_gap
    reach = 1.96 * float((gain - capture * gap).std()) / math.sqrt(len(gap)) / mean_gap
    return capture, capture - reach, capture + reach
