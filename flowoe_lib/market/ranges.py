"""The range of conditions a policy is trained on, each drawn at random path by path."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowoe_lib.market.model import BPS, Heston, Impact, Liquidity, Market, Order, Regimes, scalar

__all__ = ["TESTED_BUCKETS", "TESTED_LIMITS", "RangeViolation", "TrainingRange"]


@dataclass(frozen=True)
class RangeViolation:
    """A quantity of a market or an order that lies outside a range."""

    quantity: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.quantity} = {self.value:.4g}: trained on {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class TrainingRange:
    """Lowest and highest value of everything that differs between conditions.

    A covariate that never varied in training is extrapolated arbitrarily, so each one that a policy
    observes is drawn. Volatility, size, risk aversion and mean reversions are log-uniform, the
    rest uniform; depth and profile are at their lower bound half of the time, and half of the days are whole.
    """

    kappa: tuple[float, float]
    rho: float
    volatility: tuple[float, float] = (0.005, 0.05)
    """sqrt(theta), per square root of a day."""
    illiquidity: tuple[float, float] = (1.0, 4.0)
    cv: tuple[float, float] = (0.4, 1.8)
    size: tuple[float, float] = (0.01, 0.25)
    """phi, of ADV."""
    risk_aversion: tuple[float, float] = (4e-5, 1e-3)
    """lambda, per bps."""
    depth_sd: tuple[float, float] = (0.0, 0.0)
    depth_reversion: tuple[float, float] = (12.0, 12.0)
    profile_amplitude: tuple[float, float] = (0.0, 0.0)
    drift: float = 0.0
    """Largest drift either way, in daily standard deviations: known on one day in four, and on another
    hidden, with at most this standard deviation, while variance is as steady as can be."""
    regimes: float = 0.0
    """Share of days on which volatility and cost jump between two regimes, up to three and seven times."""
    beta: tuple[float, float] = (0.6, 0.6)
    window: float = 1.0
    """Shortest part of the volume profile that an order has, anywhere within it."""

    def at(self, points: Tensor) -> tuple[Market, Order]:
        """The driftless market and order at ``points`` of the unit cube, [n, 12]; fields of shape [n].

        Axes: volatility, illiquidity, cv, size, risk aversion, kappa, depth reversion, beta, what is cut off
        the profile and how much of that at its start, depth, profile.
        """

        def linear(axis: int, bounds: tuple[float, float]) -> Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * points[:, axis]

        def logarithmic(axis: int, bounds: tuple[float, float]) -> Tensor:
            return torch.exp(linear(axis, (math.log(bounds[0]), math.log(bounds[1]))))

        cut = linear(8, (0.0, 1 - self.window))
        heston = Heston(
            theta=logarithmic(0, self.volatility).square(),
            kappa=logarithmic(5, self.kappa),
            cv=linear(2, self.cv),
            rho=scalar(self.rho),
        )
        liquidity = Liquidity(
            illiquidity=linear(1, self.illiquidity),
            depth_sd=linear(10, self.depth_sd),
            depth_reversion=logarithmic(6, self.depth_reversion),
            profile_amplitude=linear(11, self.profile_amplitude),
            window_start=cut * points[:, 9],
            window_end=1 - cut * (1 - points[:, 9]),
        )
        order = Order(logarithmic(3, self.size), logarithmic(4, self.risk_aversion))
        return Market(heston, Impact(beta=linear(7, self.beta)), liquidity), order

    def violations(self, market: Market, order: Order) -> list[RangeViolation]:
        """What of a market and an order, fields of shape [], lies outside the range."""
        heston, liquidity = market.heston, market.liquidity
        daily = BPS * heston.theta.sqrt()
        # What does not move has no pace.
        moving = liquidity.depth_reversion if liquidity.depth_sd > 0 else scalar(self.depth_reversion[0])
        length = liquidity.window_end - liquidity.window_start
        placed = {
            "window": (length, (self.window, 1.0)),
            "volatility": (heston.theta.sqrt(), self.volatility),
            "kappa": (heston.kappa, self.kappa),
            "cv": (heston.cv, self.cv),
            "illiquidity": (liquidity.illiquidity * market.impact.eta / Impact().eta, self.illiquidity),
            "depth_sd": (liquidity.depth_sd, self.depth_sd),
            "depth_reversion": (moving, self.depth_reversion),
            "profile_amplitude": (liquidity.profile_amplitude, self.profile_amplitude),
            "beta": (market.impact.beta, self.beta),
            "size": (order.size, self.size),
            "risk_aversion": (order.risk_aversion, self.risk_aversion),
            "drift": (market.drift / daily, (-self.drift, self.drift)),
            "drift_sd": (market.drift_sd / daily, (0.0, self.drift)),
        }
        if market.drift_sd > 0:
            # A hidden drift was met alone, on days of steady variance.
            placed["cv beside a hidden drift"] = (heston.cv, (self.cv[0], self.cv[0]))
            placed["drift beside a hidden one"] = (market.drift / daily, (0.0, 0.0))
        # float32 keeps seven digits: the ends of a range belong to it.
        return [
            RangeViolation(name, float(value), low, high)
            for name, (value, (low, high)) in placed.items()
            if not low - 1e-6 * abs(low) <= float(value) <= high + 1e-6 * abs(high)
        ]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Market, Order]:
        """A market and an order with fields of shape [n]."""
        device = generator.device
        points = torch.rand(n, 12, generator=generator, device=device)
        points[:, 8] *= torch.rand(n, generator=generator, device=device) < 0.5
        points[:, 10:] *= torch.rand(n, 2, generator=generator, device=device) < 0.5
        market, order = self.at(points)
        kind, known, hidden = torch.rand(3, n, generator=generator, device=device)
        largest = BPS * market.heston.theta.sqrt() * self.drift
        drift = torch.where(kind < 0.25, largest * (2 * known - 1), 0)
        drift_sd = torch.where(kind > 0.75, largest * hidden, 0)
        # What prices tell of a drift is exact where variance is constant.
        cv = torch.where(drift_sd > 0, self.cv[0], market.heston.cv)
        market = replace(market, heston=replace(market.heston, cv=cv), drift=drift, drift_sd=drift_sd)
        return self._with_regimes(market, *torch.rand(5, n, generator=generator, device=device)), order

    def _with_regimes(
        self, market: Market, kind: Tensor, volatility: Tensor, cost: Tensor, enter: Tensor, leave: Tensor
    ) -> Market:
        """Add regimes at points of the unit cube where ``kind`` says so; averages stay as drawn."""
        # A filter of the drift would have to know the regime.
        here = (kind < self.regimes) & (market.drift_sd == 0)
        volatility, cost = (torch.where(here, m, 1) for m in (1 + 2 * volatility, 1 + 6 * cost))
        regimes = Regimes(volatility, cost, 8**enter, 8**leave)
        share = regimes.stressed_share
        raised, dearer = (1 - share + share * m for m in (volatility**2, cost))
        heston, liquidity = market.heston, market.liquidity
        illiquidity = liquidity.illiquidity * raised.sqrt() / dearer
        return replace(
            market,
            heston=replace(heston, theta=heston.theta / raised),
            liquidity=replace(liquidity, illiquidity=illiquidity),
            regimes=regimes,
        )


TESTED_LIMITS: Mapping[str, tuple[float, float]] = {
    "volatility": (0.002, 0.07),
    "illiquidity": (0.3, 6.0),
    "cv": (0.01, 2.2),
    "kappa": (0.15, 25.0),
    "depth_reversion": (0.15, 25.0),
    "size": (0.002, 0.4),
}
"""How far beyond training policies are tried, by quantity of
:class:`flowoe_lib.market.ranges.RangeViolation`."""


TESTED_BUCKETS = (13, 78)
