"""Pre-trade analysis: urgency, cost and attainable gain of an order, and the estimate of hidden drift."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from flowoe_lib.market.impact import expected_cost_factor
from flowoe_lib.market.model import Market, Order, Regimes, volume_profile

_COARSE = 12
"""Buckets in which the variation of volume is measured."""


CORRECTION = 1 / 3
"""Size of a typical correction to the re-planned schedule, as a share of the root of what it misses."""


def urgency(market: Market, order: Order) -> Tensor:
    """Urgency lambda 1e8 theta / C: the risk of holding the order all day over the cost C of trading it.

    C is the expected temporary cost of an even schedule, bps; urgency has no unit. With linear permanent
    impact the optimal schedule depends on volatility, illiquidity, size and risk aversion through urgency
    alone. Its square root is kappa T of Almgren and Chriss.
    """
    flat_cost = market.temporary_cost_bps(order.size) * expected_cost_factor(market)
    return order.risk_aversion * 1e8 * market.heston.theta / flat_cost


@dataclass(frozen=True)
class PreTrade:
    """Pre-trade figures of an order; fields have the shape of those of the market and the order."""

    cost_bps: Tensor
    """Expected temporary cost of an even schedule, bps."""
    urgency: Tensor
    """:func:`urgency`."""
    attainable_gain: Tensor
    """Approximate gain of a good policy over TWAP, as a multiple of ``cost_bps``.

    The sum of a term in urgency less drift, which move the schedule away from an even pace, and of terms for
    the variation of variance, depth, volume, hidden drift and signal, to which a policy can react, and for
    memory of impact, within a factor of two of the gain of the closed form of Alfonsi, Fruth and Schied. That
    of the signal is for a half-life of an hour.

    Its constants are round numbers, which ``benchmarks/attainable_gain.py`` compares with the oracle: over 63
    conditions that fill the training range, the formula gives .93 of the oracle's gain in the median, .60 at
    the 10 % and 1.51 at the 90 % quantile (.99, .67 and 1.35 with constants fitted by least squares). They
    may not change without retraining, since the pretrained policy's unit of scores depends on them.
    """
    missed_gain: Tensor
    """Approximate size of what re-planning at constant forecasts misses, as a multiple of ``cost_bps``.

    The terms of ``attainable_gain``, with a tenth of the first, which re-planning attains almost entirely.
    """

    @classmethod
    def of(cls, market: Market, order: Order) -> "PreTrade":
        """Compute the figures of ``order`` in ``market``."""
        cost = market.temporary_cost_bps(order.size) * expected_cost_factor(market)
        ratio = urgency(market, order)
        drift = order.side * market.drift / cost
        # Urgency and drift that cancel on average still act at different times of the day.
        pace = market.liquidity.depth_reversion
        # Share of depth's variance that is constant over the day, to which trades cannot be timed.
        constant = 2 * (pace + torch.expm1(-pace)) / pace.square()
        pull = torch.sqrt((ratio - drift).square() + 0.1 * torch.minimum(ratio, drift.abs()).square())
        memory = 1 / market.impact.resilience
        signal, noise_sd = market.signal.sd / cost, market.signal.noise_sd / cost
        seen = signal.square() / (signal.square() + 0.4 * noise_sd.square()).clamp_min(1e-12)
        planned = 0.04 * pull.square() / (1 + 0.1 * pull)
        adapted = (
            0.004 * (ratio * market.heston.cv).square() / (1 + 0.1 * ratio)
            + 0.35 * market.liquidity.depth_sd.square() * (1 - constant)
            + 0.22 * volume_profile(market.liquidity, _COARSE).var(0, correction=0)
            + 0.002 * (market.drift_sd / cost).square()
            + 1.3 * market.impact.beta * memory / (1 + 3 * memory).square()
            + 0.008 * seen * signal.square() / (1 + 0.035 * signal)
        )
        return cls(cost, ratio, planned + adapted, planned / 10 + adapted)

    @cached_property
    def score_unit(self) -> Tensor:
        """Typical size of the scores of trades in the condition, [paths] or [].

        Loss is quadratic in the error of a score. This unit is proportional to the square root of the
        attainable gain, so an error of one unit loses about the same share of that gain in every condition.
        """
        return _unit(self.attainable_gain)

    @cached_property
    def correction_unit(self) -> Tensor:
        """Typical size of corrections to the scores of the re-planned schedule, [paths] or []."""
        return CORRECTION * _unit(self.missed_gain)


def _unit(gain: Tensor) -> Tensor:
    root = gain.clamp_min(1e-6).sqrt()
    return 6 * root / (1 + root)


def posterior_drift(market: Market, order: Order, return_bps: Tensor, elapsed: float) -> Tensor:
    """Posterior mean of drift in the order's favour, bps per day, given the return after ``elapsed`` days.

    The prior is normal with mean ``drift`` and standard deviation ``drift_sd``; returns are normal with
    variance theta per day. Source: Kalman and Bucy (1961). With ``drift_sd`` zero it is the known drift.
    """
    signal = market.drift_sd.square() / (1e8 * market.heston.theta)
    return (order.side * market.drift + signal * return_bps) / (1 + signal * elapsed)


def moment_matched(market: Market) -> Market:
    """The moment-matched market without regimes: the belief of agents who cannot observe the regime.

    It has the same mean and coefficient of variation of variance, expected temporary impact, permanent
    impact and variance of log depth. Rates of mean reversion are averages of the two processes' rates,
    weighted by their variances. A market without regimes is returned unchanged.
    """
    regimes, heston, impact, liquidity = market.regimes, market.heston, market.impact, market.liquidity
    share, pace = regimes.stressed_share, regimes.enter + regimes.leave
    raised = regimes.mean(regimes.volatility_multiplier**2)
    dispersion = regimes.mean(regimes.volatility_multiplier**4) / raised**2
    cv = torch.sqrt((1 + heston.cv**2) * dispersion - 1)
    kappa = heston.kappa + (dispersion - 1) / cv**2 * (pace - heston.kappa)
    jumps = share * (1 - share) * (regimes.cost_multiplier.log() / impact.beta).square()
    depth_sd = torch.sqrt(liquidity.depth_sd**2 + jumps)
    reversion = liquidity.depth_reversion
    reversion = reversion + jumps / depth_sd.square().clamp_min(1e-12) * (pace - reversion)
    heston = replace(heston, theta=heston.theta * raised, cv=cv, kappa=kappa)
    impact = replace(impact, gamma=impact.gamma / raised.sqrt())
    liquidity = replace(liquidity, depth_sd=depth_sd, depth_reversion=reversion)
    believed = replace(market, heston=heston, impact=impact, liquidity=liquidity, regimes=Regimes())
    depth_cost = expected_cost_factor(believed) / expected_cost_factor(market)
    illiquidity = liquidity.illiquidity * regimes.mean(regimes.cost_multiplier) / raised.sqrt() / depth_cost
    return replace(believed, liquidity=replace(liquidity, illiquidity=illiquidity))
