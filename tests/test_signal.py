"""The signal: process and filter against exact moments, optima against closed forms and each other."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from flowoe_lib.execution.environment import advance, advantage_over_twap
from flowoe_lib.execution.execution import NO_IMPACT, Observation, OrderSimulation, execute, fraction_of_score
from flowoe_lib.execution.features import FEATURES, MEMORY_FEATURES, SIGNAL_FEATURES, feature_count, features
from flowoe_lib.execution.information import with_errors
from flowoe_lib.market.impact import impact_slope, with_half_life
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, Signal, scalar
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.signal import kalman, signal_paths, with_signal
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import expected_utility, static_optimal, twap
from flowoe_lib.policies.signal import COARSE, solve_linear_quadratic, solve_on_estimates, solve_signal
from flowoe_lib.randomness import generator

N, SHORT = 13, 7
ORDER = Order(scalar(0.1), scalar(5e-4))
HESTON = Heston(scalar(4e-4), scalar(2.0), scalar(0.02), scalar(-0.6))


def market(sd: float = 100.0, noise: float = 0.0, beta: float = 0.6) -> Market:
    signal = Signal(sd=scalar(sd), noise_sd=scalar(noise))
    return Market(HESTON, Impact(beta=scalar(beta)), signal=signal)


def mean_and_error(x: Tensor) -> tuple[float, float]:
    return x.double().mean().item(), x.double().std().item() / math.sqrt(len(x))


def test_signal_and_its_integral_have_the_moments_of_the_process() -> None:
    n, sd, kappa = 20_000, 100.0, 4.5
    signal = Signal(scalar(sd), scalar(kappa))
    mu, integral = (x.double() for x in signal_paths(signal, n, N, generator(1, "signal")))
    ends = mu[0], mu[N // 2], mu[-1]
    for level in ends:
        for x, value in ((level, 0.0), (level.square(), sd**2)):
            mean, error = mean_and_error(x)
            assert abs(mean - value) < 4 * error
    for lag in (1, 4):
        mean, error = mean_and_error(mu[3] * mu[3 + lag])
        assert abs(mean - sd**2 * math.exp(-kappa * lag / N)) < 4 * error
    of_day = 2 * (kappa - 1 + math.exp(-kappa)) / kappa**2
    of_bucket = 2 * (kappa / N - 1 + math.exp(-kappa / N)) / kappa**2
    for moved, value in ((integral.sum(0), of_day), (integral[5], of_bucket)):
        mean, error = mean_and_error(moved.square())
        assert abs(mean - sd**2 * value) < 4 * error
    ahead = mu[2] * (1 - math.exp(-kappa / N)) / kappa
    torch.testing.assert_close(ahead, mu[2] * float(signal.mean_ahead(0, 1 / N)) / N)
    mean, error = mean_and_error((integral[2] - ahead) * mu[2])
    assert abs(mean) < 4 * error


@pytest.mark.parametrize("noise", [0.0, 60.0, 400.0])
def test_filter_is_the_regression_on_all_observations(noise: float) -> None:
    sd, kappa = 100.0, 4.5
    signal = Signal(scalar(sd).double(), scalar(kappa).double(), scalar(noise).double())
    gains, variances = kalman(signal, N)
    times = torch.arange(N).double() / N
    covariance = sd**2 * torch.exp(-kappa * (times[:, None] - times).abs())
    observed = torch.randn(N, 3, generator=generator(2, "observations"), dtype=torch.float64) * sd
    estimate = torch.zeros(3, dtype=torch.float64)
    for k, gain in enumerate(gains):
        estimate = math.exp(-kappa / N) * estimate
        estimate = estimate + gain * (observed[k] - estimate)
        past = slice(0, k + 1)
        weights = torch.linalg.solve(
            covariance[past, past] + noise**2 * torch.eye(k + 1), covariance[past, k]
        )
        torch.testing.assert_close(estimate, weights @ observed[past])
        left = sd**2 - weights @ covariance[past, k]
        torch.testing.assert_close(variances[k] * (1 - gain), left, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 200.0])
def test_the_rest_of_the_price_move_is_a_martingale_and_the_estimate_has_the_filters_variance(
    noise: float,
) -> None:
    paths = simulate(market(noise=noise), 20_000, N, generator(3, "days"))
    quiet = simulate(market(sd=0.0), 20_000, N, generator(3, "days"))
    assert torch.equal(paths.variance, quiet.variance)
    gains, variances = kalman(market(noise=noise).signal, N)
    for k in (0, 6, N - 1):
        mean, error = mean_and_error(paths.signal_bps[k].square())
        assert abs(mean - (100**2 - variances[k] * (1 - gains[k]))) < 4 * error
        for past in paths.signal_bps[: k + 1]:
            mean, error = mean_and_error((paths.martingale_bps[k] - quiet.martingale_bps[k]) * past)
            assert abs(mean) < 4 * error
    moved = (paths.martingale_bps + paths.drift_bps - quiet.martingale_bps).sum(0)
    torch.testing.assert_close(moved, paths.day_drift_bps, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("noise", [0.0, 20.0])
def test_dynamic_programming_has_the_value_of_the_riccati_recursion(noise: float) -> None:
    """A weak signal and linear impact, so that no trade would be a purchase."""
    linear = market(sd=8.0, noise=noise, beta=1.0)
    riccati = solve_linear_quadratic(linear, ORDER, N)
    assert solve_signal(linear, ORDER, N).value_bps == pytest.approx(riccati.value_bps, abs=1e-4)
    blind = expected_utility(linear, ORDER, static_optimal(linear, ORDER, N).inventory).item()
    assert riccati.value_bps > blind + 1e-3
    days = simulate(linear, 4_000, N, generator(4, "days"))
    mean, error = mean_and_error(execute(riccati, days, linear, ORDER, generator(1)).utility_bps(ORDER))
    assert abs(mean - riccati.value_bps) < 4 * error


def states(m: Market, k: int, inventory: float, level: float, side: float = 1.0, n: int = N) -> Observation:
    order = replace(ORDER, side=scalar(side))
    paths = simulate(m, 3, n, generator(5, "days"))
    theta = torch.full((n, 3), 4e-4)
    paths = replace(paths, variance=theta, signal_bps=torch.full((n, 1), level))
    return OrderSimulation(paths, m, order).observe(k, torch.full((3,), inventory))


@pytest.mark.parametrize(("k", "level"), [(0, 30.0), (5, -30.0), (11, 20.0)])
def test_replanning_is_optimal_under_linear_impact(k: int, level: float) -> None:
    linear = market(beta=1.0)
    noise = torch.zeros(3)
    for side in (1.0, -1.0):
        obs = states(linear, k, 0.8, level, side)
        assert obs.signal.tolist() == [side * level]
        best = solve_linear_quadratic(linear, ORDER, N)(obs, noise)
        assert 0 < float(best[0]) < 1
        torch.testing.assert_close(mpc(obs, noise), best, rtol=2e-4, atol=2e-4)


def test_replanning_maximises_utility_along_the_forecast() -> None:
    m, k, held, level = market(), 4, 0.7, 60.0
    slope, kappa, later = float(impact_slope(m, ORDER.size, N)), m.signal.reversion.item(), N - k
    ends = torch.exp(-kappa * torch.arange(later + 1).double() / N)
    drift = -level / kappa * ends.diff()
    logits = torch.zeros(later, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        sold = held * torch.softmax(logits, 0)
        left = held - sold.cumsum(0)
        risk = 5e-4 * 1e8 * 4e-4 / N * left.square()
        value = (slope * sold**1.6 + risk - drift * left).sum()
        value.backward()
        return value

    search.step(loss)
    first = torch.softmax(logits, 0)[0].item()
    assert mpc(states(m, k, held, level), torch.zeros(3))[0].item() == pytest.approx(first, abs=1e-4)


def test_without_a_signal_the_optimum_is_the_static_one() -> None:
    static = static_optimal(market(), ORDER, N)
    value = expected_utility(market(), ORDER, static.inventory).item()
    assert solve_signal(market(sd=1e-3), ORDER, N).value_bps == pytest.approx(value, rel=2e-4)
    held = solve_linear_quadratic(market(sd=1e-3, beta=1.0), ORDER, N).kept.cumprod(0)
    linear = static_optimal(market(beta=1.0), ORDER, N).inventory
    torch.testing.assert_close(held, linear[1:-1], rtol=1e-5, atol=1e-6)


def test_value_is_simulated_utility_and_bounds_every_other_policy() -> None:
    values = []
    for noise in (0.0, 200.0):
        m = market(noise=noise)
        days = simulate(m, 4_000, N, generator(6, "days"))
        limit = solve_signal(m, ORDER, N)
        blind = static_optimal(m, ORDER, N)
        policies = limit, mpc, solve_linear_quadratic(m, ORDER, N), blind, twap
        earned = [execute(p, days, m, ORDER, generator(1)).utility_bps(ORDER) for p in policies]
        mean, error = mean_and_error(earned[0])
        assert abs(mean - limit.value_bps) < 4 * error
        for better, worse in pairwise(earned):
            lead, error = mean_and_error(better - worse)
            assert lead > 4 * error
        values.append(limit.value_bps)
    assert values[0] > values[1] + 0.1


@pytest.mark.parametrize("half_life", [0.05, 0.4])
def test_without_a_signal_the_optimum_with_memory_is_the_oracle(half_life: float) -> None:
    m = with_half_life(market(sd=1e-3), scalar(half_life))
    oracle = solve_oracle(replace(m, signal=Signal()), ORDER, N, variance_nodes=4)
    optimum = solve_signal(m, ORDER, N, signal_nodes=5)
    assert optimum.value_bps == pytest.approx(oracle.value_bps, rel=1e-4)


@pytest.mark.parametrize("noise", [0.0, 200.0])
def test_with_a_short_memory_the_optimum_is_that_without(noise: float) -> None:
    plain = market(noise=noise)
    value = solve_signal(with_half_life(plain, scalar(1e-3)), ORDER, N, signal_nodes=31).value_bps
    assert value == pytest.approx(solve_signal(plain, ORDER, N).value_bps, rel=1e-3)


@pytest.fixture(scope="module")
def everything() -> Market:
    """A noisy signal, memory, random variance and depth, and a volume profile."""
    heston = replace(HESTON, cv=scalar(1.3))
    day = Liquidity(depth_sd=scalar(0.3), depth_reversion=scalar(12.0), profile_amplitude=scalar(0.8))
    return replace(with_half_life(market(sd=200.0, noise=400.0), scalar(0.15)), heston=heston, liquidity=day)


def test_with_memory_the_value_is_simulated_utility_and_no_plan_without_foresight_earns_more(
    everything: Market,
) -> None:
    days = simulate(everything, 1_500, SHORT, generator(9, "days"))
    blind, planned = (
        solve_signal(everything, ORDER, SHORT, **COARSE),
        solve_on_estimates(everything, ORDER, SHORT),
    )
    policies = planned, blind, mpc, static_optimal(everything, ORDER, SHORT)
    earned = [execute(p, days, everything, ORDER, generator(1)).utility_bps(ORDER) for p in policies]
    mean, error = mean_and_error(earned[1])
    assert abs(mean - blind.value_bps) < 4 * error
    for better, worse in pairwise(earned):
        lead, error = mean_and_error(better - worse)
        assert lead > 4 * error
    known = with_errors(days, everything, generator(2, "errors"))
    told = [execute(p, days, everything, ORDER, generator(1), known) for p in (planned, mpc)]
    lead, error = mean_and_error(told[0].utility_bps(ORDER) - told[1].utility_bps(ORDER))
    assert lead > 4 * error


def test_a_plan_on_estimates_scales_with_cost_and_is_the_optimum_at_the_condition() -> None:
    m = with_half_life(market(noise=200.0), scalar(0.15))
    optimum, planned = solve_signal(m, ORDER, SHORT, **COARSE), solve_on_estimates(m, ORDER, SHORT)
    obs = states(m, 3, 0.7, 60.0, n=SHORT)
    first = optimum(obs, torch.zeros(3))
    torch.testing.assert_close(planned(obs, torch.zeros(3)), first, rtol=1e-4, atol=1e-6)
    # Twice the cost, risk aversion and signal is twice the utility of every policy.
    dear = replace(m, liquidity=Liquidity(illiquidity=scalar(2.0)))
    twice = replace(ORDER, risk_aversion=2 * ORDER.risk_aversion)
    pre_trade = PreTrade.of(dear, twice)
    doubled = replace(obs, market=dear, order=twice, pre_trade=pre_trade, signal=2 * obs.signal)
    torch.testing.assert_close(planned(doubled, torch.zeros(3)), first, rtol=1e-4, atol=1e-6)
    # At another urgency it is near the optimum of that urgency.
    urgent = replace(ORDER, risk_aversion=1.2 * ORDER.risk_aversion)
    obs = replace(obs, order=urgent, pre_trade=PreTrade.of(m, urgent))
    there = solve_signal(m, urgent, SHORT, **COARSE)(obs, torch.zeros(3))
    assert abs(float(there[0] - first[0])) > 1e-3
    torch.testing.assert_close(planned(obs, torch.zeros(3)), there, rtol=0.02, atol=0)


def test_features_of_the_signal_come_after_those_of_all_markets() -> None:
    m = market(noise=200.0)
    obs = states(m, 3, 0.6, 50.0)
    observed = features(obs, feature_count(m))
    assert observed.shape == (3, len(FEATURES) + len(MEMORY_FEATURES) + len(SIGNAL_FEATURES))
    cost = float(obs.pre_trade.cost_bps)
    expected = [math.log1p(50 / cost), math.log1p(100 / cost), math.log1p(2)]
    torch.testing.assert_close(observed[0, -3:], torch.tensor(expected))
    fade = (1 - 3 / N) * m.signal.reversion.item()
    mean = 50 * 3 * (1 / fade - 2 / fade**2 + 2 * (1 - math.exp(-fade)) / fade**3)
    drift = observed[0, FEATURES.index("drift over cost")].item()
    assert drift == pytest.approx(math.log1p(mean / cost), rel=1e-4)


def test_rewards_sum_to_the_lead_over_an_even_pace() -> None:
    m = market()
    paths = simulate(m, 4_000, N, generator(7, "days"))
    day = OrderSimulation(paths, m, ORDER)
    inventory, total = torch.ones(4_000), torch.zeros(4_000)
    for k in range(N - 1):
        score = -1.5 * paths.signal_bps[k].sign()
        inventory, reward = advance(day, k, inventory, score, advantage_over_twap, NO_IMPACT)
        total = total + reward

    def leaning(obs: Observation, noise: Tensor) -> Tensor:
        return fraction_of_score(-1.5 * obs.signal.sign(), N - obs.k)

    even, leant = (execute(p, paths, m, ORDER, generator(1)).utility_bps(ORDER) for p in (twap, leaning))
    mean, error = mean_and_error(total - (leant - even))
    assert abs(mean) < 4 * error
    assert error < 0.1 * (leant - even).mean().abs()


def test_the_drift_of_a_day_has_the_strength_of_the_condition() -> None:
    for strength in (0.3, 0.1):
        m = with_signal(market(), scalar(strength), scalar(2.0))
        drift = simulate(m, 20_000, N, generator(8, "days")).day_drift_bps
        mean, error = mean_and_error((drift / 200).square())
        assert abs(mean - strength**2) < 4 * error
        assert float(m.signal.noise_sd / m.signal.sd) == pytest.approx(2)


def test_what_cannot_be_solved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Signal\.sd = 0: must be > 0"):
        solve_signal(market(sd=0.0), ORDER, N)
    with pytest.raises(ValueError, match=r"Market\.drift_sd = 5: must be 0"):
        solve_signal(replace(market(), drift_sd=scalar(5.0)), ORDER, N)
    with pytest.raises(ValueError, match=r"Market\.drift = 3"):
        solve_linear_quadratic(replace(market(), drift=scalar(3.0)), ORDER, N)
    with pytest.raises(ValueError, match=r"Signal\.sd = 100"):
        solve_oracle(market(), ORDER, N)
    with pytest.raises(ValueError, match=r"Signal\.reversion = 0"):
        Signal(reversion=scalar(0.0))
