"""The RL experts: training improves them, returns are not bootstrapped, and they need no trainer to trade."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from flowoe_lib.evaluation.intervals import paired_interval
from flowoe_lib.execution.execution import (
    ACTION_LIMIT,
    Observation,
    OrderSimulation,
    Policy,
    execute,
    fraction_of_score,
)
from flowoe_lib.execution.features import FEATURES, features
from flowoe_lib.execution.information import blind_to_regimes
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition, Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.rl import RLExpert, SACExpert
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.training import reinforcement as rl_training
from flowoe_lib.training.plateau import Round, Score, best_round, validation_captures
from flowoe_lib.training.reinforcement import reward_unit, train_ppo, train_sac

N, ORDERS = 8, 128
DAY = ORDERS * (N - 1)
HESTON = Heston(scalar(4e-4), scalar(5.0), scalar(1.2), scalar(-0.5))
ORDER = Order(scalar(0.1), scalar(1e-3))
FLAT = Condition("heston", "flat", Market(HESTON), ORDER)
DEEP = Condition(
    "depth", "deep", Market(HESTON, liquidity=Liquidity(scalar(2.0), scalar(0.5), scalar(12.0))), ORDER
)


@dataclass(frozen=True)
class Trained:
    rounds: list[Round[Any]]
    model: BaseAlgorithm


def constant(policy: Policy) -> Tensor:
    """A score that makes training end after two rounds, the first of which counts as an improvement."""
    return torch.zeros(1)


def train(
    algorithm: str, condition: Condition, days: int, orders: int, seed: int = 0, score: Score = constant
) -> Trained:
    """Train in rounds of ``days``, and keep the model that the library drops."""
    models: list[BaseAlgorithm] = []
    learner = {"PPO": PPO, "SAC": SAC}[algorithm]

    def kept(*args: object, **kwargs: object) -> BaseAlgorithm:
        models.append(learner(*args, **kwargs))
        return models[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl_training, algorithm, kept)
        runs: dict[str, Callable[..., list[Round[Any]]]] = {"PPO": train_ppo, "SAC": train_sac}
        rounds = runs[algorithm](condition, N, seed, score, patience=1, days=days, n_orders=orders)
    return Trained(rounds, models[0])


@pytest.fixture(scope="module")
def ppo() -> Trained:
    torch.set_num_threads(1)
    return train("PPO", DEEP, 8, ORDERS)


@pytest.fixture(scope="module")
def sac() -> Trained:
    torch.set_num_threads(1)
    return train("SAC", DEEP, 2, 16)


def utility(policy: Policy, condition: Condition = DEEP, n: int = 4_000) -> Tensor:
    market, order = condition.market, condition.order
    paths = simulate(market, n, N, generator(9, "test"))
    return execute(policy, paths, market, order, generator(9, "unused")).utility_bps(order)


def met(condition: Condition, k: int) -> Observation:
    """A state after some days have begun differently."""
    paths = simulate(condition.market, 200, N, generator(2, "seen"))
    inventory = torch.rand(200, generator=generator(2, "inventory"))
    return OrderSimulation(paths, condition.market, condition.order).observe(k, inventory)


def test_training_improves_utility(ppo: Trained) -> None:
    first, last = (r.policy for r in ppo.rounds)
    for before in (utility(twap), utility(first)):
        assert paired_interval(utility(last) - before)[1] > 0


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
@pytest.mark.parametrize("k", [0, 3, N - 2])
def test_expert_trades_what_the_average_of_the_trained_actors_predicts(
    algorithm: str, k: int, request: pytest.FixtureRequest
) -> None:
    """With the actor frozen, the average of actors is the actor, which the model evaluates itself."""
    trained: Trained = request.getfixturevalue(algorithm)
    model, obs = trained.model, met(DEEP, k)
    layers = rl_training.PPO_LAYERS if algorithm == "ppo" else rl_training.SAC_LAYERS
    own = model.policy.state_dict()
    expert = trained.rounds[-1].policy
    changed = dict(own)
    for name, (weight, bias) in zip(layers, expert.layers, strict=True):
        changed |= {f"{name}.weight": weight[0], f"{name}.bias": bias[0, 0]}
    model.policy.load_state_dict(changed)
    scores, _ = model.predict(features(obs).numpy(), deterministic=True)
    model.policy.load_state_dict(own)
    expected = fraction_of_score(torch.from_numpy(scores[:, 0]), N - k)
    torch.testing.assert_close(expert(obs, torch.randn(200)), expected, rtol=1e-4, atol=1e-6)


def test_the_expert_is_a_moving_average_of_the_actors() -> None:
    actors: list[Tensor] = []

    class Watched(PPO):
        def learn(self, *args: Any, **kwargs: Any) -> "Watched":
            super().learn(*args, **kwargs)
            actors.append(self.policy.state_dict()["action_net.weight"].clone())
            return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl_training, "PPO", Watched)
        [first, _] = train_ppo(FLAT, N, 0, constant, patience=1, days=3, n_orders=64)
    average = actors[0]
    for actor in actors[1:3]:
        average = 0.7 * average + 0.3 * actor
    torch.testing.assert_close(first.policy.layers[2][0][0], average)


@pytest.mark.parametrize("kind", [RLExpert, SACExpert])
def test_scores_of_an_expert_stay_within_the_limit(kind: type[RLExpert] | type[SACExpert]) -> None:
    width = len(FEATURES)
    layers = [(torch.zeros(1, width, width), torch.zeros(1, 1, width)) for _ in range(2)]
    for sign in (1, -1):
        out = (torch.zeros(1, 1, width), torch.full((1, 1, 1), 99.0 * sign))
        traded = kind((*layers, out))(met(DEEP, 3), torch.zeros(200))
        torch.testing.assert_close(traded, fraction_of_score(torch.full((200,), ACTION_LIMIT * sign), N - 3))


def test_value_at_the_close_is_the_reward_alone(ppo: Trained) -> None:
    assert isinstance(ppo.model, OnPolicyAlgorithm)
    obs = ppo.model.rollout_buffer
    # One rollout is one day of every order, so its last row holds the last decisions. Sampling has laid
    # the returns out order by order.
    assert obs.rewards.shape == (N - 1, ORDERS)
    returns = obs.returns.reshape(ORDERS, N - 1).T
    np.testing.assert_allclose(returns[-1], obs.rewards[-1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(returns[-2], obs.rewards[-2], rtol=1e-4, atol=1e-4)
    assert obs.episode_starts[0].all()
    assert not obs.episode_starts[1:].any()


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_expert_survives_the_store(algorithm: str, request: pytest.FixtureRequest) -> None:
    expert = request.getfixturevalue(algorithm).rounds[-1].policy
    again = type(expert).of(load(save(expert.to_tensors())))
    obs = met(DEEP, 2)
    assert torch.equal(again(obs, torch.zeros(200)), expert(obs, torch.zeros(200)))


def test_experts_side_by_side_trade_as_each_alone(ppo: Trained) -> None:
    experts = [r.policy for r in ppo.rounds]
    market, order = batch([FLAT, DEEP], 100)
    paths = simulate(market, 200, N, generator(2, "seen"))
    obs = OrderSimulation(paths, market, order).observe(3, torch.rand(200))
    together = RLExpert.beside(experts)(obs, torch.zeros(200))
    for i, expert in enumerate(experts):
        mine = slice(100 * i, 100 * (i + 1))
        torch.testing.assert_close(together[mine], expert(obs, torch.zeros(200))[mine])


def test_the_same_seed_gives_the_same_expert() -> None:
    first, again, other = (train("PPO", FLAT, 1, ORDERS, seed).rounds[-1].policy for seed in (1, 1, 2))
    same, different = (
        [torch.equal(a, b) for (a, _), (b, _) in zip(first.layers, e.layers, strict=True)]
        for e in (again, other)
    )
    assert all(same)
    assert not any(different)


def test_training_to_a_plateau_continues_across_rounds_with_a_falling_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([0.0, 1.0, 0.5, 0.5])
    models: list[PPO] = []
    rates: list[float] = []

    class Kept(PPO):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            models.append(self)

    def score(policy: Policy) -> Tensor:
        rates.append(models[0].policy.optimizer.param_groups[0]["lr"])
        return torch.tensor([next(scores)])

    monkeypatch.setattr(rl_training, "PPO", Kept)
    rounds = train_ppo(FLAT, N, 1, score, patience=2, tolerance=0.1, days=2, n_orders=ORDERS)
    assert [r.decisions for r in rounds] == [2 * DAY, 4 * DAY, 6 * DAY, 8 * DAY]
    assert models[0].num_timesteps == 8 * DAY
    np.testing.assert_allclose(np.divide(rates, rates[0]), [1, 1, 1, 1 / 2])
    weights = [r.policy.layers[0][0] for r in rounds]
    assert not any(torch.equal(a, b) for a, b in pairwise(weights))
    # Later training does not change the policy of an earlier round.
    assert best_round(rounds) is rounds[1]


def test_an_expert_learns_under_the_information_of_its_world() -> None:
    regimes = Regimes(scalar(2.5), scalar(4.0), scalar(4.0), scalar(4.0))
    switching = Condition("switching", "fast", Market(HESTON, regimes=regimes), ORDER)
    score = validation_captures([switching], 2_000, N, 3, blind_to_regimes)
    rounds = train_ppo(
        switching, N, 0, score, patience=1, tolerance=0.2, days=15, n_orders=ORDERS, perceive=blind_to_regimes
    )
    assert best_round(rounds).score > 0.2


def test_unit_of_reward_is_a_fiftieth_of_the_cost_of_almgren_and_chriss() -> None:
    flat_cost = 1e4 * 0.142 * 0.02 * 0.1**0.6
    kappa = math.sqrt(1e-3 * 1e8 * 4e-4 / flat_cost)
    assert reward_unit(FLAT) == pytest.approx(0.02 * flat_cost * kappa / math.tanh(kappa), rel=1e-5)


def test_a_missing_layer_is_named(ppo: Trained) -> None:
    tensors = ppo.rounds[-1].policy.to_tensors()
    del tensors["1.bias"]
    with pytest.raises(KeyError, match=r"1\.bias"):
        RLExpert.of(tensors)
