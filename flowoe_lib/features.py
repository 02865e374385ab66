"""What the learned policies make of an observation: dimensionless numbers of order one.

Up to scale, an order's problem depends on volatility, illiquidity, size and risk aversion through
its urgency alone (:func:`flowoe_lib.market.urgency`), so they enter as that one number, and drift as
a multiple of the same cost. Prices tell nothing but the drift, where that is hidden.
"""

import torch
from torch import Tensor

from flowoe_lib.execution import Observation, fraction_of_score, score_of_fraction
from flowoe_lib.market import PreTrade, posterior_drift

__all__ = ["FEATURES", "action_of_fraction", "action_unit", "features", "fraction_of_action"]

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
    "log volume now over what is left, in units of actions",
    "log depth, in units of actions",
    "log urgency of the rest plus one, in units of actions",
    "log pace of Almgren and Chriss's schedule, in units of actions",
)


def features(seen: Observation) -> Tensor:
    """The columns named in ``FEATURES``, [paths, features]."""
    market = seen.market
    left = seen.inventory.new_tensor((seen.n_buckets - seen.k) / seen.n_buckets)
    log_left = left.log()
    log_variance = (seen.variance / market.heston.theta).clamp_min(1e-3).log()
    cost, log_urgency = seen.pre_trade.cost_bps, seen.pre_trade.urgency.clamp_min(1e-4).log()
    unit = action_unit(seen.pre_trade)
    volume, last = (seen.volume[[seen.k, -1]] / seen.volume[seen.k :].mean(0)).log()
    log_rest = log_urgency + log_variance + 2 * log_left
    drift = posterior_drift(market, seen.order, seen.return_bps, seen.k / seen.n_buckets) / cost
    pace = _pace((log_rest / 2).exp(), drift * left.square() / seen.inventory.clamp_min(1e-2))
    columns = (
        2 * left - 1,
        log_left / 2 + 1,
        log_variance / 2,
        2 * market.heston.cv - 2,
        (market.heston.kappa / 4).log(),
        2 * seen.log_depth,
        2 * market.liquidity.depth_sd,
        (market.liquidity.depth_sd > 0) * (market.liquidity.depth_reversion / 4).log(),
        volume,
        last,
        8 * market.impact.beta - 5,
        log_urgency / 2 - 0.5,
        log_rest / 2,
        2 * seen.inventory - 1,
        (seen.inventory.clamp_min(1e-4).log() - log_left) / 2,
        drift.sign() * drift.abs().log1p(),
        (market.drift_sd / cost).log1p(),
        volume / unit,
        seen.log_depth / unit,
        log_rest.exp().log1p() / unit,
        pace.clamp_min(1e-2).log() / unit,
    )
    # Rows are laid side by side ten times as fast as columns.
    return torch.stack([c.expand(seen.inventory.shape) for c in columns]).T


def _pace(root: Tensor, drift: Tensor) -> Tensor:
    """How fast Almgren and Chriss (2000, J. Risk 3) start on what is left, as a multiple of an even pace.

    ``root`` is that of the urgency of what is left, ``drift`` its gain from waiting over its cost. Negative
    where drift is worth buying more for.
    """
    return root / torch.tanh(root) - drift * torch.tanh(root / 2) / (2 * root)


def action_unit(pre_trade: PreTrade) -> Tensor:
    """The unit in which learned policies express the score of a trade, [paths] or [].

    Costs are quadratic in scores, so with the root of what is at stake an error of the same number of
    units costs about the same share of the gain in every condition.
    """
    root = pre_trade.stakes.clamp_min(1e-6).sqrt()
    return 6 * root / (1 + root)


def fraction_of_action(seen: Observation, action: Tensor) -> Tensor:
    """Fraction of the remaining inventory that ``action`` trades, [paths]."""
    return fraction_of_score(action_unit(seen.pre_trade) * action, seen.n_buckets - seen.k)


def action_of_fraction(seen: Observation, fraction: Tensor) -> Tensor:
    """Inverse of :func:`fraction_of_action`, [paths]."""
    return score_of_fraction(fraction, seen.n_buckets - seen.k) / action_unit(seen.pre_trade)
