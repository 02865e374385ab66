"""The oracle against exhaustive enumeration, closed forms, its own refinement and simulated utility."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.stats import gamma, norm

from flowoe_lib.evaluation.intervals import capture_interval
from flowoe_lib.execution.execution import OrderSimulation, Policy, execute
from flowoe_lib.execution.information import Information, RegimeBelief
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import BPS, Heston, Impact, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.market.signal import with_signal
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.dynamic_programming import Optimum
from flowoe_lib.policies.filtered import solve_filtered_depth, solve_filtered_regimes
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.replanning import replanned
from flowoe_lib.policies.schedules import Schedule, expected_utility, static_optimal
from flowoe_lib.policies.unannounced import UnannouncedLevel, solve_level_belief
from flowoe_lib.randomness import generator

Array = NDArray[np.float64]


def condition(
    vol: float = 0.02,
    illiquidity: float = 1.0,
    cv: float = 0.8,
    size: float = 0.1,
    risk_aversion: float = 5e-4,
    side: float = 1.0,
    delta: float = 1.0,
    depth_sd: float = 0.0,
    profile: float = 0.0,
    drift: float = 0.0,
) -> tuple[Market, Order]:
    """The base condition with some fields changed; ``drift`` in daily standard deviations."""
    heston = Heston(scalar(vol**2), scalar(5.0), scalar(cv), scalar(-0.5))
    liquidity = Liquidity(scalar(illiquidity), scalar(depth_sd), profile_amplitude=scalar(profile))
    market = Market(heston, Impact(delta=scalar(delta)), liquidity, scalar(BPS * drift * vol))
    return market, Order(scalar(size), scalar(risk_aversion), scalar(side))


def exact_utility(market: Market, order: Order, inventory: torch.Tensor) -> float:
    """Closed-form utility of a schedule in float64."""
    market, order = (map_tensors(torch.Tensor.double, tree) for tree in (market, order))
    return expected_utility(market, order, inventory.double()).item()


def with_regimes(market: Market, volatility: float, cost: float, enter: float, leave: float) -> Market:
    """The same market with a stressed regime."""
    regimes = Regimes(scalar(volatility), scalar(cost), scalar(enter), scalar(leave))
    return dataclasses.replace(market, regimes=regimes)


def utility(policy: Policy, paths: MarketPaths, market: Market, order: Order) -> torch.Tensor:
    return execute(policy, paths, market, order, generator(1, "policy")).utility_bps(order).double()


def mean_and_error(
    sample: torch.Tensor, paths: MarketPaths, market: Market, order: Order
) -> tuple[float, float]:
    """Mean of utilities ``sample`` on ``paths`` and its standard error.

    Schedules, whose expected utility is known exactly, take most of the sampling error away.
    """
    plain = moment_matched(market)
    best = static_optimal(plain, order, paths.n_buckets).inventory
    schedules = [best, best**2, torch.linspace(1, 0, paths.n_buckets + 1).double()]
    errors = torch.stack(
        [utility(Schedule(q), paths, market, order) - exact_utility(plain, order, q) for q in schedules], 1
    )
    slope = torch.linalg.lstsq(errors - errors.mean(0), (sample - sample.mean())[:, None]).solution[:, 0]
    controlled = sample - errors @ slope
    return float(controlled.mean()), float(controlled.std()) / math.sqrt(len(controlled))


def quadratic_exponential(v: Array, dt: float, kappa: float, theta: float, xi: float, draws: int) -> Array:
    """Equally likely next variances, [len(v), draws], as Andersen (2008), eqs. (17) to (27), has them."""
    chance = (np.arange(draws) + 0.5) / draws
    rows = []
    for start in v:
        decay = math.exp(-kappa * dt)
        m = theta + (start - theta) * decay
        s2 = start * xi**2 * decay * (1 - decay) / kappa + theta * xi**2 * (1 - decay) ** 2 / (2 * kappa)
        psi = s2 / m**2
        if psi <= 1.5:
            b2 = 2 / psi - 1 + math.sqrt(2 / psi) * math.sqrt(2 / psi - 1)
            row = m / (1 + b2) * (math.sqrt(b2) + norm.ppf(chance)) ** 2
        else:
            p, rate = (psi - 1) / (psi + 1), 2 / (m * (psi + 1))
            row = np.where(chance <= p, 0, np.log((1 - p) / (1 - np.maximum(chance, p))) / rate)
        rows.append(row * m / row.mean())
    return np.array(rows)


def enumerated(market: Market, order: Order, actions: int, draws: tuple[int, int, int]) -> float:
    """Best utility over three buckets when trades are multiples of 1 / ``actions``: every one is tried.

    ``draws`` counts first variances, second variances and depths. Written from the definitions alone.
    """
    h, i, liq = market.heston, market.impact, market.liquidity
    theta, kappa, cv, sd = (float(x) for x in (h.theta, h.kappa, h.cv, liq.depth_sd))
    eta, beta, gamma_, delta = (float(x) for x in (i.eta, i.beta, i.gamma, i.delta))
    phi, mu, dt = float(order.size), float(order.side * market.drift), 1 / 3
    minute = (np.arange(30000) + 0.5) / 30000
    u = 1 + float(liq.profile_amplitude) * (6 * minute**2 - 6 * minute + 1).reshape(3, -1).mean(1)

    v0 = theta * cv**2 * gamma.ppf((np.arange(draws[0]) + 0.5) / draws[0], cv**-2)
    v0 *= theta / v0.mean()
    v1 = quadratic_exponential(v0, dt, kappa, theta, cv * math.sqrt(2 * kappa * theta), draws[1])
    x, weight = np.polynomial.hermite_e.hermegauss(draws[2])
    weight /= weight.sum()
    decay = math.exp(-float(liq.depth_reversion) * dt)
    l0 = sd * x
    l1 = decay * l0[:, None] + sd * math.sqrt(1 - decay**2) * x

    def trade(k: int, a: Array, left: Array, dearness: Array) -> Array:
        pace = phi * a / dt
        temporary = (
            1e4 * eta * float(liq.illiquidity) * math.sqrt(theta) * (pace / u[k]) ** beta * dearness * a
        )
        permanent = 1e4 * gamma_ * 263**0.25 * math.sqrt(theta) * pace**delta * dt
        profit: Array = mu * dt * left - temporary - permanent * (left + a / 2)
        return profit

    def risk(left: Array, v: Array) -> Array:
        integral = theta * dt + (v - theta) * (1 - math.exp(-kappa * dt)) / kappa
        charge: Array = float(order.risk_aversion) * 1e8 * left**2 * integral
        return charge

    # Axes: v0, v1, l0, l1, then the second trade.
    here_v, here_l = v1[:, :, None, None, None], l1[None, None, :, :, None]
    ahead_l = np.exp(-beta * decay * here_l + (beta * sd) ** 2 * (1 - decay**2) / 2)
    best = np.full((len(v0), len(l0)), -np.inf)
    for first in range(actions + 1):
        a0 = np.array(first / actions)
        q1 = 1 - a0
        a1 = np.arange(actions - first + 1) / actions
        q2 = np.maximum(q1 - a1, 0)
        second = trade(1, a1, q2, np.exp(-beta * here_l)) + trade(2, q2, 0 * q2, ahead_l) - risk(q2, here_v)
        ahead = (second.max(-1) @ weight).mean(1)
        now = trade(0, a0, q1, np.exp(-beta * l0)) - risk(q1, v0)[:, None]
        best = np.maximum(best, now + ahead)
    return float(best.mean(0) @ weight)


@pytest.mark.parametrize(
    ("changes", "draws"),
    [
        ({"vol": 0.06, "cv": 1.6}, (300, 60, 1)),
        ({"vol": 0.06, "cv": 1.6, "drift": 0.1, "delta": 0.7, "profile": 0.8}, (300, 60, 1)),
        ({"cv": 0.05, "depth_sd": 0.5, "drift": 0.1}, (4, 4, 12)),
    ],
)
def test_three_buckets_match_exhaustive_enumeration(changes: Any, draws: tuple[int, int, int]) -> None:
    market, order = condition(**changes)
    value = solve_oracle(market, order, 3).value_bps
    coarse, fine = (enumerated(market, order, actions, draws) for actions in (20, 60))
    # The loss from coarse trades falls with the square of their spacing.
    assert value == pytest.approx(fine + (fine - coarse) / 8, rel=3e-4)
    # The gain from adapting is at least ten tolerances, so an oracle that did not adapt would fail above.
    assert value - exact_utility(market, order, static_optimal(market, order, 3).inventory) > 3e-3 * abs(
        value
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"drift": 0.3},
        {"drift": -0.3, "risk_aversion": 1e-5},
        {"profile": 0.8, "vol": 0.06, "size": 0.01},
        {"delta": 0.7},
    ],
)
def test_constant_variance_gives_the_static_optimum(changes: Any) -> None:
    market, order = condition(cv=0.01, **changes)
    oracle, static = solve_oracle(market, order, 20), static_optimal(market, order, 20)
    best = exact_utility(market, order, static.inventory)
    assert oracle.value_bps == pytest.approx(best, rel=2e-5)
    paths = simulate(market, 50, 20, generator(0, "constant"))
    held = execute(oracle, paths, market, order, generator(0, "policy")).inventory.mean(1)
    assert torch.allclose(held.double(), static.inventory, atol=4e-3)


def test_a_risk_neutral_order_in_a_flat_market_is_twap() -> None:
    market, order = condition(risk_aversion=0.0)
    oracle = solve_oracle(market, order, 13)
    even = torch.linspace(1, 0, 14)
    assert oracle.value_bps == pytest.approx(exact_utility(market, order, even), rel=1e-6)
    share = 1 / torch.arange(13, 1, -1, dtype=torch.float64)
    assert torch.allclose(oracle.fraction[:, -1, :, 0], share[:, None].expand(12, 25), atol=3e-3)


def test_value_converges_at_order_four_as_every_grid_doubles() -> None:
    """The error of cubic splines: each step towards the limit is a sixteenth of the one before."""
    market, order = condition(depth_sd=0.5)
    coarse, middle, fine = (
        solve_oracle(
            market, order, 7, inventory_nodes=10 * m + 1, variance_nodes=6 * m + 1, depth_nodes=6 * m + 1
        )
        for m in (1, 2, 4)
    )
    steps = middle.value_bps - coarse.value_bps, fine.value_bps - middle.value_bps
    assert math.log2(steps[0] / steps[1]) == pytest.approx(4, abs=0.5)
    assert abs(steps[1]) < 2e-5 * abs(fine.value_bps)


@pytest.mark.parametrize(
    ("changes", "n_buckets"),
    [
        ({"vol": 0.06, "cv": 1.6}, 39),
        ({"vol": 0.06, "cv": 1.6, "risk_aversion": 1e-3, "size": 0.01, "delta": 0.7}, 13),
        ({"depth_sd": 0.5, "profile": 0.8}, 39),
        ({"vol": 0.045, "cv": 1.6, "illiquidity": 3.0, "drift": 0.1}, 39),
        ({"depth_sd": 0.5, "drift": -0.3, "side": -1.0}, 78),
    ],
)
def test_value_is_its_simulated_utility_and_no_rival_reaches_it(changes: Any, n_buckets: int) -> None:
    market, order = condition(**changes)
    oracle, static = solve_oracle(market, order, n_buckets), static_optimal(market, order, n_buckets)
    paths = simulate(market, 8000, n_buckets, generator(1, "oracle"))
    ours = utility(oracle, paths, market, order)
    for rival in (static, replanned):
        gap = ours - utility(rival, paths, market, order)
        assert float(gap.mean()) > 2 * float(gap.std()) / math.sqrt(len(gap))
    mean, error = mean_and_error(ours, paths, market, order)
    assert error < 1.5e-3 * abs(mean)
    assert oracle.value_bps == pytest.approx(mean, abs=3e-3 * abs(mean))


@pytest.mark.parametrize(("depth_nodes", "turnover"), [(25, 1.0), (13, 263.0)])
def test_a_policy_that_jumps_with_depth_is_not_averaged_over_its_jump(
    depth_nodes: int, turnover: float
) -> None:
    # With concave permanent and very low temporary impact the optimum is one trade of all if depth is high.
    heston = Heston(scalar(0.095**2), scalar(5.0), scalar(0.8), scalar(-0.5))
    liquidity = Liquidity(scalar(0.06), scalar(0.348), scalar(5.0))
    impact = Impact(beta=scalar(0.23), delta=scalar(0.651), turnover_days=scalar(turnover))
    market = Market(heston, impact, liquidity)
    order = Order(scalar(0.0335), scalar(0.0), scalar(-1.0))
    oracle, static = (
        solve_oracle(market, order, 13, depth_nodes=depth_nodes),
        static_optimal(market, order, 13),
    )
    paths = simulate(market, 8000, 13, generator(1, "jump"))
    ours = utility(oracle, paths, market, order)
    gap = ours - utility(static, paths, market, order)
    assert float(gap.mean()) > 10 * float(gap.std()) / math.sqrt(len(gap))
    assert abs(oracle.value_bps - float(ours.mean())) < 3.5 * float(ours.std()) / math.sqrt(len(ours))


def test_trades_faster_when_variance_or_depth_is_high() -> None:
    table = solve_oracle(*condition(depth_sd=0.5), 13).fraction[:, 1:]
    assert bool((table.diff(dim=2) > -1e-3).all())
    assert bool((table[:, -1].diff(dim=1) >= 0).all())
    # The depth axis runs from the deepest node to the thinnest.
    assert bool((table.diff(dim=3) < 1e-3).all())
    assert float(table[0, -1, 2, 0]) > 2 * float(table[0, -1, 2, -1])


def test_value_keeps_the_symmetries_of_the_problem() -> None:
    market, order = condition(cv=1.6, drift=0.3)
    value = solve_oracle(market, order, 13).value_bps
    bought = solve_oracle(
        dataclasses.replace(market, drift=-market.drift), dataclasses.replace(order, side=-order.side), 13
    )
    assert bought.value_bps == pytest.approx(value)
    # Twice the volatility at half the risk aversion is the same problem in doubled units.
    doubled = solve_oracle(*condition(vol=0.04, risk_aversion=2.5e-4, cv=1.6, drift=0.3), 13)
    assert doubled.value_bps == pytest.approx(2 * value, rel=1e-6)
    # Linear permanent impact costs half its total under every policy.
    free = dataclasses.replace(market, impact=dataclasses.replace(market.impact, gamma=scalar(0.0)))
    assert solve_oracle(free, order, 13).value_bps - value == pytest.approx(
        market.permanent_cost_bps(order.size).item() / 2, rel=1e-6
    )


@pytest.mark.parametrize("drift", [0.05, -0.03])
def test_the_rest_of_an_order_is_traded_like_a_smaller_order(drift: float) -> None:
    """J(q; size, lambda) = q J(1; q size, q lambda) when permanent impact is linear."""
    whole = solve_oracle(*condition(drift=drift), 13).fraction
    for node in (2, 4, 8, 16, 32):
        left = (node / 40) ** 2
        rest = solve_oracle(*condition(drift=drift, size=0.1 * left, risk_aversion=5e-4 * left), 13).fraction
        assert torch.allclose(whole[:, node], rest[:, -1], atol=1e-2)


def test_one_bucket_sells_everything_at_once() -> None:
    market, order = condition(depth_sd=0.5)
    oracle = solve_oracle(market, order, 1)
    assert oracle.value_bps == pytest.approx(exact_utility(market, order, torch.tensor([1.0, 0.0])), rel=1e-6)


def test_a_batch_a_day_of_other_buckets_and_empty_grids_are_refused() -> None:
    market, order = condition()
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        solve_oracle(market, Order(order.size.expand(2), order.risk_aversion), 5)
    with pytest.raises(ValueError, match="0 buckets"):
        solve_oracle(market, order, 0)
    with pytest.raises(ValueError, match="41 x 25 x 3 x 31 nodes"):
        solve_oracle(market, order, 5, depth_nodes=3)
    oracle = solve_oracle(market, order, 5)
    with pytest.raises(ValueError, match="n_buckets = 6: must be 5"):
        execute(oracle, simulate(market, 2, 6, generator(0)), market, order, generator(0))


def on_a_grid(market: Market, order: Order, actions: int) -> float:
    """Best utility over four buckets with regimes and variance theta, trades being multiples of 1 / actions.

    Written from the definitions alone.
    """
    r, i, theta, dt = market.regimes, market.impact, float(market.heston.theta), 1 / 4
    eta, beta, gamma_ = (float(x) for x in (i.eta, i.beta, i.gamma))
    enter, leave, phi = float(r.enter), float(r.leave), float(order.size)
    chain = expm(dt * np.array([[-enter, enter], [leave, -leave]]))
    q = np.arange(actions + 1) / actions
    kept, sold = q[None, :], np.maximum(q[:, None] - q, 0)
    temporary = 1e4 * eta * math.sqrt(theta) * (phi * sold / dt) ** beta * sold
    permanent = 1e4 * gamma_ * 263**0.25 * math.sqrt(theta) * phi * sold * (kept + sold / 2)
    risk = float(order.risk_aversion) * 1e8 * theta * dt * kept**2
    drift = float(order.side * market.drift) * dt * kept
    value = np.stack([-cost * temporary[:, 0] - permanent[:, 0] for cost in (1, float(r.cost_multiplier))])
    for _ in range(3):
        ahead = chain @ value
        worth = [
            np.where(q[:, None] >= q, drift - cost * temporary - permanent - raised * risk + later, -np.inf)
            for cost, raised, later in zip(
                (1, float(r.cost_multiplier)), (1, float(r.volatility_multiplier) ** 2), ahead, strict=True
            )
        ]
        value = np.max(worth, axis=2)
    return float(np.array([leave, enter]) / (enter + leave) @ value[:, -1])


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize("regimes", [(2.0, 3.0, 2.0, 6.0), (3.0, 0.5, 4.0, 2.0), (2.0, 1.0, 2.0, 6.0)])
def test_four_buckets_of_regimes_match_dynamic_programming_on_a_grid(
    regimes: tuple[float, float, float, float], drift: float
) -> None:
    calm, order = condition(cv=0.01, drift=drift)
    market = with_regimes(calm, *regimes)
    value, best = solve_oracle(market, order, 4).value_bps, on_a_grid(market, order, 400)
    assert value == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "regimes"),
    [
        ({}, (2.0, 3.0, 2.0, 6.0)),
        ({"drift": 0.2, "profile": 0.8, "side": -1.0}, (3.0, 0.5, 3.0, 3.0)),
        ({"vol": 0.06, "cv": 1.6, "delta": 0.7}, (2.0, 2.0, 1.0, 10.0)),
        ({}, (2.5, 1.0, 2.0, 4.0)),
    ],
)
def test_value_in_regimes_is_its_simulated_utility_and_above_that_without_observed_regimes(
    changes: Any, regimes: tuple[float, float, float, float]
) -> None:
    calm, order = condition(**changes)
    market = with_regimes(calm, *regimes)
    oracle, blind = solve_oracle(market, order, 39), solve_oracle(moment_matched(market), order, 39)
    paths = simulate(market, 8000, 39, generator(2, "regimes"))
    ours = utility(oracle, paths, market, order)
    gap = ours - utility(blind, paths, market, order)
    assert float(gap.mean()) > 5 * float(gap.std()) / math.sqrt(len(gap))
    mean, error = mean_and_error(ours, paths, market, order)
    assert error < 1.5e-3 * abs(mean)
    assert abs(oracle.value_bps - mean) < 3.5 * error


def test_equal_or_impossible_regimes_change_nothing() -> None:
    market, order = condition(drift=0.1)
    plain = solve_oracle(market, order, 13)
    alike = solve_oracle(with_regimes(market, 1.0, 1 + 1e-6, 2.0, 6.0), order, 13)
    never = solve_oracle(with_regimes(market, 2.0, 3.0, 1e-7, 6.0), order, 13)
    assert alike.value_bps == pytest.approx(plain.value_bps, rel=1e-5)
    assert torch.allclose(alike.fraction, plain.fraction.expand_as(alike.fraction), atol=1e-3)
    assert never.value_bps == pytest.approx(plain.value_bps, rel=1e-5)
    assert torch.allclose(never.fraction[..., :1], plain.fraction, atol=1e-3)


@pytest.mark.parametrize("cost", [0.5, 1.0, 3.0])
def test_the_oracle_observes_the_regime_and_rescales_variance(cost: float) -> None:
    market, order = condition()
    market = with_regimes(market, 2.0, cost, 2.0, 6.0)
    oracle = solve_oracle(market, order, 5)
    heston = market.heston
    # The last node of variance is exceeded with probability 1e-6.
    last = gamma(float(heston.cv**-2), scale=float(heston.theta * heston.cv**2)).isf(1e-6)
    node = torch.tensor([4, 9, 14, 4, 9, 14])
    stressed = torch.tensor([0, 0, 0, 1, 1, 1])
    obs = dataclasses.replace(
        OrderSimulation(simulate(market, 6, 5, generator(0)), market, order).observe(2, torch.ones(6)),
        variance=last * (node / 24).square() * (1 + 3 * stressed),
        # Depth does not say anything about the regime.
        log_depth=torch.linspace(-1, 1, 6),
        regimes=RegimeBelief(market, stressed.float()),
    )
    answer = oracle(obs, torch.zeros(6)).double()
    assert torch.allclose(answer, oracle.fraction[2, -1, node, stressed], atol=1e-5)


def test_regimes_beside_random_depth_and_observations_without_regimes_are_refused() -> None:
    market, order = condition(depth_sd=0.5)
    with pytest.raises(ValueError, match=r"Liquidity\.depth_sd .* Market\.regimes"):
        solve_oracle(with_regimes(market, 2.0, 3.0, 2.0, 6.0), order, 5)
    market = with_regimes(condition()[0], 2.0, 3.0, 2.0, 6.0)
    oracle, paths = solve_oracle(market, order, 5), simulate(market, 2, 5, generator(0))
    known = Information(market, paths.variance, paths.log_depth)
    with pytest.raises(ValueError, match=r"Observation\.regimes = None"):
        execute(oracle, paths, market, order, generator(0), known)


ORDER = condition()[1]
SIGNAL = with_signal(Market(Heston(*map(scalar, (4e-4, 5.0, 0.02, 0.0)))), scalar(0.3), scalar(0.0))
UNSOLVED: dict[str, tuple[Callable[[], Optimum], str]] = {
    "signal": (lambda: solve_oracle(SIGNAL, ORDER, 5), "Signal.sd"),
    "signal beside a hidden drift": (
        lambda: solve_belief(dataclasses.replace(SIGNAL, drift_sd=scalar(9.0)), ORDER, 5),
        "Signal.sd",
    ),
    "signal beside filtered depth": (
        lambda: solve_filtered_depth(
            dataclasses.replace(SIGNAL, liquidity=Liquidity(depth_sd=scalar(0.3))), ORDER, 5
        ),
        "Signal.sd",
    ),
    "signal beside filtered regimes": (
        lambda: solve_filtered_regimes(with_regimes(SIGNAL, 2.0, 3.0, 2.0, 6.0), ORDER, 5),
        "Signal.sd",
    ),
    "signal beside a hidden level": (
        lambda: solve_level_belief(UnannouncedLevel(SIGNAL, 3.0), ORDER, 5),
        "Signal.sd",
    ),
    "hidden drift beside a hidden level": (
        lambda: solve_level_belief(
            UnannouncedLevel(dataclasses.replace(condition()[0], drift_sd=scalar(9.0)), 3.0), ORDER, 5
        ),
        "Market.drift_sd = 9",
    ),
}


@pytest.mark.parametrize("case", UNSOLVED)
def test_what_is_not_part_of_the_state_is_refused(case: str) -> None:
    solve, named = UNSOLVED[case]
    with pytest.raises(ValueError, match=f"{re.escape(named)}.*: must be 0"):
        solve()


def test_capture_by_hand() -> None:
    twap, oracle = torch.tensor([-10.0, -12.0, -8.0, -10.0]), torch.tensor([-8.0, -8.0, -6.0, -6.0])
    policy = torch.tensor([-8.0, -9.0, -7.0, -7.0])
    # Gains 2 3 1 3 over gaps 2 4 2 4: 9 / 12; residuals .5 0 -.5 0, sd sqrt(1 / 6), mean gap 3.
    value, low, high = capture_interval(policy, twap, oracle)
    reach = 1.96 * math.sqrt(1 / 6) / 2 / 3
    assert (value, low, high) == pytest.approx((0.75, 0.75 - reach, 0.75 + reach))
    assert capture_interval(oracle, twap, oracle) == pytest.approx((1, 1, 1))
    assert capture_interval(twap, twap, oracle) == pytest.approx((0, 0, 0))
    for bad in ((policy[:3], twap, oracle), (policy[:1], twap[:1], oracle[:1]), (policy, oracle, twap)):
        with pytest.raises(ValueError, match="must be"):
            capture_interval(*bad)


def test_capture_interval_has_its_nominal_coverage() -> None:
    draw = generator(3, "coverage")
    hits, trials, paths = 0, 1000, 400
    for _ in range(trials):
        shared, own, rival = torch.randn(3, paths, generator=draw, dtype=torch.float64)
        twap, gap = 5 * shared, (2 + rival).exp() + shared.square()
        policy = twap + 0.9 * gap + own * (1 + shared.abs())
        _, low, high = capture_interval(policy, twap, twap + gap)
        hits += low <= 0.9 <= high
    assert hits / trials == pytest.approx(0.95, abs=0.02)
