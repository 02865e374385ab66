"""Training of reinforcement-learning experts, one per condition, by PPO on hundreds of orders in parallel.

Source: Schulman et al. (2017), arXiv 1707.06347; Raffin et al. (2021), JMLR 22, for stable-baselines3. Two
choices make training succeed: the reward
:func:`flowoe_lib.execution.environment.advantage_over_twap`, which has no noise and is zero for TWAP, and an
initial policy with small exploration around TWAP.
"""

from typing import TypeVar

import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowoe_lib.execution.environment import Reward, advantage_over_twap
from flowoe_lib.execution.information import Perceive, exact
from flowoe_lib.market.model import Condition
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.policies.rl import RLExpert, SACExpert
from flowoe_lib.training.plateau import Round, Score, until_plateau
from flowoe_lib.training.vector_environment import ExecutionVecEnv

E = TypeVar("E", RLExpert, SACExpert)


Rule = tuple[Score, int, float, int]
"""Score, patience, tolerance and least rounds of :func:`flowoe_lib.training.plateau.until_plateau`."""


NETWORK = {"net_arch": [32, 32], "optimizer_kwargs": {"fused": True, "eps": 1e-5}}
"""Two small hidden layers. Adam is fused: unfused, its step takes longer than the gradient."""


RATE = 1e-3
"""Learning rate at the start."""


KEPT = 0.7
"""Weight of the average actor, after each rollout, on its earlier value: it averages the last three or so."""


PPO_LAYERS = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")
SAC_LAYERS = ("actor.latent_pi.0", "actor.latent_pi.2", "actor.mu")
"""Names of the actors' layers in stable-baselines3."""


def reward_unit(condition: Condition) -> float:
    """Unit of the reward, bps: a fiftieth of Almgren and Chriss's cost C kappa coth kappa."""
    plan = PreTrade.of(condition.market, condition.order)
    root = plan.urgency.sqrt().clamp_min(1e-3)
    return float(0.02 * plan.cost_bps * root / torch.tanh(root))


def train_ppo(
    condition: Condition,
    n_buckets: int,
    seed: int,
    score: Score,
    *,
    patience: int = 6,
    tolerance: float = 1e-3,
    least: int = 0,
    days: int = 3,
    n_orders: int = 1024,
    perceive: Perceive = exact,
    reward: Reward = advantage_over_twap,
    gae_lambda: float = 0.7,
    clip_range: float = 1.0,
) -> list[Round[RLExpert]]:
    """Train by proximal policy optimisation until the validation score stops rising.

    A rollout is one day of every order. Because the default reward has no noise, the advantage estimate looks
    only a few buckets ahead (small ``gae_lambda``) and updates are almost unclipped (large ``clip_range``);
    noisy rewards need a longer look-ahead and smaller updates. The expert is a moving average of the actors
    after each rollout, which varies less than the last actor (Polyak and Juditsky 1992).

    Parameters
    ----------
    condition : Condition
        Market and order of all training days, fields of shape [].
    n_buckets : int
        Number of buckets N of a day.
    seed : int
        Seed of initial weights, days and exploration.
    score : callable
        Validation score, such as :func:`flowoe_lib.training.plateau.validation_captures`.
    patience, tolerance, least : int, float, int
        The stopping rule of :func:`flowoe_lib.training.plateau.until_plateau`; the default tolerance is .1 %
        of capture.
    days : int
        Rollouts in a round of training.
    n_orders : int
        Number of orders simulated in parallel.
    perceive : callable
        The expert's information about the market. Rewards use the true market.
    reward : callable
        Reward of a decision.
    gae_lambda, clip_range : float
        Look-ahead of the advantage estimate and largest relative change of a probability in an update.

    Returns
    -------
    list of flowoe_lib.training.plateau.Round
        All rounds; :func:`flowoe_lib.training.plateau.best_round` selects the expert.
    """
    model = PPO(
        "MlpPolicy",
        _orders(condition, n_buckets, seed, reward, n_orders, perceive),
        n_steps=n_buckets - 1,
        batch_size=32 * (n_buckets - 1),
        n_epochs=3,
        gamma=1.0,
        gae_lambda=gae_lambda,
        clip_range=clip_range,
        policy_kwargs=NETWORK | {"log_std_init": -1.0},
        device="cpu",
        seed=seed,
    )
    rule = score, patience, tolerance, least
    return _to_plateau(model, PPO_LAYERS, RLExpert, rule, days, n_orders * (n_buckets - 1))


def train_sac(
    condition: Condition,
    n_buckets: int,
    seed: int,
    score: Score,
    *,
    patience: int = 6,
    tolerance: float = 1e-3,
    least: int = 0,
    days: int = 5,
    n_orders: int = 512,
) -> list[Round[SACExpert]]:
    """Train by soft actor-critic (Haarnoja et al. 2018), for comparison with :func:`train_ppo`."""
    model = SAC(
        "MlpPolicy",
        _orders(condition, n_buckets, seed, advantage_over_twap, n_orders, exact),
        buffer_size=200_000,
        batch_size=1024,
        learning_starts=n_orders * n_buckets,
        train_freq=1,
        gradient_steps=4,
        gamma=1.0,
        policy_kwargs=NETWORK | {"activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=seed,
    )
    rule = score, patience, tolerance, least
    return _to_plateau(model, SAC_LAYERS, SACExpert, rule, days, n_orders * (n_buckets - 1))


def _orders(
    condition: Condition, n_buckets: int, seed: int, reward: Reward, n_orders: int, perceive: Perceive
) -> ExecutionVecEnv:
    known = condition.market, condition.order, n_orders, n_buckets, seed
    return ExecutionVecEnv(*known, reward, reward_unit(condition), perceive)


def _to_plateau(
    model: BaseAlgorithm, layers: tuple[str, ...], expert: type[E], rule: Rule, days: int, decisions: int
) -> list[Round[E]]:
    """Rounds of ``days`` rollouts of ``decisions``; the expert averages actors, of given ``layers``."""
    average = AveragedModel(model.policy, multi_avg_fn=get_ema_multi_avg_fn(KEPT))

    def train(share: float) -> tuple[E, int]:
        model.lr_schedule = lambda left: share * RATE
        for _ in range(days):
            model.learn(decisions, reset_num_timesteps=False)
            average.update_parameters(model.policy)
        weights = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
        actor = tuple((weights[f"{n}.weight"][None], weights[f"{n}.bias"][None, None]) for n in layers)
        return expert(actor), days * decisions

    return until_plateau(train, *rule)
