"""Almgren and Chriss's optimal schedule for linear impact and constant variance, in closed form.

Source: Almgren, Chriss (2001), Journal of Risk 3. The concave impact is replaced by the linear impact under
which TWAP has the same cost.
"""

import torch
from torch import Tensor

from flowoe_lib.market.batching import align
from flowoe_lib.market.model import Market, Order, volume_profile
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.policies.schedules import Schedule

DECAY_FLOOR = 1e-6
"""Smallest decay per bucket, at which the schedule without drift is TWAP."""


def almgren_chriss(market: Market, order: Order, n_buckets: int) -> Schedule:
    """Solve for the schedule of Almgren and Chriss, drift included.

    Inventory is q = S(1 - tau) + q* (1 - S(1 - tau) - S(tau)) with S(x) = sinh(kappa x) / sinh(kappa) and
    tau the volume time. q* = mu / (2 lambda sigma^2) is the inventory that a known drift mu in the order's
    favour makes worth holding. The schedule only sells: where the formula would buy back or sell short,
    inventory stays constant.

    Parameters
    ----------
    market : Market
        Fields of shape [] or [paths].
    order : Order
        Fields of shape [] or [paths].
    n_buckets : int
        Number of buckets N of the day.

    Returns
    -------
    flowoe_lib.policies.schedules.Schedule
        Inventory in fractions of the order, [N + 1, ...], float64.

    References
    ----------
    Almgren, Chriss (2001), "Optimal execution of portfolio transactions", Journal of Risk 3; section 4 for
    the drift.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> [round(q, 2) for q in fo.almgren_chriss(market, order, 4).inventory.tolist()]
    [1.0, 0.63, 0.37, 0.17, 0.0]
    """
    market, order = align(market, order)
    plan = PreTrade.of(market, order)
    # The decay per bucket solves 2 (cosh decay - 1) = urgency / N^2.
    decay = 2 * torch.asinh(torch.sqrt(plan.urgency / n_buckets**2) / 2)
    total = decay.clamp_min(DECAY_FLOOR) * n_buckets
    volume = volume_profile(market.liquidity, n_buckets)
    tau = torch.cat((torch.zeros_like(volume[:1]), volume.cumsum(0) / n_buckets)).clamp_max(1)

    def decayed(time: Tensor) -> Tensor:
        # sinh(x) / sinh(y) without overflow.
        x = time * total
        return torch.exp(x - total) * torch.expm1(-2 * x) / torch.expm1(-2 * total)

    # Risk computed from kappa, so that the floor of kappa applies to it too.
    target = order.side * market.drift / (2 * total.square() * plan.cost_bps)
    inventory = decayed(1 - tau) + target * (1 - decayed(1 - tau) - decayed(tau))
    inventory = inventory.clamp(0, 1).cummin(0).values
    inventory[-1] = 0
    return Schedule(inventory)
