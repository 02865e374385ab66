"""Exogenous paths of price, variance and depth; what the order does to the price comes later.

Variance follows Andersen's quadratic-exponential scheme, price increments its martingale-corrected
companion. Source: Andersen (2008), "Simple and efficient simulation of the Heston model", Journal
of Computational Finance 11. Arrays are time first, paths last.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import BPS, Heston, Market, Regimes, volume_profile

__all__ = ["MarketPaths", "VarianceStep", "qe_variance_step", "simulate"]


SWITCH = 1.5
"""Andersen's psi_c: above it the next variance has an atom at zero."""


@dataclass(frozen=True)
class MarketPaths:
    """A day of market per path, in N buckets of ``dt`` days: what happens whether or not we trade."""

    dt: float
    martingale_bps: Tensor
    """Unpredictable price change over each bucket, [N, paths]."""
    drift_bps: Tensor
    """Price change over each bucket expected at its start, broadcastable to [N, paths].

    Where the drift is hidden, by whoever has seen variance and price so far.
    """
    variance: Tensor
    """V per day at the start of each bucket, [N, paths]."""
    integrated_variance: Tensor
    """int V ds over each bucket, [N, paths]."""
    expected_variance: Tensor
    """E[int V ds] over each bucket given the variance at its start, [N, paths]."""
    log_depth: Tensor
    """l at the start of each bucket, less what a stressed regime takes, broadcastable to [N, paths]."""
    volume: Tensor
    """Volume profile u_k, mean one over the day, broadcastable to [N, paths]."""
    day_drift_bps: Tensor
    """The day's actual drift, bps per day, [paths]."""
    stressed: Tensor
    """Whether the stressed regime prevails in each bucket, broadcastable to [N, paths]."""

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
    """The square-root process over one step: all its moments given V are affine in V.

    Coefficients shaped like the fields of :class:`Heston`. Source: Cox, Ingersoll, Ross (1985), eq. (19).
    """

    decay: Tensor
    mean_0: Tensor
    variance_0: Tensor
    variance_1: Tensor
    integral_0: Tensor
    integral_1: Tensor

    @staticmethod
    def over(heston: Heston, dt: float) -> "VarianceStep":
        """The step of length ``dt`` days."""
        decay = torch.exp(-heston.kappa * dt)
        held = -torch.expm1(-heston.kappa * dt) / heston.kappa
        unit = held * heston.xi**2
        return VarianceStep(
            decay=decay,
            mean_0=heston.theta * (1 - decay),
            variance_0=unit * heston.theta * (1 - decay) / 2,
            variance_1=unit * decay,
            integral_0=heston.theta * (dt - held),
            integral_1=held,
        )

    def moments(self, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean and variance of V at the end of the step given ``variance`` at its start."""
        return self.decay * variance + self.mean_0, self.variance_1 * variance + self.variance_0

    def integral(self, variance: Tensor) -> Tensor:
        """E[int V ds] over the step given ``variance`` at its start."""
        return self.integral_1 * variance + self.integral_0


def qe_variance_step(mean: Tensor, conditional_variance: Tensor, normal: Tensor) -> Tensor:
    """Next variance with the given conditional ``mean`` and variance ``spread``, from a standard normal.

    A moment-matched squared Gaussian a (b + normal)^2 where psi = spread / mean^2 is small, else an atom
    at zero with an exponential tail. All arguments [paths]. Source: Andersen (2008), section 3.2.
    """
    w = mean.square().div_(conditional_variance).mul_(2)
    calm = w.clamp(min=2 / SWITCH)
    x = (calm - 1).mul_(calm).sqrt_().add_(calm)  # 1 + b^2 = mean / a
    following = (x - 1).sqrt_().add_(normal).square_().mul_(mean).div_(x)
    # psi never exceeds cv^2, so most markets have no atom. Whole arrays are faster than picking paths.
    if bool(w.amin() < 2 / SWITCH):
        scale = w.reciprocal().add_(0.5)  # 1 / (1 - p), p the probability of the atom
        survival = (normal * math.sqrt(0.5)).erfc_().mul_(0.5)
        tail = survival.mul_(scale).log_().clamp_(max=0).mul_(scale).mul_(mean).neg_()
        following.lerp_(tail, w.lt_(2 / SWITCH))
    return following


def simulate(
    market: Market, n_paths: int, n_buckets: int, generator: torch.Generator, opening: Tensor | None = None
) -> MarketPaths:
    """Draw ``n_paths`` days in ``n_buckets`` buckets, from the stationary law of variance and depth.

    ``market`` has fields of shape [] or [n_paths]; all is drawn on the generator's device, except for the
    ``opening`` variance [n_paths] where given: then no parameter changes which normals follow. The price
    increment over a bucket is 1e4 (rho (V' - m)(1 + kappa dt / 2) / xi + sqrt((1 - rho^2) IV) Z) with
    IV = E[IV | V] + (V' - m) dt / 2, a martingale given V whatever the step. A hidden drift is told apart
    from it as its posterior mean given variance and price so far: what is left is a martingale to
    everybody. Raises ValueError where a count is not positive.
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
    # One block, which the allocator keeps for the next call; four would be mapped afresh every time.
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
    foreseen = (drift * dt)[None]
    if bool((market.drift_sd > 0).any()):
        drift = drift + market.drift_sd * torch.empty_like(state).normal_(generator=generator)
        # What a bucket's variance leaves open of its return; the rest was news of variance alone.
        noise = martingale - leverage * (integrated - expected) * (2 / dt) / raised
        conditional_variance = (diffusion.square() * integrated).clamp_min(1e-6)
        told = (dt * (noise + drift * dt - foreseen) / conditional_variance).cumsum(0).roll(1, 0)
        weight = (dt**2 / conditional_variance).cumsum(0).roll(1, 0)
        told[0] = weight[0] = 0
        signal = market.drift_sd.square()
        foreseen = foreseen + dt * signal * told / (1 + signal * weight)
        martingale.add_(drift * dt - foreseen)
    profile = volume_profile(map_tensors(lambda x: x.to(device), liquidity), n_buckets)
    return MarketPaths(
        dt=dt,
        martingale_bps=martingale,
        drift_bps=foreseen,
        variance=variance,
        integrated_variance=integrated,
        expected_variance=expected,
        log_depth=depth,
        volume=profile.reshape(n_buckets, -1),
        day_drift_bps=drift,
        stressed=stressed,
    )


def _regime_paths(regimes: Regimes, n_paths: int, n_buckets: int, generator: torch.Generator) -> Tensor:
    """Whether each bucket is stressed, [N, paths]; the chain jumps between buckets only."""
    chance = torch.rand(n_buckets, n_paths, generator=generator, device=generator.device)
    from_calm, from_stressed = regimes.jump(1 / n_buckets)
    rows = [chance[0] < regimes.stressed_share]
    for row in chance[1:]:
        rows.append(row < torch.where(rows[-1], from_stressed, from_calm))
    return torch.stack(rows)
