"""Model predictive control against the static optimum, the oracle, brute force and a linear system."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.optimize import brentq, minimize
from scipy.stats import ncx2
from torch import Tensor

from flowoe_lib.execution.execution import Observation, Policy, execute
from flowoe_lib.execution.information import (
    Information,
    RegimeBelief,
    blind_to_regimes,
    exact,
    regimes_as_depth,
    relative_depth,
)
from flowoe_lib.market.impact import expected_variance_cost
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, Regimes, scalar, volume_profile
from flowoe_lib.market.pre_trade import PreTrade, moment_matched
from flowoe_lib.market.simulator import VarianceStep, simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import _root_of_decreasing, mpc
from flowoe_lib.policies.schedules import expected_utility, static_optimal, twap
from flowoe_lib.randomness import generator

N = 39
Array = NDArray[np.float64]


def market(volatility: float = 0.02, cv: float = 0.8, beta: float = 0.6, drift: float = 0.0) -> Market:
    heston = Heston(scalar(volatility**2), scalar(5.0), scalar(cv), scalar(-0.6))
    return Market(heston, Impact(beta=scalar(beta)), drift=scalar(drift))


def with_depth(m: Market) -> Market:
    liquidity = Liquidity(depth_sd=scalar(0.4), depth_reversion=scalar(4.0), profile_amplitude=scalar(0.8))
    return dataclasses.replace(m, liquidity=liquidity)


def order(risk_aversion: float = 5e-4, size: float = 0.1, side: float = 1.0) -> Order:
    return Order(scalar(size), scalar(risk_aversion), scalar(side))


def observation(
    m: Market,
    o: Order,
    n: int,
    k: int,
    inventory: Tensor,
    variance: Tensor | None = None,
    log_depth: float = 0.0,
) -> Observation:
    """The observation in bucket ``k``; variance and depth are at their means unless given."""
    zeros = torch.zeros_like(inventory)
    return Observation(
        k=k,
        n_buckets=n,
        inventory=inventory,
        return_bps=zeros,
        variance=zeros + m.heston.theta if variance is None else variance,
        log_depth=zeros + log_depth,
        volume=volume_profile(m.liquidity, n).reshape(n, 1),
        market=m,
        order=o,
        pre_trade=PreTrade.of(m, o),
    )


def schedule_of(policy: Policy, m: Market, o: Order, n: int) -> Tensor:
    """Inventory of a policy whose variance and depth stay at their means, [N + 1]."""
    left = [torch.ones(1)]
    for k in range(n - 1):
        left.append(left[-1] * (1 - policy(observation(m, o, n, k, left[-1]), torch.zeros(1))))
    return torch.cat([*left, torch.zeros(1)]).double()


@pytest.mark.parametrize("drift", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("risk_aversion", [0.0, 1e-4, 4e-3])
@pytest.mark.parametrize("amplitude", [0.0, 1.0])
def test_with_constant_variance_and_depth_it_is_the_static_optimum(
    drift: float, risk_aversion: float, amplitude: float
) -> None:
    liquidity = Liquidity(profile_amplitude=scalar(amplitude))
    m, o = dataclasses.replace(market(drift=drift), liquidity=liquidity), order(risk_aversion)
    torch.testing.assert_close(
        schedule_of(mpc, m, o, 20), static_optimal(m, o, 20).inventory, rtol=1e-3, atol=2e-5
    )


@pytest.mark.parametrize("volatility", [0.008, 0.02, 0.04])
@pytest.mark.parametrize("cv", [0.5, 1.3])
@pytest.mark.parametrize("moving", [False, True], ids=["depth constant", "depth moves"])
def test_its_capture_of_the_oracle_is_almost_one(volatility: float, cv: float, moving: bool) -> None:
    m, o, n = market(volatility, cv), order(), 13
    m = with_depth(m) if moving else m
    paths = simulate(m, 3_000, n, generator(1, "replanning"))
    policies: dict[str, Policy] = {
        "twap": twap,
        "static": static_optimal(m, o, n),
        "mpc": mpc,
        "oracle": solve_oracle(m, o, n),
    }
    u = {}
    for name, policy in policies.items():
        u[name] = execute(policy, paths, m, o, generator(1, "noise")).utility_bps(o).double()
    gap = u["oracle"] - u["mpc"]
    assert u["mpc"].mean() > u["static"].mean()
    assert gap.mean() > -4 * gap.std() / math.sqrt(len(gap))
    assert (u["mpc"] - u["twap"]).mean() / (u["oracle"] - u["twap"]).mean() > 0.998


def forecasts(m: Market, n: int, k: int, variance: float, log_depth: float) -> tuple[Array, Array]:
    """E[int V] of each bucket left and the mean slope of its impact, from moments written out anew."""
    h, liquidity, dt = m.heston, m.liquidity, 1 / n
    theta, kappa, beta = float(h.theta), float(h.kappa), float(m.impact.beta)
    sd, reversion = float(liquidity.depth_sd), float(liquidity.depth_reversion)
    edges = np.arange(n - k + 1) * dt
    integral = [
        theta * dt - (variance - theta) * (math.exp(-kappa * b) - math.exp(-kappa * a)) / kappa
        for a, b in pairwise(edges)
    ]
    mean = log_depth * np.exp(-reversion * edges[:-1])
    spread = sd**2 * (1 - np.exp(-2 * reversion * edges[:-1]))
    volume = volume_profile(liquidity, n).double().numpy()[k:]
    even = 1e4 * float(m.impact.eta) * float(liquidity.illiquidity) * math.sqrt(theta)
    slope = even * (0.1 / (volume * dt)) ** beta * np.exp(-beta * mean + beta**2 * spread / 2)
    return np.array(integral), slope


@pytest.mark.parametrize(("variance", "log_depth"), [(1e-4, 0.5), (4e-4, 0.0), (2e-3, -0.6)])
def test_its_trade_is_the_first_of_the_numerically_best_schedule(variance: float, log_depth: float) -> None:
    n, k, q, aversion, drift = 6, 2, 0.7, 2e-3, 15.0
    m, o = with_depth(market(drift=drift)), order(aversion)
    integral, slope = forecasts(m, n, k, variance, log_depth)

    def loss(shares: Array) -> float:
        traded = q * np.exp(shares) / np.exp(shares).sum()
        left = q - traded.cumsum()
        cost = (slope * traded**1.6).sum() + aversion * 1e8 * (left**2 * integral).sum()
        return float(cost - drift / n * left.sum())

    best = minimize(loss, np.zeros(n - k), method="BFGS", options={"gtol": 1e-9}).x
    first = np.exp(best[0]) / np.exp(best).sum()
    obs = observation(m, o, n, k, torch.tensor([q]), torch.tensor([variance]), log_depth)
    trade = mpc(obs, torch.zeros(1))
    assert float(trade) == pytest.approx(first, abs=2e-5)


@pytest.mark.parametrize("drift", [-4.0, 0.0, 20.0])
def test_under_linear_impact_it_solves_the_linear_first_order_conditions(drift: float) -> None:
    # c (2 q_j - q_{j-1} - q_{j+1}) 2 + 2 R q_j - mu dt = 0 with q_0 = 1 and q_N = 0, where no bound binds.
    m, o, n = market(beta=1.0, drift=drift), order(3e-4), 20
    dt = 1 / n
    slope = 1e4 * 0.142 * 0.02 * 0.1 / dt
    risk = 3e-4 * 1e8 * 4e-4 * dt
    matrix = np.diag(np.full(n - 1, 4 * slope + 2 * risk))
    matrix -= np.diag(np.full(n - 2, 2 * slope), 1) + np.diag(np.full(n - 2, 2 * slope), -1)
    right = np.full(n - 1, drift * dt)
    right[0] += 2 * slope
    exact = np.r_[1, np.linalg.solve(matrix, right), 0]
    assert (np.diff(exact) < 0).all()
    np.testing.assert_allclose(schedule_of(mpc, m, o, n).numpy(), exact, atol=5e-5)


def test_estimates_may_differ_from_path_to_path() -> None:
    aversions, thetas = torch.tensor([1e-4, 1e-3, 4e-3]), torch.tensor([1e-4, 4e-4, 1e-3])
    m, o = market(), order()
    wide = dataclasses.replace(m, heston=dataclasses.replace(m.heston, theta=thetas))
    left = torch.tensor([0.2, 0.6, 0.9])
    together = mpc(observation(wide, Order(o.size, aversions), N, 7, left), torch.zeros(3))
    for i in range(3):
        own = dataclasses.replace(m, heston=dataclasses.replace(m.heston, theta=thetas[i]))
        alone = mpc(observation(own, Order(o.size, aversions[i]), N, 7, left[i : i + 1]), torch.zeros(1))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_buy_and_a_sell_with_opposite_drift_trade_alike() -> None:
    left = torch.tensor([0.5])
    sold = mpc(observation(market(drift=30.0), order(), N, 5, left), torch.zeros(1))
    bought = mpc(observation(market(drift=-30.0), order(side=-1.0), N, 5, left), torch.zeros(1))
    assert sold == bought


def test_without_inventory_the_trade_is_finite() -> None:
    trade = mpc(observation(market(), order(), N, 5, torch.zeros(2)), torch.zeros(2))
    assert torch.isfinite(trade).all()


def stressed_at_times(m: Market) -> Market:
    return dataclasses.replace(m, regimes=Regimes(scalar(2.0), scalar(3.0), scalar(4.0), scalar(8.0)))


@pytest.mark.parametrize("probability", [0.1, 0.8])
def test_under_hidden_regimes_it_uses_the_forecast_mean_of_each_later_bucket(probability: float) -> None:
    n, k, q, aversion = 6, 2, 0.7, 2e-3
    calm, o = with_depth(market()), order(aversion)
    m = stressed_at_times(calm)
    integral, slope = forecasts(calm, n, k, 3e-4, -0.2)
    chain = expm(np.array([[-4.0, 4.0], [8.0, -8.0]]) / n)
    law = np.array([1 - probability, probability])
    for j in range(n - k):
        integral[j] *= law @ [1, 4]
        slope[j] *= law @ [1, 3]
        law = law @ chain

    def loss(shares: Array) -> float:
        traded = q * np.exp(shares) / np.exp(shares).sum()
        left = q - traded.cumsum()
        return float((slope * traded**1.6).sum() + aversion * 1e8 * (left**2 * integral).sum())

    best = minimize(loss, np.zeros(n - k), method="BFGS", options={"gtol": 1e-9}).x
    first = np.exp(best[0]) / np.exp(best).sum()
    believed = moment_matched(m)
    # The information of traders: expected variance, and the depth that gives the expected cost.
    variance = torch.tensor([3e-4 * (1 + 3 * probability)])
    depth = -0.2 + float(relative_depth(m, believed)) - math.log(1 + 2 * probability) / 0.6
    obs = observation(believed, o, n, k, torch.tensor([q]), variance, depth)
    obs = dataclasses.replace(obs, regimes=RegimeBelief(m, torch.tensor([probability])))
    assert float(mpc(obs, torch.zeros(1))) == pytest.approx(first, abs=3e-5)


def test_under_hidden_regimes_the_filtered_probability_beats_the_average_market() -> None:
    m, o = stressed_at_times(market(0.01, 0.5)), order()
    paths = simulate(m, 3_000, 13, generator(2, "replanning"))
    known = blind_to_regimes(paths, m, generator(2, "errors"))
    informed, averaged = (
        execute(mpc, paths, m, o, generator(2, "noise"), view).utility_bps(o).double()
        for view in (known, dataclasses.replace(known, regimes=None))
    )
    gain = informed - averaged
    assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))


def test_observed_regimes_give_the_same_trades_in_both_representations() -> None:
    m, o = stressed_at_times(market()), order()
    paths = simulate(m, 200, N, generator(3, "replanning"))
    told = [perceive(paths, m, generator(3, "errors")) for perceive in (exact, regimes_as_depth)]
    one, other = (execute(mpc, paths, m, o, generator(3, "noise"), known).inventory for known in told)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    alone = execute(mpc, paths, m, o, generator(3, "noise")).inventory
    assert torch.equal(alone, one)


def with_exponent(m: Market, exponent: float) -> Market:
    return dataclasses.replace(m, impact=dataclasses.replace(m.impact, variance_exponent=scalar(exponent)))


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_variance_in_impact_is_known_to_planner_static_optimum_and_oracle(exponent: float) -> None:
    m, o, n = with_exponent(market(0.02, 0.5), exponent), order(), 13
    unaware = with_exponent(m, 0.0)
    paths = simulate(m, 6_000, n, generator(1, "coupled"))
    wrong = Information(unaware, paths.variance, paths.log_depth)
    oracle, static = solve_oracle(m, o, n), static_optimal(m, o, n)

    def utility(policy: Policy, information: Information | None = None) -> Tensor:
        return execute(policy, paths, m, o, generator(1, "noise"), information).utility_bps(o).double()

    def error(sample: Tensor) -> float:
        return float(sample.std()) / math.sqrt(len(sample))

    best, planned, misled = utility(oracle), utility(mpc), utility(mpc, wrong)
    assert abs(oracle.value_bps - best.mean()) < 3.5 * error(best)
    assert (best - planned).mean() > -3 * error(best - planned)
    assert (planned - utility(twap)).mean() > 0.99 * (best - utility(twap)).mean()
    assert (planned - misled).mean() > 10 * error(planned - misled)
    followed = utility(static)
    assert abs(followed.mean() - expected_utility(m, o, static.inventory)) < 3.5 * error(followed)
    other = static_optimal(unaware, o, n).inventory
    assert expected_utility(m, o, static.inventory) >= expected_utility(m, o, other)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("variance", [1e-5, 4e-4, 2e-3])
def test_forecast_of_variance_in_impact(exponent: float, variance: float) -> None:
    """Against draws of the exact transition, a non-central chi-square (Cox, Ingersoll, Ross 1985)."""
    m = with_exponent(market(0.02, 1.3), exponent)
    theta, kappa, xi = float(m.heston.theta), 5.0, float(m.heston.xi)
    for days in (1e-4, 0.1, 20.0):
        scale = xi**2 * (1 - math.exp(-kappa * days)) / (4 * kappa)
        law = ncx2(4 * kappa * theta / xi**2, variance * math.exp(-kappa * days) / scale, scale=scale)
        points = law.ppf((np.arange(4_000) + 0.5) / 4_000)
        moments = VarianceStep.over(m.heston, days).moments(torch.tensor(variance))
        forecast = float(expected_variance_cost(m, *moments))
        # The gamma law has the right two moments; other moments are close to those of the exact law.
        assert forecast == pytest.approx(np.mean(np.maximum(points / theta, 0.1) ** exponent), rel=0.05)


def test_the_first_price_is_the_root_that_brent_finds() -> None:
    """On decreasing functions as steep as those of an urgent order, some of them negative from the start."""
    draws = generator(2, "root")
    power, steep = 1 + 2 * torch.rand(500, generator=draws), 10 ** (4 * torch.rand(500, generator=draws) - 2)
    above = torch.rand(500, generator=draws) - 0.1

    def f(x: Tensor) -> Tensor:
        return above - x**power - steep * x**3

    found = _root_of_decreasing(f, torch.ones(500), 2e-7 * above.abs())
    for i, x in enumerate(found.tolist()):
        a, b, p = above[i].item(), steep[i].item(), power[i].item()
        root = brentq(lambda x, a=a, b=b, p=p: a - x**p - b * x**3, 0, 1) if a > 0 else 0
        slope = p * root ** (p - 1) + 3 * b * root**2 if root else math.inf
        assert abs(x - root) <= 5e-7 * (root + (a + b) / slope)
    # A root does not depend on the other paths of the batch.
    above, steep, power = above[:99], steep[:99], power[:99]
    assert torch.equal(_root_of_decreasing(f, torch.ones(99), 2e-7 * above.abs()), found[:99])
