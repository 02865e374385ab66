"""What the learned policies make of an observation: dimensionless numbers of order one.

Up to scale, an order's problem depends on volatility, illiquidity, size and risk aversion through
its urgency alone (:func:`flowoe_lib.market.urgency`), so they enter as that one number.
"""

import torch
from torch import Tensor

from flowoe_lib.execution import Observation
from flowoe_lib.market import urgency

__all__ = ["FEATURES", "features"]

FEATURES = (
    "time left",
    "log time left",
    "log variance over its mean",
    "vol of vol",
    "log depth",
    "sd of log depth",
    "log volume profile",
    "amplitude of the volume profile",
    "log urgency",
    "log urgency of the rest",
    "inventory",
    "log inventory over the TWAP line",
)


def features(seen: Observation) -> Tensor:
    """The columns named in ``FEATURES``, [paths, features]."""
    market = seen.market
    left = torch.tensor((seen.n_buckets - seen.k) / seen.n_buckets, dtype=seen.inventory.dtype)
    log_left = left.log()
    log_variance = (seen.variance / market.heston.theta).clamp_min(1e-3).log()
    log_urgency = urgency(market, seen.order).clamp_min(1e-4).log()
    columns = (
        2 * left - 1,
        log_left / 2 + 1,
        log_variance / 2,
        2 * market.heston.cv - 2,
        2 * seen.log_depth,
        2 * market.liquidity.depth_sd,
        2 * seen.volume[seen.k].log(),
        market.liquidity.profile_amplitude,
        log_urgency / 2 - 0.5,
        (log_urgency + log_variance + 2 * log_left) / 2,
        2 * seen.inventory - 1,
        (seen.inventory.clamp_min(1e-4).log() - log_left) / 2,
    )
    return torch.stack([c.expand(seen.inventory.shape) for c in columns], -1)
