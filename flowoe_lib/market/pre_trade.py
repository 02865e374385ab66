"""What is known before the open: urgency, costs and attainable gain of an order, and its forecasts."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowoe_lib.market.impact import expected_depth_cost
from flowoe_lib.market.model import Market, Order, Regimes, volume_profile

__all__ = ["PreTrade", "moment_matched", "posterior_drift", "urgency"]


_COARSE = 12
"""Buckets that tell how uneven volume is."""


def urgency(market: Market, order: Order) -> Tensor:
    """Risk over cost of holding versus trading evenly, lambda 1e8 theta / C, dimensionless.

    C is the expected temporary cost of a flat schedule. With linear permanent impact, and up to the
    scale C, an order's problem depends on volatility, illiquidity, size and risk aversion through this
    number alone; its root is Almgren and Chriss's kappa T.
    """
    flat_cost = market.temporary_cost_bps(order.size) * expected_depth_cost(market)
    return order.risk_aversion * 1e8 * market.heston.theta / flat_cost


@dataclass(frozen=True)
class PreTrade:
    """What is worked out from the estimates before the open, shaped like their fields."""

    cost_bps: Tensor
    """Expected temporary cost of an even pace."""
    urgency: Tensor
    """:func:`urgency`."""
    attainable_gain: Tensor
    """About what a good policy gains over TWAP, as a multiple of the cost.

    Quadratic in what pulls a schedule off an even pace, urgency less drift, and in variance, depth, volume
    and hidden drift to react to.
    """

    @classmethod
    def of(cls, market: Market, order: Order) -> "PreTrade":
        """The figures of an order in its market."""
        cost = market.temporary_cost_bps(order.size) * expected_depth_cost(market)
        ratio = urgency(market, order)
        drift = order.side * market.drift / cost
        # Where the two cancel on average, they still pull at different times.
        pace = market.liquidity.depth_reversion
        # Share of depth's variance that lasts all day, and so gives no hour to prefer.
        held = 2 * (pace + torch.expm1(-pace)) / pace.square()
        pull = torch.sqrt((ratio - drift).square() + 0.1 * torch.minimum(ratio, drift.abs()).square())
        attainable_gain = (
            0.04 * pull.square() / (1 + 0.1 * pull)
            + 0.004 * (ratio * market.heston.cv).square() / (1 + 0.1 * ratio)
            + 0.35 * market.liquidity.depth_sd.square() * (1 - held)
            + 0.22 * volume_profile(market.liquidity, _COARSE).var(0, correction=0)
            + 0.002 * (market.drift_sd / cost).square()
        )
        return cls(cost, ratio, attainable_gain)


def posterior_drift(market: Market, order: Order, return_bps: Tensor, elapsed: float) -> Tensor:
    """Mean of the drift in the order's favour, bps per day, given the return after ``elapsed`` days.

    The prior is normal, of mean ``drift`` and standard deviation ``drift_sd``, and the return normal of
    variance theta a day, so the filter is that of Kalman and Bucy (1961); known drift stays what it is.
    """
    signal = market.drift_sd.square() / (1e8 * market.heston.theta)
    return (order.side * market.drift + signal * return_bps) / (1 + signal * elapsed)


def moment_matched(market: Market) -> Market:
    """The market of moving depth that is closest to one with regimes: what those believe who see none.

    Mean and coefficient of variation of variance, expected temporary impact, permanent impact, and the
    spread of log depth are those over both regimes; what reverts at two paces reverts at their average,
    weighted by what moves at each. A market without regimes stays what it is.
    """
    regimes, heston, impact, liquidity = market.regimes, market.heston, market.impact, market.liquidity
    share, pace = regimes.stressed_share, regimes.enter + regimes.leave

    def mean(of_stressed: Tensor) -> Tensor:
        return 1 - share + share * of_stressed

    raised = mean(regimes.volatility_multiplier**2)
    spread = mean(regimes.volatility_multiplier**4) / raised**2
    cv = torch.sqrt((1 + heston.cv**2) * spread - 1)
    kappa = heston.kappa + (spread - 1) / cv**2 * (pace - heston.kappa)
    jumps = share * (1 - share) * (regimes.cost_multiplier.log() / impact.beta).square()
    depth_sd = torch.sqrt(liquidity.depth_sd**2 + jumps)
    reversion = liquidity.depth_reversion
    reversion = reversion + jumps / depth_sd.square().clamp_min(1e-12) * (pace - reversion)
    believed = replace(
        market,
        heston=replace(heston, theta=heston.theta * raised, cv=cv, kappa=kappa),
        impact=replace(impact, gamma=impact.gamma / raised.sqrt()),
        liquidity=replace(liquidity, depth_sd=depth_sd, depth_reversion=reversion),
        regimes=Regimes(),
    )
    swollen = expected_depth_cost(believed) / expected_depth_cost(market)
    illiquidity = liquidity.illiquidity * mean(regimes.cost_multiplier) / raised.sqrt() / swollen
    return replace(believed, liquidity=replace(believed.liquidity, illiquidity=illiquidity))
