"""Demonstrations equal the experts' actions; imitation reproduces them; the nearest expert is identified."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowoe_lib.evaluation.nearest_expert import nearest_expert
from flowoe_lib.execution.execution import Observation, Policy, execute, score_of_fraction
from flowoe_lib.execution.features import FEATURES
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS, Experts
from flowoe_lib.policies.flow import FlowPolicy
from flowoe_lib.policies.schedules import Schedule, expected_utility, static_optimal, twap
from flowoe_lib.randomness import generator
from flowoe_lib.training.imitation import demonstrate, expert_weights, imitate

N = 13


def condition(volatility: float, risk_aversion: float) -> Condition:
    heston = Heston(scalar(volatility**2), scalar(5.0), scalar(0.8), scalar(-0.6))
    return Condition("test", f"{volatility:g}", Market(heston), Order(scalar(0.1), scalar(risk_aversion)))


CONDITIONS = [condition(0.01, 5e-4), condition(0.02, 5e-4), condition(0.03, 1e-3)]


def some(*names: str) -> Experts:
    return {name: SCHEDULE_EXPERTS[name] for name in names}


utilities = st.lists(st.floats(-100, 100), min_size=2, max_size=6)


@given(utilities, st.floats(0, 20))
def test_weights_sum_to_one_and_follow_utility(values: list[float], sharpness: float) -> None:
    utility = torch.tensor(values, dtype=torch.float64)
    weights = expert_weights(utility, sharpness)
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights[utility.argsort()].diff() >= -1e-12).all()
    # Between best and worst lies a factor of exp(sharpness), whatever the utilities are measured in.
    if utility.max() - utility.min() > 1e-3:
        ratio = float(weights[utility.argmax()] / weights[utility.argmin()])
        assert ratio == pytest.approx(math.exp(sharpness), rel=1e-6)
        torch.testing.assert_close(expert_weights(3 * utility - 40, sharpness), weights)


def test_weights_at_the_extremes() -> None:
    utility = torch.tensor([[-3.0, 1.0], [-2.0, -5.0], [-9.0, 0.0]])
    torch.testing.assert_close(expert_weights(utility, 0.0), torch.full((3, 2), 1 / 3))
    torch.testing.assert_close(expert_weights(utility, 1e4), torch.tensor([[0.0, 1], [1, 0], [0, 0]]))
    torch.testing.assert_close(expert_weights(torch.full((4, 1), -2.0), 5.0), torch.full((4, 1), 0.25))


def planned_scores(c: Condition) -> Tensor:
    """Scores of the static optimum in each bucket but the last."""
    inventory = static_optimal(c.market, c.order, N).inventory
    fractions = 1 - inventory[1:-1] / inventory[:-2]
    return torch.stack([score_of_fraction(f, N - k) for k, f in enumerate(fractions)]).float()


@pytest.mark.parametrize("noise_sd", [0.0, 0.7])
def test_recorded_actions_are_those_of_the_experts_without_noise(noise_sd: float) -> None:
    demonstrations = demonstrate(some("static_optimal", "twap"), CONDITIONS, 20, N, seed=1, noise_sd=noise_sd)
    shape = (2, N - 1, len(CONDITIONS), 20)
    # Actions correct the score of the re-planned schedule, which the policy observes in the unit of scores.
    plans = [PreTrade.of(c.market, c.order) for c in CONDITIONS]
    units, corrections = (
        torch.stack([getattr(p, name) for p in plans])[:, None] for name in ("score_unit", "correction_unit")
    )
    anchor = demonstrations.observed[
        :, FEATURES.index("score of the re-planned schedule, in units of scores")
    ]
    scores = corrections * demonstrations.actions.reshape(shape) + units * anchor.reshape(shape)
    for i, c in enumerate(CONDITIONS):
        torch.testing.assert_close(
            scores[0, :, i], planned_scores(c)[:, None].expand(-1, 20), rtol=0, atol=1e-4
        )
    torch.testing.assert_close(scores[1], torch.zeros(shape[1:]), rtol=0, atol=1e-4)
    # The states are those the expert meets, on its own course or scattered around it.
    column = FEATURES.index("inventory")
    inventory = (demonstrations.observed.reshape(*shape, -1)[..., column] + 1) / 2
    even = torch.linspace(1, 1 / N, N)[:-1]
    assert (inventory[:, 0] == 1).all()
    if noise_sd == 0:
        torch.testing.assert_close(inventory[1], even[:, None, None].expand(shape[1:]), rtol=0, atol=1e-5)
    else:
        assert (inventory[:, 3:].std(-1) > 0.01).all()


def test_samples_weigh_by_the_expert_s_utility_in_their_condition() -> None:
    names = ("twap", "almgren_chriss", "static_optimal")
    demonstrations = demonstrate(some(*names), CONDITIONS, 4000, N, seed=2, sharpness=2.0)
    assert float(demonstrations.weights.mean()) == pytest.approx(1, abs=1e-5)
    weights = demonstrations.weights.reshape(3, N - 1, len(CONDITIONS), 4000)
    even = torch.linspace(1, 0, N + 1, dtype=torch.float64)
    for i, c in enumerate(CONDITIONS):
        plans = [even, *(SCHEDULE_EXPERTS[name]([c], 1, N) for name in names[1:])]
        exact = torch.stack(
            [
                expected_utility(c.market, c.order, p.inventory[:, 0] if isinstance(p, Schedule) else even)
                for p in plans
            ]
        )
        rise = (exact - exact.min()) / (exact.max() - exact.min())
        expected = 3 * torch.exp(2 * rise) / torch.exp(2 * rise).sum()
        for j in range(3):
            mine = weights[j, :, i]
            assert (mine == mine[0, 0]).all()
            assert float(mine[0, 0]) == pytest.approx(float(expected[j]), abs=0.03)


def test_one_expert_is_reproduced() -> None:
    demonstrations = demonstrate(some("static_optimal"), CONDITIONS, 300, N, seed=3)
    learned = imitate(demonstrations, 800, 3, learning_rate=1e-2)
    market, order = batch(CONDITIONS, 1000)
    paths = simulate(market, 3000, N, generator(4, "test"))
    expert = SCHEDULE_EXPERTS["static_optimal"](CONDITIONS, 1000, N)

    def utility(policy: Policy) -> Tensor:
        with torch.no_grad():
            done = execute(policy, paths, market, order, generator(4, "policy"))
        return done.utility_bps(order).reshape(3, 1000).mean(1)

    best, even = utility(expert), utility(twap)
    for steps in (1, 4):
        share = (utility(FlowPolicy(learned.field, steps)) - even) / (best - even)
        assert (share > 0.99).all()
        assert (share < 1.005).all()


def test_policy_that_is_an_expert_is_recognised() -> None:
    experts = some("twap", "almgren_chriss", "static_optimal", "replanned")
    for i, name in enumerate(experts):
        policy = experts[name](CONDITIONS, 50, N)
        share = nearest_expert(policy, experts, CONDITIONS, 50, N, seed=5)
        expected = torch.zeros(len(CONDITIONS), len(experts))
        expected[:, i] = 1
        torch.testing.assert_close(share, expected)


def test_shares_count_the_decisions_near_each_expert() -> None:
    experts = some("twap", "static_optimal")
    optimal = experts["static_optimal"](CONDITIONS, 50, N)

    def changing(obs: Observation, noise: Tensor) -> Tensor:
        return (twap if obs.k < 3 else optimal)(obs, noise)

    share = nearest_expert(changing, experts, CONDITIONS, 50, N, seed=5)
    torch.testing.assert_close(share[:, 0], torch.full((3,), 3 / (N - 1)))
    torch.testing.assert_close(share.sum(1), torch.ones(3))


def test_training_is_determined_by_its_seeds() -> None:
    def weights(seed: int, shown_seed: int) -> Sequence[Tensor]:
        demonstrations = demonstrate(some("twap", "replanned"), CONDITIONS[:1], 20, N, seed=shown_seed)
        learned = imitate(demonstrations, 5, seed)
        assert len(learned.curves["loss"]) == 5
        return [*learned.field.parameters(), demonstrations.observed]

    first, again, other, elsewhere = weights(1, 1), weights(1, 1), weights(2, 1), weights(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[-1], elsewhere[-1])
