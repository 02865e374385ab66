"""Almgren and Chriss: linear impact and constant variance, where the optimal schedule is closed-form.

Source: Almgren, Chriss (2001), Journal of Risk 3. The concave impact is linearised at the TWAP rate:
a linear impact that charges TWAP what the concave one does.
"""

import torch
from torch import Tensor

from flowoe_lib.execution import Observation
from flowoe_lib.experts.schedules import Schedule
from flowoe_lib.market import Market, Order, align, expected_depth_cost, urgency, volume_profile
from flowoe_lib.simulator import VarianceStep

__all__ = ["almgren_chriss", "replanned"]


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


def replanned(seen: Observation, noise: Tensor) -> Tensor:
    """Almgren-Chriss solved anew each bucket for what is left, on the current variance and depth.

    Variance is forecast by its mean reversion to the close, E[int_t^1 V ds] / (1 - t); impact is
    linearised at the rate that would finish evenly; depth counts at the bucket's own level now and
    at its stationary mean after.
    """
    n_left = seen.n_buckets - seen.k
    market, remaining = seen.market, n_left / seen.n_buckets
    forecast = VarianceStep.over(market.heston, remaining).integral(seen.variance) / remaining
    even_pace = seen.inventory.clamp_min(1e-12) / remaining
    ratio = (
        seen.pre_trade.urgency
        * (forecast / market.heston.theta)
        * even_pace ** (1 - market.impact.beta)
        / seen.n_buckets**2
    )
    kappa = _kappa(ratio)
    later = kappa * (n_left - 1)
    fraction = 1 - torch.exp(-kappa) * torch.expm1(-2 * later) / torch.expm1(-2 * later - 2 * kappa)
    discount = torch.exp(market.impact.beta * seen.log_depth) * expected_depth_cost(market)
    now = fraction * seen.volume[seen.k] * discount ** (1 / market.impact.beta)
    rest = (1 - fraction) * seen.volume[seen.k + 1 :].sum(0) / max(n_left - 1, 1)
    tilted = now / (now + rest)
    return tilted.clamp(0, 1).expand_as(noise)
