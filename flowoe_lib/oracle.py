"""The best that a policy can do: backward induction on time, inventory, variance and depth.

U = E[P&L] - lambda E[sum_k q_{k+1}^2 1e8 int V ds] is additive over buckets, so its optimum over policies
that only sell and know their condition solves Bellman's equation. With q' = q - a what a trade leaves,

    J_k(q, V, L) = max_{0 <= q' <= q}  q' mu dt - lambda 1e8 q'^2 E[int V ds | V]
                   - a h_k(a, L) - g(a) (q' + a / 2) + E[J_{k+1}(q', V', L') | V, L],

h the temporary and g the permanent impact. Source: Bellman (1957), Dynamic Programming; Almgren (2012),
SIAM Journal on Financial Mathematics 3, for execution under random volatility and liquidity.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from scipy.interpolate import CubicSpline
from scipy.special import ndtr
from scipy.stats import gamma
from torch import Tensor

from flowoe_lib.execution import Observation
from flowoe_lib.market import Market, Order, map_tensors, permanent_shift, volume_profile
from flowoe_lib.simulator import VarianceStep, qe_variance_step

__all__ = ["Oracle", "capture_interval", "solve"]

VARIANCE_TAIL = 1e-6
"""Chance that the stationary variance lies beyond the grid, where the value is continued linearly."""
DEPTH_REACH = 4.0
"""Log depth is gridded over this many standard deviations either side."""
HALVINGS = 9
"""Halvings of the two cells around the best node; the value errs by the square of what remains."""


@dataclass(frozen=True)
class Oracle:
    """The optimal policy of one condition, and what it is worth.

    Follows :class:`flowoe_lib.execution.Policy`. It knows the market it was solved for and disregards
    what the observation says of it.
    """

    fraction: Tensor
    """Share of the remaining inventory to trade, [N - 1, inventory, variance, depth], float64, on nodes
    uniform in sqrt(q) from 0 to 1, in sqrt(V) from 0, and in l from the deepest to the thinnest."""
    variance_max: float
    """Last node of variance, per day."""
    depth_max: float
    """First node of log depth, the last being its negative; zero where depth is constant."""
    value_bps: float
    """Expected utility of the whole order, from the stationary law of variance and depth."""

    def __call__(self, seen: Observation, noise: Tensor) -> Tensor:
        """Multilinear interpolation of the table at bucket ``seen.k``, [paths]; ``noise`` is not used.

        Raises ValueError on a day of other than N buckets.
        """
        if seen.n_buckets != len(self.fraction) + 1:
            raise ValueError(f"an oracle of {len(self.fraction) + 1} buckets met a day of {seen.n_buckets}")
        table = self.fraction[seen.k].to(noise)
        shallow = (1 - seen.log_depth / self.depth_max) / 2 if self.depth_max else torch.zeros_like(noise)
        corners = [(torch.ones_like(noise), torch.zeros_like(noise, dtype=torch.long))]
        places = seen.inventory.sqrt(), (seen.variance / self.variance_max).sqrt(), shallow
        for place, nodes in zip(places, table.shape, strict=True):
            at = place.clamp(0, 1) * (nodes - 1)
            low = at.long()
            share = at - low
            sides = ((1 - share, low), (share, (low + 1).clamp(max=nodes - 1)))
            corners = [(w * part, i * nodes + node) for w, i in corners for part, node in sides]
        flat = table.flatten()
        return torch.stack([w * flat[i] for w, i in corners]).sum(0).clamp(0, 1)


def _expectation(nodes: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The matrix [rows, nodes] from f on ``nodes`` to sum_d weights_d f(points_d), points [rows, draws].

    f is read off a cubic spline that keeps straight lines, hence means, and is continued linearly.
    """
    if len(nodes) == 1:
        return nodes.new_ones(len(points), 1)
    spline = CubicSpline(nodes.numpy(), torch.eye(len(nodes)).numpy())
    inside = points.clamp(nodes[0], nodes[-1])
    beyond = (points - inside)[..., None] * torch.from_numpy(spline(inside.numpy(), 1))
    return weights @ (torch.from_numpy(spline(inside.numpy())) + beyond)


def _maximise(unit: Tensor, cost: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Maximum over 0 <= q' <= q of q' unit(q') - cost(q', q - q') at each node q, and the q' that reaches it.

    ``unit`` [inventory, variance, depth] is read as a parabola in sqrt(q') through three nodes, ``cost``
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
    affine, or nearly, and by parabolas in sqrt(q). The variance step is the simulator's own, integrated
    over its normal by the trapezoid rule. Where depth is constant its axis has one node. Raises
    ValueError for a batch of conditions, fewer than one bucket, or an axis of fewer than four nodes.
    """
    if n_buckets < 1 or min(inventory_nodes, variance_nodes, depth_nodes) < 4:
        nodes = f"{inventory_nodes} x {variance_nodes} x {depth_nodes}"
        raise ValueError(f"{n_buckets} buckets, {nodes} nodes: must be at least 1, and 4 an axis")

    def single(field: Tensor) -> Tensor:
        if field.dim():
            raise ValueError(f"a field has shape {list(field.shape)}: must be one condition, shape []")
        return field.detach().double().cpu()

    market, order = map_tensors(single, market), map_tensors(single, order)
    heston, liquidity, beta, dt = market.heston, market.liquidity, market.impact.beta, 1 / n_buckets
    normal = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    weights = torch.softmax(-normal.square() / 2, 0)

    shape = float(1 / heston.cv**2)
    scale = float(heston.theta) / shape
    variance_max = scale * float(gamma.isf(VARIANCE_TAIL, shape))
    v = variance_max * torch.linspace(0, 1, variance_nodes, dtype=torch.float64).square()
    step = VarianceStep.over(heston, dt)
    mean, spread = (moment.repeat_interleave(len(normal)) for moment in step.moments(v))
    next_v = qe_variance_step(mean, spread, normal.repeat(len(v))).reshape(len(v), -1)
    first_v = scale * torch.from_numpy(gamma.isf(ndtr(-normal.numpy()), shape))
    step_v, start_v = _expectation(v, next_v, weights), _expectation(v, first_v[None], weights)

    depth_max = DEPTH_REACH * float(liquidity.depth_sd)
    depth = torch.linspace(depth_max, -depth_max, depth_nodes if depth_max else 1, dtype=torch.float64)
    decay, shock = torch.exp(-liquidity.depth_reversion * dt), liquidity.depth_sd * normal
    next_depth = decay * depth[:, None] + torch.sqrt(1 - decay**2) * shock
    dear, next_dear, first_dear = (torch.exp(-beta * x) for x in (depth, next_depth, shock[None]))
    step_l, start_l = _expectation(dear, next_dear, weights), _expectation(dear, first_dear, weights)

    pace = order.size / volume_profile(liquidity.profile_amplitude, n_buckets)
    slope = market.temporary_cost_bps(pace) * dt ** (-beta)
    gain = order.side * market.drift * dt
    risk = order.risk_aversion * 1e8 * step.integral(v)[:, None]

    def cost(k: int, kept: Tensor, sold: Tensor) -> Tensor:
        shift = permanent_shift(market, order.size, sold, dt)
        return slope[k] * dear * sold ** (1 + beta) + shift * (kept + sold / 2)

    q = torch.linspace(0, 1, inventory_nodes, dtype=torch.float64).square().reshape(-1, 1, 1)
    value = -cost(n_buckets - 1, torch.zeros_like(q), q).expand(-1, len(v), -1)
    table = value.new_empty(n_buckets - 1, *value.shape)
    for k in reversed(range(n_buckets - 1)):
        # A last crumb costs nothing to sell: it waits for the last bucket or leaves at once.
        crumb = (gain * (n_buckets - 2 - k)).clamp_min(0).expand(1, *value.shape[1:])
        ahead = torch.cat((crumb, value[1:] / q[1:]))
        unit = gain - risk * q + torch.einsum("qvl,wv,ml->qwm", ahead, step_v, step_l)
        value, kept = _maximise(unit, partial(cost, k))
        table[k, 1:] = 1 - kept[1:] / q[1:]
        table[k, 0] = table[k, 1]
    return Oracle(table, variance_max, depth_max, float(start_v[0] @ value[-1] @ start_l[0]))


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
