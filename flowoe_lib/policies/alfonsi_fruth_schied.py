"""The optimal schedule of Alfonsi, Fruth and Schied for impact with memory and without risk, in closed form.

Source: Alfonsi, Fruth, Schied (2010), "Optimal execution strategies in limit order books with general shape
functions", Quantitative Finance 10.
"""

import torch

from flowoe_lib.market.batching import align
from flowoe_lib.market.model import Market, Order
from flowoe_lib.policies.schedules import Schedule


def alfonsi_fruth_schied(market: Market, order: Order, n_buckets: int) -> Schedule:
    """Cheapest schedule for constant volume and depth, without regard to risk or drift, in closed form.

    The impact right after a trade is the same in every bucket but the last: after a first block trade each
    trade makes up for the decay of impact, and the last bucket takes the rest.

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
    >>> plan = fo.policies.alfonsi_fruth_schied.alfonsi_fruth_schied(market, order, 39)
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
