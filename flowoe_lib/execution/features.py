"""Features of an observation for the learned policies: dimensionless numbers of order one.

The optimal schedule depends on volatility, illiquidity, size and risk aversion through urgency alone
(:func:`flowoe_lib.market.pre_trade.urgency`), so they enter as that one number; drift enters as a multiple of
the expected cost. Past prices matter only for the estimate of a hidden drift.
"""

import math

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation, fraction_of_score, score_of_fraction
from flowoe_lib.market.model import Market

FEATURES = (
    "time left",
    "log time left",
    "log variance over its mean",
    "vol of vol",
    "log mean reversion of variance",
    "log depth",
    "sd of log depth",
    "log depth reversion, where depth moves",
    "log volume now over what is left",
    "log volume at the close over what is left",
    "exponent of temporary impact",
    "log urgency",
    "log urgency of the rest",
    "inventory",
    "log inventory over the TWAP line",
    "drift over cost",
    "sd of the hidden drift over cost",
    "log volume now over what is left, in units of scores",
    "log depth, in units of scores",
    "log urgency of the rest plus one, in units of scores",
    "score of the re-planned schedule, in units of scores",
    "drift over the marginal cost of the rest, in units of scores",
)


MEMORY_FEATURES = (
    "root of the impact state",
    "impact before the next trade",
    "log impact state over inventory",
    "share of the impact state one bucket later",
    "log half-life of impact, where it has memory",
)
"""Further features under impact with memory; without memory they are constant."""


SIGNAL_FEATURES = ("signal over cost", "sd of the signal over cost", "noise of the signal over its sd")
"""Further features where there is a signal, after those of memory."""


def feature_count(market: Market) -> int:
    """Number of features of policies that are trained in ``market``."""
    if market.signal.present:
        return len(FEATURES) + len(MEMORY_FEATURES) + len(SIGNAL_FEATURES)
    return len(FEATURES) + len(MEMORY_FEATURES) * market.impact.has_memory


def features(obs: Observation, count: int = len(FEATURES)) -> Tensor:
    """The first ``count`` columns named in ``FEATURES``, ``MEMORY_FEATURES`` and ``SIGNAL_FEATURES``.

    Returns [paths, count].
    """
    market, left, cost = obs.market, obs.time_left, obs.pre_trade.cost_bps
    log_left = left.log()
    unit = obs.pre_trade.score_unit
    drift, (urgent, waiting) = obs.drift_to_close, obs.rest
    volume, last = obs.volume_ratio.log(), (obs.volume[-1] / obs.volume[obs.k]).log()
    columns: tuple[Tensor, ...] = (
        2 * left - 1,
        log_left / 2 + 1,
        (obs.variance / market.heston.theta).clamp_min(1e-3).log() / 2,
        2 * market.heston.cv - 2,
        (market.heston.kappa / 4).log(),
        2 * obs.log_depth,
        2 * market.liquidity.depth_sd,
        (market.liquidity.depth_sd > 0) * (market.liquidity.depth_reversion / 4).log(),
        volume,
        volume + last,
        8 * market.impact.beta - 5,
        obs.pre_trade.urgency.clamp_min(1e-4).log() / 2 - 0.5,
        urgent.clamp_min(1e-7).log() / 2,
        2 * obs.inventory - 1,
        (obs.inventory.clamp_min(1e-4).log() - log_left) / 2,
        drift.sign() * drift.abs().log1p(),
        (market.drift_sd / cost).log1p(),
        volume / unit,
        obs.log_depth / unit,
        urgent.log1p() / unit,
        obs.anchor / unit,
        waiting / (1 + waiting.abs()) / unit,
    )
    if count > len(FEATURES):
        impact, resilience = market.impact, market.impact.resilience
        decay, remembers = torch.exp(-resilience / obs.n_buckets), torch.isfinite(resilience)
        # The derivatives of roots and logarithms are infinite at the open, where the impact state is zero.
        state = obs.impact.clamp_min(1e-4)
        columns += (
            remembers * state.sqrt(),
            remembers * (decay * state) ** impact.beta,
            remembers * (state / obs.inventory.clamp_min(1e-4)).log() / 2,
            decay,
            remembers * (2 - (resilience.clamp_max(1e3) / math.log(2)).log()),
        )
    if count > len(FEATURES) + len(MEMORY_FEATURES):
        signal, now = market.signal, obs.signal / cost
        sd = (signal.sd / cost).log1p()
        columns += (now.sign() * now.abs().log1p(), sd, (signal.noise_sd / signal.sd.clamp_min(1e-6)).log1p())
    # Stacking rows and transposing is ten times as fast as stacking columns.
    return torch.stack([c.expand(obs.inventory.shape) for c in columns[:count]]).T


def fraction_of_action(obs: Observation, action: Tensor) -> Tensor:
    """Fraction of the remaining inventory that ``action`` trades, [paths].

    An action corrects :attr:`flowoe_lib.execution.execution.Observation.anchor`, so zero trades by the
    re-planned schedule. Its unit is that of the condition's corrections.
    """
    score = obs.anchor + obs.pre_trade.correction_unit * action
    return fraction_of_score(score, obs.n_buckets - obs.k)


def action_of_fraction(obs: Observation, fraction: Tensor) -> Tensor:
    """Inverse of :func:`fraction_of_action`, [paths]."""
    score = score_of_fraction(fraction, obs.n_buckets - obs.k)
    return (score - obs.anchor) / obs.pre_trade.correction_unit
