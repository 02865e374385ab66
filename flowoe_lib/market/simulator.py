"""Simulated days: exogenous paths of price, variance and depth, before any impact of the order.

Variance follows Andersen's quadratic-exponential scheme; price increments are corrected to be martingales.
Source: Andersen (2008), "Simple and efficient simulation of the Heston model", Journal of Computational
Finance 11. Time is the first axis of every tensor, paths the last.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import BPS, Heston, Market, Regimes, volume_profile
from flowoe_lib.market.signal import signal_paths

SWITCH = 1.5
"""Andersen's psi_c: where psi exceeds it, the next variance has an atom at zero."""


@dataclass(frozen=True)
class MarketPaths:
    """One market day per path, in N buckets of ``dt`` days, as it is without our order."""

    dt: float
    martingale_bps: Tensor
    """Unpredictable price change over each bucket, [N, paths]."""
    drift_bps: Tensor
    """Price change over each bucket expected at its start, broadcastable to [N, paths].

    A hidden drift enters with its posterior mean given past prices and variances, a signal with its estimate.
    """
    variance: Tensor
    """V per day at the start of each bucket, [N, paths]."""
    integrated_variance: Tensor
    """int V ds over each bucket, [N, paths]."""
    expected_variance: Tensor
    """E[int V ds] over each bucket given the variance at its start, [N, paths]."""
    log_depth: Tensor
    """Log depth at the start of each bucket, the effect of the regime included, broadcastable to
    [N, paths]."""
    volume: Tensor
    """Volume profile u_k with mean one over the day, broadcastable to [N, paths]."""
    day_drift_bps: Tensor
    """Actual drift of the day, its hidden part included, bps per day, [paths]."""
    stressed: Tensor
    """Whether each bucket is in the stressed regime, broadcastable to [N, paths]."""
    signal_bps: Tensor = field(default_factory=lambda: torch.zeros(1, 1))
    """Estimate of the signal at the start of each bucket, bps per day, broadcastable to [N, paths]."""

    @property
    def n_buckets(self) -> int:
        """Number of trading buckets N."""
        return self.martingale_bps.shape[0]

    @property
    def n_paths(self) -> int:
        """Number of paths."""
        return self.martingale_bps.shape[1]


@dataclass(frozen=True)
class VarianceStep:
    """Conditional moments of V over one step, all affine in V: the constant and the slope of each.

    They have the shape of the fields of :class:`Heston`. Source: Cox, Ingersoll, Ross (1985), eq. (19).
    """

    mean: tuple[Tensor, Tensor]
    variance: tuple[Tensor, Tensor]
    integrated: tuple[Tensor, Tensor]

    @staticmethod
    def over(heston: Heston, dt: float | Tensor) -> "VarianceStep":
        """The step of length ``dt`` days; a tensor must broadcast against the fields of ``heston``."""
        decay = torch.exp(-heston.kappa * dt)
        slope = -torch.expm1(-heston.kappa * dt) / heston.kappa
        unit = slope * heston.xi**2
        mean = heston.theta * (1 - decay), decay
        variance = unit * heston.theta * (1 - decay) / 2, unit * decay
        return VarianceStep(mean, variance, (heston.theta * (dt - slope), slope))

    def moments(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean and variance of V at the end of the step given ``variance`` at its start."""
        (mean, mean_slope), (spread, spread_slope) = self.mean, self.variance
        return mean_slope * variance + mean, spread_slope * variance + spread

    def integral(self, variance: Tensor) -> Tensor:
        """E[int V ds] over the step given ``variance`` at its start."""
        constant, slope = self.integrated
        return slope * variance + constant


def qe_variance_step(mean: Tensor, conditional_variance: Tensor, normal: Tensor) -> Tensor:
    """Draw the next variance from its conditional ``mean`` and ``conditional_variance``.

    With psi = conditional_variance / mean^2: a moment-matched squared Gaussian a (b + normal)^2 if psi is
    small, otherwise an atom at zero with an exponential tail. ``normal`` is a standard normal draw. All
    arguments are [paths]. Source: Andersen (2008), section 3.2.
    """
    w = mean.square().div_(conditional_variance).mul_(2)
    calm = w.clamp(min=2 / SWITCH)
    x = (calm - 1).mul_(calm).sqrt_().add_(calm)  # 1 + b^2 = mean / a
    following = (x - 1).sqrt_().add_(normal).square_().mul_(mean).div_(x)
    # psi never exceeds cv^2, so most markets have no atom. Computing both cases on whole arrays is faster
    # than selecting paths.
    if bool(w.amin() < 2 / SWITCH):
        scale = w.reciprocal().add_(0.5)  # 1 / (1 - p), p the probability of the atom
        survival = (normal * math.sqrt(0.5)).erfc_().mul_(0.5)
        tail = survival.mul_(scale).log_().clamp_(max=0).mul_(scale).mul_(mean).neg_()
        following.lerp_(tail, w.lt_(2 / SWITCH))
    return following


def simulate(
    market: Market, n_paths: int, n_buckets: int, generator: torch.Generator, opening: Tensor | None = None
) -> MarketPaths:
    """Simulate days of a market, started from the stationary law of variance, depth and regime.

    The price increment over a bucket is 1e4 (rho (V' - m)(1 + kappa dt / 2) / xi + sqrt((1 - rho^2) IV) Z),
    where V' is the next variance, m its conditional mean, Z a standard normal and
    IV = E[IV | V] + (V' - m) dt / 2. Given V it is a martingale for every step length. A hidden drift is
    split: ``drift_bps`` of the result is its posterior mean given past prices and variances, and the
    remainder is a martingale to traders, who see nothing else. A signal is split in the same way, by its
    estimate from the signal's own observations.

    Parameters
    ----------
    market : Market
        Fields of shape [] or [n_paths].
    n_paths : int
        Number of days.
    n_buckets : int
        Number of buckets N into which each day is cut.
    generator : torch.Generator
        Source of all draws; its device is that of the result.
    opening : Tensor, [n_paths], optional
        Variance per day at the open, drawn if not given. If it is given, the parameters of the market do
        not change which random numbers are drawn afterwards.

    Returns
    -------
    flowoe_lib.market.simulator.MarketPaths
        Price changes in bps and variances per day, [N, n_paths].

    Raises
    ------
    ValueError
        If a count is below one.

    References
    ----------
    Andersen (2008), "Simple and efficient simulation of the Heston model", Journal of Computational
    Finance 11, sections 3.2 and 4.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> days = fo.simulate(fo.Market(heston), 10_000, 39, fo.generator(1, "days"))
    >>> days.variance.shape
    torch.Size([39, 10000])
    >>> round(days.variance.mean().sqrt().item(), 2)
    0.02
    """
    for name, count in (("n_paths", n_paths), ("n_buckets", n_buckets)):
        if count < 1:
            raise ValueError(f"{name} = {count}: must be at least 1")
    heston, liquidity = market.heston, market.liquidity
    device = generator.device
    dt = 1 / n_buckets

    shape = (1 / heston.cv**2).double().to(device).expand(n_paths).contiguous()
    step = VarianceStep.over(heston, dt)
    leverage = BPS * heston.rho * (1 + heston.kappa * dt / 2) / heston.xi
    diffusion = BPS * torch.sqrt(1 - heston.rho**2)
    # The allocator reuses one block in the next call; four separate ones would be mapped anew each time.
    rows = torch.empty(4, n_buckets, n_paths, device=device, dtype=heston.theta.dtype)
    variance, expected, integrated, martingale = rows
    if opening is None:
        gamma = torch._standard_gamma(shape, generator=generator).to(rows.dtype)
        opening = gamma * heston.theta * heston.cv**2
    state = opening
    normal = torch.empty_like(state)
    for v, ev, iv, move in zip(variance, expected, integrated, martingale, strict=True):
        v.copy_(state)
        mean, conditional_variance = step.moments(v)
        state = qe_variance_step(mean, conditional_variance, normal.normal_(generator=generator))
        surprise = state - mean
        ev.copy_(step.integral(v))
        torch.add(ev, surprise, alpha=dt / 2, out=iv).clamp_(min=0)
        move.normal_(generator=generator).mul_(diffusion).mul_(iv.sqrt()).addcmul_(surprise, leverage)

    depth = torch.zeros(n_buckets, 1, device=device, dtype=heston.theta.dtype)
    if bool((liquidity.depth_sd > 0).any()):
        depth = torch.empty_like(variance)
        decay = torch.exp(-liquidity.depth_reversion * dt)
        renewal = torch.sqrt(1 - decay**2)
        level = torch.empty_like(normal).normal_(generator=generator)
        for row in depth:
            torch.mul(level, liquidity.depth_sd, out=row)
            level.mul_(decay).addcmul_(normal.normal_(generator=generator), renewal)
    raised = torch.ones((), device=device)
    stressed = torch.zeros(n_buckets, 1, device=device, dtype=torch.bool)
    if market.regimes.present:
        stressed = _regime_paths(market.regimes, n_paths, n_buckets, generator)
        raised = torch.where(stressed, market.regimes.volatility_multiplier, 1)
        martingale.mul_(raised)
        for moment in (variance, expected, integrated):
            moment.mul_(raised.square())
        depth = depth - torch.where(stressed, market.regimes.cost_multiplier, 1).log() / market.impact.beta
    drift = market.drift.to(device).expand(n_paths)
    forecast = (drift * dt)[None]
    if bool((market.drift_sd > 0).any()):
        drift = drift + market.drift_sd * torch.empty_like(state).normal_(generator=generator)
        # Residual of the return after removing the variance shock.
        noise = martingale - leverage * (integrated - expected) * (2 / dt) / raised
        conditional_variance = (diffusion.square() * integrated).clamp_min(1e-6)
        evidence = (dt * (noise + drift * dt - forecast) / conditional_variance).cumsum(0).roll(1, 0)
        weight = (dt**2 / conditional_variance).cumsum(0).roll(1, 0)
        evidence[0] = weight[0] = 0
        signal = market.drift_sd.square()
        forecast = forecast + dt * signal * evidence / (1 + signal * weight)
        martingale.add_(drift * dt - forecast)
    signal = torch.zeros(1, 1, device=device, dtype=heston.theta.dtype)
    if market.signal.present:
        signal, moves = signal_paths(market.signal, n_paths, n_buckets, generator)
        expected_moves = signal * market.signal.mean_ahead(0, dt) * dt
        drift, forecast = drift + moves.sum(0), forecast + expected_moves
        martingale.add_(moves - expected_moves)
    profile = volume_profile(map_tensors(lambda x: x.to(device), liquidity), n_buckets)
    return MarketPaths(
        dt=dt,
        martingale_bps=martingale,
        drift_bps=forecast,
        variance=variance,
        integrated_variance=integrated,
        expected_variance=expected,
        log_depth=depth,
        volume=profile.reshape(n_buckets, -1),
        day_drift_bps=drift,
        stressed=stressed,
        signal_bps=signal,
    )


def _regime_paths(regimes: Regimes, n_paths: int, n_buckets: int, generator: torch.Generator) -> Tensor:
    """Whether each bucket is in the stressed regime, [N, paths]; jumps occur between buckets only."""
    chance = torch.rand(n_buckets, n_paths, generator=generator, device=generator.device)
    from_calm, from_stressed = regimes.jump(1 / n_buckets)
    rows = [chance[0] < regimes.stressed_share]
    for row in chance[1:]:
        rows.append(row < torch.where(rows[-1], from_stressed, from_calm))
    return torch.stack(rows)
