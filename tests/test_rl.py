"""The RL experts: training improves them, returns are not bootstrapped, and they need no trainer to trade."""

import math
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
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.training import reinforcement as rl_training
from flowoe_lib.training.plateau import best_round, validation_captures
from flowoe_lib.training.reinforcement import (
    Snapshot,
    reward_unit,
    train_ppo,
    train_ppo_to_plateau,
    train_sac,
)

N, ORDERS = 8, 128
DAY = ORDERS * (N - 1)
HESTON = Heston(scalar(4e-4), scalar(5.0), scalar(1.2), scalar(-0.5))
ORDER = Order(scalar(0.1), scalar(1e-3))
FLAT = Condition("heston", "flat", Market(HESTON), ORDER)
DEEP = Condition(
    "depth", "deep", Market(HESTON, liquidity=Liquidity(scalar(2.0), scalar(0.5), scalar(12.0))), ORDER
)


@dataclass(frozen=True)
class PretrainedPolicy:
    snapshots: list[Snapshot]
    model: BaseAlgorithm


def train(algorithm: str, condition: Condition, steps: int, orders: int, seed: int = 0) -> PretrainedPolicy:
    """Train, and keep the model that the library drops."""
    models: list[BaseAlgorithm] = []
    learner = {"PPO": PPO, "SAC": SAC}[algorithm]

    def kept(*args: object, **kwargs: object) -> BaseAlgorithm:
        models.append(learner(*args, **kwargs))
        return models[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl_training, algorithm, kept)
        run = {"PPO": train_ppo, "SAC": train_sac}[algorithm]
        return PretrainedPolicy(run(condition, N, steps, seed, n_orders=orders, snapshots=4), models[0])


@pytest.fixture(scope="module")
def ppo() -> PretrainedPolicy:
    torch.set_num_threads(1)
    return train("PPO", DEEP, 40 * DAY, ORDERS)


@pytest.fixture(scope="module")
def sac() -> PretrainedPolicy:
    torch.set_num_threads(1)
    return train("SAC", DEEP, 300, 16)


def utility(policy: Policy, condition: Condition = DEEP, n: int = 4_000) -> Tensor:
    market, order = condition.market, condition.order
    paths = simulate(market, n, N, generator(9, "test"))
    return execute(policy, paths, market, order, generator(9, "unused")).utility_bps(order)


def met(condition: Condition, k: int) -> Observation:
    """A state after some days have begun differently."""
    paths = simulate(condition.market, 200, N, generator(2, "seen"))
    inventory = torch.rand(200, generator=generator(2, "inventory"))
    return OrderSimulation(paths, condition.market, condition.order).observe(k, inventory)


def test_training_improves_utility(ppo: PretrainedPolicy) -> None:
    start, end = ppo.snapshots[0], ppo.snapshots[-1]
    after = utility(end.expert)
    for before in (utility(start.expert), utility(twap)):
        low = paired_interval(after - before)[1]
        assert low > 0


def test_snapshots_count_steps_and_seconds(ppo: PretrainedPolicy) -> None:
    steps, seconds = zip(*((s.steps, s.seconds) for s in ppo.snapshots), strict=True)
    assert len(steps) == 4
    assert list(steps) == sorted(set(steps))
    assert list(seconds) == sorted(set(seconds))
    assert steps[-1] == 40 * DAY


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
@pytest.mark.parametrize("k", [0, 3, N - 2])
def test_expert_trades_what_the_trained_model_predicts(
    algorithm: str, k: int, request: pytest.FixtureRequest
) -> None:
    trained: PretrainedPolicy = request.getfixturevalue(algorithm)
    obs = met(DEEP, k)
    scores, _ = trained.model.predict(features(obs).numpy(), deterministic=True)
    expected = fraction_of_score(torch.from_numpy(scores[:, 0]), N - k)
    actual = trained.snapshots[-1].expert(obs, torch.randn(200))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("squashed", [False, True], ids=["clamped", "squashed"])
def test_scores_of_an_expert_stay_within_the_limit(squashed: bool) -> None:
    width = len(FEATURES)
    layers = [(torch.zeros(1, width, width), torch.zeros(1, 1, width)) for _ in range(2)]
    for sign in (1, -1):
        out = (torch.zeros(1, 1, width), torch.full((1, 1, 1), 99.0 * sign))
        traded = RLExpert((*layers, out), squashed)(met(DEEP, 3), torch.zeros(200))
        torch.testing.assert_close(traded, fraction_of_score(torch.full((200,), ACTION_LIMIT * sign), N - 3))


def test_value_at_the_close_is_the_reward_alone(ppo: PretrainedPolicy) -> None:
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
    expert = request.getfixturevalue(algorithm).snapshots[-1].expert
    again = RLExpert.of(load(save(expert.to_tensors())))
    obs = met(DEEP, 2)
    assert torch.equal(again(obs, torch.zeros(200)), expert(obs, torch.zeros(200)))
    assert again.squashed == expert.squashed == (algorithm == "sac")


def test_experts_of_several_conditions_are_selected_by_name(ppo: PretrainedPolicy) -> None:
    first, last = ppo.snapshots[0].expert, ppo.snapshots[-1].expert
    packed = {f"a/b:{k}": v for k, v in first.to_tensors().items()}
    packed |= {f"c:{k}": v for k, v in last.to_tensors().items()}
    found = RLExpert.unpack(packed)
    obs = met(DEEP, 2)
    assert set(found) == {"a/b", "c"}
    for name, expert in {"a/b": first, "c": last}.items():
        assert torch.equal(found[name](obs, torch.zeros(200)), expert(obs, torch.zeros(200)))


def test_experts_side_by_side_trade_as_each_alone(ppo: PretrainedPolicy) -> None:
    experts = [ppo.snapshots[i].expert for i in (0, -1)]
    market, order = batch([FLAT, DEEP], 100)
    paths = simulate(market, 200, N, generator(2, "seen"))
    obs = OrderSimulation(paths, market, order).observe(3, torch.rand(200))
    together = RLExpert.beside(experts)(obs, torch.zeros(200))
    for i, expert in enumerate(experts):
        mine = slice(100 * i, 100 * (i + 1))
        torch.testing.assert_close(together[mine], expert(obs, torch.zeros(200))[mine])


def test_the_same_seed_gives_the_same_expert() -> None:
    first, again, other = (
        train("PPO", FLAT, 2 * DAY, ORDERS, seed).snapshots[-1].expert for seed in (1, 1, 2)
    )
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
    rounds = train_ppo_to_plateau(FLAT, N, 1, score, patience=2, tolerance=0.1, days=2, n_orders=ORDERS)
    assert [r.decisions for r in rounds] == [2 * DAY, 4 * DAY, 6 * DAY, 8 * DAY]
    assert models[0].num_timesteps == 8 * DAY
    np.testing.assert_allclose(np.divide(rates, rates[0]), [1, 1, 1, 0.5])
    weights = [r.policy.layers[0][0] for r in rounds]
    assert not any(torch.equal(a, b) for a, b in pairwise(weights))
    # Later training does not change the policy of an earlier round.
    assert best_round(rounds) is rounds[1]


def test_an_expert_learns_under_the_information_of_its_world() -> None:
    regimes = Regimes(scalar(2.5), scalar(4.0), scalar(4.0), scalar(4.0))
    switching = Condition("switching", "fast", Market(HESTON, regimes=regimes), ORDER)
    score = validation_captures([switching], 2_000, N, 3, blind_to_regimes)
    rounds = train_ppo_to_plateau(
        switching, N, 0, score, patience=1, tolerance=0.2, days=15, n_orders=ORDERS, perceive=blind_to_regimes
    )
    assert best_round(rounds).score > 0.2


def test_unit_of_reward_is_a_fiftieth_of_the_cost_of_almgren_and_chriss() -> None:
    flat_cost = 1e4 * 0.142 * 0.02 * 0.1**0.6
    kappa = math.sqrt(1e-3 * 1e8 * 4e-4 / flat_cost)
    assert reward_unit(FLAT) == pytest.approx(0.02 * flat_cost * kappa / math.tanh(kappa), rel=1e-5)


def test_bad_arguments_are_named(ppo: PretrainedPolicy, sac: PretrainedPolicy) -> None:
    for run in (train_ppo, train_sac):
        with pytest.raises(ValueError, match=f"total_steps = {DAY - 1}: must be at least {DAY}"):
            run(FLAT, N, DAY - 1, 0, n_orders=ORDERS)
    with pytest.raises(ValueError, match="all squashed or all clamped"):
        RLExpert.beside([ppo.snapshots[-1].expert, sac.snapshots[-1].expert])
    tensors = ppo.snapshots[-1].expert.to_tensors()
    del tensors["1.bias"]
    with pytest.raises(KeyError, match=r"1\.bias"):
        RLExpert.of(tensors)
