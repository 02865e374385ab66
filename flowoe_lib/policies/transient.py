"""Optimal execution when temporary impact has memory: closed form and dynamic programming.

Source: Alfonsi, Fruth, Schied (2010), "Optimal execution strategies in limit order books with general shape
functions", Quantitative Finance 10; Bellman (1957), Dynamic Programming.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.batching import align
from flowoe_lib.market.impact import impact_slope, permanent_shift, temporary_cost, variance_cost
from flowoe_lib.market.model import Market, Order, volume_profile
from flowoe_lib.market.simulator import VarianceStep
from flowoe_lib.policies.dynamic_programming import (
    Optimum,
    expectation,
    peak_between,
    require_grid,
    steady_condition,
)
from flowoe_lib.policies.oracle import variance_axis
from flowoe_lib.policies.schedules import Schedule

__all__ = ["alfonsi_fruth_schied", "solve_memory", "solve_transient"]


FINER = 4
"""Intervals of linear interpolation in each interval between nodes of a cubic spline."""


TRIALS, HALVINGS = 25, 10
"""Trades compared in each state, and halvings of the two intervals beside the best of them."""


def alfonsi_fruth_schied(market: Market, order: Order, n_buckets: int) -> Schedule:
    """Cheapest schedule for constant volume and depth, without regard to risk or drift, in closed form.

    All y_k are equal except for the last, so that after a first block trade each trade makes up for the decay
    of impact, and the last bucket takes the rest.

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
    Alfonsi, Fruth, Schied (2010), Quantitative Finance 10, theorem 4.1 for a power-law book.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market = fo.Market(heston, fo.Impact(resilience=fo.scalar(4.62)))
    >>> order = fo.Order(fo.scalar(0.1), fo.scalar(0))
    >>> plan = fo.policies.transient.alfonsi_fruth_schied(market, order, 39)
    >>> [round(x, 4) for x in (-plan.inventory.diff())[[0, 20, -1]].tolist()]
    [0.1584, 0.0177, 0.1866]
    """
    market, _ = align(market, order)
    beta, decay = market.impact.beta, torch.exp(-market.impact.resilience / n_buckets)
    last = ((1 - decay ** (1 + beta)) / (1 - decay)) ** (1 / beta)
    block = 1 / ((n_buckets - 1) * (1 - decay) + last)
    later = torch.arange(n_buckets, dtype=block.dtype).reshape(-1, *[1] * block.dim())
    left = 1 - block - later * (1 - decay) * block
    return Schedule(torch.cat((torch.ones_like(left[:1]), left[:-1], torch.zeros_like(left[:1]))))


def _place_of_variance(variance_max: float, obs: Observation) -> tuple[Tensor]:
    """Where an observation is in sqrt(V) up to ``variance_max``, 0 to 1."""
    return ((obs.variance / variance_max).sqrt(),)


def solve_transient(
    market: Market,
    order: Order,
    n_buckets: int,
    *,
    inventory_nodes: int = 41,
    impact_nodes: int = 31,
    variance_nodes: int = 17,
) -> Optimum:
    """Solve for the optimal policy of one condition under impact with memory by dynamic programming.

    The state is inventory q, impact state E and variance V; since impact decays, q + E is at most one. The
    value per unit J / q is interpolated by cubic splines in sqrt(q) and in sqrt(E / (1 - q)), evaluated on a
    finer grid, and in V. Trades are compared on a grid of their share of the inventory and refined by
    halving. A hidden drift enters with its mean.

    Parameters
    ----------
    market, order : Market, Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.
    inventory_nodes, impact_nodes, variance_nodes : int
        Nodes of the grid on each axis, at least four.

    Returns
    -------
    flowoe_lib.policies.dynamic_programming.Optimum
        The policy, and ``value_bps``, the expected utility of the order in bps.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, random depth or
        regimes.

    References
    ----------
    Bellman (1957), Dynamic Programming; Alfonsi, Fruth, Schied (2010), Quantitative Finance 10.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market = fo.Market(heston, fo.Impact(resilience=fo.scalar(4.62)))
    >>> order = fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> nodes = {"inventory_nodes": 17, "impact_nodes": 9, "variance_nodes": 7}
    >>> round(fo.policies.transient.solve_transient(market, order, 6, **nodes).value_bps, 1)
    -22.1
    """
    require_grid(n_buckets, inventory_nodes, impact_nodes, variance_nodes)
    market, order = steady_condition(market, order)

    dt = 1 / n_buckets
    v, step, start = variance_axis(market.heston, dt, variance_nodes)
    risk = order.risk_aversion * 1e8 * VarianceStep.over(market.heston, dt).integral(v)[:, None, None]
    cost_multiplier = variance_cost(market, v)[:, None, None]
    gain = (order.side * market.drift * dt).expand_as(risk)
    place = partial(_place_of_variance, float(v[-1]))
    grid = n_buckets, inventory_nodes, impact_nodes
    return solve_memory(market, order, *grid, cost_multiplier, gain, risk, lambda k: step, start, place)


def _places(place: Callable[[Observation], tuple[Tensor]], obs: Observation) -> tuple[Tensor, Tensor]:
    """Where an observation is in sqrt(E / (1 - q)), 0 to 1, and on the axis of ``place``."""
    return (obs.impact / (1 - obs.inventory).clamp_min(1e-6)).sqrt(), *place(obs)


def solve_memory(
    market: Market,
    order: Order,
    n_buckets: int,
    inventory_nodes: int,
    impact_nodes: int,
    cost_multiplier: Tensor,
    gain: Tensor,
    risk: Tensor,
    step: Callable[[int], Tensor],
    start: Tensor,
    place: Callable[[Observation], tuple[Tensor]],
) -> Optimum:
    """Solve for the optimal policy in inventory, impact state and one more variable, such as variance.

    ``cost_multiplier`` of temporary impact, and ``gain`` and ``risk`` of holding the order through a bucket,
    are [nodes, 1, 1] on the nodes of this variable, on which ``place`` locates an observation. ``step(k)``
    and ``start`` are its expectations, as in
    :func:`flowoe_lib.policies.dynamic_programming.solve_estimate`.
    """
    dt, beta = 1 / n_buckets, market.impact.beta
    decay = torch.exp(-market.impact.resilience * dt)
    pace = order.size / volume_profile(market.liquidity, n_buckets)
    slope = impact_slope(market, pace, n_buckets).reshape(-1, 1, 1, 1) * cost_multiplier

    # All tensors are [nodes, inventory, impact].
    axes = [torch.linspace(0, 1, nodes, dtype=torch.float64) for nodes in (inventory_nodes, impact_nodes)]
    fine = [
        expectation(
            x, torch.linspace(0, 1, FINER * (len(x) - 1) + 1).double()[:, None], torch.ones(1).double()
        )
        for x in axes
    ]
    q = axes[0].square()[:, None].expand(len(risk), -1, impact_nodes)
    state = (1 - q) * axes[1].square()
    limit = (1 + beta) * state**beta

    def after(left: Tensor, impact: Tensor, ahead: Tensor) -> Tensor:
        """Value per unit of holding ``left`` at the ``impact`` state after a trade."""
        spread = (decay * impact / (1 - left).clamp_min(1e-12)).clamp_max(1).sqrt()
        places = torch.stack((spread, left.sqrt()), -1) * 2 - 1
        return gain - risk * left + grid_sample(ahead[:, None], places, align_corners=True)[:, 0]

    def worth(k: int, ahead: Tensor, root: Tensor) -> Tensor:
        """Value of trading the share ``root``^2 of the inventory in bucket ``k``."""
        sold = q * root.square()
        left, shift = q - sold, permanent_shift(market, order.size, sold, dt)
        cost = slope[k] * temporary_cost(state, sold, beta) + shift * (left + sold / 2)
        return left * after(left, state + sold, ahead) - cost

    shares = torch.linspace(0, 1, TRIALS).double()
    table = q.new_empty(n_buckets - 1, *q.shape)
    value = worth(n_buckets - 1, torch.zeros(len(risk), 2, 2).double(), torch.ones_like(q))
    lowest = -slope[-1] * limit
    for k in reversed(range(n_buckets - 1)):
        unit = torch.cat((lowest[:, :1], value[:, 1:] / q[:, 1:]), 1)
        ahead = torch.einsum("wv,vqe,fq,ge->wfg", step(k), unit, *fine)
        reached = partial(worth, k, ahead)
        best = torch.stack([reached(share.expand_as(q)) for share in shares]).argmax(0)
        low, high = shares[(best - 1).clamp_min(0)], shares[(best + 1).clamp_max(TRIALS - 1)]
        root = peak_between(reached, low, high, HALVINGS)
        value = reached(root)
        lowest = torch.maximum(-slope[k] * limit, after(torch.zeros_like(q), state, ahead))
        table[k] = root.square()
        table[k, :, 0] = table[k, :, 1]
    at_open = float(start[0] @ value[:, -1, 0])
    return Optimum(table.permute(0, 2, 3, 1), partial(_places, place), at_open)
