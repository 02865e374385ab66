"""Optimal policies under hidden regimes and hidden depth: brute force, known limits, simulated utility."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.stats import gamma
from torch import Tensor

from flowoe_lib.evaluation.intervals import capture_interval
from flowoe_lib.execution.execution import Policy, execute
from flowoe_lib.execution.information import (
    Errors,
    Information,
    blind_to_regimes,
    variance_revealed,
)
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.filtered import solve_filtered_depth, solve_filtered_regimes
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import Schedule, expected_utility, static_optimal, twap
from flowoe_lib.randomness import generator

Array = NDArray[np.float64]

VOL, N = 0.01, 39
LIQUID = Liquidity(depth_sd=scalar(0.5), depth_reversion=scalar(4.0), profile_amplitude=scalar(0.8))


def condition(
    regimes: tuple[float, float, float, float] | None = None,
    cv: float = 0.02,
    liquidity: Liquidity | None = None,
    drift: float = 0.0,
    risk_aversion: float = 5e-4,
) -> tuple[Market, Order]:
    """An order; regimes are multipliers of volatility and cost and rates of entering and leaving."""
    heston = Heston(scalar(VOL**2), scalar(2.0), scalar(cv), scalar(-0.6))
    stress = Regimes(*map(scalar, regimes)) if regimes else Regimes()
    market = Market(heston, liquidity=liquidity or Liquidity(), drift=scalar(drift), regimes=stress)
    return market, Order(scalar(0.1), scalar(risk_aversion))


def results(policy: Policy, paths: MarketPaths, known: Information, market: Market, order: Order) -> Tensor:
    return execute(policy, paths, market, order, generator(1, "noise"), known).utility_bps(order).double()


def mean_and_error(
    sample: Tensor, paths: MarketPaths, known: Information, market: Market, order: Order
) -> tuple[float, float]:
    """Mean utility and its standard error, with schedules of known expected utility as control variates."""
    plain, own = (map_tensors(Tensor.double, tree) for tree in (moment_matched(market), order))
    best = static_optimal(plain, own, paths.n_buckets).inventory
    even = torch.linspace(1, 0, paths.n_buckets + 1, dtype=torch.float64)
    controls = [
        results(Schedule(q), paths, known, market, order) - expected_utility(plain, own, q)
        for q in (best, best**2, best**4, even)
    ]
    errors = torch.stack(controls, 1)
    slope = torch.linalg.lstsq(errors - errors.mean(0), (sample - sample.mean())[:, None]).solution[:, 0]
    controlled = sample - errors @ slope
    return float(controlled.mean()), float(controlled.std()) / math.sqrt(len(controlled))


# --- hidden regimes ---------------------------------------------------------------------------------


def profits(market: Market, order: Order, actions: int) -> tuple[Array, Array, Array]:
    """Temporary cost, risk, and profit apart from both, of going from q to q' in a quarter of the day."""
    i, theta, dt, phi = market.impact, float(market.heston.theta), 1 / 4, float(order.size)
    eta, beta, gamma_ = (float(x) for x in (i.eta, i.beta, i.gamma * i.turnover_days**0.25))
    q = np.arange(actions + 1) / actions
    kept, sold = q[None, :], np.maximum(q[:, None] - q, 0)
    temporary = 1e4 * eta * math.sqrt(theta) * (phi * sold / dt) ** beta * sold
    permanent = 1e4 * gamma_ * math.sqrt(theta) * phi * sold * (kept + sold / 2)
    risk = float(order.risk_aversion) * 1e8 * theta * dt * kept**2
    rest = float(order.side * market.drift) * dt * kept - permanent
    return temporary, risk, np.where(q[:, None] >= q, rest, -np.inf)


def learned(market: Market, order: Order, actions: int, draws: int) -> float:
    """Best utility over four buckets, trades being multiples of 1 / ``actions``, by Bayes' rule draw by draw.

    The realised variance of ten returns is integrated by the trapezoid rule. The signal of the third bucket
    has no value, because all is sold in the fourth.
    """
    r, theta = market.regimes, float(market.heston.theta)
    enter, leave = float(r.enter), float(r.leave)
    raised, dearer = float(r.volatility_multiplier) ** 2, float(r.cost_multiplier)
    chain = expm(np.array([[-enter, enter], [leave, -leave]]) / 4)
    temporary, risk, rest = profits(market, order, actions)
    low, high = (gamma.ppf(x, 5, scale=theta * r / 5) for x, r in ((1e-7, 1), (1 - 1e-7, raised)))
    seen = np.geomspace(low, high, draws)
    calm, stressed = (gamma.pdf(seen, 5, scale=theta * r / 5) * seen for r in (1, raised))
    calm, stressed = calm / calm.sum(), stressed / stressed.sum()

    def profit(p: Array) -> Array:
        p = p[..., None, None]
        return rest - (1 + p * (dearer - 1)) * temporary - (1 + p * (raised - 1)) * risk

    def updated(p: Array) -> tuple[Array, Array]:
        """Probabilities of stress one bucket later and their weights, [..., draws]."""
        joint = p[..., None] * stressed
        weight = joint + (1 - p[..., None]) * calm
        return chain[0, 1] + (chain[1, 1] - chain[0, 1]) * joint / weight, weight

    once, first_weight = updated(np.array(enter / (enter + leave)))
    twice, second_weight = updated(once)
    later = chain[0, 1] + (chain[1, 1] - chain[0, 1]) * twice
    third = (profit(twice) + profit(later)[..., :, 0][..., None, :]).max(-1)
    second = (profit(once) + np.einsum("abq,ab->aq", third, second_weight)[:, None]).max(-1)
    first = profit(np.array(enter / (enter + leave)))[-1] + first_weight @ second
    return float(first.max())


@pytest.mark.parametrize("drift", [0.0, 5.0])
@pytest.mark.parametrize("regimes", [(2.0, 4.0, 1.0, 3.0), (3.0, 0.5, 2.0, 2.0)])
def test_value_under_hidden_regimes_matches_brute_force_over_four_buckets(
    regimes: tuple[float, float, float, float], drift: float
) -> None:
    market, order = condition(regimes, drift=drift)
    value = solve_filtered_regimes(market, order, 4).value_bps
    coarse, fine = (learned(market, order, actions, 24) for actions in (60, 120))
    assert value == pytest.approx(fine + (fine - coarse) / 3, rel=1e-4)
    # Learning is worth at least ten times the tolerance.
    silent = dataclasses.replace(market, regimes=Regimes())
    r, share = market.regimes, market.regimes.stressed_share
    raised, dearer = (1 + share * (x - 1) for x in (r.volatility_multiplier.square(), r.cost_multiplier))
    average = dataclasses.replace(
        silent,
        heston=dataclasses.replace(market.heston, theta=market.heston.theta * raised),
        liquidity=Liquidity(dearer / raised.sqrt()),
        impact=dataclasses.replace(market.impact, gamma=market.impact.gamma / raised.sqrt()),
    )
    assert value - solve_oracle(average, order, 4).value_bps > 1e-3 * abs(value)


def test_regimes_with_very_different_variance_are_known_one_bucket_late() -> None:
    market, order = condition((300.0, 3.0, 2.0, 2.0), risk_aversion=1e-8)
    r, actions = market.regimes, 200
    chain = expm(np.array([[-2.0, 2.0], [2.0, -2.0]]) / 4)
    temporary, risk, rest = profits(market, order, actions)
    outcome = np.stack(
        [
            rest - cost * temporary - raised * risk
            for cost, raised in ((1.0, 1.0), (float(r.cost_multiplier), float(r.volatility_multiplier) ** 2))
        ]
    )
    # By the regime of the bucket before: each row averages over the one that follows it.
    value = (np.tensordot(chain, outcome, 1))[..., 0]
    for _ in range(2):
        ahead = chain @ value
        value = (np.tensordot(chain, outcome, 1) + ahead[:, None]).max(-1)
    best = (outcome.mean(0)[-1] + value.mean(0)).max()
    assert solve_filtered_regimes(market, order, 4, belief_nodes=201).value_bps == pytest.approx(
        best, rel=2e-3
    )


def test_unidentifiable_or_absent_regimes_give_the_value_of_a_constant_market() -> None:
    silent, order = condition((1.0, 3.0, 2.0, 6.0), cv=0.8)
    dearer = dataclasses.replace(silent.liquidity, illiquidity=scalar(1 + 0.25 * 2))
    constant = dataclasses.replace(silent, liquidity=dearer, regimes=Regimes())
    value = solve_oracle(constant, order, 13).value_bps
    assert solve_filtered_regimes(silent, order, 13).value_bps == pytest.approx(value, rel=1e-6)
    never, order = condition((2.0, 3.0, 1e-7, 6.0), cv=0.8)
    value = solve_oracle(dataclasses.replace(never, regimes=Regimes()), order, 13).value_bps
    assert solve_filtered_regimes(never, order, 13).value_bps == pytest.approx(value, rel=1e-5)


REGIMES = [(2.7, 5.4, 6.0, 6.0), (2.0, 4.0, 2.0, 2.0)]


@pytest.mark.parametrize("regimes", REGIMES)
def test_with_almost_constant_variance_the_value_is_attained_in_simulation(
    regimes: tuple[float, float, float, float],
) -> None:
    market, order = condition(regimes)
    paths = simulate(market, 6_000, N, generator(1, "filtered"))
    known = blind_to_regimes(paths, market, generator(1, "errors"))
    optimum = solve_filtered_regimes(market, order, N)
    ours = results(optimum, paths, known, market, order)
    mean, error = mean_and_error(ours, paths, known, market, order)
    assert error < 4e-3 * abs(mean)
    assert abs(optimum.value_bps - mean) < 3.5 * error
    assert optimum.value_bps < solve_oracle(market, order, N).value_bps
    for rival in (mpc, twap):
        gap = ours - results(rival, paths, known, market, order)
        assert float(gap.mean()) > 5 * float(gap.std()) / math.sqrt(len(gap))


@pytest.mark.parametrize("cv", [0.5, 1.3])
def test_the_value_is_attained_with_observed_variance_and_bounds_blind_policies(cv: float) -> None:
    market, order = condition(REGIMES[0], cv)
    paths = simulate(market, 6_000, N, generator(2, "filtered"))
    revealed = variance_revealed(paths, market, generator(2, "errors"))
    blind = blind_to_regimes(paths, market, generator(2, "errors"))
    optimum = solve_filtered_regimes(market, order, N)
    ours = results(optimum, paths, revealed, market, order)
    mean, error = mean_and_error(ours, paths, revealed, market, order)
    assert abs(optimum.value_bps - mean) < 3.5 * error
    assert optimum.value_bps < solve_oracle(market, order, N).value_bps
    for rival in (optimum, mpc, twap):
        gap = ours - results(rival, paths, blind, market, order)
        assert float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(len(gap))


def test_values_under_hidden_regimes_converge_with_the_grid() -> None:
    market, order = condition(REGIMES[0], 0.5)
    values = [
        solve_filtered_regimes(
            market, order, 7, inventory_nodes=10 * m + 1, variance_nodes=6 * m + 1, belief_nodes=6 * m + 1
        ).value_bps
        for m in (1, 2, 4)
    ]
    steps = np.abs(np.diff(values))
    assert steps[1] < steps[0] / 4
    assert steps[1] < 1e-4 * abs(values[-1])


def test_filtered_regimes_refuse_bad_arguments_and_observations_without_belief() -> None:
    market, order = condition(REGIMES[0])
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        solve_filtered_regimes(market, Order(order.size.expand(2), order.risk_aversion), 5)
    with pytest.raises(ValueError, match="41 x 25 x 3 nodes"):
        solve_filtered_regimes(market, order, 5, belief_nodes=3)
    with pytest.raises(ValueError, match="returns = 0"):
        solve_filtered_regimes(market, order, 5, returns=0)
    with pytest.raises(ValueError, match=r"Market\.regimes = 0: must be > 0"):
        solve_filtered_regimes(condition()[0], order, 5)
    with pytest.raises(ValueError, match=r"Liquidity\.depth_sd = 0\.5"):
        solve_filtered_regimes(condition(REGIMES[0], liquidity=LIQUID)[0], order, 5)
    optimum = solve_filtered_regimes(market, order, 5)
    paths = simulate(market, 2, 5, generator(0))
    known = Information(market, paths.variance, paths.log_depth)
    with pytest.raises(ValueError, match=r"Observation\.regimes = None"):
        execute(optimum, paths, market, order, generator(0), known)
    with pytest.raises(ValueError, match="n_buckets = 6: must be 5"):
        execute(optimum, simulate(market, 2, 6, generator(0)), market, order, generator(0))


# --- hidden depth -----------------------------------------------------------------------------------


def regressed(market: Market, order: Order, noise: float, actions: int, draws: int) -> float:
    """Best utility over three buckets of constant variance, trades being multiples of 1 / ``actions``.

    Depth and its displays are jointly normal: estimates are regressions on all displays so far.
    """
    theta, phi, dt = float(market.heston.theta), float(order.size), 1 / 3
    i = market.impact
    eta, beta, gamma_ = (float(x) for x in (i.eta, i.beta, i.gamma * i.turnover_days**0.25))
    sd, reversion = float(market.liquidity.depth_sd), float(market.liquidity.depth_reversion)
    minute = (np.arange(30000) + 0.5) / 30000
    legendre = (6 * minute**2 - 6 * minute + 1).reshape(3, -1).mean(1)
    u = 1 + float(market.liquidity.profile_amplitude) * legendre
    times = np.arange(3) * dt
    depth = sd**2 * np.exp(-reversion * np.abs(times[:, None] - times))
    seen = depth[:2, :2] + noise**2 * np.eye(2)
    x, weight = np.polynomial.hermite_e.hermegauss(draws)
    weight = weight / weight.sum()
    pairs = np.stack(np.meshgrid(x, x, indexing="ij"), -1) @ np.linalg.cholesky(seen).T

    def cost(k: int, known: int) -> Array:
        """E[L_k^-beta] given the first ``known`` displays of depth."""
        slope = np.linalg.solve(seen[:known, :known], depth[:known, k])
        mean = pairs[..., :known] @ slope
        left = depth[k, k] - depth[k, :known] @ slope
        expected: Array = np.exp(-beta * mean + beta**2 * left / 2)
        return expected

    q = np.arange(actions + 1) / actions
    kept, sold = q[None, :], np.maximum(q[:, None] - q, 0)
    permanent = 1e4 * gamma_ * math.sqrt(theta) * phi * sold * (kept + sold / 2)
    risk = float(order.risk_aversion) * 1e8 * theta * dt * kept**2
    rest = np.where(q[:, None] >= q, -permanent - risk, -np.inf)
    temporary = [1e4 * eta * math.sqrt(theta) * (phi * sold / (u[k] * dt)) ** beta * sold for k in range(3)]
    close = rest[:, 0] - cost(2, 2)[..., None] * temporary[2][:, 0]
    second = (rest - cost(1, 2)[..., None, None] * temporary[1] + close[:, :, None]).max(-1)
    ahead = np.einsum("abq,b->aq", second, weight)
    first = (rest[-1] - cost(0, 1)[:, 0, None] * temporary[0][-1] + ahead).max(-1)
    return float(weight @ first)


@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_value_under_noisy_depth_matches_brute_force_over_three_buckets(noise: float) -> None:
    market, order = condition(liquidity=LIQUID)
    value = solve_filtered_depth(market, order, 3, noise_sd=noise).value_bps
    coarse, fine = (regressed(market, order, noise, actions, 16) for actions in (40, 80))
    assert value == pytest.approx(fine + (fine - coarse) / 3, rel=1e-4)
    static = static_optimal(market, order, 3).inventory
    plain, own = (map_tensors(Tensor.double, tree) for tree in (market, order))
    learning = value - float(expected_utility(plain, own, static))
    assert learning > 1e-3 * abs(value)


def test_noise_free_depth_gives_the_oracle_and_very_noisy_depth_a_constant_market() -> None:
    market, order = condition(cv=0.8, liquidity=LIQUID)
    plain = solve_oracle(market, order, 13).value_bps
    assert solve_filtered_depth(market, order, 13, noise_sd=1e-4).value_bps == pytest.approx(plain, rel=1e-6)
    dearer = scalar(math.exp(0.6**2 * 0.5**2 / 2))
    constant = dataclasses.replace(LIQUID, illiquidity=dearer, depth_sd=scalar(0.0))
    hidden = solve_oracle(dataclasses.replace(market, liquidity=constant), order, 13).value_bps
    assert solve_filtered_depth(market, order, 13, noise_sd=1e4).value_bps == pytest.approx(hidden, rel=1e-6)
    values = [solve_filtered_depth(market, order, 13, noise_sd=noise).value_bps for noise in (0.1, 0.4, 1.6)]
    assert plain > values[0] > values[1] > values[2] > hidden


def test_value_under_noisy_depth_is_attained_in_simulation_and_bounds_other_policies() -> None:
    market, order = condition(cv=0.8, liquidity=LIQUID)
    paths = simulate(market, 6_000, N, generator(3, "filtered"))
    known = Errors(volatility=0, illiquidity=0, returns=None)(paths, market, generator(3, "errors"))
    optimum = solve_filtered_depth(market, order, N)
    ours = results(optimum, paths, known, market, order)
    mean, error = mean_and_error(ours, paths, known, market, order)
    assert error < 2e-3 * abs(mean)
    assert abs(optimum.value_bps - mean) < 3.5 * error
    floor, rival = (results(p, paths, known, market, order) for p in (twap, mpc))
    capture, _, high = capture_interval(rival, floor, ours)
    assert 0.98 < capture < 1
    assert high < 1.002


def test_filtered_depth_refuses_zero_noise_constant_depth_and_regimes() -> None:
    market, order = condition(liquidity=LIQUID)
    with pytest.raises(ValueError, match="noise_sd = 0"):
        solve_filtered_depth(market, order, 5, noise_sd=0.0)
    with pytest.raises(ValueError, match=r"Liquidity\.depth_sd = 0"):
        solve_filtered_depth(condition()[0], order, 5)
    with pytest.raises(ValueError, match=r"Market\.regimes = 1: must be 0"):
        solve_filtered_depth(condition(REGIMES[0], liquidity=LIQUID)[0], order, 5)
    with pytest.raises(ValueError, match="41 x 25 x 2 nodes"):
        solve_filtered_depth(market, order, 5, depth_nodes=2)
