"""What a market and an order are: Heston variance, power-law impact, stochastic depth.

Units throughout the library: time in trading days (a day is 1), variance per day, prices, costs
and profit in basis points of the arrival price, quantities as fractions of the order, order size
as a fraction of average daily volume (ADV).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
    "PreTrade",
    "Regimes",
    "align",
    "averaged",
    "batch",
    "expected_depth_cost",
    "impact_in_window",
    "map_tensors",
    "permanent_shift",
    "posterior_drift",
    "round_trip_cost",
    "scalar",
    "urgency",
    "volume_profile",
    "volume_share",
]

_COARSE = 12
"""Buckets that tell how uneven volume is."""
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


def impact_in_window(impact: Impact, length: Tensor, volume_share: Tensor) -> Impact:
    """The same impact where a window of ``length`` days with ``volume_share`` of a day's volume is the day.

    Coefficients are per daily volatility, sizes a share of daily volume, paces are per day.
    """
    root = length.sqrt()
    gamma = impact.gamma * volume_share**impact.delta * length ** (1 - impact.delta) / root
    return replace(impact, eta=impact.eta / root, gamma=gamma)


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
    opens: Tensor = field(default_factory=lambda: scalar(0.0))
    """Where in the profile the order's time begins; with ``closes`` 1, it has the whole of it."""
    closes: Tensor = field(default_factory=lambda: scalar(1.0))

    def __post_init__(self) -> None:
        for name in ("illiquidity", "depth_reversion"):
            value: Tensor = getattr(self, name)
            _require(f"Liquidity.{name}", value, value > 0, "> 0")
        _require("Liquidity.depth_sd", self.depth_sd, self.depth_sd >= 0, ">= 0")
        amplitude = self.profile_amplitude
        _require(
            "Liquidity.profile_amplitude", amplitude, (amplitude > -1) & (amplitude < 2), "within (-1, 2)"
        )
        _require("Liquidity.opens", self.opens, (self.opens >= 0) & (self.opens < 1), "within [0, 1)")
        later = (self.closes > self.opens) & (self.closes <= 1)
        _require("Liquidity.closes", self.closes, later, "after opens and at most 1")


@dataclass(frozen=True)
class Regimes:
    """Jumps between the market as it is and a stressed one, a Markov chain in its stationary state.

    In the stressed regime volatility is ``volatility`` times, and temporary impact ``cost`` times, what it
    is otherwise. With both at one there are no regimes. Source: Hamilton (1989), Econometrica 57, for
    the chain. Raises ValueError naming a field that is out of its range.
    """

    volatility: Tensor = field(default_factory=lambda: scalar(1.0))
    cost: Tensor = field(default_factory=lambda: scalar(1.0))
    enter: Tensor = field(default_factory=lambda: scalar(1.0))
    """Rate of jumps into the stressed regime, per day."""
    leave: Tensor = field(default_factory=lambda: scalar(1.0))
    """Rate of jumps out of it, per day."""

    def __post_init__(self) -> None:
        for name in ("volatility", "cost", "enter", "leave"):
            value: Tensor = getattr(self, name)
            _require(f"Regimes.{name}", value, value > 0, "> 0")

    @property
    def present(self) -> bool:
        """Whether the regimes differ anywhere."""
        return bool(((self.volatility != 1) | (self.cost != 1)).any())

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


def map_tensors(fn: Callable[..., Tensor], first: Any, *rest: Any) -> Any:
    """Apply ``fn`` to corresponding tensors of dataclass trees of the same type."""
    if isinstance(first, Tensor):
        return fn(first, *rest)
    if not dataclasses.is_dataclass(first):
        return first
    changes = {
        f.name: map_tensors(fn, getattr(first, f.name), *(getattr(r, f.name) for r in rest))
        for f in dataclasses.fields(first)
    }
    return replace(first, **changes)  # type: ignore[type-var]


def align(market: Market, order: Order, shape: tuple[int, ...] = ()) -> tuple[Market, Order]:
    """Both in float64 with every field of one shape, the one they and ``shape`` broadcast to."""
    shapes = [torch.Size(shape)]

    def note(value: Tensor) -> Tensor:
        shapes.append(value.shape)
        return value.double()

    wide = map_tensors(note, market), map_tensors(note, order)
    common = np.broadcast_shapes(*shapes)
    first, second = (map_tensors(lambda value: value.expand(common), part) for part in wide)
    return first, second


def batch(conditions: Sequence[Condition], paths_each: int) -> tuple[Market, Order]:
    """Lay conditions side by side: fields of shape [len(conditions) * paths_each], condition-major."""

    def stack(*fields: Tensor) -> Tensor:
        return torch.stack(fields).repeat_interleave(paths_each)

    market: Market = map_tensors(stack, *(c.market for c in conditions))
    order: Order = map_tensors(stack, *(c.order for c in conditions))
    return market, order


def _traded_by(liquidity: Liquidity, time: Tensor) -> Tensor:
    """Share of the day's volume that is traded by ``time`` of the day, from 0 to 1."""
    x = 2 * time - 1
    return time + liquidity.profile_amplitude * (x**3 - x) / 4


def volume_share(liquidity: Liquidity) -> Tensor:
    """Share of the day's volume that falls into the order's time."""
    return _traded_by(liquidity, liquidity.closes) - _traded_by(liquidity, liquidity.opens)


def volume_profile(liquidity: Liquidity, n_buckets: int) -> Tensor:
    """Volume of each bucket over that of an average one, u_k, shape [buckets, ...].

    u(t) = 1 + A P2(2t - 1) with P2 the second Legendre polynomial, averaged over each bucket: a
    U from 1 - A/2 at midday to 1 + A at the open and close of the whole day, of which the order has the
    part from ``opens`` to ``closes``. The mean over that part is one.
    """
    amplitude, length = liquidity.profile_amplitude, liquidity.closes - liquidity.opens
    steps = torch.linspace(0, 1, n_buckets + 1, dtype=amplitude.dtype, device=amplitude.device)
    shape = np.broadcast_shapes(amplitude.shape, length.shape)
    edges = liquidity.opens + length * steps.reshape(-1, *[1] * len(shape))
    return _traded_by(liquidity, edges).diff(dim=0) * n_buckets / volume_share(liquidity)


def permanent_shift(market: Market, size: Tensor, traded: Tensor, dt: float) -> Tensor:
    """Lasting price move, bps, of trading the fraction ``traded`` of ``size`` ADV within ``dt`` days.

    Source: Almgren et al. (2005), eq. (2), with the rate-based exponent ``delta``.
    """
    # A zero trade has an infinite slope for delta < 1; the floor keeps the gradient finite.
    pace = (traded / dt).clamp_min(1e-12)
    return market.permanent_cost_bps(size) * pace**market.impact.delta * dt


def round_trip_cost(market: Market, size: Tensor, buy_days: Tensor, sell_days: Tensor) -> Tensor:
    """Expected cost, bps of one leg, of buying evenly over ``buy_days`` and selling over ``sell_days``.

    A negative value is price manipulation in the sense of Huberman and Stanzl (2004), which linear
    permanent impact rules out (Gatheral 2010); with delta < 1 slow buying followed by fast selling
    can profit once the shift outweighs the temporary cost. Continuous time, flat volume, no risk.
    """

    def temporary(days: Tensor) -> Tensor:
        return market.temporary_cost_bps(size) * days ** (-market.impact.beta)

    def shift(days: Tensor) -> Tensor:
        return market.permanent_cost_bps(size) * days ** (1 - market.impact.delta)

    # Buyers pay half their own shift on average; sellers receive it whole, less half of theirs.
    permanent = shift(buy_days) / 2 - (shift(buy_days) - shift(sell_days) / 2)
    return temporary(buy_days) + temporary(sell_days) + permanent


def expected_depth_cost(market: Market) -> Tensor:
    """E[L^-beta] = exp(beta^2 sd^2 / 2): how much random depth raises the cost of an unaware schedule."""
    return torch.exp((market.impact.beta * market.liquidity.depth_sd).square() / 2)


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
    stakes: Tensor
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
        stakes = (
            0.04 * pull.square() / (1 + 0.1 * pull)
            + 0.004 * (ratio * market.heston.cv).square() / (1 + 0.1 * ratio)
            + 0.35 * market.liquidity.depth_sd.square() * (1 - held)
            + 0.22 * volume_profile(market.liquidity, _COARSE).var(0, correction=0)
            + 0.002 * (market.drift_sd / cost).square()
        )
        return cls(cost, ratio, stakes)


def posterior_drift(market: Market, order: Order, return_bps: Tensor, elapsed: float) -> Tensor:
    """Mean of the drift in the order's favour, bps per day, given the return after ``elapsed`` days.

    The prior is normal, of mean ``drift`` and standard deviation ``drift_sd``, and the return normal of
    variance theta a day, so the filter is that of Kalman and Bucy (1961); known drift stays what it is.
    """
    signal = market.drift_sd.square() / (1e8 * market.heston.theta)
    return (order.side * market.drift + signal * return_bps) / (1 + signal * elapsed)


def averaged(market: Market) -> Market:
    """The market of moving depth that is closest to one with regimes: what those believe who see none.

    Mean and coefficient of variation of variance, expected temporary impact, permanent impact, and the
    spread of log depth are those over both regimes; what reverts at two paces reverts at their average,
    weighted by what moves at each. A market without regimes stays what it is.
    """
    regimes, heston, impact, liquidity = market.regimes, market.heston, market.impact, market.liquidity
    share, pace = regimes.stressed_share, regimes.enter + regimes.leave

    def mean(of_stressed: Tensor) -> Tensor:
        return 1 - share + share * of_stressed

    raised = mean(regimes.volatility**2)
    spread = mean(regimes.volatility**4) / raised**2
    cv = torch.sqrt((1 + heston.cv**2) * spread - 1)
    kappa = heston.kappa + (spread - 1) / cv**2 * (pace - heston.kappa)
    jumps = share * (1 - share) * (regimes.cost.log() / impact.beta).square()
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
    illiquidity = liquidity.illiquidity * mean(regimes.cost) / raised.sqrt() / swollen
    return replace(believed, liquidity=replace(believed.liquidity, illiquidity=illiquidity))
