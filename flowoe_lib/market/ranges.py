"""The range of conditions from which training draws, independently for each path."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowoe_lib.market.impact import with_half_life
from flowoe_lib.market.model import BPS, Heston, Impact, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.signal import with_signal


@dataclass(frozen=True)
class TrainingRange:
    """Lowest and highest value of every quantity that differs between conditions.

    A network extrapolates arbitrarily in an input that never varied in training, so every quantity that a
    policy observes is drawn. Volatility, size, risk aversion and rates of mean reversion are log-uniform, the
    rest uniform. Depth and profile are at their lower bound on half of the paths, and on half of the paths
    the order has the whole day.
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
    """Largest absolute drift, in daily standard deviations. A quarter of the paths have a known drift;
    another quarter have a hidden one with at most this standard deviation, and ``cv`` at its lower bound."""
    regimes: float = 0.0
    """Share of paths with a stressed regime, of up to three times the volatility and seven times the cost."""
    beta: tuple[float, float] = (0.6, 0.6)
    memory: float = 0.0
    """Share of paths whose temporary impact has memory."""
    half_life: tuple[float, float] = (0.04, 0.5)
    """Half-life of that impact, in days, log-uniform."""
    signal: float = 0.0
    """Largest strength of a signal, :func:`flowoe_lib.market.signal.with_signal`. A third of the paths
    without a hidden drift have one, half of them with noise of up to four times its standard deviation."""
    window: float = 1.0
    """Length of the shortest window of an order, as a part of the day."""

    def at(self, points: Tensor) -> tuple[Market, Order]:
        """The driftless market and order at ``points`` of the unit cube, [n, 12]; fields of shape [n].

        Axes: volatility, illiquidity, cv, size, risk aversion, kappa, depth reversion, beta, the part of the
        day outside the window, the share of that part before the window, depth, profile.
        """

        def linear(axis: int, bounds: tuple[float, float]) -> Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * points[:, axis]

        def logarithmic(axis: int, bounds: tuple[float, float]) -> Tensor:
            return torch.exp(linear(axis, (math.log(bounds[0]), math.log(bounds[1]))))

        cut = linear(8, (0.0, 1 - self.window))
        theta = logarithmic(0, self.volatility).square()
        heston = Heston(theta, logarithmic(5, self.kappa), linear(2, self.cv), scalar(self.rho))
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

    def draw(self, n: int, generator: torch.Generator) -> tuple[Market, Order]:
        """Draw ``n`` markets and orders: fields of shape [n]."""
        device = generator.device
        points = torch.rand(n, 12, generator=generator, device=device)
        points[:, 8] *= torch.rand(n, generator=generator, device=device) < 0.5
        points[:, 10:] *= torch.rand(n, 2, generator=generator, device=device) < 0.5
        market, order = self.at(points)
        kind, known, hidden = torch.rand(3, n, generator=generator, device=device)
        largest = BPS * market.heston.theta.sqrt() * self.drift
        drift = torch.where(kind < 0.25, largest * (2 * known - 1), 0)
        drift_sd = torch.where(kind > 0.75, largest * hidden, 0)
        # The drift filter is exact only for constant variance.
        cv = torch.where(drift_sd > 0, self.cv[0], market.heston.cv)
        market = replace(market, heston=replace(market.heston, cv=cv), drift=drift, drift_sd=drift_sd)
        market = self._with_regimes(market, torch.rand(5, n, generator=generator, device=device))
        kind, place = torch.rand(2, n, generator=generator, device=device)
        shortest, longest = self.half_life
        half_life = torch.where(kind < self.memory, shortest * (longest / shortest) ** place, 0)
        kind, strength, noise = torch.rand(3, n, generator=generator, device=device)
        # The filter of a hidden drift cannot tell it from a signal.
        strength = self.signal * strength * ((kind < 1 / 3) & (drift_sd == 0))
        noise = 8 * (noise - 0.5).clamp_min(0)
        return with_signal(with_half_life(market, half_life), strength, noise), order

    def _with_regimes(self, market: Market, points: Tensor) -> Market:
        """Add regimes on some paths by ``points`` [5, n] in [0, 1), and keep mean variance and mean cost."""
        kind, volatility, cost, enter, leave = points
        # The drift filter cannot account for regimes, so no path has both.
        here = (kind < self.regimes) & (market.drift_sd == 0)
        volatility, cost = (torch.where(here, m, 1) for m in (1 + 2 * volatility, 1 + 6 * cost))
        regimes = Regimes(volatility, cost, 8**enter, 8**leave)
        mean_variance, mean_cost = regimes.mean(volatility**2), regimes.mean(cost)
        heston = replace(market.heston, theta=market.heston.theta / mean_variance)
        illiquidity = market.liquidity.illiquidity * mean_variance.sqrt() / mean_cost
        liquidity = replace(market.liquidity, illiquidity=illiquidity)
        return replace(market, heston=heston, liquidity=liquidity, regimes=regimes)
