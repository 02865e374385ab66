"""A day whose variance level is drawn and not announced: the filter, the optimum under it, the level experts.

The level theta is inverse-gamma distributed around the forecast and constant within the day. Traders know its
law and infer it from returns. Impact is that of the forecast level, so cost is known and risk is not. With m
returns a bucket, realised variance is theta chi2_m / m, hence the posterior is inverse gamma with shape
alpha_k = alpha + k m / 2, and its mean M follows

    M_{k+1} = M_k (alpha_k - 1) / (alpha_{k+1} - 1) (1 + X),  X ~ beta prime (m / 2, alpha_k).

Source: Raiffa, Schlaifer (1961), Applied Statistical Decision Theory, for conjugate priors.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from scipy.optimize import brentq
from scipy.special import betaincinv, gammainccinv, ndtr, polygamma
from torch import Tensor

from flowoe_lib.execution.execution import Observation, Policy
from flowoe_lib.execution.information import CONSTANT_CV, RETURNS, Information, realised_variance
from flowoe_lib.market.model import Market, Order
from flowoe_lib.market.simulator import MarketPaths
from flowoe_lib.policies.dynamic_programming import Optimum, State, expectation, normal_rule, one_condition
from flowoe_lib.policies.oracle import IMPACT_NODES, place_of_variance, solve_oracle
from flowoe_lib.policies.schedules import expected_cost, expected_risk, static_optimal

SLOW = 1e-4
"""Mean reversion that traders believe in, per day: the variance that they infer is that of the whole day."""


TAIL = 5e-4
"""Probability that the level lies above the grid of beliefs."""


INVENTORY_NODES, BELIEF_NODES = 41, 81
"""The grid of :func:`solve_level_belief`."""


def shape_of_spread(sd: float) -> float:
    """Shape alpha of the inverse gamma law whose logarithm has the standard deviation ``sd``.

    Raises ValueError unless ``sd`` is positive and the law has a mean, alpha > 1.

    Examples
    --------
    >>> from flowoe_lib.policies.unannounced import shape_of_spread
    >>> round(shape_of_spread(0.6), 2), round(shape_of_spread(1.0), 2)
    (3.25, 1.43)
    """
    if not 0 < sd < spread_of_shape(1):
        raise ValueError(f"sd = {sd:g}: must be within (0, 1.28), for the level to have a mean")
    return float(brentq(lambda shape: spread_of_shape(shape) - sd, 1, 2 + 2 / sd**2))


def spread_of_shape(shape: float) -> float:
    """Standard deviation of the logarithm of an inverse gamma variable; it depends on the shape only."""
    return float(polygamma(1, shape) ** 0.5)


@dataclass(frozen=True)
class UnannouncedLevel:
    """The law of the day's variance level, and what traders infer about it.

    A :data:`flowoe_lib.execution.information.Perceive`: traders know ``market`` and observe, as variance, the
    posterior mean of the level given the realised variances of earlier buckets.

    Parameters
    ----------
    market : Market
        The market at the forecast level, fields of shape [], which determines impact.
    shape : float
        Shape alpha > 1 of the inverse gamma law, whose mean is ``theta`` of ``market``.
    returns : int
        Returns in a bucket from which variance is measured.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> from flowoe_lib.policies.unannounced import UnannouncedLevel
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> world = UnannouncedLevel(fo.Market(heston), shape=3.25)
    >>> market = world.market_at(fo.scalar(16e-4))
    >>> [round(m.temporary_cost_bps(fo.scalar(0.1)).item(), 2) for m in (world.market, market)]
    [7.13, 7.13]
    """

    market: Market
    shape: float
    returns: int = RETURNS

    def __post_init__(self) -> None:
        if not self.shape > 1:
            raise ValueError(f"shape = {self.shape:g}: must be > 1, for the level to have a mean")

    def levels(self, quantiles: Tensor) -> Tensor:
        """Variance levels, per day, that are exceeded with probability 1 - ``quantiles``, float64."""
        below = torch.as_tensor(gammainccinv(self.shape, quantiles.double().numpy()))
        return self.market.heston.theta * (self.shape - 1) / below

    def market_at(self, level: Tensor) -> Market:
        """The market on a day of variance ``level``, [] or [paths], with the impact of the forecast level."""
        market, level = self.market, level.to(self.market.heston.theta)
        relative = (level / market.heston.theta).sqrt()
        return replace(
            market,
            heston=replace(market.heston, theta=level, cv=torch.full_like(level, CONSTANT_CV)),
            impact=replace(market.impact, gamma=market.impact.gamma / relative),
            liquidity=replace(market.liquidity, illiquidity=market.liquidity.illiquidity / relative),
        )

    def __call__(self, paths: MarketPaths, market: Market, generator: torch.Generator) -> Information:
        """What traders infer about ``paths``; ``generator`` draws the returns within buckets."""
        heston = self.market.heston
        measured = realised_variance(paths, generator, self.returns) * self.returns / 2
        earlier = (measured.cumsum(0) - measured) + heston.theta * (self.shape - 1)
        number = torch.arange(paths.n_buckets, device=measured.device)[:, None]
        mean = earlier / (self.shape - 1 + number * self.returns / 2)
        slow = replace(heston, kappa=torch.full_like(heston.kappa, SLOW), cv=heston.cv * 0 + CONSTANT_CV)
        return Information(replace(self.market, heston=slow), mean, paths.log_depth)

    def probability_below(self, level: Tensor, mean: Tensor, k: int) -> Tensor:
        """Probability that the day's level is below ``level``, given its posterior ``mean`` at bucket k."""
        shape = torch.tensor(self.shape + k * self.returns / 2, dtype=torch.float64)
        probability: Tensor = torch.special.gammaincc(shape, (shape - 1) * mean / level)
        return probability


def solve_level_belief(world: UnannouncedLevel, order: Order, n_buckets: int) -> Optimum:
    """Solve for the optimal policy of a trader who does not know the level, but infers it.

    The state is inventory, the posterior mean M and, where impact has memory, its state. The value per unit
    J / q is interpolated by cubic splines in M, on nodes uniform in its root, and in sqrt(q).

    Parameters
    ----------
    world : flowoe_lib.policies.unannounced.UnannouncedLevel
        The law of the level.
    order : Order
        Fields of shape [].
    n_buckets : int
        Number of buckets N of the day.

    Returns
    -------
    flowoe_lib.policies.dynamic_programming.Optimum
        The policy, whose variance is the posterior mean of the level, and its value.

    Raises
    ------
    ValueError
        For a batch of conditions, fewer than one bucket, random depth, a hidden drift, regimes or a signal.

    References
    ----------
    Astrom (1965), Journal of Mathematical Analysis and Applications 10.
    """
    lacks = "Liquidity.depth_sd", "Market.drift_sd", "Market.regimes", "Signal.sd"
    market, order = one_condition(world.market, order, n_buckets, lacks=lacks)
    dt, half = 1 / n_buckets, world.returns / 2
    high = float(world.levels(torch.tensor(1 - TAIL)))
    mean = high * torch.linspace(0, 1, BELIEF_NODES, dtype=torch.float64).square()
    normal, weights = normal_rule(121)
    risk = order.risk_aversion * 1e8 * dt * mean[:, None]
    gain = order.side * market.drift * dt

    def step(k: int) -> Tensor:
        shape = world.shape + k * half
        # 1 / (1 + X) is beta-distributed; its quantiles are exact in the upper tail of M.
        shrinkage = torch.from_numpy(betaincinv(shape, half, ndtr(-normal.numpy())))
        following = mean[:, None] * (shape - 1) / (shape + half - 1) / shrinkage
        return expectation(mean, following, weights)

    start = expectation(mean, market.heston.theta.reshape(1, 1))
    state = State(gain, risk, step, start, partial(place_of_variance, high))
    return state.solve(market, order, n_buckets, INVENTORY_NODES, IMPACT_NODES)


def level_expert(plan: Policy, level: float, obs: Observation, noise: Tensor) -> Tensor:
    """Trade by the ``plan`` of one variance ``level``, from any inventory, whatever the day tells."""
    return plan(replace(obs, variance=torch.full_like(noise, level)), noise)


@dataclass(frozen=True)
class LevelMixture:
    """Level experts weighted by the posterior probability that each is the best one for the day's level."""

    world: UnannouncedLevel
    experts: tuple[Policy, ...]
    """By rising level."""
    bounds: Tensor
    """Levels at which the best level expert changes, [experts - 1]."""

    @classmethod
    def at(cls, quantiles: Tensor, world: UnannouncedLevel, order: Order, n_buckets: int) -> "LevelMixture":
        """Calibrate a level expert to each of the ``quantiles`` of the level, which rise."""
        levels = world.levels(quantiles)
        plans = static_optimal(world.market_at(levels), order, n_buckets).inventory
        # Utility is linear in the level, so it is enough to compare cost and risk.
        cost = expected_cost(world.market, order, plans)
        risk = order.risk_aversion * expected_risk(world.market, plans) / world.market.heston.theta
        optima = [solve_oracle(world.market_at(x), order, n_buckets, variance_nodes=9) for x in levels]
        experts = tuple(map(partial, [level_expert] * len(levels), optima, levels.tolist()))
        return cls(world, experts, -cost.diff() / risk.diff())

    def weights(self, obs: Observation) -> Tensor:
        """Posterior probability that each level expert is the best, [experts, paths]."""
        below = self.world.probability_below(self.bounds[:, None], obs.variance.double(), obs.k)
        return torch.cat((below[:1] * 0, below, below[:1] * 0 + 1)).diff(dim=0)

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Mean fraction of the level experts, [paths]."""
        fractions = torch.stack([expert(obs, noise) for expert in self.experts])
        return (self.weights(obs).to(noise) * fractions).sum(0)
