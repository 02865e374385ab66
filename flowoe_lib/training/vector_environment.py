"""The environment in which stable-baselines3 trains: thousands of orders in parallel in one tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from flowoe_lib.execution.environment import Array, Reward, advance, advantage_over_twap, check_sizes, spaces
from flowoe_lib.execution.execution import OrderSimulation
from flowoe_lib.execution.features import feature_count, features
from flowoe_lib.execution.information import Perceive, exact
from flowoe_lib.market.model import Market, Order
from flowoe_lib.market.simulator import simulate
from flowoe_lib.randomness import generator


class ExecutionVecEnv(VecEnv):
    """A vectorised environment for stable-baselines3: ``n_orders`` orders, each on its own simulated day.

    Spaces, transitions and episodes are those of :class:`flowoe_lib.execution.environment.ExecutionEnv`; the
    reward is divided by ``unit_bps``. ``market`` and ``order`` have fields of shape [] or [n_orders].
    Observations contain the information of ``perceive``; rewards use the true market. All episodes end at
    the same time, as terminated and never as truncated, so that no value beyond the close is bootstrapped.
    """

    render_mode = None

    def __init__(
        self,
        market: Market,
        order: Order,
        n_orders: int,
        n_buckets: int,
        seed: int,
        reward: Reward = advantage_over_twap,
        unit_bps: float = 1.0,
        perceive: Perceive = exact,
    ) -> None:
        check_sizes(n_buckets, market, order, n_orders)
        self.market, self.order, self.n_buckets = market, order, n_buckets
        self.reward, self.unit_bps, self.perceive = reward, unit_bps, perceive
        self.generator = generator(seed, "market")
        super().__init__(n_orders, *spaces(market))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart the random stream of days."""
        if seed is not None:
            self.generator = generator(seed, "market")
        return super().seed(seed)

    def reset(self) -> Array:
        """Draw a day for every order."""
        paths = simulate(self.market, self.num_envs, self.n_buckets, self.generator)
        known = self.perceive(paths, self.market, self.generator)
        self.simulation = OrderSimulation(paths, self.market, self.order, known)
        self.k, self.inventory, self.impact = 0, torch.ones(self.num_envs), torch.zeros(self.num_envs)
        return self._observe()

    def step_async(self, actions: Array) -> None:
        """Store the scores, [n_orders, 1]."""
        self.score = torch.as_tensor(actions, dtype=torch.float32).squeeze(-1)

    def step_wait(self) -> tuple[Array, Array, npt.NDArray[np.bool_], list[dict[str, Any]]]:
        """Trade the stored scores; after the last decision the observation is the first of the next day."""
        held, impact = self.inventory, self.impact
        self.inventory, earned = advance(self.simulation, self.k, held, self.score, self.reward, impact)
        self.impact = (impact + held - self.inventory) * self.simulation.decay
        self.k += 1
        observed, done = self._observe(), self.k == self.n_buckets - 1
        infos = [{"terminal_observation": row} if done else {} for row in observed]
        if done:
            observed = self.reset()
        return observed, (earned / self.unit_bps).numpy(), np.full(self.num_envs, done), infos

    def _observe(self) -> Array:
        obs = self.simulation.observe(self.k, self.inventory, self.impact)
        observed: Array = features(obs, feature_count(self.market)).numpy()
        return observed

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The shared attribute, repeated for each order."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: orders share their attributes."""
        raise TypeError("orders share their attributes: set them on the environment itself")

    def env_method(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Not supported: there are no separate environments to call."""
        raise TypeError("there are no separate environments to call")

    def env_is_wrapped(self, *args: Any, **kwargs: Any) -> list[bool]:
        """False for every order."""
        return [False] * self.num_envs
