"""The signal of :class:`flowoe_lib.market.model.Signal`: its filter and its exact simulation.

Source: Kalman (1960), Journal of Basic Engineering 82; Gillespie (1996), Physical Review E 54, for the exact
simulation of an Ornstein-Uhlenbeck process and of its integral.
"""

from dataclasses import replace

import torch
from torch import Tensor

from flowoe_lib.market.model import BPS, Market, Signal


def with_signal(market: Market, strength: Tensor, noise: Tensor) -> Market:
    """The market with a signal of this strength and noise.

    ``strength`` is the standard deviation of the drift of a whole day, in daily standard deviations of the
    price; ``noise`` that of the noise of an observation, in those of the signal.
    """
    reversion, theta = Signal().reversion, market.heston.theta
    # Variance of the mean of mu over the day, in units of its stationary variance. Rounded from float64,
    # because processors differ in the last bit of float32, and the digest of a condition must not.
    lasting = 2 * (reversion.double() + torch.expm1(-reversion.double())) / reversion.double().square()
    sd = (strength * BPS * (theta.double() / lasting).sqrt()).to(theta)
    return replace(market, signal=Signal(sd, reversion, noise * sd))


def kalman(signal: Signal, n_buckets: int) -> tuple[Tensor, Tensor]:
    """Gains g_k of the Kalman filter and variances P_k of mu before its observations, each [N, ...].

    The estimate m_k at the start of bucket k follows m_{k+1} = a m_k + e_{k+1}, a = exp(-reversion dt), with
    independent normal e_k of variance g_k P_k, and m_0 = e_0. Traders know the stationary law at the open.
    """
    decay = torch.exp(-signal.reversion / n_buckets)
    stationary, noise = signal.sd.square(), signal.noise_sd.square()
    variance, gains, variances = stationary, [], []
    for _ in range(n_buckets):
        gains.append(variance / (variance + noise).clamp_min(1e-12))
        variances.append(variance + 0 * gains[-1])
        variance = decay.square() * (1 - gains[-1]) * variance + (1 - decay.square()) * stationary
    return torch.stack(gains), torch.stack(variances)


def signal_paths(
    signal: Signal, n_paths: int, n_buckets: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the estimate of mu at the start of each bucket and the integral of mu over it, each [N, paths]."""

    def normal() -> Tensor:
        return torch.randn(n_paths, generator=generator, device=generator.device, dtype=signal.sd.dtype)

    span = signal.reversion / n_buckets
    decay, renewal = torch.exp(-span), signal.sd * torch.sqrt(-torch.expm1(-2 * span))
    # Given mu at both ends, its integral has mean slope (mu + mu'), and a standard deviation.
    slope = torch.tanh(span / 2) / signal.reversion
    bridge_sd = signal.sd * torch.sqrt(2 * (span - 2 * torch.tanh(span / 2)).clamp_min(0)) / signal.reversion
    mu, estimate = signal.sd * normal(), torch.zeros(n_paths, device=generator.device, dtype=signal.sd.dtype)
    estimates, integrals = [], []
    for gain in kalman(signal, n_buckets)[0]:
        estimate = decay * estimate + gain * (mu + signal.noise_sd * normal() - decay * estimate)
        following = decay * mu + renewal * normal()
        estimates.append(estimate)
        integrals.append(slope * (mu + following) + bridge_sd * normal())
        mu = following
    return torch.stack(estimates), torch.stack(integrals)
