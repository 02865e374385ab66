"""What traders make of a market that they do not see exactly: estimates, filters, averages.

Every agent of a world gets the same perception, so that none knows more than another. Filters look
back only: what they say at bucket k rests on what happened before it, and on the depth seen at its start.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy.special import chndtr, gammainc, gammaincinv
from torch import Tensor

from flowoe_lib.market.model import Market
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.market.simulator import MarketPaths

__all__ = [
    "Errors",
    "Perceive",
    "Perception",
    "blind_to_regimes",
    "exact",
    "filtered_depth",
    "filtered_state",
    "realised_variance",
    "regimes_as_depth",
    "regimes_by_signals",
    "with_errors",
]


RETURNS = 10
"""Returns a bucket, one a minute, from which realised variance is measured."""


CELLS = 30
"""Of the filter's grid of variance."""


DEPTH_NOISE = 0.4
"""Standard deviation of the logarithm of the depth on display around what there is."""


SIGNALS = (0.2, 2.0)
"""Standard deviations of signals of the regime, calm being zero and stressed one: from plain to vague."""


@dataclass(frozen=True)
class Perception:
    """What is known of the day on each path."""

    market: Market
    """Pre-trade estimates, fields of shape [] or [paths]."""
    variance: Tensor
    """Variance per day at the start of each bucket, [N, paths]."""
    log_depth: Tensor
    """At the start of each bucket, broadcastable to [N, paths]."""


Perceive = Callable[[MarketPaths, Market, torch.Generator], Perception]
"""(paths, the true market, randomness of the errors) -> what is known."""


def exact(paths: MarketPaths, market: Market, generator: torch.Generator) -> Perception:
    """Everything but the future: the true parameters, variance and depth."""
    return Perception(market, paths.variance, paths.log_depth)


def blind_to_regimes(paths: MarketPaths, market: Market, generator: torch.Generator) -> Perception:
    """Averages over the regimes, and what realised returns tell of variance and of the regime's depth.

    Agents know that there are regimes and how they behave, but not which one prevails.
    """
    believed = moment_matched(market)
    variance, stressed = filtered_state(realised_variance(paths, generator), market, paths.dt)
    cost = 1 + stressed * (market.regimes.cost_multiplier - 1)
    return Perception(believed, variance, _relative_depth(market, believed) - cost.log() / market.impact.beta)


def regimes_as_depth(paths: MarketPaths, market: Market, generator: torch.Generator) -> Perception:
    """Everything but the future, with regimes told as variance and depth around their averages."""
    believed = moment_matched(market)
    return Perception(believed, paths.variance, paths.log_depth + _relative_depth(market, believed))


def regimes_by_signals(paths: MarketPaths, market: Market, generator: torch.Generator) -> Perception:
    """Everything but the future and the regime, of which a signal comes at the start of each bucket.

    Signals are the regime in noise, whose standard deviation is drawn for each path, log-uniform within
    ``SIGNALS``: so beliefs are met as sure and as vague as they may be. They are turned into variance and
    depth as in :func:`blind_to_regimes`. Fields of the market may differ between paths. Source: Hamilton
    (1989), Econometrica 57, for the forward algorithm.
    """
    if not market.regimes.present:
        return regimes_as_depth(paths, market, generator)
    believed, regimes = moment_matched(market), market.regimes
    spread = torch.empty_like(paths.variance[0]).uniform_(*map(math.log, SIGNALS), generator=generator).exp()
    signals = paths.stressed + spread * torch.empty_like(paths.variance).normal_(generator=generator)
    from_calm, from_stressed = regimes.jump(paths.dt)
    belief, told = regimes.stressed_share, []
    for evidence in (signals - 0.5) / spread.square():
        told.append(torch.sigmoid(torch.logit(belief, 1e-6) + evidence))
        belief = from_calm + (from_stressed - from_calm) * told[-1]
    risen, dearer = (
        (1 + torch.stack(told) * (factor - 1)) / torch.where(paths.stressed, factor, 1)
        for factor in (regimes.volatility_multiplier.square(), regimes.cost_multiplier)
    )
    depth = paths.log_depth - dearer.log() / market.impact.beta
    return Perception(believed, paths.variance * risen, depth + _relative_depth(market, believed))


def _relative_depth(market: Market, believed: Market) -> Tensor:
    """Log depth of the calm regime, relative to what an average market believes of its own."""
    usual, calm = (m.liquidity.illiquidity * m.heston.theta.sqrt() for m in (believed, market))
    return (usual / calm).log() / market.impact.beta


@dataclass(frozen=True)
class Errors:
    """A way to perceive: parameters are estimates, variance is measured, depth is seen with noise."""

    volatility: float = 0.1
    """Standard deviation of the logarithm of a pre-trade estimate."""
    illiquidity: float = 0.2
    returns: int | None = RETURNS
    """From which variance is measured in a bucket; None: it is seen as it is."""
    depth: float = DEPTH_NOISE

    def __call__(self, paths: MarketPaths, market: Market, generator: torch.Generator) -> Perception:
        """What is known of ``paths``; ``generator`` draws the errors."""
        errors = torch.randn(2, paths.n_paths, generator=generator, device=generator.device)
        theta = market.heston.theta * torch.exp(2 * self.volatility * errors[0])
        illiquidity = market.liquidity.illiquidity * torch.exp(self.illiquidity * errors[1])
        believed = replace(
            market,
            heston=replace(market.heston, theta=theta),
            liquidity=replace(market.liquidity, illiquidity=illiquidity),
        )
        variance = paths.variance
        if self.returns is not None:
            measured = realised_variance(paths, generator, self.returns)
            variance, _ = filtered_state(measured, believed, paths.dt, self.returns)
        return Perception(believed, variance, filtered_depth(paths, believed, generator, self.depth))


with_errors = Errors()
"""The errors of the realistic world: volatility to 10 %, illiquidity to 20 %, depth to .4 in logs."""


def realised_variance(paths: MarketPaths, generator: torch.Generator, returns: int = RETURNS) -> Tensor:
    """Variance per day measured over each bucket from so many squared ``returns``, [N, paths].

    Source: Barndorff-Nielsen and Shephard (2002), Journal of the Royal Statistical Society B 64.
    """
    shape = torch.full_like(paths.variance, returns / 2)
    chi = torch._standard_gamma(shape, generator=generator) / shape
    return paths.integrated_variance * chi / paths.dt


def filtered_state(
    realised: Tensor, market: Market, dt: float, returns: int = RETURNS
) -> tuple[Tensor, Tensor]:
    """Expected variance per day and probability of stress at the start of each bucket, each [N, paths].

    Given ``realised`` before it, [N, paths]: the forward algorithm on variance cut into ``CELLS`` cells of
    equal stationary probability, times the regimes. A measured variance is gamma around the true one.
    ``theta`` may differ between paths, ``cv``, ``kappa`` and the regimes have shape []. Source: Hamilton
    (1989), Econometrica 57.
    """
    nodes, step = _variance_chain(market.heston.cv.item(), market.heston.kappa.item(), dt, CELLS)
    raised, start, jump = torch.ones(1), torch.ones(1), torch.ones(1, 1)
    if market.regimes.present:
        regimes = market.regimes
        stressed = torch.stack(regimes.jump(dt))
        raised = torch.stack(
            (torch.ones_like(regimes.volatility_multiplier), regimes.volatility_multiplier**2)
        )
        start = torch.stack((1 - regimes.stressed_share, regimes.stressed_share))
        jump = torch.stack((1 - stressed, stressed), 1)
    means = torch.outer(raised, nodes).flatten()
    chain = torch.kron(jump, step)
    belief = torch.kron(start, torch.full((CELLS,), 1 / CELLS)).expand(realised.shape[1], -1)
    known = []
    for measured in realised / market.heston.theta:
        known.append(belief)
        evidence = -returns / 2 * (measured[:, None] / means + means.log())
        weighed = belief * torch.exp(evidence - evidence.amax(1, keepdim=True))
        belief = weighed @ chain / weighed.sum(1, keepdim=True)
    beliefs = torch.stack(known)
    return beliefs @ means * market.heston.theta, beliefs[..., CELLS:].sum(-1)


@cache
def _variance_chain(cv: float, kappa: float, dt: float, cells: int) -> tuple[Tensor, Tensor]:
    """Mean of V / theta in each cell, and the chances of moving from cell to cell within ``dt`` days."""
    shape = 1 / cv**2
    edges = gammaincinv(shape, np.linspace(0, 1, cells + 1))
    # The mean over a cell of a gamma is the next gamma's probability of it.
    nodes = np.diff(gammainc(shape + 1, edges)) * cells
    decay = math.exp(-kappa * dt)
    unit = (1 - decay) / 2
    start = gammaincinv(shape, (np.arange(cells * 8) + 0.5) / (cells * 8)).reshape(cells, 8, 1)
    reached = chndtr(edges / unit, 2 * shape, decay * start / unit)
    step = np.diff(reached).mean(1)
    # Cells are equally likely and the process reversible, so the exact chances are symmetric.
    step = (step + step.T) / 2
    step /= step.sum(1, keepdims=True)
    return torch.tensor(nodes).float(), torch.tensor(step).float()


def filtered_depth(
    paths: MarketPaths, believed: Market, generator: torch.Generator, spread_of_noise: float = DEPTH_NOISE
) -> Tensor:
    """Best estimate of log depth at the start of each bucket from all that was on display, [N, paths].

    Displayed depth is true depth with noise of ``spread_of_noise`` in logs; the Kalman filter of a
    stationary first-order autoregression observed with noise. Where depth is constant it is zero.
    """
    liquidity = believed.liquidity
    decay = torch.exp(-liquidity.depth_reversion * paths.dt)
    spread = liquidity.depth_sd**2
    estimate, error = torch.zeros_like(paths.variance[0]), spread
    known = []
    for depth in paths.log_depth:
        noise = torch.empty_like(estimate).normal_(generator=generator)
        gain = error / (error + spread_of_noise**2).clamp_min(1e-12)
        updated = estimate + gain * (depth + spread_of_noise * noise - estimate)
        known.append(updated)
        estimate, error = decay * updated, decay**2 * (1 - gain) * error + (1 - decay**2) * spread
    return torch.stack(known)
