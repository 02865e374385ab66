"""Almgren and Chriss: linear impact and constant variance, where the optimal schedule is closed-form.

Source: Almgren, Chriss (2001), Journal of Risk 3. The concave impact is linearised at the TWAP rate:
a linear impact that charges TWAP what the concave one does.
"""

import torch
from torch import Tensor

from flowoe_lib.market.batching import align
from flowoe_lib.market.impact import expected_depth_cost
from flowoe_lib.market.model import Market, Order, volume_profile
from flowoe_lib.market.pre_trade import urgency
from flowoe_lib.policies.schedules import Schedule

__all__ = ["almgren_chriss"]


def _kappa(ratio: Tensor) -> Tensor:
    """Decay per bucket, 2 (cosh kappa - 1) = ratio, kept off zero so that a risk-neutral order is TWAP."""
    return (2 * torch.asinh(torch.sqrt(ratio) / 2)).clamp_min(1e-6)


def almgren_chriss(market: Market, order: Order, n_buckets: int) -> Schedule:
    """q = S(1 - tau) + q* (1 - S(1 - tau) - S(tau)), S(x) = sinh(kappa x) / sinh(kappa), in volume time tau.

    In float64, [N + 1, ...]; fields of ``market`` and ``order`` broadcast against each other. q* = mu /
    (2 lambda sigma^2) is what to hold for the sake of a known drift mu in the order's favour (section 4 of
    the paper); where that asks for buying back or for selling more than there is, the order waits instead.
    """
    market, order = align(market, order)
    total = _kappa(urgency(market, order) / n_buckets**2) * n_buckets
    volume = volume_profile(market.liquidity, n_buckets)
    tau = torch.cat((torch.zeros_like(volume[:1]), volume.cumsum(0) / n_buckets)).clamp_max(1)

    def decayed(time: Tensor) -> Tensor:
        # sinh(x) / sinh(y) without overflow.
        x = time * total
        return torch.exp(x - total) * torch.expm1(-2 * x) / torch.expm1(-2 * total)

    # The risk that goes with kappa, which is kept off zero.
    cost = market.temporary_cost_bps(order.size) * expected_depth_cost(market)
    held = order.side * market.drift / (2 * total.square() * cost)
    inventory = decayed(1 - tau) + held * (1 - decayed(1 - tau) - decayed(tau))
    inventory = inventory.clamp(0, 1).cummin(0).values
    inventory[-1] = 0
    return Schedule(inventory)
