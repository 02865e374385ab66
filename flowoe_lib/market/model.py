"""What a market and an order are: Heston variance, power-law impact, stochastic depth.

Units throughout the library: time in trading days (a day is 1), variance per day, prices, costs
and profit in basis points of the arrival price, quantities as fractions of the order, order size
as a fraction of average daily volume (ADV).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BPS",
    "Condition",
    "Heston",
    "Impact",
    "Liquidity",
    "Market",
    "Order",
    "Regimes",
    "scalar",
    "volume_profile",
    "volume_share",
]


BPS = 1e4
"""Basis points in one unit of the arrival price."""


def scalar(value: float) -> Tensor:
    """A 0-d float32 tensor; dataclass fields broadcast against paths from there."""
    return torch.tensor(float(value))


def _require(name: str, value: Tensor, ok: Tensor, allowed: str) -> None:
    if not bool(ok.all()):
        bad = value[~ok].flatten()[0].item() if value.dim() else value.item()
        raise ValueError(f"{name} = {bad:g}: must be {allowed}")


@dataclass(frozen=True)
class Heston:
    """Square-root variance dV = kappa (theta - V) dt + xi sqrt(V) dW, corr(dW, dW_price) = rho.

    Every field is a tensor of shape [] or [paths]. The volatility of volatility is given as ``cv``,
    the stationary standard deviation of V over its mean; ``xi`` = cv sqrt(2 kappa theta).

    Source: Heston (1993), Review of Financial Studies 6. Raises ValueError naming a field that is
    out of its range.
    """

    theta: Tensor
    """Long-run variance, per day."""
    kappa: Tensor
    """Mean reversion of variance, per day."""
    cv: Tensor
    """Stationary coefficient of variation of V."""
    rho: Tensor
    """Correlation of price and variance shocks."""

    def __post_init__(self) -> None:
        for name in ("theta", "kappa", "cv"):
            value: Tensor = getattr(self, name)
            _require(f"Heston.{name}", value, (value > 0) & torch.isfinite(value), "finite and > 0")
        _require("Heston.rho", self.rho, self.rho.abs() <= 1, "within [-1, 1]")

    @property
    def xi(self) -> Tensor:
        """Volatility of variance, per day."""
        return self.cv * torch.sqrt(2 * self.kappa * self.theta)


@dataclass(frozen=True)
class Impact:
    """Published power-law impact coefficients of large-cap equities.

    Trading a fraction ``a`` of an order of ``phi`` ADV within a bucket of ``dt`` days costs, per
    unit traded, ``1e4 eta l sqrt(theta) (phi a / (u L dt))^beta`` bps of temporary impact (u the
    volume profile, L the depth, l the illiquidity) and moves the price for good by
    ``1e4 gamma sqrt(theta) (phi a / dt)^delta dt`` bps, half of which the trade itself pays.

    Source: Almgren, Thum, Hauptmann, Li (2005), Risk 18: eta = .142, beta = .6, gamma = .314.
    Raises ValueError naming a field that is out of its range.
    """

    eta: Tensor = field(default_factory=lambda: scalar(0.142))
    beta: Tensor = field(default_factory=lambda: scalar(0.6))
    gamma: Tensor = field(default_factory=lambda: scalar(0.314))
    delta: Tensor = field(default_factory=lambda: scalar(1.0))

    def __post_init__(self) -> None:
        _require("Impact.eta", self.eta, self.eta > 0, "> 0")
        _require("Impact.gamma", self.gamma, self.gamma >= 0, ">= 0")
        for name in ("beta", "delta"):
            value: Tensor = getattr(self, name)
            _require(f"Impact.{name}", value, (value > 0) & (value <= 1), "within (0, 1]")


@dataclass(frozen=True)
class Liquidity:
    """How much there is to trade against: a level, a day's profile, and random depth.

    Depth is L = exp(l) with l a stationary Ornstein-Uhlenbeck process of standard deviation
    ``depth_sd`` and mean reversion ``depth_reversion`` per day; volume follows
    :func:`volume_profile`. Raises ValueError naming a field that is out of its range.
    """

    illiquidity: Tensor = field(default_factory=lambda: scalar(1.0))
    """Multiplier of temporary impact, 1 in a normal market."""
    depth_sd: Tensor = field(default_factory=lambda: scalar(0.0))
    depth_reversion: Tensor = field(default_factory=lambda: scalar(12.0))
    profile_amplitude: Tensor = field(default_factory=lambda: scalar(0.0))
    """Amplitude A of the U-shaped volume profile, 0 for a flat day."""
    window_start: Tensor = field(default_factory=lambda: scalar(0.0))
    """Where in the profile the order's time begins; with ``closes`` 1, it has the whole of it."""
    window_end: Tensor = field(default_factory=lambda: scalar(1.0))

    def __post_init__(self) -> None:
        for name in ("illiquidity", "depth_reversion"):
            value: Tensor = getattr(self, name)
            _require(f"Liquidity.{name}", value, value > 0, "> 0")
        _require("Liquidity.depth_sd", self.depth_sd, self.depth_sd >= 0, ">= 0")
        amplitude = self.profile_amplitude
        _require(
            "Liquidity.profile_amplitude", amplitude, (amplitude > -1) & (amplitude < 2), "within (-1, 2)"
        )
        _require(
            "Liquidity.window_start",
            self.window_start,
            (self.window_start >= 0) & (self.window_start < 1),
            "within [0, 1)",
        )
        later = (self.window_end > self.window_start) & (self.window_end <= 1)
        _require("Liquidity.window_end", self.window_end, later, "after window_start and at most 1")


@dataclass(frozen=True)
class Regimes:
    """Jumps between the market as it is and a stressed one, a Markov chain in its stationary state.

    In the stressed regime volatility is multiplied by ``volatility_multiplier`` and temporary impact by
    ``cost_multiplier``. With both at one there are no regimes. Source: Hamilton (1989), Econometrica 57, for
    the chain. Raises ValueError naming a field that is out of its range.
    """

    volatility_multiplier: Tensor = field(default_factory=lambda: scalar(1.0))
    cost_multiplier: Tensor = field(default_factory=lambda: scalar(1.0))
    enter: Tensor = field(default_factory=lambda: scalar(1.0))
    """Rate of jumps into the stressed regime, per day."""
    leave: Tensor = field(default_factory=lambda: scalar(1.0))
    """Rate of jumps out of it, per day."""

    def __post_init__(self) -> None:
        for name in ("volatility_multiplier", "cost_multiplier", "enter", "leave"):
            value: Tensor = getattr(self, name)
            _require(f"Regimes.{name}", value, value > 0, "> 0")

    @property
    def present(self) -> bool:
        """Whether the regimes differ anywhere."""
        return bool(((self.volatility_multiplier != 1) | (self.cost_multiplier != 1)).any())

    @property
    def stressed_share(self) -> Tensor:
        """Share of time spent in the stressed regime."""
        return self.enter / (self.enter + self.leave)

    def jump(self, dt: float) -> tuple[Tensor, Tensor]:
        """Chances of being stressed after ``dt`` days, from calm and from stressed."""
        kept = torch.exp(-(self.enter + self.leave) * dt)
        return self.stressed_share * (1 - kept), self.stressed_share * (1 - kept) + kept


@dataclass(frozen=True)
class Market:
    """One market condition, or one per path: variance, impact, liquidity, drift and regimes.

    Raises ValueError for a drift that is not finite or a negative ``drift_sd``.
    """

    heston: Heston
    impact: Impact = field(default_factory=Impact)
    liquidity: Liquidity = field(default_factory=Liquidity)
    drift: Tensor = field(default_factory=lambda: scalar(0.0))
    """Expected price change that traders are told of, bps per day."""
    drift_sd: Tensor = field(default_factory=lambda: scalar(0.0))
    """Standard deviation around it of the day's actual drift, which nobody is told, bps per day."""
    regimes: Regimes = field(default_factory=Regimes)

    def __post_init__(self) -> None:
        _require("Market.drift", self.drift, torch.isfinite(self.drift), "finite")
        known = (self.drift_sd >= 0) & torch.isfinite(self.drift_sd)
        _require("Market.drift_sd", self.drift_sd, known, "finite and >= 0")

    def temporary_cost_bps(self, size: Tensor) -> Tensor:
        """What a flat schedule of an order of ``size`` ADV pays in an average bucket, bps."""
        i = self.impact
        return BPS * i.eta * self.liquidity.illiquidity * self.heston.theta.sqrt() * size**i.beta

    def permanent_cost_bps(self, size: Tensor) -> Tensor:
        """Price shift of the whole order worked evenly over the day, bps."""
        return BPS * self.impact.gamma * self.heston.theta.sqrt() * size**self.impact.delta


@dataclass(frozen=True)
class Order:
    """An order to be worked within the day.

    Shapes [] or [paths]. Raises ValueError naming a field that is out of its range.
    """

    size: Tensor
    """phi, shares over average daily volume."""
    risk_aversion: Tensor
    """lambda, per bps."""
    side: Tensor = field(default_factory=lambda: scalar(1.0))
    """+1 to sell, -1 to buy."""

    def __post_init__(self) -> None:
        _require("Order.size", self.size, (self.size > 0) & torch.isfinite(self.size), "finite and > 0")
        averse = (self.risk_aversion >= 0) & torch.isfinite(self.risk_aversion)
        _require("Order.risk_aversion", self.risk_aversion, averse, "finite and >= 0")
        _require("Order.side", self.side, self.side.abs() == 1, "+1 (sell) or -1 (buy)")


@dataclass(frozen=True)
class Condition:
    """A named market and order, and the world whose grid it belongs to."""

    world: str
    name: str
    market: Market
    order: Order


def _traded_by(liquidity: Liquidity, time: Tensor) -> Tensor:
    """Share of the day's volume that is traded by ``time`` of the day, from 0 to 1."""
    x = 2 * time - 1
    return time + liquidity.profile_amplitude * (x**3 - x) / 4


def volume_share(liquidity: Liquidity) -> Tensor:
    """Share of the day's volume that falls into the order's time."""
    return _traded_by(liquidity, liquidity.window_end) - _traded_by(liquidity, liquidity.window_start)


def volume_profile(liquidity: Liquidity, n_buckets: int) -> Tensor:
    """Volume of each bucket over that of an average one, u_k, shape [buckets, ...].

    u(t) = 1 + A P2(2t - 1) with P2 the second Legendre polynomial, averaged over each bucket: a
    U from 1 - A/2 at midday to 1 + A at the open and close of the whole day, of which the order has the
    part from ``opens`` to ``closes``. The mean over that part is one.
    """
    amplitude, length = liquidity.profile_amplitude, liquidity.window_end - liquidity.window_start
    steps = torch.linspace(0, 1, n_buckets + 1, dtype=amplitude.dtype, device=amplitude.device)
    shape = np.broadcast_shapes(amplitude.shape, length.shape)
    edges = liquidity.window_start + length * steps.reshape(-1, *[1] * len(shape))
    return _traded_by(liquidity, edges).diff(dim=0) * n_buckets / volume_share(liquidity)
