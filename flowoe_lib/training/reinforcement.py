"""Training of reinforcement-learning experts, one per condition, by PPO on hundreds of orders in parallel.

Source: Schulman et al. (2017), arXiv 1707.06347; Raffin et al. (2021), JMLR 22, for stable-baselines3. Two
choices make training succeed: the reward
:func:`flowoe_lib.execution.environment.advantage_over_twap`, which has no noise and is zero for TWAP, and an
initial policy with small exploration around TWAP.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import Schedule

from flowoe_lib.execution.environment import Reward, advantage_over_twap
from flowoe_lib.execution.information import Perceive, exact
from flowoe_lib.market.model import Condition
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.training.plateau import Round, Score, until_plateau
from flowoe_lib.training.vector_environment import ExecutionVecEnv

__all__ = ["Snapshot", "train_ppo", "train_ppo_to_plateau", "train_sac"]


NETWORK = {"net_arch": [32, 32], "optimizer_kwargs": {"fused": True, "eps": 1e-5}}
"""Two small hidden layers. Adam is fused: unfused, its step takes longer than the gradient."""


PPO_RATE = 1e-3
"""Learning rate at the start."""


PPO_LAYERS = ("mlp_extractor.policy_net", "action_net")
"""Names of the hidden and the output layers of stable-baselines3's actor."""


@dataclass(frozen=True)
class Snapshot:
    """An expert at one point of its training."""

    steps: int
    """Decisions so far, over all orders."""
    seconds: float
    """Processor seconds so far."""
    expert: RLExpert


def reward_unit(condition: Condition) -> float:
    """Unit of the reward, bps: a fiftieth of Almgren and Chriss's cost C kappa coth kappa."""
    plan = PreTrade.of(condition.market, condition.order)
    root = plan.urgency.sqrt().clamp_min(1e-3)
    return float(0.02 * plan.cost_bps * root / torch.tanh(root))


def train_ppo(
    condition: Condition,
    n_buckets: int,
    total_steps: int,
    seed: int,
    reward: Reward = advantage_over_twap,
    n_orders: int = 256,
    snapshots: int = 10,
    gae_lambda: float = 0.7,
    clip_range: float = 1.0,
) -> list[Snapshot]:
    """Train by proximal policy optimisation on one thread; the last snapshot is the result.

    A rollout is one day of every order. Because the default reward has no noise, the advantage estimate looks
    only a few buckets ahead (small ``gae_lambda``) and updates are almost unclipped (large ``clip_range``);
    noisy rewards need a longer look-ahead and smaller updates. Raises ValueError if ``total_steps`` is
    below one rollout.
    """
    env = _orders(condition, n_buckets, total_steps, seed, reward, n_orders)
    model = _ppo(env, seed, lambda left: PPO_RATE * (0.3 + 0.7 * left), gae_lambda, clip_range)
    return _learn(model, total_steps, snapshots, *PPO_LAYERS, squashed=False)


def train_ppo_to_plateau(
    condition: Condition,
    n_buckets: int,
    seed: int,
    score: Score,
    *,
    patience: int = 6,
    tolerance: float = 5e-4,
    days: int = 10,
    n_orders: int = 256,
    perceive: Perceive = exact,
) -> list[Round[RLExpert]]:
    """Train by proximal policy optimisation until the validation score stops rising.

    Parameters
    ----------
    condition : Condition
        Market and order of all training days, fields of shape [].
    n_buckets : int
        Number of buckets N of a day.
    seed : int
        Seed of initial weights, days and exploration.
    score : callable
        Validation score, such as :func:`flowoe_lib.training.plateau.validation_capture`.
    patience, tolerance : int, float
        The stopping rule of :func:`flowoe_lib.training.plateau.until_plateau`; the default tolerance is .05 %
        of capture.
    days : int
        Rollouts in a round of training; each is one day of every order.
    n_orders : int
        Number of orders simulated in parallel.
    perceive : callable
        The expert's information about the market. Rewards use the true market.

    Returns
    -------
    list of flowoe_lib.training.plateau.Round
        All rounds; :func:`flowoe_lib.training.plateau.best_round` selects the expert.
    """
    unit = reward_unit(condition)
    env = ExecutionVecEnv(
        condition.market, condition.order, n_orders, n_buckets, seed, unit_bps=unit, perceive=perceive
    )
    model = _ppo(env, seed, PPO_RATE, gae_lambda=0.7, clip_range=1.0)
    decisions = days * n_orders * (n_buckets - 1)

    def train(share: float) -> tuple[RLExpert, int]:
        model.lr_schedule = lambda left: share * PPO_RATE
        model.learn(decisions, reset_num_timesteps=False)
        return _expert(model, *PPO_LAYERS, squashed=False), decisions

    return until_plateau(train, score, patience, tolerance)


def _ppo(
    env: ExecutionVecEnv, seed: int, learning_rate: float | Schedule, gae_lambda: float, clip_range: float
) -> PPO:
    return PPO(
        "MlpPolicy",
        env,
        n_steps=env.n_buckets - 1,
        batch_size=32 * (env.n_buckets - 1),
        n_epochs=5,
        gamma=1.0,
        gae_lambda=gae_lambda,
        clip_range=clip_range,
        learning_rate=learning_rate,
        policy_kwargs=NETWORK | {"log_std_init": -1.0},
        device="cpu",
        seed=seed,
    )


def train_sac(
    condition: Condition,
    n_buckets: int,
    total_steps: int,
    seed: int,
    reward: Reward = advantage_over_twap,
    n_orders: int = 256,
    snapshots: int = 10,
) -> list[Snapshot]:
    """Train by soft actor-critic (Haarnoja et al. 2018), for comparison with PPO."""
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
        policy_kwargs=NETWORK | {"activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=seed,
    )
    return _learn(model, total_steps, snapshots, "actor.latent_pi", "actor.mu", squashed=True)


def _orders(
    condition: Condition, n_buckets: int, total_steps: int, seed: int, reward: Reward, n_orders: int
) -> ExecutionVecEnv:
    if total_steps < (least := n_orders * (n_buckets - 1)):
        raise ValueError(f"total_steps = {total_steps}: must be at least {least}, a day of {n_orders} orders")
    unit = reward_unit(condition)
    return ExecutionVecEnv(condition.market, condition.order, n_orders, n_buckets, seed, reward, unit)


def _learn(
    model: BaseAlgorithm, total_steps: int, snapshots: int, hidden: str, output: str, *, squashed: bool
) -> list[Snapshot]:
    start, taken = time.process_time(), []

    def take() -> None:
        spent = time.process_time() - start
        taken.append(Snapshot(model.num_timesteps, spent, _expert(model, hidden, output, squashed=squashed)))

    def watch(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        due = model.num_timesteps * snapshots >= total_steps * (len(taken) + 1)
        if due and len(taken) < snapshots - 1:
            take()
        return True

    model.learn(total_steps, callback=watch)
    take()
    return taken


def _expert(model: BaseAlgorithm, hidden: str, output: str, *, squashed: bool) -> RLExpert:
    """A copy of the current actor of ``model``; ``hidden`` and ``output`` name its layers."""
    weights = {k: v.detach().clone() for k, v in model.policy.state_dict().items()}
    names = (f"{hidden}.0", f"{hidden}.2", output)
    layers = tuple((weights[f"{n}.weight"][None], weights[f"{n}.bias"][None, None]) for n in names)
    return RLExpert(layers, squashed)
