"""Reinforcement-learning experts, one per condition: PPO of stable-baselines3 on thousands of orders at once.

Source: Schulman et al. (2017), arXiv 1707.06347; Raffin et al. (2021), JMLR 22. What made it work is the
reward, :func:`flowoe_lib.gym.advantage_over_twap`, which has no noise and is zero for TWAP, and a first
policy that explores little around it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from flowoe_lib.execution import Observation, fraction_of_score
from flowoe_lib.features import features
from flowoe_lib.gym import ACTION_LIMIT, ExecutionVecEnv, Reward, advantage_over_twap
from flowoe_lib.market import Condition, expected_depth_cost, urgency

__all__ = ["RLExpert", "Snapshot", "reward_unit", "train_ppo", "train_sac"]

WIDTH = 32
"""Of each of the two hidden layers."""


@dataclass(frozen=True)
class RLExpert:
    """The deterministic actions of trained actors, one per condition, of conditions laid side by side.

    Two tanh layers, then the score of the trade. Paths are condition-major, as many of each condition.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    """(weight [conditions, out, in], bias [conditions, 1, out]) of each layer."""
    squashed: bool
    """Whether the score is ``ACTION_LIMIT`` tanh(output), as in SAC, or the output clamped, as in PPO."""

    def __call__(self, seen: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]; ``noise`` is not used."""
        x = features(seen).unflatten(0, (len(self.layers[0][0]), -1))
        for weight, bias in self.layers[:-1]:
            x = torch.tanh(x @ weight.mT + bias)
        weight, bias = self.layers[-1]
        output = (x @ weight.mT + bias).flatten()
        score = (
            ACTION_LIMIT * torch.tanh(output) if self.squashed else output.clamp(-ACTION_LIMIT, ACTION_LIMIT)
        )
        return fraction_of_score(score, seen.n_buckets - seen.k)

    @staticmethod
    def beside(experts: "Sequence[RLExpert]") -> "RLExpert":
        """The experts of several conditions, in their order. Raises ValueError for different kinds."""
        if len({e.squashed for e in experts}) != 1:
            raise ValueError("experts: must be all squashed or all clamped")
        layers = tuple(
            (torch.cat([w for w, _ in layer]), torch.cat([b for _, b in layer]))
            for layer in zip(*(e.layers for e in experts), strict=True)
        )
        return RLExpert(layers, experts[0].squashed)

    @staticmethod
    def unpack(tensors: Mapping[str, Tensor]) -> "dict[str, RLExpert]":
        """Experts by name, from tensors named ``expert:tensor``."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, part = key.rpartition(":")
            parts.setdefault(name, {})[part] = value
        return {name: RLExpert.of(part) for name, part in parts.items()}

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary for a store."""
        out = {"squashed": torch.tensor(self.squashed)}
        for i, (weight, bias) in enumerate(self.layers):
            out |= {f"{i}.weight": weight, f"{i}.bias": bias}
        return out

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "RLExpert":
        """Inverse of :meth:`to_tensors`. Raises KeyError where a layer lacks its bias."""
        count = sum(name.endswith(".weight") for name in tensors)
        layers = tuple((tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(count))
        return RLExpert(layers, bool(tensors["squashed"]))


@dataclass(frozen=True)
class Snapshot:
    """An expert in the making."""

    steps: int
    """Decisions seen so far, over all orders."""
    seconds: float
    """Processor seconds spent so far."""
    expert: RLExpert


def reward_unit(condition: Condition) -> float:
    """Reward of one, in bps: a fiftieth of Almgren and Chriss's cost C kappa coth kappa."""
    market, order = condition.market, condition.order
    root = urgency(market, order).sqrt()
    cost = market.temporary_cost_bps(order.size) * expected_depth_cost(market)
    return float(0.02 * cost * root / torch.tanh(root))


def train_ppo(
    condition: Condition,
    n_buckets: int,
    total_steps: int,
    seed: int,
    reward: Reward = advantage_over_twap,
    n_orders: int = 256,
    snapshots: int = 10,
) -> list[Snapshot]:
    """Train by proximal policy optimisation on one thread; the last snapshot is the result.

    A rollout is one day of every order. Raises ValueError where fewer steps than one rollout are asked for.
    """
    env = _orders(condition, n_buckets, total_steps, seed, reward, n_orders)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=n_buckets - 1,
        batch_size=32 * (n_buckets - 1),
        n_epochs=5,
        gamma=1.0,
        gae_lambda=0.9,
        clip_range=0.3,
        learning_rate=lambda left: 1e-3 * (0.3 + 0.7 * left),
        policy_kwargs={"net_arch": [WIDTH, WIDTH], "log_std_init": -1.0},
        device="cpu",
        seed=seed,
    )
    return _learn(model, total_steps, snapshots, "mlp_extractor.policy_net", "action_net", squashed=False)


def train_sac(
    condition: Condition,
    n_buckets: int,
    total_steps: int,
    seed: int,
    reward: Reward = advantage_over_twap,
    n_orders: int = 256,
    snapshots: int = 10,
) -> list[Snapshot]:
    """The same by soft actor-critic (Haarnoja et al. 2018), for comparison."""
    env = _orders(condition, n_buckets, total_steps, seed, reward, n_orders)
    model = SAC(
        "MlpPolicy",
        env,
        buffer_size=200_000,
        batch_size=1024,
        learning_starts=n_orders * n_buckets,
        train_freq=1,
        gradient_steps=4,
        gamma=1.0,
        learning_rate=1e-3,
        policy_kwargs={"net_arch": [WIDTH, WIDTH], "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=seed,
    )
    return _learn(model, total_steps, snapshots, "actor.latent_pi", "actor.mu", squashed=True)


def _orders(
    condition: Condition, n_buckets: int, total_steps: int, seed: int, reward: Reward, n_orders: int
) -> ExecutionVecEnv:
    if total_steps < n_orders * (n_buckets - 1):
        least = n_orders * (n_buckets - 1)
        raise ValueError(f"total_steps = {total_steps}: must be at least {least}, a day of {n_orders} orders")
    unit = reward_unit(condition)
    return ExecutionVecEnv(condition.market, condition.order, n_orders, n_buckets, seed, reward, unit)


def _learn(
    model: BaseAlgorithm, total_steps: int, snapshots: int, hidden: str, output: str, *, squashed: bool
) -> list[Snapshot]:
    start, taken = time.process_time(), []

    def take() -> None:
        weights = {k: v.detach().clone() for k, v in model.policy.state_dict().items()}
        names = (f"{hidden}.0", f"{hidden}.2", output)
        layers = tuple((weights[f"{n}.weight"][None], weights[f"{n}.bias"][None, None]) for n in names)
        spent = time.process_time() - start
        taken.append(Snapshot(model.num_timesteps, spent, RLExpert(layers, squashed)))

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            due = model.num_timesteps * snapshots >= total_steps * (len(taken) + 1)
            if due and len(taken) < snapshots - 1:
                take()
            return True

    model.learn(total_steps, callback=Watch())
    take()
    return taken
