"""The unannounced level: filter, optimum and level experts against quadrature, simulation and brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flowoe_lib.execution.execution import Observation, OrderSimulation, Policy, execute
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.dynamic_programming import Optimum
from flowoe_lib.policies.flow import FlowPolicy, unpack
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import expected_utility, static_optimal, twap
from flowoe_lib.policies.unannounced import (
    LevelMixture,
    UnannouncedLevel,
    shape_of_spread,
    solve_level_belief,
    spread_of_shape,
)
from flowoe_lib.randomness import generator
from flowoe_lib.studies.unannounced_world import (
    LIMIT,
    MIXTURE,
    NAMES,
    QUANTILES,
    STATIC,
    LevelAsVariance,
    announced,
    draw_days,
    examine,
    train,
)

VOL, N = 0.02, 13
MARKET = Market(Heston(scalar(VOL**2), scalar(2.0), scalar(0.5), scalar(-0.8)), Impact(gamma=scalar(0.0)))
ORDER = Order(scalar(0.1), scalar(5e-4))
WORLD = UnannouncedLevel(MARKET, shape_of_spread(1.0))
QUANTILE_RULE = torch.special.ndtr(torch.linspace(-8, 8, 401, dtype=torch.float64))
RULE_WEIGHTS = torch.softmax(-torch.linspace(-8, 8, 401, dtype=torch.float64).square() / 2, 0)


@pytest.mark.parametrize("sd", [0.3, 0.6, 1.0])
def test_the_law_has_the_forecast_mean_and_the_spread_of_its_logarithm(sd: float) -> None:
    world = UnannouncedLevel(MARKET, shape_of_spread(sd))
    law = stats.invgamma(world.shape, scale=VOL**2 * (world.shape - 1))
    assert spread_of_shape(world.shape) == pytest.approx(sd)
    assert law.mean() == pytest.approx(VOL**2)
    levels = world.levels(QUANTILE_RULE)
    spread = (RULE_WEIGHTS * (levels.log() - RULE_WEIGHTS @ levels.log()).square()).sum().sqrt()
    assert spread.item() == pytest.approx(sd, rel=1e-3)
    quantiles = torch.tensor([0.01, 0.5, 0.9])
    torch.testing.assert_close(
        world.levels(quantiles), torch.from_numpy(law.ppf(quantiles.double().numpy())), rtol=1e-6, atol=0
    )


def test_the_belief_is_the_posterior_mean_on_a_grid_of_levels() -> None:
    days, _ = draw_days(WORLD, ORDER, 5, N, generator(1, "days"))
    draws = generator(2, "returns")
    known = WORLD(days.paths, days.market, draws)
    # The same draws again: realised variance is theta chi2_10 / 10 in each bucket.
    chi = torch._standard_gamma(torch.full((N, 5), 5.0), generator=generator(2, "returns")) / 5
    measured = (days.paths.integrated_variance * chi * N).double().numpy()
    levels = VOL**2 * np.geomspace(1e-3, 1e5, 40_001)
    log_prior = stats.invgamma(WORLD.shape, scale=VOL**2 * (WORLD.shape - 1)).logpdf(levels) + np.log(levels)
    for i, k in ((0, 1), (2, 4), (4, N - 1)):
        log_posterior = log_prior + sum(
            stats.chi2(10).logpdf(10 * x / levels) - np.log(levels) for x in measured[:k, i]
        )
        weight = np.exp(log_posterior - log_posterior.max())
        mean = weight @ levels / weight.sum()
        assert known.variance[k, i].item() == pytest.approx(mean, rel=2e-3)
        below = WORLD.probability_below(scalar(VOL**2), known.variance[k, i].double(), k).item()
        assert below == pytest.approx(weight[levels < VOL**2].sum() / weight.sum(), abs=2e-3)
    torch.testing.assert_close(known.variance[0], torch.full((5,), VOL**2))


def test_three_buckets_match_brute_force_over_trades_and_returns() -> None:
    """Only the second trade depends on returns, those of the first bucket."""
    value = solve_level_belief(WORLD, ORDER, 3).value_bps
    # The posterior mean after one bucket; 1 / (1 + X) is beta-distributed.
    shrinkage = stats.beta(WORLD.shape, 5).ppf(QUANTILE_RULE.flip(0).numpy())
    learned = VOL**2 * (WORLD.shape - 1) / (WORLD.shape + 4) / shrinkage
    weights = RULE_WEIGHTS.numpy()
    pace = OrderSimulation(simulate(MARKET, 1, 3, generator(0)), MARKET, ORDER).slope[0, 0].item()
    risk = 5e-4 * 1e8 / 3
    q = np.linspace(0, 1, 401)
    best = -np.inf
    for first in np.linspace(0.4, 0.8, 81):
        q2 = q * first
        cost = pace * ((first - q2) ** 1.6 + q2**1.6)
        later = -(cost[:, None] + risk * learned * q2[:, None] ** 2).min(0)
        best = max(best, weights @ later - pace * (1 - first) ** 1.6 - risk * VOL**2 * first**2)
    assert weights @ learned == pytest.approx(VOL**2, rel=1e-3)
    assert value == pytest.approx(best, abs=6e-3)


def test_a_level_that_is_almost_certain_is_a_known_one() -> None:
    certain = UnannouncedLevel(MARKET, shape_of_spread(0.02))
    known = solve_oracle(certain.market_at(MARKET.heston.theta), ORDER, N, variance_nodes=9).value_bps
    assert solve_level_belief(certain, ORDER, N).value_bps == pytest.approx(known, rel=3e-4)


@pytest.fixture(scope="module")
def optimum() -> Optimum:
    return solve_level_belief(WORLD, ORDER, N)


def test_value_is_simulated_utility_between_the_static_and_the_informed_optimum(
    optimum: Optimum,
) -> None:
    days, weight = draw_days(WORLD, ORDER, 6_000, N, generator(3, "days"))
    static = static_optimal(MARKET, ORDER, N)

    def estimate(x: torch.Tensor) -> tuple[float, float]:
        # The weighted level has mean one: as a control variate it reduces the sampling error.
        level = (weight * days.market.heston.theta / VOL**2).double() - 1
        controlled = x - level * ((x - x.mean()) @ level) / (level @ level)
        return controlled.mean().item(), controlled.std().item() / math.sqrt(len(x))

    policies: dict[str, Policy] = {"belief": optimum, "static": static, "twap": twap}
    earned = {
        name: (weight * days.utility(policy, generator(1, "noise"))).double()
        for name, policy in policies.items()
    }
    informed_done = execute(announced(MARKET, ORDER, N), days.paths, days.market, ORDER, generator(1))
    earned["informed"] = weight * informed_done.utility_bps(ORDER).double()
    levels = WORLD.levels(QUANTILE_RULE)
    plans = static_optimal(WORLD.market_at(levels), ORDER, N).inventory
    informed = expected_utility(WORLD.market_at(levels), ORDER, plans) @ RULE_WEIGHTS
    even = torch.linspace(1, 0, N + 1, dtype=torch.float64)
    exact = {
        "belief": optimum.value_bps,
        "static": expected_utility(MARKET, ORDER, static.inventory).item(),
        "twap": expected_utility(MARKET, ORDER, even).item(),
        "informed": informed.item(),
    }
    for name, value in exact.items():
        mean, error = estimate(earned[name])
        assert abs(mean - value) < 3.5 * error, name
    assert exact["informed"] > exact["belief"] > exact["static"] > exact["twap"]


def test_to_learn_early_is_worth_trading_differently_from_the_posterior_mean(
    optimum: Optimum,
) -> None:
    days, weight = draw_days(WORLD, ORDER, 2_000, N, generator(4, "days"))
    lead = weight * (days.utility(optimum, generator(1)) - days.utility(mpc, generator(1))).double()
    assert lead.mean() > 5 * lead.std() / math.sqrt(len(lead))


def test_level_experts_are_best_between_their_bounds_and_the_mixture_weighs_by_the_posterior() -> None:
    mixture = LevelMixture.at(torch.tensor(QUANTILES), WORLD, ORDER, N)
    a, b = mixture.bounds.tolist()
    for i, level in enumerate((0.7 * a, (a * b) ** 0.5, 1.4 * b)):
        market = WORLD.market_at(scalar(level))
        paths = simulate(market, 50, N, generator(5, "days"))
        known = WORLD(paths, market, generator(5, "returns"))
        earned = [
            execute(s, paths, market, ORDER, generator(1), known).utility_bps(ORDER).mean()
            for s in mixture.experts
        ]
        assert int(torch.stack(earned).argmax()) == i
        seen = OrderSimulation(paths, market, ORDER, known).observe(N - 2, torch.full((50,), 0.1))
        weights = mixture.weights(seen)
        torch.testing.assert_close(weights.sum(0), torch.ones(50, dtype=torch.float64))
        assert int(weights.mean(1).argmax()) == i


def test_weighted_days_have_the_mean_of_the_law() -> None:
    days, weight = draw_days(WORLD, ORDER, 40_000, 2, generator(6, "days"))
    level = (weight * days.market.heston.theta / VOL**2).double()
    for x in (weight, level):
        assert abs(x.mean() - 1) < 4 * x.std() / math.sqrt(len(x))
    assert float(level.max()) < 2 + 1e-6


@pytest.mark.usefixtures("in_this_process")
def test_training_and_test_give_shares_verdicts_and_whom_the_policy_acts_like() -> None:
    worlds = {"one": WORLD}
    runs = unpack(train(worlds, ORDER, 5, 2, 1, [0, 1]))
    learners = {"one": [FlowPolicy(run.field, 1) for run in runs.values()]}
    outcome = examine(worlds, ORDER, {7: runs[0].field}, learners, 5, 60, 1)
    share = outcome.utility.set_index("policy")["share"]
    assert share[LIMIT] == pytest.approx(1)
    assert share[STATIC] == pytest.approx(0, abs=1e-12)
    assert share["level announced"] > 1
    assert {LIMIT, MIXTURE, STATIC, *NAMES, "universal policy, seed 7"} < set(
        outcome.comparisons["reference"]
    )
    behaviour = outcome.behaviour
    assert len(behaviour) == 2 * 3 * 4
    assert behaviour[list(NAMES)].sum(axis=1).to_numpy() == pytest.approx(1)


def test_what_cannot_be_solved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sd = 1\.3"):
        shape_of_spread(1.3)
    with pytest.raises(ValueError, match="shape = 1"):
        UnannouncedLevel(MARKET, 1.0)
    moving = replace(MARKET, liquidity=Liquidity(depth_sd=scalar(0.5)))
    with pytest.raises(ValueError, match=r"depth_sd = 0\.5: must be 0"):
        solve_level_belief(UnannouncedLevel(moving, 3.0), ORDER, 5)


def test_a_policy_of_stochastic_variance_is_told_a_slow_one_and_sees_the_posterior_mean() -> None:
    world = UnannouncedLevel(MARKET, 3.25)
    days, _ = draw_days(world, ORDER, 8, N, generator(1, "days"))
    told = []

    def watching(obs: Observation, noise: Tensor) -> Tensor:
        told.append((obs.market.heston, obs.variance))
        return torch.full_like(noise, 0.5)

    days.utility(LevelAsVariance(watching, scalar(0.5), scalar(0.6)), generator(1, "noise"))
    assert {(h.kappa.item(), h.cv.item()) for h, _ in told} == {(0.5, scalar(0.6).item())}
    assert all(torch.equal(v, days.known.variance[k]) for k, (_, v) in enumerate(told))
