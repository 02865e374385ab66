"""Temporary and permanent impact of a trade, and whether they admit price manipulation.

Source: Almgren, Thum, Hauptmann, Li (2005), "Direct estimation of equity market impact", Risk 18; for impact
with memory Alfonsi, Fruth, Schied (2010), "Optimal execution strategies in limit order books with general
shape functions", Quantitative Finance 10.
"""

import math
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from flowoe_lib.market.model import Impact, Market, Order, volume_profile

FLOOR = 0.1
"""Impact that depends on variance is that of a tenth of its mean if variance is lower: it never vanishes."""


def impact_in_window(impact: Impact, length: Tensor, volume_share: Tensor) -> Impact:
    """Rescale impact so that a window of ``length`` days with ``volume_share`` of the volume counts as a day.

    Afterwards volatility, order size and trading pace are measured per window in the place of per day.
    """
    root = length.sqrt()
    gamma = impact.gamma * volume_share**impact.delta * length ** (1 - impact.delta) / root
    return replace(impact, eta=impact.eta / root, gamma=gamma, resilience=impact.resilience * length)


def impact_slope(market: Market, pace: Tensor, n_buckets: int) -> Tensor:
    """Slope s of temporary impact, bps: a trade x in a bucket without earlier impact costs s x^(1 + beta).

    ``pace`` is order size over relative volume and depth. Under impact with memory, s is scaled so that an
    even schedule over the day costs the same as without memory if volume and depth are constant.
    """
    impact, steps = market.impact, torch.arange(n_buckets, device=pace.device)
    slope = market.temporary_cost_bps(pace) * (1 / n_buckets) ** (-impact.beta)
    if not impact.has_memory:
        return slope
    decay = torch.exp(-impact.resilience.double() / n_buckets)
    earlier = decay * (1 - decay ** steps.reshape(-1, *[1] * decay.dim())) / (1 - decay)
    return slope / temporary_cost(earlier, torch.ones_like(earlier), impact.beta).mean(0).to(slope)


def planned_slope(market: Market, order: Order, n_buckets: int) -> Tensor:
    """Expected :func:`impact_slope` of a fixed schedule in each bucket, bps, [N, ...]."""
    pace = order.size / volume_profile(market.liquidity, n_buckets)
    return impact_slope(market, pace, n_buckets) * expected_cost_factor(market)


def with_half_life(market: Market, half_life: Tensor) -> Market:
    """The market with temporary impact of this half-life, in days; 0 is impact without memory.

    An even schedule costs the same at every half-life.
    """
    return replace(market, impact=replace(market.impact, resilience=math.log(2) / half_life))


def temporary_cost(state: Tensor, traded: Tensor, beta: Tensor) -> Tensor:
    """Cost of ``traded`` per unit of slope at the impact ``state`` E: |E + x|^(1 + beta) - |E|^(1 + beta).

    E is the volume of earlier trades that still weighs on the price, in units of the order: after a trade x
    it decays to (E + x) exp(-resilience dt) by the next bucket. Source: Alfonsi, Fruth, Schied (2010), with
    reversion of volume impact; beta = 1 is the block-shaped book of Obizhaeva and Wang (2013).
    """
    return (state + traded).abs() ** (1 + beta) - state.abs() ** (1 + beta)


def impact_path(traded: Tensor, decay: Tensor, start: Tensor) -> Tensor:
    """Impact state before each of the trades ``traded`` [N, ...] and one bucket after the last, [N + 1, ...].

    ``start`` is the state before the first trade, ``decay`` the share of it that remains one bucket later.
    """
    start = start + torch.zeros_like(traded[0] * decay)
    return torch.stack(list(accumulate(traded, lambda state, x: (state + x) * decay, initial=start)))


def memory_weights(slope: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """Weights w with which trades cost sum_k w_k |y_k|^(1 + beta) in all, y_k the impact after trade k.

    w_k = s_k - s_{k+1} d^(1 + beta), for ``slope`` s [N, ...] and ``decay`` d of impact in a bucket. If no
    weight is negative, the cost is convex and no round trip earns money, whatever its trades. Constant slopes
    have positive weights; slopes that grow faster than impact decays have negative ones.
    """
    return torch.cat((slope[:-1] - slope[1:] * decay ** (1 + beta), slope[-1:]))


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
    impact, legs = market.impact, (buy_days, sell_days)
    buying, selling = (market.temporary_cost_bps(size) * days ** (-impact.beta) for days in legs)
    up, down = (market.permanent_cost_bps(size) * days ** (1 - impact.delta) for days in legs)
    # Buying pays half of its own price move; selling gains all of that move less half of its own.
    return buying + selling + (up / 2 - (up - down / 2))


def expected_cost_factor(market: Market) -> Tensor:
    """Expected factor of the temporary cost of a fixed schedule: E[L^-beta] times :func:`variance_cost`'s.

    Random depth raises it by exp(beta^2 sd^2 / 2).
    """
    heston = market.heston
    depth_cost = torch.exp((market.impact.beta * market.liquidity.depth_sd).square() / 2)
    return depth_cost * expected_variance_cost(market, heston.theta, (heston.cv * heston.theta).square())


def variance_cost(market: Market, variance: Tensor) -> Tensor:
    """Factor of temporary impact (max(V, theta / 10) / theta)^a, a = ``variance_exponent``."""
    return (variance / market.heston.theta).clamp_min(FLOOR) ** market.impact.variance_exponent


def expected_variance_cost(market: Market, mean: Tensor, conditional_variance: Tensor) -> Tensor:
    """Expectation of :func:`variance_cost` for the gamma law of V with the given mean and variance.

    It is exact for the stationary law and for a variance that is known.
    """
    exponent, theta = market.impact.variance_exponent, market.heston.theta
    shape = (mean.square() / conditional_variance.clamp_min(1e-30)).double().clamp(1e-6, 1e6)
    place = FLOOR * shape * theta / mean.clamp_min(1e-30)
    moment = torch.exp(torch.lgamma(shape + exponent) - torch.lgamma(shape)) / shape**exponent
    above = (mean / theta) ** exponent * moment * torch.special.gammaincc(shape + exponent, place)
    below = FLOOR**exponent * torch.special.gammainc(shape, place)
    return torch.where(exponent > 0, above + below, 1).to(mean)
