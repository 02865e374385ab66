"""Where a policy extrapolates: quantities of a market and an order outside its training range."""

import math
from dataclasses import dataclass
from functools import cache

from flowoe_lib.market.model import Market, Order, scalar
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.randomness import generator


@dataclass(frozen=True)
class RangeViolation:
    """A quantity of a market or an order that lies outside a range."""

    quantity: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.quantity} = {self.value:.4g}: trained on {self.low:.3g} to {self.high:.3g}"


def violations(trained: TrainingRange, market: Market, order: Order) -> list[RangeViolation]:
    """The quantities of a market and an order, fields of shape [], that lie outside the range ``trained``.

    Only dimensionless quantities count, because policies observe no others: volatility, illiquidity, size
    and risk aversion act through urgency, and drift through its ratio to cost.
    """
    heston, liquidity, before = market.heston, market.liquidity, PreTrade.of(market, order)
    drift, drift_sd = market.drift / before.cost_bps, market.drift_sd / before.cost_bps
    # Constant depth has no rate of mean reversion.
    moving = liquidity.depth_reversion if liquidity.depth_sd > 0 else scalar(trained.depth_reversion[0])
    urgency, largest, largest_sd, largest_signal = _drawn(trained)
    placed = {
        "urgency": (before.urgency, urgency),
        "kappa": (heston.kappa, trained.kappa),
        "cv": (heston.cv, trained.cv),
        "depth_sd": (liquidity.depth_sd, trained.depth_sd),
        "depth_reversion": (moving, trained.depth_reversion),
        "profile_amplitude": (liquidity.profile_amplitude, trained.profile_amplitude),
        "beta": (market.impact.beta, trained.beta),
        "drift over cost": (drift, (-largest, largest)),
        "sd of the hidden drift over cost": (drift_sd, (0.0, largest_sd)),
        "sd of the signal over cost": (market.signal.sd / before.cost_bps, (0.0, largest_signal)),
    }
    if market.drift_sd > 0:
        # Training draws hidden drift only without known drift and with the lowest cv.
        placed["cv beside a hidden drift"] = (heston.cv, (trained.cv[0], trained.cv[0]))
        placed["drift beside a hidden one"] = (drift, (0.0, 0.0))
    half_life = math.log(2) / market.impact.resilience
    if half_life > 0:
        placed["half-life of impact"] = (half_life, trained.half_life if trained.memory > 0 else (0.0, 0.0))
    # The tolerance covers float32 rounding of the bounds, which are inside the range.
    return [
        RangeViolation(name, float(value), low, high)
        for name, (value, (low, high)) in placed.items()
        if not low - 1e-6 * abs(low) <= float(value) <= high + 1e-6 * abs(high)
    ]


@cache
def _drawn(conditions: TrainingRange) -> tuple[tuple[float, float], float, float, float]:
    """Urgency, and the largest drift, sd of hidden drift and sd of a signal over cost: 99 % of the draws."""
    market, order = conditions.draw(20_000, generator(1, "training range"))
    before = PreTrade.of(market, order)
    ends = before.urgency.quantile(before.urgency.new_tensor([0.005, 0.995])).tolist()
    # A quarter of the draws have a drift, another quarter a hidden one, and a quarter of all a signal.
    drawn = market.drift, market.drift_sd, market.signal.sd
    drift, drift_sd, signal = ((x.abs() / before.cost_bps).quantile(0.9975).item() for x in drawn)
    return (ends[0], ends[1]), drift, drift_sd, signal
