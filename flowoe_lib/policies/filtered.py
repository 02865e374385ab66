"""Optimal policies of traders who observe variance, but filter the regime or the depth from noisy signals.

The Bellman equation of :mod:`flowoe_lib.policies.oracle` with an estimate in the place of the hidden state:
the probability of stress, or the filtered log depth. Source: Astrom (1965), Journal of Mathematical Analysis
and Applications 10, for beliefs as the state.
"""

import torch
from scipy.special import roots_genlaguerre

from flowoe_lib.execution.information import DEPTH_NOISE, RETURNS
from flowoe_lib.market.model import Market, Order
from flowoe_lib.policies.dynamic_programming import Optimum, expectation, one_condition
from flowoe_lib.policies.oracle import LiquidityAxis, depth_axis, probability_of_stress, solve_grid

LIKELIHOOD_POINTS = 64
"""Points of the Gauss-Laguerre rule for a bucket's realised variance given its regime."""


NODES = 41, 25
"""Nodes of inventory and of variance where depth is filtered."""


def solve_filtered_depth(
    market: Market, order: Order, n_buckets: int, *, noise_sd: float = DEPTH_NOISE, depth_nodes: int = 13
) -> Optimum:
    """Solve for the optimal policy of a trader who observes variance, but depth only with noise.

    The filter of :func:`flowoe_lib.execution.information.filtered_depth` estimates log depth by m_k with a
    deterministic error variance P_k, so that E[L^-beta | m_k] = exp(-beta m_k + beta^2 P_k / 2). The state is
    inventory, variance and m. The value is an upper bound for every trader of the realistic world who does
    not learn the parameters during the day.

    Parameters
    ----------
    market, order : Market, Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.
    noise_sd : float
        Standard deviation of the error of displayed log depth.
    depth_nodes : int
        Nodes of the grid of log depth, at least four.

    Returns
    -------
    flowoe_lib.policies.dynamic_programming.Optimum
        The policy, which uses ``log_depth`` of the observation as m_k, and its value.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, ``noise_sd`` that
        is not positive, constant depth, regimes or a signal.

    References
    ----------
    Kalman (1960), Journal of Basic Engineering 82.
    """
    parts = {"needs": ("Liquidity.depth_sd",), "lacks": ("Market.regimes", "Signal.sd")}
    market, order = one_condition(market, order, n_buckets, *NODES, depth_nodes, **parts)
    if not noise_sd > 0:
        raise ValueError(f"noise_sd = {noise_sd:g}: must be > 0")
    axis = depth_axis(market, n_buckets, depth_nodes, noise_sd)
    return solve_grid(market, order, n_buckets, NODES, axis)


def solve_filtered_regimes(
    market: Market,
    order: Order,
    n_buckets: int,
    *,
    returns: int = RETURNS,
    inventory_nodes: int = 41,
    variance_nodes: int = 25,
    belief_nodes: int = 31,
) -> Optimum:
    """Solve for the optimal policy of a trader who observes the calm regime's variance, but not the regime.

    The probability p of stress is filtered from realised variance, which is gamma-distributed around the true
    variance given the regime. V and p are therefore independent Markov processes, and the state is inventory,
    V and p. For traders who observe realised variance only, the value is an upper bound; where variance is
    almost constant it is their exact optimum.

    Parameters
    ----------
    market, order : Market, Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.
    returns : int
        Returns in a bucket from which variance is measured.
    inventory_nodes, variance_nodes, belief_nodes : int
        Nodes of the grid on each axis, at least four.

    Returns
    -------
    flowoe_lib.policies.dynamic_programming.Optimum
        The policy, and ``value_bps``, the expected utility of the order in bps. It uses the probability of
        stress and the variance in the observation. If variance is estimated rather than observed, the policy
        is certainty-equivalent and ``value_bps`` an upper bound.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, an axis of fewer than four nodes, fewer than one
        return, random depth, a signal, impact that depends on variance, or no regimes.

    References
    ----------
    Astrom (1965), Journal of Mathematical Analysis and Applications 10; Hamilton (1989), Econometrica 57.
    """
    nodes = inventory_nodes, variance_nodes, belief_nodes
    parts = {"needs": ("Market.regimes",), "lacks": ("Liquidity.depth_sd", "Signal.sd")}
    market, order = one_condition(market, order, n_buckets, *nodes, **parts)
    if returns < 1:
        raise ValueError(f"returns = {returns}: must be at least 1")
    axis = _belief_axis(market, 1 / n_buckets, belief_nodes, returns)
    return solve_grid(market, order, n_buckets, (inventory_nodes, variance_nodes), axis)


def _belief_axis(market: Market, dt: float, nodes: int, returns: int) -> LiquidityAxis:
    """The probability p of stress, updated by the likelihood of ``returns`` squared returns in a bucket."""
    regimes, shape = market.regimes, returns / 2
    p = torch.linspace(0, 1, nodes, dtype=torch.float64)
    factor = torch.stack((torch.ones_like(p[0]), regimes.volatility_multiplier.square()))
    points, weights = map(torch.from_numpy, roots_genlaguerre(LIKELIHOOD_POINTS, shape - 1))
    # Realised over calm variance is gamma-distributed with mean ``factor``, by row calm and stressed.
    evidence = torch.outer(factor, points) * (1 - 1 / factor[1]) - shape * factor[1].log()
    posterior = torch.sigmoid(torch.logit(p)[:, None, None] + evidence)
    from_calm, from_stressed = regimes.jump(dt)
    following = (from_calm + (from_stressed - from_calm) * posterior).flatten(1)
    probability = torch.stack((1 - p, p), 1)[..., None] * weights / weights.sum()
    step = expectation(p, following, probability.flatten(1)[:, None])[:, 0]
    start = expectation(p, regimes.stressed_share.reshape(1, 1))
    cost_multiplier = 1 + p * (regimes.cost_multiplier - 1)
    variance = 1 + p * (factor[1] - 1)
    return LiquidityAxis(probability_of_stress, cost_multiplier[None], variance, step[None], start)
