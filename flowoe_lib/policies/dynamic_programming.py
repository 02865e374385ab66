"""Backward induction on a grid: quadrature, interpolation and maximisation over trades."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.nn.functional import grid_sample

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.impact import expected_cost_factor, impact_slope, permanent_shift, temporary_cost
from flowoe_lib.market.model import Market, Order, volume_profile


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


JUMP = 0.25
"""Fractions at neighbouring nodes that differ by more belong to two different local optima.

There are several only where permanent impact is sub-linear."""


TRIALS, HALVINGS = (25, 97), 10
"""Trades compared in each state, under linear and under sub-linear permanent impact, and halvings of the
intervals beside the best."""


FINER = (32, 1), (4, 4)
"""Intervals of linear interpolation in each interval between nodes of inventory and of impact, without and
with memory, where the grid would need much space."""


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
    weights, corner = (torch.stack(part) for part in zip(*corners, strict=True))
    values = table.flatten()[corner]
    nearest = values.gather(0, weights.argmax(0, keepdim=True))[0]
    split = values.amax(0) - values.amin(0) > jump
    return torch.where(split, nearest, (weights * values).sum(0))


_PARTS: Mapping[str, Callable[[Market], Tensor | bool]] = {
    "Liquidity.depth_sd": lambda market: market.liquidity.depth_sd,
    "Market.drift": lambda market: market.drift,
    "Market.drift_sd": lambda market: market.drift_sd,
    "Market.regimes": lambda market: market.regimes.present,
    "Signal.sd": lambda market: market.signal.sd,
}
"""Parts of a market that a solver may need or be unable to solve for; they are zero if absent."""


def one_condition(
    market: Market,
    order: Order,
    n_buckets: int,
    *nodes: int,
    needs: Collection[str] = (),
    lacks: Collection[str] = (),
) -> tuple[Market, Order]:
    """Convert both to float64 on the CPU without gradients.

    Raises ValueError unless there is a bucket, every axis has at least four ``nodes``, every field has shape
    [], and the market has all parts that the solver ``needs`` and none that it ``lacks`` a method for.
    """
    if n_buckets < 1 or min(nodes, default=4) < 4:
        grid = " x ".join(map(str, nodes)) or "fixed"
        raise ValueError(f"{n_buckets} buckets, {grid} nodes: must be at least 1, and 4 an axis")

    def single(field: Tensor) -> Tensor:
        if field.dim():
            raise ValueError(f"a field has shape {list(field.shape)}: must be one condition, shape []")
        return field.detach().double().cpu()

    market, order = map_tensors(single, market), map_tensors(single, order)
    for part in (*needs, *lacks):
        value, allowed = float(_PARTS[part](market)), "> 0" if part in needs else "0"
        if (value != 0) != (part in needs):
            raise ValueError(f"{part} = {value:g}: must be {allowed}")
    return market, order


def normal_rule(draws: int) -> tuple[Tensor, Tensor]:
    """Points and weights of the trapezoid rule for expectations over a standard normal, each [draws]."""
    normal = torch.linspace(-8, 8, draws, dtype=torch.float64)
    return normal, torch.softmax(-normal.square() / 2, 0)


def expectation(nodes: Tensor, points: Tensor, weights: Tensor | None = None) -> Tensor:
    """The matrix [rows, nodes] that maps f on ``nodes`` to sum_d weights_d f(points_d), points [rows, draws].

    Without ``weights`` there is one draw, which is certain. f is interpolated by a cubic spline, exact for
    linear functions, so means are preserved. Outside the nodes it is extrapolated linearly.
    """
    if len(nodes) == 1:
        return nodes.new_ones(len(points), 1)
    spline = CubicSpline(nodes.numpy(), torch.eye(len(nodes)).numpy())
    inside = points.clamp(nodes[0], nodes[-1])
    beyond = (points - inside)[..., None] * torch.from_numpy(spline(inside.numpy(), 1))
    drawn = torch.from_numpy(spline(inside.numpy())) + beyond
    return drawn[:, 0] if weights is None else weights @ drawn


def peak_between(f: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, halvings: int) -> Tensor:
    """Where ``f``, which rises and then falls, is highest between ``low`` and ``high``, by halving."""
    for _ in range(halvings):
        middle, nudge = (low + high) / 2, (high - low) / 50
        rising = f(middle + nudge) > f(middle - nudge)
        low, high = torch.where(rising, middle - nudge, low), torch.where(rising, high, middle + nudge)
    return (low + high) / 2


def _places(places: Callable[[Observation], tuple[Tensor, ...]], obs: Observation) -> tuple[Tensor, ...]:
    """Where an observation is in sqrt(E / (1 - q)), 0 to 1, and on the axes of ``places``."""
    return (obs.impact / (1 - obs.inventory).clamp_min(1e-6)).sqrt(), *places(obs)


@dataclass(frozen=True)
class State:
    """The state of a trader beside inventory and impact: how it moves, and what holding and trading cost.

    ``gain``, ``risk`` and ``cost_multiplier`` have a row per state, or one for all of them.
    """

    gain: Tensor
    """Gain of holding the order through a bucket, bps, [] or [states, 1]."""
    risk: Tensor
    """Charge for the risk of holding the order through a bucket, bps, [] or [states, 1]."""
    step: Callable[[int], Tensor]
    """Maps a bucket to the matrix that maps f on the states to its conditional expectation one bucket later,
    [states, states]."""
    start: Tensor
    """Maps f on the states to its expectation at the open, [1, states]."""
    places: Callable[[Observation], tuple[Tensor, ...]]
    """Where an observation is on each axis of the states, from 0 (first node) to 1 (last)."""
    cost_multiplier: Tensor | None = None
    """Of temporary impact in each bucket, [states, 1] or [N, states, 1]; by default that of a fixed
    schedule."""

    def slope(self, market: Market, order: Order, n_buckets: int) -> Tensor:
        """Slope of temporary impact in each bucket and state, bps, [N, states, 1]."""
        pace = order.size / volume_profile(market.liquidity, n_buckets)
        multiplier = self.cost_multiplier
        if multiplier is None:
            multiplier = expected_cost_factor(market).expand_as(self.start.T)
        return impact_slope(market, pace, n_buckets).reshape(-1, 1, 1) * multiplier

    def solve(
        self, market: Market, order: Order, n_buckets: int, inventory_nodes: int, impact_nodes: int
    ) -> Optimum:
        """Solve Bellman's equation from the close back to the open, in inventory and this state.

        Under impact with memory the state of impact is added. The table of the policy is [N - 1, inventory,
        states], or [N - 1, inventory, impact, states]. Source: Bellman (1957).
        """
        dt, beta, memory = 1 / n_buckets, market.impact.beta, market.impact.has_memory
        concave = bool(market.impact.delta < 1)
        decay = torch.exp(-market.impact.resilience * dt)

        # All tensors are [states, inventory, impact] or broadcast to it.
        slope = self.slope(market, order, n_buckets)[..., None]
        gain, risk = (x.expand_as(self.start.T)[..., None] for x in (self.gain, self.risk))
        sizes = inventory_nodes, impact_nodes if memory else 1
        axes = [torch.linspace(0, 1, nodes, dtype=torch.float64) for nodes in sizes]
        fine = [
            expectation(x, torch.linspace(0, 1, finer * (len(x) - 1) + 1, dtype=x.dtype)[:, None])
            for x, finer in zip(axes, FINER[memory], strict=True)
        ]
        q = axes[0].square()[None, :, None].expand(1, *sizes)
        state = (1 - q) * axes[1].square()
        limit = (1 + beta) * state**beta

        def after(left: Tensor, impact: Tensor, ahead: Tensor) -> Tensor:
            """Value per unit of holding ``left`` at the ``impact`` state after a trade."""
            spread = (decay * impact / (1 - left).clamp_min(1e-12)).clamp_max(1).sqrt()
            places = (torch.stack((spread, left.sqrt()), -1) * 2 - 1).expand(len(ahead), -1, -1, -1)
            return gain - risk * left + grid_sample(ahead[:, None], places, align_corners=True)[:, 0]

        def worth(k: int, ahead: Tensor, root: Tensor) -> Tensor:
            """Value of trading the share ``root``^2 of the inventory in bucket ``k``."""
            sold = q * root.square()
            left, shift = q - sold, permanent_shift(market, order.size, sold, dt)
            cost = slope[k] * temporary_cost(state, sold, beta) + shift * (left + sold / 2)
            return left * after(left, state + sold, ahead) - cost

        shares = torch.linspace(0, 1, TRIALS[concave], dtype=torch.float64)
        table = q.new_empty(n_buckets - 1, len(risk), *sizes)
        value = worth(n_buckets - 1, torch.zeros(len(risk), 2, 2).double(), torch.ones_like(q))
        lowest = -slope[-1] * limit
        for k in reversed(range(n_buckets - 1)):
            unit = torch.cat((lowest[:, :1], value[:, 1:] / q[:, 1:]), 1)
            ahead = torch.einsum("wv,vqe,fq,ge->wfg", self.step(k), unit, *fine)
            reached = partial(worth, k, ahead)
            tried, best = torch.stack([reached(share.expand_as(q)) for share in shares]).max(0)
            low, high = shares[(best - 1).clamp_min(0)], shares[(best + 1).clamp_max(len(shares) - 1)]
            root = peak_between(reached, low, high, HALVINGS)
            value = reached(root)
            root, value = torch.where(value > tried, root, shares[best]), torch.maximum(value, tried)
            # As q -> 0 a trade costs only what earlier impact adds: a remainder is kept if it is worth more.
            lowest = torch.maximum(-slope[k] * limit, after(torch.zeros_like(q), state, ahead))
            table[k] = root.square()
            table[k, :, 0] = table[k, :, 1]
        at_open = float(self.start[0] @ value[:, -1, 0])
        jump = JUMP if concave else 1.0
        if memory:
            return Optimum(table.permute(0, 2, 3, 1), partial(_places, self.places), at_open, jump)
        return Optimum(table[..., 0].mT, self.places, at_open, jump)
