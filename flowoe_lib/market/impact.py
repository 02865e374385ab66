"""Temporary and permanent impact of a trade, and whether they admit price manipulation.

Source: Almgren, Thum, Hauptmann, Li (2005), "Direct estimation of equity market impact", Risk 18.
"""

from dataclasses import replace

import torch
from torch import Tensor

from flowoe_lib.market.model import Impact, Market

__all__ = ["expected_depth_cost", "impact_in_window", "permanent_shift", "round_trip_cost"]


def impact_in_window(impact: Impact, length: Tensor, volume_share: Tensor) -> Impact:
    """Rescale impact so that a window of ``length`` days with ``volume_share`` of the volume counts as a day.

    Afterwards volatility, order size and trading pace are measured per window in the place of per day.
    """
    root = length.sqrt()
    gamma = impact.gamma * volume_share**impact.delta * length ** (1 - impact.delta) / root
    return replace(impact, eta=impact.eta / root, gamma=gamma)


def permanent_shift(market: Market, size: Tensor, traded: Tensor, dt: float) -> Tensor:
    """Permanent price move, bps, of trading the fraction ``traded`` of ``size`` ADV within ``dt`` days.

    Source: Almgren et al. (2005), eq. (2), with the rate-based exponent ``delta``.
    """
    # For delta < 1 the derivative at zero is infinite; the floor makes it finite.
    pace = (traded / dt).clamp_min(1e-12)
    return market.permanent_cost_bps(size) * pace**market.impact.delta * dt


def round_trip_cost(market: Market, size: Tensor, buy_days: Tensor, sell_days: Tensor) -> Tensor:
    """Expected cost, bps, of buying ``size`` ADV evenly over ``buy_days`` and selling over ``sell_days``.

    A negative cost is price manipulation (Huberman and Stanzl 2004). Linear permanent impact rules it out
    (Gatheral 2010); with delta < 1, slow buying followed by fast selling profits once permanent impact
    outweighs the temporary cost. Time is continuous and volume flat.
    """

    def temporary(days: Tensor) -> Tensor:
        return market.temporary_cost_bps(size) * days ** (-market.impact.beta)

    def shift(days: Tensor) -> Tensor:
        return market.permanent_cost_bps(size) * days ** (1 - market.impact.delta)

    # Buying pays half of its own price move; selling gains all of that move less half of its own.
    permanent = shift(buy_days) / 2 - (shift(buy_days) - shift(sell_days) / 2)
    return temporary(buy_days) + temporary(sell_days) + permanent


def expected_depth_cost(market: Market) -> Tensor:
    """E[L^-beta] = exp(beta^2 sd^2 / 2), by which random depth raises the cost of a fixed schedule."""
    return torch.exp((market.impact.beta * market.liquidity.depth_sd).square() / 2)
