"""What a market and an order are: Heston variance, power-law impact, stochastic depth.

Units throughout the library: time in trading days (a day is 1), variance per day, prices, costs
and profit in basis points of the arrival price, quantities as fractions of the order, order size
as a fraction of average daily volume (ADV).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowoe_lib.market.volume import traded_by

BPS = 1e4
"""Basis points in one unit of the arrival price."""


def scalar(value: float) -> Tensor:
    """A number as a float32 tensor of shape [], the form that markets and orders take.

    Parameters
    ----------
    value : float
        Any number.

    Returns
    -------
    Tensor, []
        The number; it broadcasts against fields of shape [paths].

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> fo.scalar(0.1).shape
    torch.Size([])
    """
    return torch.tensor(float(value))


_Allowed = Mapping[str, Callable[[Tensor], Tensor]]
"""What a value must be, in words, and as a test of each value."""


_POSITIVE: _Allowed = {"finite and > 0": lambda x: (x > 0) & torch.isfinite(x)}
_NOT_NEGATIVE: _Allowed = {"finite and >= 0": lambda x: (x >= 0) & torch.isfinite(x)}
_EXPONENT: _Allowed = {"within (0, 1]": lambda x: (x > 0) & (x <= 1)}


def _number(default: float, allowed: _Allowed) -> Any:
    """A field of a dataclass, a tensor of ``allowed`` values; by default ``default``."""
    return field(default_factory=lambda: scalar(default), metadata=allowed)


def _require(owner: object, name: str, allowed: str, ok: Tensor) -> None:
    """Raise ValueError unless ``ok`` for all values of the field ``name``, which must be ``allowed``."""
    if not bool(ok.all()):
        bad = getattr(owner, name).expand_as(ok)[~ok][0]
        raise ValueError(f"{type(owner).__name__}.{name} = {bad:g}: must be {allowed}")


@dataclass(frozen=True)
class _Checked:
    """A dataclass that raises ValueError unless its fields hold what their metadata allow."""

    def __post_init__(self) -> None:
        for checked in fields(self):
            for allowed, holds in checked.metadata.items():
                _require(self, checked.name, allowed, holds(getattr(self, checked.name)))


@dataclass(frozen=True)
class Heston(_Checked):
    """Heston's variance of the price, dV = kappa (theta - V) dt + xi sqrt(V) dW.

    The volatility of variance follows from the stationary law of V: xi = cv sqrt(2 kappa theta).

    Parameters
    ----------
    theta : Tensor, [] or [paths]
        Long-run mean of the variance V, per day.
    kappa : Tensor, [] or [paths]
        Rate of mean reversion of V, per day.
    cv : Tensor, [] or [paths]
        Coefficient of variation of V: its stationary standard deviation over its mean.
    rho : Tensor, [] or [paths]
        Correlation of the shocks to price and variance, within [-1, 1].

    Raises
    ------
    ValueError
        If a field is out of its range; the message names the field.

    References
    ----------
    Heston (1993), "A closed-form solution for options with stochastic volatility", Review of Financial
    Studies 6.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> round(heston.xi.item(), 3)
    0.051
    """

    theta: Tensor = field(metadata=_POSITIVE)
    kappa: Tensor = field(metadata=_POSITIVE)
    cv: Tensor = field(metadata=_POSITIVE)
    rho: Tensor = field(metadata={"within [-1, 1]": lambda x: x.abs() <= 1})

    @property
    def xi(self) -> Tensor:
        """Volatility of variance, per day."""
        return self.cv * torch.sqrt(2 * self.kappa * self.theta)


@dataclass(frozen=True)
class Impact(_Checked):
    """Power-law market impact, by default with the published coefficients of large-cap equities.

    Trading a fraction ``a`` of an order of ``phi`` ADV within a bucket of ``dt`` days costs
    ``1e4 eta l sqrt(theta) (phi a / (u L dt))^beta`` bps of temporary impact per unit traded, where u is the
    volume profile, L the depth and l the illiquidity, times ``(V / theta)^variance_exponent`` with V at least
    theta / 10. The trade also moves the price permanently by
    ``1e4 gamma sqrt(theta) (phi a / dt)^delta dt (Theta / ADV)^(1/4)`` bps, where Theta is the number of
    shares outstanding, and pays half of that move itself.

    Parameters
    ----------
    eta : Tensor, [] or [paths]
        Coefficient of temporary impact, in daily volatilities.
    beta : Tensor, [] or [paths]
        Exponent of temporary impact, within (0, 1].
    gamma : Tensor, [] or [paths]
        Coefficient of permanent impact, in daily volatilities.
    delta : Tensor, [] or [paths]
        Exponent of permanent impact, within (0, 1]; 1 is linear.
    turnover_days : Tensor, [] or [paths]
        Theta / ADV, shares outstanding over average daily volume: the days in which trading turns the shares
        over once. By default that of a large stock, IBM's 1,728 M shares over 6.561 M a day.
    resilience : Tensor, [] or [paths]
        Rate at which temporary impact decays, per day; infinite, the default, if it is gone by the next
        bucket. :func:`flowoe_lib.market.impact.temporary_cost` describes impact with memory.
    variance_exponent : Tensor, [] or [paths]
        Exponent of the variance at the start of the bucket in temporary impact, >= 0; by default 0, so that
        impact does not depend on it. 1/2 is impact proportional to current volatility.

    Raises
    ------
    ValueError
        If a field is out of its range; the message names the field.

    References
    ----------
    Almgren, Thum, Hauptmann, Li (2005), "Direct estimation of equity market impact", Risk 18:
    eta = .142, beta = .6, gamma = .314, and the example of IBM, table 2.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> impact = fo.Impact(beta=fo.scalar(0.5))
    >>> round(impact.eta.item(), 3), impact.beta.item()
    (0.142, 0.5)
    """

    eta: Tensor = _number(0.142, _POSITIVE)
    beta: Tensor = _number(0.6, _EXPONENT)
    gamma: Tensor = _number(0.314, _NOT_NEGATIVE)
    delta: Tensor = _number(1.0, _EXPONENT)
    turnover_days: Tensor = _number(263.0, _POSITIVE)
    resilience: Tensor = _number(float("inf"), {"> 0, infinite for impact without memory": lambda x: x > 0})
    variance_exponent: Tensor = _number(0.0, _NOT_NEGATIVE)

    @property
    def has_memory(self) -> bool:
        """Whether temporary impact outlasts its bucket on any path."""
        return bool(torch.isfinite(self.resilience).any())


@dataclass(frozen=True)
class Liquidity(_Checked):
    """Liquidity of the market: its level, the volume profile of the day, and random depth.

    Depth is L = exp(l), where l is a stationary Ornstein-Uhlenbeck process. Volume follows the U-shaped
    profile of :func:`flowoe_lib.market.model.volume_profile`.

    Parameters
    ----------
    illiquidity : Tensor, [] or [paths]
        Multiplier of temporary impact, 1 in a normal market.
    depth_sd : Tensor, [] or [paths]
        Stationary standard deviation of log depth; 0 for constant depth.
    depth_reversion : Tensor, [] or [paths]
        Rate of mean reversion of log depth, per day.
    profile_amplitude : Tensor, [] or [paths]
        Amplitude A of the volume profile, within (-1, 2); 0 for flat volume.
    window_start, window_end : Tensor, [] or [paths]
        Part of the day's volume profile in which the order is worked, from 0 (open) to 1 (close).

    Raises
    ------
    ValueError
        If a field is out of its range; the message names the field.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> liquidity = fo.Liquidity(profile_amplitude=fo.scalar(0.5))
    >>> [round(u, 2) for u in fo.market.model.volume_profile(liquidity, 4).tolist()]
    [1.19, 0.81, 0.81, 1.19]
    """

    illiquidity: Tensor = _number(1.0, _POSITIVE)
    depth_sd: Tensor = _number(0.0, _NOT_NEGATIVE)
    depth_reversion: Tensor = _number(12.0, _POSITIVE)
    profile_amplitude: Tensor = _number(0.0, {"within (-1, 2)": lambda x: (x > -1) & (x < 2)})
    window_start: Tensor = _number(0.0, {"within [0, 1)": lambda x: (x >= 0) & (x < 1)})
    window_end: Tensor = field(default_factory=lambda: scalar(1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        after = (self.window_end > self.window_start) & (self.window_end <= 1)
        _require(self, "window_end", "after window_start and at most 1", after)


@dataclass(frozen=True)
class Regimes(_Checked):
    """A stationary two-state Markov chain between a calm and a stressed regime.

    In the stressed regime volatility is multiplied by ``volatility_multiplier`` and temporary impact by
    ``cost_multiplier``. If both are one, there are no regimes. Source: Hamilton (1989), Econometrica 57.
    Raises ValueError naming a field that is out of its range.
    """

    volatility_multiplier: Tensor = _number(1.0, _POSITIVE)
    cost_multiplier: Tensor = _number(1.0, _POSITIVE)
    enter: Tensor = _number(1.0, _POSITIVE)
    """Rate of transition from calm to stressed, per day."""
    leave: Tensor = _number(1.0, _POSITIVE)
    """Rate of transition from stressed to calm, per day."""

    @property
    def present(self) -> bool:
        """Whether the two regimes differ on any path."""
        return bool(((self.volatility_multiplier != 1) | (self.cost_multiplier != 1)).any())

    @property
    def stressed_share(self) -> Tensor:
        """Share of time spent in the stressed regime."""
        return self.enter / (self.enter + self.leave)

    def mean(self, multiplier: Tensor) -> Tensor:
        """Mean over time of a quantity that is ``multiplier`` in the stressed regime and one in the other."""
        return 1 - self.stressed_share + self.stressed_share * multiplier

    def jump(self, dt: float) -> tuple[Tensor, Tensor]:
        """Probabilities of the stressed regime after ``dt`` days, starting from calm and from stressed."""
        decay = torch.exp(-(self.enter + self.leave) * dt)
        return self.stressed_share * (1 - decay), self.stressed_share * (1 - decay) + decay


@dataclass(frozen=True)
class Signal(_Checked):
    """A predictable part mu of the drift, d mu = -reversion mu dt + sd sqrt(2 reversion) dW, stationary.

    At the start of each bucket traders observe mu plus normal noise, from which they estimate it by
    :func:`flowoe_lib.market.signal.kalman`.

    Parameters
    ----------
    sd : Tensor, [] or [paths]
        Stationary standard deviation of mu, bps per day; 0 if there is no signal.
    reversion : Tensor, [] or [paths]
        Rate of mean reversion of mu, per day. By default its half-life is one hour of a session of 6.5 hours.
    noise_sd : Tensor, [] or [paths]
        Standard deviation of the noise, bps per day; 0 if mu is observed exactly.

    Raises
    ------
    ValueError
        If a field is out of its range; the message names the field.

    References
    ----------
    Garleanu, Pedersen (2013), "Dynamic trading with predictable returns and transaction costs", Journal of
    Finance 68; Lehalle, Neuman (2019), Finance and Stochastics 23.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> signal = fo.market.model.Signal(sd=fo.scalar(100))
    >>> [round(signal.mean_ahead(t, 1 / 39).item(), 3) for t in (0, 1 / 6.5)]
    [0.944, 0.472]
    """

    sd: Tensor = _number(0.0, _NOT_NEGATIVE)
    reversion: Tensor = _number(6.5 * math.log(2), _POSITIVE)
    noise_sd: Tensor = _number(0.0, _NOT_NEGATIVE)

    @property
    def present(self) -> bool:
        """Whether there is a signal on any path."""
        return bool((self.sd > 0).any())

    def mean_ahead(self, days: float | Tensor, length: float | Tensor) -> Tensor:
        """Expected mean of mu over ``length`` days, from ``days`` ahead on, as a multiple of mu now."""
        span = self.reversion * length
        return torch.exp(-self.reversion * days) * -torch.expm1(-span) / span


@dataclass(frozen=True)
class Market(_Checked):
    """The parameters of a market: variance, impact, liquidity, drift, regimes and signal.

    The drift of a day is normal with mean ``drift``, which traders know, and standard deviation
    ``drift_sd``; they do not observe its actual value.

    Parameters
    ----------
    heston : Heston
        Stochastic variance of the price.
    impact : Impact
        Temporary and permanent impact.
    liquidity : Liquidity
        Illiquidity, volume profile and depth.
    drift : Tensor, [] or [paths]
        Expected price change, bps per day.
    drift_sd : Tensor, [] or [paths]
        Standard deviation of the day's hidden drift around ``drift``, bps per day.
    regimes : flowoe_lib.market.model.Regimes
        Jumps between a calm and a stressed regime; by default there are none.
    signal : flowoe_lib.market.model.Signal
        A further part of the drift that reverts to zero within the day; by default there is none.

    Raises
    ------
    ValueError
        If ``drift`` is not finite or ``drift_sd`` is negative.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market = fo.Market(heston, liquidity=fo.Liquidity(illiquidity=fo.scalar(3)))
    >>> round(market.temporary_cost_bps(fo.scalar(0.1)).item(), 2)
    21.4
    """

    heston: Heston
    impact: Impact = field(default_factory=Impact)
    liquidity: Liquidity = field(default_factory=Liquidity)
    drift: Tensor = _number(0.0, {"finite": torch.isfinite})
    drift_sd: Tensor = _number(0.0, _NOT_NEGATIVE)
    regimes: Regimes = field(default_factory=Regimes)
    signal: Signal = field(default_factory=Signal)

    def temporary_cost_bps(self, size: Tensor) -> Tensor:
        """Temporary cost of an order of ``size`` ADV traded at an even pace, with L = u = 1, bps."""
        i = self.impact
        return BPS * i.eta * self.liquidity.illiquidity * self.heston.theta.sqrt() * size**i.beta

    def permanent_cost_bps(self, size: Tensor) -> Tensor:
        """Permanent price move caused by an order of ``size`` ADV worked evenly over the day, bps."""
        i = self.impact
        return BPS * i.gamma * i.turnover_days**0.25 * self.heston.theta.sqrt() * size**i.delta


@dataclass(frozen=True)
class Order(_Checked):
    """An order to be worked within one day.

    Parameters
    ----------
    size : Tensor, [] or [paths]
        phi, shares over average daily volume (ADV).
    risk_aversion : Tensor, [] or [paths]
        lambda, the price of a unit of risk in utility, per bps.
    side : Tensor, [] or [paths]
        +1 to sell, -1 to buy.

    Raises
    ------
    ValueError
        If a field is out of its range; the message names the field.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> fo.Order(size=fo.scalar(0.1), risk_aversion=fo.scalar(5e-4)).side.item()
    1.0
    >>> fo.Order(size=fo.scalar(0), risk_aversion=fo.scalar(5e-4))
    Traceback (most recent call last):
    ValueError: Order.size = 0: must be finite and > 0
    """

    size: Tensor = field(metadata=_POSITIVE)
    risk_aversion: Tensor = field(metadata=_NOT_NEGATIVE)
    side: Tensor = _number(1.0, {"+1 (sell) or -1 (buy)": lambda x: x.abs() == 1})


@dataclass(frozen=True)
class Condition:
    """A named market and order.

    Parameters
    ----------
    world : str
        The world, that is the grid of conditions, to which it belongs. World and name select the random
        streams in which the condition is evaluated.
    name : str
        Its name within the world.
    market : Market
        The market's parameters, fields of shape [].
    order : Order
        The order to be worked, fields of shape [].

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> order = fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> fo.Condition("mine", "stressed", fo.Market(heston), order).name
    'stressed'
    """

    world: str
    name: str
    market: Market
    order: Order


def volume_share(liquidity: Liquidity) -> Tensor:
    """Share of the day's volume that falls into the order's window."""
    amplitude = liquidity.profile_amplitude
    share: Tensor = traded_by(amplitude, liquidity.window_end) - traded_by(amplitude, liquidity.window_start)
    return share


def volume_profile(liquidity: Liquidity, n_buckets: int) -> Tensor:
    """Volume u_k of each bucket over that of an average bucket, [buckets, ...].

    u(t) = 1 + A P2(2t - 1), where P2 is the second Legendre polynomial: a U from 1 + A at the open and close
    to 1 - A/2 at midday. It is averaged over each bucket of the window from ``window_start`` to
    ``window_end``, and scaled to mean one over the window.
    """
    amplitude, length = liquidity.profile_amplitude, liquidity.window_end - liquidity.window_start
    steps = torch.linspace(0, 1, n_buckets + 1, dtype=amplitude.dtype, device=amplitude.device)
    shape = np.broadcast_shapes(amplitude.shape, length.shape)
    edges = liquidity.window_start + length * steps.reshape(-1, *[1] * len(shape))
    profile: Tensor = traded_by(amplitude, edges).diff(dim=0) * n_buckets / volume_share(liquidity)
    return profile
