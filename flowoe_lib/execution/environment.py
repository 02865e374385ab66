"""Working an order as a Markov decision process: rewards, transitions and a Gymnasium environment.

Transitions and rewards are those of :mod:`flowoe_lib.execution.execution`. An episode is one order on one
day; there is a decision in every bucket but the last, which sells what is left and counts with the decision
before it. Importing the module registers ``flowoe/Execution-v0``.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Space
from torch import Tensor

from flowoe_lib.execution.execution import ACTION_LIMIT, Execution, OrderSimulation, fraction_of_score
from flowoe_lib.execution.features import feature_count, features
from flowoe_lib.execution.information import RegimeBelief
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.impact import impact_path, permanent_shift, temporary_cost
from flowoe_lib.market.model import Heston, Market, Order, scalar
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.randomness import generator

Array = npt.NDArray[np.float32]


Reward = Callable[[OrderSimulation, int, Execution], Tensor]
"""(simulation, bucket, execution of that bucket alone) -> reward of a decision, bps, [paths]."""


def realised_utility(simulation: OrderSimulation, k: int, booked: Execution) -> Tensor:
    """P&L less lambda times the risk, both realised. The rewards sum to the realised utility."""
    return booked.realised_utility_bps(simulation.order)


def controlled_utility(simulation: OrderSimulation, k: int, booked: Execution) -> Tensor:
    """Control-variate utility of the bucket. The rewards sum to ``utility_bps``."""
    return booked.utility_bps(simulation.order)


def advantage_over_twap(simulation: OrderSimulation, k: int, booked: Execution) -> Tensor:
    """The advantage r_k + E_k[Phi_{k+1}] - Phi_k over TWAP, where Phi is the value of an even pace.

    It depends only on the trade and on what is known at bucket k, so it has no noise, and it is zero for the
    trade of TWAP. The rewards of an episode sum in expectation to U - U_TWAP; on a path they sum to
    ``utility_bps`` less Phi_0 and less the innovations Phi_k - E_{k-1}[Phi_k].
    """
    (before, after), (impact, impact_after) = booked.inventory, booked.impact
    following = torch.zeros_like(before)
    if k + 1 < simulation.paths.n_buckets:
        following = twap_value(simulation, k, k + 1, after, impact_after)
    return booked.utility_bps(simulation.order) + following - twap_value(simulation, k, k, before, impact)


def twap_value(simulation: OrderSimulation, k: int, start: int, inventory: Tensor, impact: Tensor) -> Tensor:
    """Expected utility at bucket k of selling ``inventory`` evenly from bucket ``start`` on, bps, [paths].

    ``impact`` is the impact state at ``start``. The closed form uses that E_k[V] decays exponentially to
    theta, that depth is lognormal, and that the probability of stress decays exponentially to its share of
    time, independently of both.
    """
    paths, market, order = simulation.paths, simulation.market, simulation.order
    beta, n_left = market.impact.beta, paths.n_buckets - start
    held = torch.arange(n_left - 1, -1, -1)[:, None] / n_left
    days = torch.arange(start - k, paths.n_buckets - k)[:, None] * paths.dt
    even = inventory / n_left

    mean = market.heston.theta * paths.dt
    belief = RegimeBelief(market, paths.stressed[k].to(inventory))
    variance_ratio, cost_ratio = belief.multipliers(days)
    variance_now, cost_now = belief.multipliers(torch.zeros_like(days[:1]))
    calm = paths.expected_variance[k] / variance_now
    variance = variance_ratio * (mean + (calm - mean) * torch.exp(-market.heston.kappa * days))
    kept = torch.exp(-market.liquidity.depth_reversion * days)
    depth = paths.log_depth[k] + cost_now.log() / beta
    shift = depth + beta * market.liquidity.depth_sd.square() * (1 + kept) / 2
    relative = (paths.volume[k] / paths.volume[start:]) ** beta * torch.exp(beta * (1 - kept) * shift)
    relative = relative * (cost_ratio / cost_now)

    temporary = simulation.slope[k] * relative.sum(0) * even ** (1 + beta)
    if simulation.has_memory:
        states = impact_path(even.expand(n_left, -1), simulation.decay, impact)[:-1]
        temporary = simulation.slope[k] * (relative * temporary_cost(states, even, beta)).sum(0)
    permanent = permanent_shift(market, order.size, even, paths.dt) * inventory * n_left / 2
    risk = order.risk_aversion * 1e8 * (held.square() * variance).sum(0) * inventory.square()
    drift, signal = (x.expand(paths.n_buckets, -1)[k] for x in (paths.drift_bps, paths.signal_bps))
    # ``drift`` includes the signal at its level in bucket k.
    fall = paths.dt * (market.signal.mean_ahead(days, paths.dt) - market.signal.mean_ahead(0, paths.dt))
    gain = held.sum() * drift + (held * fall).sum(0) * signal
    return order.side * gain * inventory - temporary - permanent - risk


def advance(
    simulation: OrderSimulation, k: int, inventory: Tensor, score: Tensor, reward: Reward, impact: Tensor
) -> tuple[Tensor, Tensor]:
    """Trade ``score`` [paths] in bucket ``k``; returns remaining inventory and reward in bps, each [paths].

    ``impact`` is the impact state before the trade. The last decision also sells the remaining inventory and
    earns both rewards. Raises ValueError for scores that are not finite; scores beyond ``ACTION_LIMIT`` are
    clamped to it.
    """
    if not bool(torch.isfinite(score).all()):
        raise ValueError(f"action = {score[~torch.isfinite(score)][0]:g}: must be finite")
    n = simulation.paths.n_buckets
    traded = inventory * fraction_of_score(score.clamp(-ACTION_LIMIT, ACTION_LIMIT), n - k)
    earned, impact = torch.zeros_like(inventory), impact.expand_as(inventory)
    for bucket in (k,) if k < n - 2 else (k, n - 1):
        traded = inventory if bucket == n - 1 else traded
        left, temporary, permanent = simulation.fill(bucket, inventory, traded, impact)
        following = (impact + traded) * simulation.decay
        edges, impacts = torch.stack((inventory, left)), torch.stack((impact, following))
        booked = simulation.book(bucket, edges, temporary, permanent, impacts)
        earned = earned + reward(simulation, bucket, booked)
        inventory, impact = left, following
    return inventory, earned


def spaces(market: Market) -> tuple[Space[Array], Space[Array]]:
    """Spaces of observations in ``market`` and of actions."""
    obs: Space[Any] = Box(-50, 50, (feature_count(market),), np.float32)
    return obs, Box(-ACTION_LIMIT, ACTION_LIMIT, (1,), np.float32)


def check_sizes(n_buckets: int, market: Market, order: Order, n_orders: int) -> None:
    """Raise ValueError unless ``n_orders`` orders of these fields can be worked as decisions."""
    if n_orders < 1:
        raise ValueError(f"n_orders = {n_orders}: must be at least 1")

    def fits(value: Tensor) -> Tensor:
        if value.dtype != torch.float32 or value.shape not in ((), (n_orders,)):
            given = f"{value.dtype} of shape {list(value.shape)}"
            raise ValueError(f"market and order: {given}: must be float32 of shape [] or [{n_orders}]")
        return value

    map_tensors(fits, market)
    map_tensors(fits, order)
    if bool((market.impact.variance_exponent > 0).any()):
        raise ValueError("Impact.variance_exponent > 0: must be 0, rewards use TWAP's value in closed form")
    if n_buckets < 2:
        raise ValueError(f"n_buckets = {n_buckets}: must be at least 2, for there to be a decision")


class ExecutionEnv(gymnasium.Env[Array, Array]):
    """One order, one day: ``gymnasium.make("flowoe_lib.execution.environment:flowoe/Execution-v0")``.

    Observation: the columns of :func:`flowoe_lib.execution.features.features`, dimensionless, float32.
    Action: the score z of the trade, z = logit(fraction of what is left) - logit(TWAP's fraction), in +-4.
    Reward: ``reward``, in bps of the arrival price. An episode has n_buckets - 1 steps and always terminates;
    its last observation is that of the last bucket with nothing left.
    ``reset(options={"paths": ...})`` works the order on given paths, recorded ones perhaps, of one day.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        market: Market | None = None,
        order: Order | None = None,
        n_buckets: int = 39,
        reward: Reward = advantage_over_twap,
    ) -> None:
        heston = Heston(theta=scalar(4e-4), kappa=scalar(5), cv=scalar(0.8), rho=scalar(-0.5))
        self.market = Market(heston) if market is None else market
        self.order = Order(size=scalar(0.1), risk_aversion=scalar(5e-4)) if order is None else order
        check_sizes(n_buckets, self.market, self.order, 1)
        self.n_buckets, self.reward = n_buckets, reward
        self.observation_space, self.action_space = spaces(self.market)
        self.k = n_buckets

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draw a day, or take the one in ``options``. Raises ValueError for an option that does not fit."""
        super().reset(seed=seed)
        unknown = set(options or {}) - {"paths"}
        if unknown:
            raise ValueError(f"options {sorted(unknown)}: the only option is 'paths'")
        draw = generator(int(self.np_random.integers(2**31)), "market")
        paths: MarketPaths = (options or {}).get("paths") or simulate(self.market, 1, self.n_buckets, draw)
        if (paths.n_buckets, paths.n_paths) != (self.n_buckets, 1):
            given = f"{paths.n_paths} paths of {paths.n_buckets} buckets"
            raise ValueError(f"options['paths'] has {given}: must be 1 path of {self.n_buckets}")
        self.simulation = OrderSimulation(paths, self.market, self.order)
        self.k, self.inventory, self.impact = 0, torch.ones(1), torch.zeros(1)
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Trade.

        Raises ResetNeeded where there is nothing left to decide, ValueError for other than one score.
        """
        if self.k > self.n_buckets - 2:
            raise ResetNeeded("the order is worked: call reset() for another")
        score = torch.as_tensor(action, dtype=torch.float32).reshape(-1)
        if len(score) != 1:
            raise ValueError(f"action of shape {list(np.shape(action))}: must be a single score")
        held, impact = self.inventory, self.impact
        self.inventory, earned = advance(self.simulation, self.k, held, score, self.reward, impact)
        self.impact = (impact + held - self.inventory) * self.simulation.decay
        self.k += 1
        return self._observe(), earned.item(), self.k == self.n_buckets - 1, False, {}

    def _observe(self) -> Array:
        obs = self.simulation.observe(self.k, self.inventory, self.impact)
        observed: Array = features(obs, feature_count(self.market))[0].numpy()
        return observed


gymnasium.register("flowoe/Execution-v0", entry_point="flowoe_lib.execution.environment:ExecutionEnv")
