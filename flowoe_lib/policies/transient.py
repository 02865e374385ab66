"""Optimal execution when temporary impact has memory: closed form and dynamic programming.

Source: Alfonsi, Fruth, Schied (2010), "Optimal execution strategies in limit order books with general shape
functions", Quantitative Finance 10; Bellman (1957), Dynamic Programming.
"""

from functools import partial

import torch

from flowoe_lib.market.batching import align
from flowoe_lib.market.impact import variance_cost
from flowoe_lib.market.model import Market, Order
from flowoe_lib.market.simulator import VarianceStep
from flowoe_lib.policies.dynamic_programming import Optimum, State, one_condition
from flowoe_lib.policies.oracle import place_of_variance, variance_axis
from flowoe_lib.policies.schedules import Schedule


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
    nodes = inventory_nodes, impact_nodes, variance_nodes
    market, order = one_condition(market, order, n_buckets, *nodes, steady=True)
    dt = 1 / n_buckets
    v, step, start = variance_axis(market.heston, dt, variance_nodes)
    risk = order.risk_aversion * 1e8 * VarianceStep.over(market.heston, dt).integral(v)[:, None]
    gain, places = order.side * market.drift * dt, partial(place_of_variance, float(v[-1]))
    variance = State(gain, risk, lambda k: step, start, places, variance_cost(market, v)[:, None])
    return variance.solve_memory(market, order, n_buckets, inventory_nodes, impact_nodes)
