"""Re-planning: a schedule solved anew at each bucket on what is observed by then."""

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.impact import expected_depth_cost
from flowoe_lib.market.simulator import VarianceStep
from flowoe_lib.policies.almgren_chriss import _kappa

__all__ = ["replanned"]


def replanned(obs: Observation, noise: Tensor) -> Tensor:
    """Almgren-Chriss solved anew each bucket for what is left, on the current variance and depth.

    Variance is forecast by its mean reversion to the close, E[int_t^1 V ds] / (1 - t); impact is
    linearised at the rate that would finish evenly; depth counts at the bucket's own level now and
    at its stationary mean after.
    """
    n_left = obs.n_buckets - obs.k
    market, remaining = obs.market, n_left / obs.n_buckets
    forecast = VarianceStep.over(market.heston, remaining).integral(obs.variance) / remaining
    even_pace = obs.inventory.clamp_min(1e-12) / remaining
    ratio = (
        obs.pre_trade.urgency
        * (forecast / market.heston.theta)
        * even_pace ** (1 - market.impact.beta)
        / obs.n_buckets**2
    )
    kappa = _kappa(ratio)
    later = kappa * (n_left - 1)
    fraction = 1 - torch.exp(-kappa) * torch.expm1(-2 * later) / torch.expm1(-2 * later - 2 * kappa)
    discount = torch.exp(market.impact.beta * obs.log_depth) * expected_depth_cost(market)
    now = fraction * obs.volume[obs.k] * discount ** (1 / market.impact.beta)
    rest = (1 - fraction) * obs.volume[obs.k + 1 :].sum(0) / max(n_left - 1, 1)
    tilted = now / (now + rest)
    return tilted.clamp(0, 1).expand_as(noise)
