"""Re-planning: the optimal schedule solved anew in each bucket."""

from collections.abc import Callable

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation, fraction_of_score
from flowoe_lib.execution.information import RegimeBelief, relative_depth
from flowoe_lib.market.impact import expected_variance_cost, impact_slope
from flowoe_lib.market.simulator import VarianceStep
from flowoe_lib.policies.trajectory import best_trades

PRECISION, MAX_STEPS = 2e-7, 60
"""Inventory that may remain at the close, as a share of the current one: what float32 resolves."""


def replanned(obs: Observation, noise: Tensor) -> Tensor:
    """Trade by the schedule of constant forecasts, solved anew in each bucket at current variance and depth.

    Variance and drift are replaced by a mean of their forecasts, for which one integral gives the first trade
    (:mod:`flowoe_lib.market.first_trade`), memory of impact included; it is scaled by volume now and by the
    part of depth that will fade. Learned policies correct its score,
    :attr:`flowoe_lib.execution.execution.Observation.anchor`.

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
    Almgren (2003), "Optimal execution with nonlinear impact functions and trading-enhanced risk", Applied
    Mathematical Finance 10.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> days = fo.simulate(market, 1_000, 39, fo.generator(1, "days"))
    >>> done = fo.execute(fo.policies.replanning.replanned, days, market, order, fo.generator(1, "noise"))
    >>> round(done.utility_bps(order).mean().item(), 1)
    -24.3
    """
    return fraction_of_score(obs.anchor, obs.n_buckets - obs.k).expand_as(noise)


def mpc(obs: Observation, noise: Tensor) -> Tensor:
    """Model predictive control: re-plan the remaining inventory under concave impact in every bucket.

    At bucket k the remaining inventory q_k is scheduled as if current forecasts were certain,

        max sum_j q_{j+1} mu_j dt - lambda 1e8 q_{j+1}^2 IV_j - c_j a_j^(1 + beta),  q_{j+1} = q_j - a_j >= 0,

    with IV_j = E[int V | V_k] over bucket j, c_j the slope of temporary impact times E[L_j^-beta | L_k], and
    mu_j the known drift or its posterior mean, and the signal as it reverts to zero. With regimes, IV_j and
    c_j are means over the regime in bucket j given the probability of stress at k. Only the first trade is
    executed. The marginal cost p_j = (1 + beta) c_j a_j^beta follows
    p_{j+1} = p_j - 2 lambda 1e8 IV_j q_{j+1} + mu_j dt, so p_k determines the schedule: if it is too large,
    the order ends before the close; if it is too small, inventory remains.
    Under impact with memory :func:`flowoe_lib.policies.trajectory.best_trades` finds the schedule from the
    observed impact state. Linear permanent impact does not depend on the schedule; sub-linear permanent
    impact is neglected.

    Parameters
    ----------
    obs : Observation
        Variance, depth, inventory and price return at the start of bucket k, each [paths], estimates of the
        market, fields of shape [] or [paths], and the probability of stress where there are regimes.
    noise : Tensor
        Not used, [paths].

    Returns
    -------
    Tensor
        Fraction of the remaining inventory to trade, [paths].

    References
    ----------
    Bertsekas (2017), Dynamic Programming and Optimal Control, section 6.2, on certainty-equivalent control;
    Almgren (2003), Applied Mathematical Finance 10, for the first-order conditions under concave impact.
    """
    belief = obs.regimes or RegimeBelief(obs.market, torch.zeros_like(noise))
    market, liquidity, beta = belief.market, belief.market.liquidity, belief.market.impact.beta
    n_left, dt = obs.n_buckets - obs.k, 1 / obs.n_buckets
    days = torch.arange(n_left, device=noise.device)[:, None] * dt
    variance_ratio, cost_ratio = belief.multipliers(days)
    calm_variance = obs.variance / variance_ratio[0]
    calm_depth = obs.log_depth - relative_depth(market, obs.market) + cost_ratio[0].log() / beta
    theta, reversion = market.heston.theta, torch.exp(-market.heston.kappa * days)
    mean = theta + (calm_variance - theta) * reversion
    variance = VarianceStep.over(market.heston, dt).integral(mean) * variance_ratio
    decay = torch.exp(-liquidity.depth_reversion * days)
    log_cost = (beta * liquidity.depth_sd).square() * (1 - decay.square()) / 2 - beta * calm_depth * decay
    pace = obs.order.size / obs.volume[obs.k :]
    slope = impact_slope(market, pace, obs.n_buckets) * log_cost.exp() * cost_ratio
    if bool((market.impact.variance_exponent > 0).any()):
        moments = VarianceStep.over(market.heston, days).moments(calm_variance)
        slope = slope * expected_variance_cost(market, *moments)
    pull, gain = 2e8 * obs.order.risk_aversion * variance, obs.drift_ahead(days, dt) * dt
    slope, pull, gain = (x.expand(n_left, len(noise)) for x in (slope, pull, gain))
    if market.impact.has_memory:
        decay = torch.exp(-market.impact.resilience * dt)
        held, impact = obs.inventory.double(), obs.impact.double().expand_as(noise)
        traded = best_trades(slope, decay, beta, pull, gain, held, impact)[0]
        return (traded / held.clamp_min(1e-12)).clamp(0, 1).to(noise)
    # Unknown is the rescaled price p_k^(1/beta), in which the remaining inventory is nearly linear.
    root, rate = 1 / beta, ((1 + beta) * slope) ** (-1 / beta)

    def left_over(scaled: Tensor) -> Tensor:
        left, price = obs.inventory - scaled * rate[0], scaled**beta
        for j in range(1, n_left):
            price = price - pull[j - 1] * left.clamp_min(0) + gain[j - 1]
            left = left - price.clamp_min(0) ** root * rate[j]
        return left

    scaled = _root_of_decreasing(left_over, obs.inventory / rate[0], PRECISION * obs.inventory)
    return (scaled * rate[0] / obs.inventory.clamp_min(1e-12)).clamp(0, 1)


def _root_of_decreasing(f: Callable[[Tensor], Tensor], high: Tensor, precision: Tensor) -> Tensor:
    """The root of ``f`` in [0, ``high``] to ``precision`` in f, or 0 where f(0) <= 0, [paths].

    The Illinois method (Dowell, Jarratt 1971, BIT 11), with a halving in every fourth step, which bounds the
    number of steps. A path's root does not change once it is found, so it does not depend on the other paths.
    """
    low, at_low, at_high = torch.zeros_like(high), f(torch.zeros_like(high)), f(high)
    found, raised = at_low <= 0, torch.zeros_like(high, dtype=torch.bool)
    x = torch.where(found, 0, high)
    for step in range(MAX_STEPS):
        share = at_low / (at_low - at_high) if step % 4 < 3 else torch.full_like(high, 0.5)
        x = torch.where(found, x, low + (high - low) * share.nan_to_num(0.5).clamp(0, 1))
        at_x = f(x)
        up = at_x > 0
        # An end that stays a second time counts half, or the other end would creep.
        again = up == raised if step else torch.zeros_like(up)
        halves = torch.where(again, 0.5, 1.0)
        at_low, at_high = torch.where(up, at_x, at_low * halves), torch.where(up, at_high * halves, at_x)
        low, high, raised = torch.where(up, x, low), torch.where(up, high, x), up
        found = found | (at_x.abs() <= precision) | (high - low <= PRECISION * high)
        if bool(found.all()):
            break
    return x
