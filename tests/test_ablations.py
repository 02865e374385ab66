"""The variants that FlowOE is compared with are what their names say."""

import pytest
import torch
from torch.distributions import Normal

from flowoe_lib.evaluation.intervals import paired_interval
from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.execution.execution import Observation, execute
from flowoe_lib.execution.features import FEATURES
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.studies.ablations import (
    AFTER_IMITATION,
    VARIANTS,
    GaussianPolicy,
    Setting,
    StalePolicy,
    VelocityField,
    advantage_weighted,
    gaussian_likelihood,
    regression,
    train_variant,
    velocity_matching,
)
from flowoe_lib.training.imitation import demonstrate

N_BUCKETS = 8
CONDITION = Condition(
    "heston",
    "test",
    Market(Heston(scalar(1.6e-3), scalar(2.0), scalar(1.3), scalar(-0.8))),
    Order(scalar(0.1), scalar(5e-4)),
)
RANGE = TrainingRange(kappa=(2.0, 2.0), rho=-0.8)


def samples(n: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = generator(1, "samples")
    return (
        torch.randn(n, len(FEATURES), generator=g),
        *torch.randn(2, n, generator=g),
        torch.rand(n, generator=g),
    )


def test_velocity_matching_is_the_squared_velocity_error() -> None:
    observed, x1, x0, t = samples()
    t = 0.9 * t
    field = VelocityField(generator(1, "init"))
    x = (1 - t) * x0 + t * x1
    velocity = EndpointField.forward(field, x, t, field.encode(observed))
    expected = (velocity - (x1 - x0)).square()
    torch.testing.assert_close(velocity_matching(field, observed, x1, x0, t), expected, rtol=1e-3, atol=1e-4)


def test_regression_ignores_noise_and_time() -> None:
    observed, x1, x0, t = samples()
    field = EndpointField(generator(1, "init"))
    torch.testing.assert_close(
        regression(field, observed, x1, x0, t), regression(field, observed, x1, 5 * x0, 1 - t)
    )


def test_gaussian_likelihood_is_that_of_a_normal_law() -> None:
    observed, x1, x0, t = samples()
    field, zero = EndpointField(generator(1, "init")), torch.zeros(64)
    encoded = field.encode(observed)
    law = Normal(field(zero, zero, encoded), field(zero, zero + 1, encoded).exp())
    constant = torch.log(torch.tensor(2 * torch.pi)) / 2
    torch.testing.assert_close(
        gaussian_likelihood(field, observed, x1, x0, t), -law.log_prob(x1) - constant, rtol=1e-4, atol=1e-5
    )


def test_gaussian_policy_without_spread_is_one_action() -> None:
    days = simulate(CONDITION.market, 50, N_BUCKETS, generator(2, "days"))
    field = EndpointField(generator(1, "init"))
    runs = [
        execute(GaussianPolicy(field, spread), days, CONDITION.market, CONDITION.order, generator(seed, "n"))
        for spread in (0.0, 1.0)
        for seed in (1, 2)
    ]
    assert torch.equal(runs[0].inventory, runs[1].inventory)
    assert not torch.equal(runs[2].inventory, runs[3].inventory)


def test_a_policy_that_decides_every_n_buckets_observes_old_variance() -> None:
    looked: list[tuple[int, torch.Tensor]] = []

    def watching(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        looked.append((obs.k, obs.variance))
        return twap(obs, noise)

    days = simulate(CONDITION.market, 5, N_BUCKETS, generator(2, "days"))
    execute(StalePolicy(watching, 3), days, CONDITION.market, CONDITION.order, generator(2, "n"))
    assert [k for k, _ in looked] == list(range(N_BUCKETS - 1))
    for k, variance in looked:
        assert torch.equal(variance, days.variance[3 * (k // 3)])


def test_advantage_weighting_improves_without_a_simulator_gradient() -> None:
    start = EndpointField(generator(3, "init"))
    better = advantage_weighted(start, RANGE, N_BUCKETS, 150, seed=0).field
    runs = evaluate(
        {"before": FlowPolicy(start, 1), "after": FlowPolicy(better, 1)},
        CONDITION,
        Evaluation(n_paths=2_000, n_buckets=N_BUCKETS, seed=1, chunk=2_000),
        "test",
    )
    assert paired_interval(runs["after"].utility - runs["before"].utility)[1] > 0


@pytest.fixture(scope="module")
def setting() -> Setting:
    experts = {
        "static_optimal": SCHEDULE_EXPERTS["static_optimal"],
        "replanned": SCHEDULE_EXPERTS["replanned"],
    }
    demonstrations = demonstrate(experts, [CONDITION], 20, N_BUCKETS, 1)
    return Setting(
        {"all": demonstrations, "four": demonstrations, "two": demonstrations, "one": demonstrations},
        RANGE,
        N_BUCKETS,
        3,
        2,
        0,
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_and_trades(name: str, setting: Setting) -> None:
    imitated = EndpointField(generator(3, "init"))
    policies, seconds = train_variant(name, setting, imitated, imitation_s=100.0)
    assert (seconds > 100) == (name in AFTER_IMITATION)
    days = simulate(CONDITION.market, 10, N_BUCKETS, generator(2, "days"))
    for policy in policies.values():
        with torch.no_grad():
            done = execute(policy, days, CONDITION.market, CONDITION.order, generator(2, "n"))
        assert torch.equal(done.inventory[-1], torch.zeros(10))
