"""The range of conditions a policy is trained on, each drawn at random path by path."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowoe_lib.market import BPS, Heston, Impact, Liquidity, Market, Order, Regimes, scalar

__all__ = ["TrainingRange"]


@dataclass(frozen=True)
class TrainingRange:
    """Lowest and highest value of everything that differs between conditions.

    A covariate that never varied in training is extrapolated arbitrarily, so each one that a policy
    observes is drawn. Volatility, size, risk aversion and mean reversions are log-uniform, the
    rest uniform; depth and profile are at their lower bound half of the time, each on its own.
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
    beta: float = 0.6

    def at(self, points: Tensor) -> tuple[Market, Order]:
        """The driftless market and order at ``points`` of the unit cube, [n, 9]; fields of shape [n].

        Axes: volatility, illiquidity, cv, size, risk aversion, kappa, depth reversion, depth, profile.
        """

        def linear(axis: int, bounds: tuple[float, float]) -> Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * points[:, axis]

        def logarithmic(axis: int, bounds: tuple[float, float]) -> Tensor:
            return torch.exp(linear(axis, (math.log(bounds[0]), math.log(bounds[1]))))

        heston = Heston(
            theta=logarithmic(0, self.volatility).square(),
            kappa=logarithmic(5, self.kappa),
            cv=linear(2, self.cv),
            rho=scalar(self.rho),
        )
        liquidity = Liquidity(
            illiquidity=linear(1, self.illiquidity),
            depth_sd=linear(7, self.depth_sd),
            depth_reversion=logarithmic(6, self.depth_reversion),
            profile_amplitude=linear(8, self.profile_amplitude),
        )
        order = Order(logarithmic(3, self.size), logarithmic(4, self.risk_aversion))
        return Market(heston, Impact(beta=scalar(self.beta)), liquidity), order

    def draw(self, n: int, generator: torch.Generator) -> tuple[Market, Order]:
        """A market and an order with fields of shape [n]."""
        device = generator.device
        points = torch.rand(n, 9, generator=generator, device=device)
        points[:, 7:] *= torch.rand(n, 2, generator=generator, device=device) < 0.5
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
