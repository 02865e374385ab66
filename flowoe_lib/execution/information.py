"""Information: what traders know of the market, exactly or by estimates, filters and averages.

All agents of a world have the same information. Filters use the past only: the estimate at bucket k depends
on what happened before it and on the depth displayed at its start.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy.special import chndtr, gammainc, gammaincinv
from torch import Tensor

from flowoe_lib.market.model import Liquidity, Market, Signal
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.market.signal import kalman
from flowoe_lib.market.simulator import MarketPaths

RETURNS = 10
"""Returns in a bucket, one a minute, from which realised variance is measured."""


CELLS = 30
"""Cells of the filter's grid of variance."""


DEPTH_NOISE = 0.4
"""Standard deviation of the error of displayed log depth."""


CONSTANT_CV = 0.02
"""Coefficient of variation of variance that counts as constant; the process needs a positive one."""


SIGNALS = (0.2, 2.0)
"""Lowest and highest standard deviation of the noise of a regime signal around 0 (calm) or 1 (stressed)."""


@dataclass(frozen=True)
class RegimeBelief:
    """Traders' belief about the regimes: the probability of stress, and the law of the regimes.

    Source: Hamilton (1989), Econometrica 57, for forecasts of a hidden Markov chain.
    """

    market: Market
    """The market in its calm regime, with its regimes."""
    stressed: Tensor
    """Probability of the stressed regime given the information at the start of a bucket, [N, paths] or
    [paths]."""

    def multipliers(self, days: Tensor) -> tuple[Tensor, Tensor]:
        """Expected multipliers of variance and of temporary impact after ``days`` [times, 1].

        Each [times, paths], for ``stressed`` [paths].
        """
        regimes = self.market.regimes
        share, decay = regimes.stressed_share, torch.exp(-(regimes.enter + regimes.leave) * days)
        probability = share + (self.stressed - share) * decay
        variance = 1 + probability * (regimes.volatility_multiplier.square() - 1)
        return variance, 1 + probability * (regimes.cost_multiplier - 1)


@dataclass(frozen=True)
class Information:
    """What traders know of the market on each path."""

    market: Market
    """Pre-trade estimates, fields of shape [] or [paths]."""
    variance: Tensor
    """Estimated variance per day at the start of each bucket, [N, paths]."""
    log_depth: Tensor
    """Estimated log depth at the start of each bucket, broadcastable to [N, paths]."""
    regimes: RegimeBelief | None = None
    """Belief about the regimes; None if traders know only ``market``, which may average over them."""


Perceive = Callable[[MarketPaths, Market, torch.Generator], Information]
"""(paths, true market, generator of the errors) -> what traders know."""


def exact(paths: MarketPaths, market: Market, generator: torch.Generator) -> Information:
    """Full information: the true parameters, variance, depth and regime, but not the future."""
    belief = RegimeBelief(market, paths.stressed.to(paths.variance))
    return Information(market, paths.variance, paths.log_depth, belief)


def blind_to_regimes(paths: MarketPaths, market: Market, generator: torch.Generator) -> Information:
    """Information of agents who know the law of the regimes but observe neither regime nor depth.

    Parameters are moment-matched over the regimes; variance and the probability of stress are filtered from
    realised variance.
    """
    believed = moment_matched(market)
    variance, stressed = filtered_state(realised_variance(paths, generator), market, paths.dt)
    log_cost = (1 + stressed * (market.regimes.cost_multiplier - 1)).log()
    depth = relative_depth(market, believed) - log_cost / market.impact.beta
    return Information(believed, variance, depth, RegimeBelief(market, stressed))


def regimes_as_depth(paths: MarketPaths, market: Market, generator: torch.Generator) -> Information:
    """Full information, with the regime expressed as variance and depth of the moment-matched market."""
    believed = moment_matched(market)
    depth = paths.log_depth + relative_depth(market, believed)
    return Information(believed, paths.variance, depth, RegimeBelief(market, paths.stressed.to(depth)))


def variance_revealed(paths: MarketPaths, market: Market, generator: torch.Generator) -> Information:
    """Information of traders who observe the calm regime's variance, but neither regime nor depth.

    The probability of stress is filtered from realised over calm variance. These traders know more than those
    of :func:`blind_to_regimes`, and their optimum can be computed.
    """
    raised = torch.where(paths.stressed, market.regimes.volatility_multiplier, 1).square()
    calm = paths.integrated_variance / raised / paths.dt
    steady = replace(market, heston=replace(market.heston, cv=torch.tensor(CONSTANT_CV)))
    relative = realised_variance(paths, generator) / calm * market.heston.theta
    _, stressed = filtered_state(relative, steady, paths.dt)
    expected = 1 + stressed * (market.regimes.volatility_multiplier.square() - 1)
    belief = RegimeBelief(market, stressed)
    return Information(moment_matched(market), paths.variance / raised * expected, paths.log_depth, belief)


def regimes_by_signals(paths: MarketPaths, market: Market, generator: torch.Generator) -> Information:
    """Full information except for the regime, of which a noisy signal arrives at the start of each bucket.

    A signal is the regime (0 or 1) plus normal noise, whose standard deviation is drawn for each path,
    log-uniform within ``SIGNALS``, so that training covers beliefs from certain to vague. The filtered
    probability of stress is expressed as variance and depth, as in :func:`blind_to_regimes`. Fields of the
    market may differ between paths. Source: Hamilton (1989), Econometrica 57, for the forward algorithm.
    """
    if not market.regimes.present:
        return regimes_as_depth(paths, market, generator)
    believed, regimes = moment_matched(market), market.regimes
    low, high = map(math.log, SIGNALS)
    noise_sd = torch.empty_like(paths.variance[0]).uniform_(low, high, generator=generator).exp()
    signals = paths.stressed + noise_sd * torch.empty_like(paths.variance).normal_(generator=generator)
    from_calm, from_stressed = regimes.jump(paths.dt)
    prior, posteriors = regimes.stressed_share, []
    for evidence in (signals - 0.5) / noise_sd.square():
        posteriors.append(torch.sigmoid(torch.logit(prior, 1e-6) + evidence))
        prior = from_calm + (from_stressed - from_calm) * posteriors[-1]
    stressed = torch.stack(posteriors)
    variance_ratio, cost_ratio = (
        (1 + stressed * (factor - 1)) / torch.where(paths.stressed, factor, 1)
        for factor in (regimes.volatility_multiplier.square(), regimes.cost_multiplier)
    )
    depth = paths.log_depth - cost_ratio.log() / market.impact.beta + relative_depth(market, believed)
    return Information(believed, paths.variance * variance_ratio, depth, RegimeBelief(market, stressed))


def relative_depth(market: Market, believed: Market) -> Tensor:
    """Log depth of the calm regime relative to the moment-matched market."""
    usual, calm = (m.liquidity.illiquidity * m.heston.theta.sqrt() for m in (believed, market))
    return (usual / calm).log() / market.impact.beta


@dataclass(frozen=True)
class Errors:
    """Information with errors: estimated parameters, filtered variance, and depth observed with noise.

    Log depth of the believed market is its filtered estimate m, with error variance P. Because
    E[L^-beta | m] = exp(-beta m + beta^2 P / 2), the last factor is part of the believed illiquidity. P is
    that at the close, which the filter reaches within a few buckets of the open.
    """

    volatility: float = 0.1
    """Standard deviation of the log error of the volatility estimate."""
    illiquidity: float = 0.2
    """Standard deviation of the log error of the illiquidity estimate."""
    returns: int | None = RETURNS
    """Returns in a bucket from which variance is measured; None for the true variance."""
    depth: float = DEPTH_NOISE
    """Standard deviation of the error of displayed log depth."""

    def __call__(self, paths: MarketPaths, market: Market, generator: torch.Generator) -> Information:
        """What traders know of ``paths``; ``generator`` draws the errors."""
        errors = torch.randn(2, paths.n_paths, generator=generator, device=generator.device)
        theta = market.heston.theta * torch.exp(2 * self.volatility * errors[0])
        gains, variances = depth_filter(market.liquidity, paths.n_buckets, self.depth)
        error = variances[-1] * (1 - gains[-1])
        scale = self.illiquidity * errors[1] + market.impact.beta.square() * error / 2
        liquidity = replace(
            market.liquidity,
            illiquidity=market.liquidity.illiquidity * torch.exp(scale),
            depth_sd=(market.liquidity.depth_sd.square() - error).clamp_min(0).sqrt(),
        )
        believed = replace(market, heston=replace(market.heston, theta=theta), liquidity=liquidity)
        variance = paths.variance
        if self.returns is not None:
            measured = realised_variance(paths, generator, self.returns)
            variance, _ = filtered_state(measured, believed, paths.dt, self.returns)
        return Information(believed, variance, filtered_depth(paths, market, generator, self.depth))


with_errors = Errors()
"""The errors of the realistic world: 10 % in volatility, 20 % in illiquidity, .4 in log depth."""


def realised_variance(paths: MarketPaths, generator: torch.Generator, returns: int = RETURNS) -> Tensor:
    """Draw the realised variance per day of each bucket, measured from ``returns`` returns, [N, paths].

    Source: Barndorff-Nielsen and Shephard (2002), Journal of the Royal Statistical Society B 64.
    """
    shape = torch.full_like(paths.variance, returns / 2)
    chi = torch._standard_gamma(shape, generator=generator) / shape
    return paths.integrated_variance * chi / paths.dt


def filtered_state(
    realised: Tensor, market: Market, dt: float, returns: int = RETURNS
) -> tuple[Tensor, Tensor]:
    """Filter variance per day and the probability of stress at the start of each bucket, each [N, paths].

    Both are conditional on ``realised`` variance [N, paths] of earlier buckets. The forward algorithm runs on
    ``CELLS`` cells of variance with equal stationary probability, crossed with the regimes; a measured
    variance is gamma-distributed around the true one. ``theta`` may differ between paths; ``cv``, ``kappa``
    and the regimes have shape []. Source: Hamilton (1989), Econometrica 57.
    """
    nodes, step = _variance_chain(market.heston.cv.item(), market.heston.kappa.item(), dt, CELLS)
    raised, start, jump = torch.ones(1), torch.ones(1), torch.ones(1, 1)
    if market.regimes.present:
        regimes = market.regimes
        stressed, factor = torch.stack(regimes.jump(dt)), regimes.volatility_multiplier**2
        raised = torch.stack((torch.ones_like(factor), factor))
        start = torch.stack((1 - regimes.stressed_share, regimes.stressed_share))
        jump = torch.stack((1 - stressed, stressed), 1)
    means = torch.outer(raised, nodes).flatten()
    chain = torch.kron(jump, step)
    belief = torch.kron(start, torch.full((CELLS,), 1 / CELLS)).expand(realised.shape[1], -1)
    history = []
    for measured in realised / market.heston.theta:
        history.append(belief)
        evidence = -returns / 2 * (measured[:, None] / means + means.log())
        weighed = belief * torch.exp(evidence - evidence.amax(1, keepdim=True))
        belief = weighed @ chain / weighed.sum(1, keepdim=True)
    beliefs = torch.stack(history)
    return beliefs @ means * market.heston.theta, beliefs[..., CELLS:].sum(-1)


@cache
def _variance_chain(cv: float, kappa: float, dt: float, cells: int) -> tuple[Tensor, Tensor]:
    """Mean of V / theta in each cell, and the probabilities of transition between cells in ``dt`` days."""
    shape = 1 / cv**2
    edges = gammaincinv(shape, np.linspace(0, 1, cells + 1))
    # The mean over a cell under Gamma(shape) is its probability under Gamma(shape + 1), rescaled.
    nodes = np.diff(gammainc(shape + 1, edges)) * cells
    decay = math.exp(-kappa * dt)
    unit = (1 - decay) / 2
    start = gammaincinv(shape, (np.arange(cells * 8) + 0.5) / (cells * 8)).reshape(cells, 8, 1)
    cumulative = chndtr(edges / unit, 2 * shape, decay * start / unit)
    step = np.diff(cumulative).mean(1)
    # Cells are equally likely and the process is reversible, so the exact matrix is symmetric.
    step = (step + step.T) / 2
    step /= step.sum(1, keepdims=True)
    return torch.tensor(nodes).float(), torch.tensor(step).float()


def depth_filter(liquidity: Liquidity, n_buckets: int, noise_sd: float) -> tuple[Tensor, Tensor]:
    """:func:`flowoe_lib.market.signal.kalman` of log depth, displayed with noise of ``noise_sd``."""
    noise = torch.full_like(liquidity.depth_sd, noise_sd)
    return kalman(Signal(liquidity.depth_sd, liquidity.depth_reversion, noise), n_buckets)


def filtered_depth(
    paths: MarketPaths, market: Market, generator: torch.Generator, noise_sd: float = DEPTH_NOISE
) -> Tensor:
    """Filter log depth at the start of each bucket from the depth displayed up to then, [N, paths].

    Displayed log depth is true log depth plus normal noise of standard deviation ``noise_sd``. The filter is
    Kalman's for a stationary first-order autoregression. Where depth is constant the estimate is zero.
    """
    decay = torch.exp(-market.liquidity.depth_reversion * paths.dt)
    gains, _ = depth_filter(market.liquidity, paths.n_buckets, noise_sd)
    estimates = [torch.zeros_like(paths.variance[0])]
    for gain, depth in zip(gains, paths.log_depth, strict=True):
        displayed = depth + noise_sd * torch.empty_like(estimates[0]).normal_(generator=generator)
        predicted = decay * estimates[-1]
        estimates.append(predicted + gain * (displayed - predicted))
    return torch.stack(estimates[1:])
