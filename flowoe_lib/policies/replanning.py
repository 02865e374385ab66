"""Re-planning: Almgren and Chriss's schedule solved anew in each bucket."""

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.market.impact import expected_depth_cost
from flowoe_lib.market.simulator import VarianceStep
from flowoe_lib.policies.almgren_chriss import decay_per_bucket

__all__ = ["replanned"]


def replanned(obs: Observation, noise: Tensor) -> Tensor:
    """Trade by Almgren and Chriss's schedule, solved anew in each bucket at the current variance and depth.

    Variance is forecast over the rest of the day, E[int_t^1 V ds] / (1 - t). Impact is linearised at the even
    pace that would finish the order. Depth enters at its current level in this bucket and at its stationary
    mean in later ones.

    Parameters
    ----------
    obs : flowoe_lib.execution.execution.Observation
        What the trader observes at the start of the bucket.
    noise : Tensor, [paths]
        Not used, apart from its shape.

    Returns
    -------
    Tensor, [paths]
        Fraction of the remaining inventory to trade.

    References
    ----------
    Almgren, Chriss (2001), "Optimal execution of portfolio transactions", Journal of Risk 3.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> days = fo.simulate(market, 1_000, 39, fo.generator(1, "days"))
    >>> done = fo.execute(fo.replanned, days, market, order, fo.generator(1, "noise"))
    >>> round(done.utility_bps(order).mean().item(), 1)
    -15.2
    """
    n_left = obs.n_buckets - obs.k
    market, remaining = obs.market, n_left / obs.n_buckets
    forecast = VarianceStep.over(market.heston, remaining).integral(obs.variance) / remaining
    even_pace = obs.inventory.clamp_min(1e-12) / remaining
    urgency = obs.pre_trade.urgency * (forecast / market.heston.theta)
    ratio = urgency * even_pace ** (1 - market.impact.beta) / obs.n_buckets**2
    kappa = decay_per_bucket(ratio)
    later = kappa * (n_left - 1)
    fraction = 1 - torch.exp(-kappa) * torch.expm1(-2 * later) / torch.expm1(-2 * later - 2 * kappa)
    discount = torch.exp(market.impact.beta * obs.log_depth) * expected_depth_cost(market)
    now = fraction * obs.volume[obs.k] * discount ** (1 / market.impact.beta)
    rest = (1 - fraction) * obs.volume[obs.k + 1 :].sum(0) / max(n_left - 1, 1)
    tilted = now / (now + rest)
    return tilted.clamp(0, 1).expand_as(noise)
