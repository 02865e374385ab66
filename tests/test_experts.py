"""The experts against other solutions of the same problems: continuous time, linear systems, brute force."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad, solve_ivp
from scipy.linalg import solve_banded
from scipy.optimize import Bounds, LinearConstraint, brentq, minimize
from torch import Tensor

from flowoe_lib.execution.execution import Execution, Observation, Policy, execute
from flowoe_lib.execution.information import Information
from flowoe_lib.market.batching import batch, map_tensors
from flowoe_lib.market.model import Condition, Heston, Impact, Liquidity, Market, Order, scalar
from flowoe_lib.market.pre_trade import urgency
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS, from_estimates
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.policies.schedules import (
    EstimatedSchedule,
    Schedule,
    expected_cost,
    expected_risk,
    expected_utility,
    static_optimal,
    twap,
    vwap,
)
from flowoe_lib.randomness import generator

N, ETA, GAMMA = 39, 0.142, 0.314 * 263**0.25


def market(
    volatility: float = 0.02,
    beta: float = 0.6,
    delta: float = 1.0,
    illiquidity: float = 1.0,
    depth_sd: float = 0.0,
    amplitude: float = 0.0,
    drift: float = 0.0,
) -> Market:
    return Market(
        Heston(scalar(volatility**2), scalar(5.0), scalar(0.8), scalar(-0.6)),
        Impact(beta=scalar(beta), delta=scalar(delta)),
        Liquidity(scalar(illiquidity), scalar(depth_sd), scalar(12.0), scalar(amplitude)),
        drift=scalar(drift),
    )


def order(risk_aversion: float = 5e-4, size: float = 0.1, side: float = 1.0) -> Order:
    return Order(scalar(size), scalar(risk_aversion), scalar(side))


def paths_with(variance: float | Tensor, log_depth: float = 0.0) -> MarketPaths:
    """One day with a constant price and the given variance and depth."""
    quiet = torch.zeros(N, 1)
    held = quiet + variance
    depth, calm = quiet + log_depth, torch.zeros_like(quiet, dtype=torch.bool)
    return MarketPaths(1 / N, quiet, quiet, held, held / N, held / N, depth, quiet + 1, quiet[0], calm)


def inventory_of(policy: Policy, paths: MarketPaths, m: Market, o: Order) -> Tensor:
    return execute(policy, paths, m, o, generator(1, "policy")).inventory[:, 0].double()


# --- the best static schedule -----------------------------------------------------------------------


def flat_costs(m: Market, o: Order) -> tuple[float, float, float]:
    """C, R and beta of the continuous problem: minimise int C v^(1 + beta) + R x^2 dt, x(0) = 1, x(1) = 0."""
    vol, beta = math.sqrt(m.heston.theta.item()), m.impact.beta.item()
    cost = 1e4 * ETA * m.liquidity.illiquidity.item() * vol * o.size.item() ** beta
    return cost, o.risk_aversion.item() * 1e8 * vol**2, beta


def in_continuous_time(m: Market, o: Order, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Almgren (2003): beta C v^(1 + beta) - R x^2 is conserved; the constant makes the day last one day."""
    cost, risk, beta = flat_costs(m, o)

    def speed(x: float, constant: float) -> float:
        return math.pow((risk * x * x + constant) / (beta * cost), 1 / (1 + beta))

    def lasts(log_constant: float) -> float:
        return quad(lambda x: 1 / speed(x, math.exp(log_constant)), 0, 1, points=[1e-3, 1e-2, 0.1])[0] - 1

    constant = math.exp(brentq(lasts, -20, 20, xtol=1e-12))
    way = solve_ivp(
        lambda t, x: [-speed(max(x[0], 0), constant)], (0, 1), [1.0], t_eval=times, rtol=1e-9, atol=1e-12
    )
    return np.asarray(way.y[0])


@pytest.mark.parametrize("beta", [0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("risk_aversion", [1e-4, 2e-3])
def test_static_optimum_converges_to_continuous_time(beta: float, risk_aversion: float) -> None:
    m, o = market(beta=beta), order(risk_aversion)
    errors = []
    for n in (30, 60, 120):
        exact = in_continuous_time(m, o, np.linspace(0, 1, n + 1))
        errors.append(np.abs(static_optimal(m, o, n).inventory.numpy() - exact).max())
    # Charging risk on what is left after a trade is a trapezoid rule but for a constant: order two.
    assert errors[-1] < 3e-4
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("beta", [0.5, 0.6])
def test_static_optimum_is_a_power_law_when_urgent(beta: float) -> None:
    # Without a horizon v = x^(2 / (1 + beta)) / T*, which a power of time solves.
    m, o = market(beta=beta), order(0.03)
    cost, risk, _ = flat_costs(m, o)
    own_time = (beta * cost / risk) ** (1 / (1 + beta))
    time = torch.arange(401, dtype=torch.float64) / 400
    exact = (1 + (1 - beta) / (1 + beta) * time / own_time) ** (-(1 + beta) / (1 - beta))
    found = static_optimal(m, o, 400).inventory
    # Its remainder at the close is the error of leaving out the horizon.
    assert exact[-1] < 4e-4
    assert (found - exact).abs().max() < 5e-4
    assert (found - torch.exp(-time / own_time)).abs().max() > 0.05


def utility_by_hand(m: Market, o: Order, traded: NDArray[np.float64]) -> NDArray[np.float64]:
    """E[P&L] - lambda E[risk] of trades [N, schedules], bucket by bucket."""
    n = len(traded)
    vol, beta, delta = math.sqrt(m.heston.theta.item()), m.impact.beta.item(), m.impact.delta.item()
    phi, amplitude = o.size.item(), m.liquidity.profile_amplitude.item()
    depth_cost = math.exp(beta**2 * m.liquidity.depth_sd.item() ** 2 / 2)
    left, total = np.ones(traded.shape[1]), np.zeros(traded.shape[1])
    for k in range(n):
        volume = quad(lambda t: 1 + amplitude * (1.5 * (2 * t - 1) ** 2 - 0.5), k / n, (k + 1) / n)[0] * n
        a = traded[k]
        temporary = (
            1e4 * ETA * m.liquidity.illiquidity.item() * vol * (phi * a * n / volume) ** beta * depth_cost
        )
        shift = 1e4 * GAMMA * vol * (phi * a * n) ** delta / n
        total -= a * temporary + shift * (left - a / 2)
        left = left - a
        total += o.side.item() * m.drift.item() * left / n
        total -= o.risk_aversion.item() * 1e8 * vol**2 * left**2 / n
    return total


def trades_of(schedule: Schedule) -> NDArray[np.float64]:
    return -np.diff(schedule.inventory.numpy())


CASES: dict[str, tuple[Market, Order]] = {
    "plain": (market(), order()),
    "urgent": (market(), order(5e-3)),
    "square root": (market(beta=0.5, illiquidity=3.0), order(1e-3)),
    "volume and depth": (market(amplitude=1.2, depth_sd=0.6), order()),
    "falling": (market(drift=-60.0), order()),
    "rising, hold back": (market(drift=150.0), order(1e-4)),
    "buy as it rises": (market(drift=150.0), order(side=-1.0)),
    "concave permanent": (market(delta=0.7), order()),
    "concave permanent and drift": (market(delta=0.5, drift=40.0, amplitude=0.8), order(2e-4)),
}


@pytest.mark.parametrize("name", CASES)
def test_static_optimum_is_the_best_on_a_grid_of_three_buckets(name: str) -> None:
    m, o = CASES[name]
    side = np.linspace(0, 1, 401)
    first, second = (x.ravel() for x in np.meshgrid(side, side))
    grid = np.stack((first, second, np.clip(1 - first - second, 0, 1)))[:, first + second <= 1]
    best = utility_by_hand(m, o, grid)
    found = trades_of(static_optimal(m, o, 3))
    reached = utility_by_hand(m, o, found[:, None])[0]
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert reached >= best.max() - 1e-9
    # And where the grid has it: the utility is flat there, so within a few of its steps.
    assert np.abs(grid[:, best.argmax()] - found).max() < 0.02


@pytest.mark.parametrize("name", CASES)
def test_static_optimum_is_the_best_that_another_optimiser_finds(name: str) -> None:
    m, o = CASES[name]
    found = trades_of(static_optimal(m, o, 5))

    def loss(x: NDArray[np.float64]) -> float:
        return -float(utility_by_hand(m, o, np.clip(x, 0, 1)[:, None])[0])

    whole = LinearConstraint(np.ones((1, 5)), 1, 1)
    starts = np.random.default_rng(0).dirichlet(np.ones(5), size=8 if m.impact.delta < 1 else 3)
    others = [
        minimize(loss, x, method="SLSQP", bounds=Bounds(0, 1), constraints=whole, tol=1e-12).x for x in starts
    ]
    best = max(-loss(np.clip(x, 0, 1) / np.clip(x, 0, 1).sum()) for x in others)
    assert -1e-6 < -loss(found) - best < 1e-3


@pytest.mark.parametrize(
    ("delta", "drift", "aversion"), [(0.3, 100.0, 5e-3), (0.5, 0.0, 1e-5), (0.45, -60.0, 2e-3)]
)
def test_static_optimum_is_the_best_of_many_local_optima(delta: float, drift: float, aversion: float) -> None:
    m, o, n = market(delta=delta, drift=drift), order(aversion), 13
    found = float(expected_utility(m, o, static_optimal(m, o, n).inventory))

    def loss(x: NDArray[np.float64]) -> float:
        return -float(utility_by_hand(m, o, np.clip(x, 0, 1)[:, None])[0])

    whole = LinearConstraint(np.ones((1, n)), 1, 1)
    starts = np.random.default_rng(1).dirichlet(np.full(n, 0.4), size=25)
    others = [minimize(loss, x, method="SLSQP", bounds=Bounds(0, 1), constraints=whole).x for x in starts]
    best = max(-loss(np.clip(x, 0, 1) / np.clip(x, 0, 1).sum()) for x in others)
    assert found > best - 1e-4 * abs(best)


def perturbed(schedule: Schedule, step: float, draws: torch.Generator) -> Tensor:
    """Inventories [N + 1, conditions] after multiplying each trade by a random factor."""
    traded = -schedule.inventory.diff(dim=0)
    noise = torch.randn(traded.shape, generator=draws, dtype=torch.float64)
    share = torch.softmax(traded.clamp_min(1e-12).log() + step * noise, 0)
    return torch.cat((torch.ones_like(share[:1]), 1 - share.cumsum(0))).clamp_min(0)


def test_no_other_schedule_beats_the_static_optimum() -> None:
    draws, n = generator(1, "test"), 1_600

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=draws)

    m = Market(
        Heston(uniform(0.005, 0.05).square(), scalar(5.0), scalar(0.8), scalar(-0.6)),
        Impact(beta=uniform(0.3, 1.0)),
        Liquidity(uniform(1, 4), uniform(0, 0.6), scalar(12.0), uniform(-0.5, 1.2)),
        drift=uniform(-100, 100),
    )
    o = Order(uniform(0.01, 0.3), uniform(0, 2e-3), torch.randn(n, generator=draws).sign())
    best = static_optimal(m, o, N)
    reached = expected_utility(m, o, best.inventory)
    for step in (1e-3, 0.1, 1.0, 3.0):
        other = expected_utility(m, o, perturbed(best, step, draws))
        assert (other <= reached + 1e-7 * reached.abs()).all()


def test_no_close_schedule_beats_it_with_concave_permanent_impact() -> None:
    draws = generator(2, "test")
    deltas, aversions = 0.3 + 0.65 * torch.rand(8, generator=draws), torch.logspace(-5, math.log10(2e-3), 8)
    m = dataclasses.replace(market(), impact=Impact(delta=deltas))
    o = Order(scalar(0.1), aversions)
    best = static_optimal(m, o, 13)
    reached = expected_utility(m, o, best.inventory)
    for _ in range(20):
        assert (expected_utility(m, o, perturbed(best, 0.05, draws)) < reached).all()


def test_conditions_are_solved_as_if_alone() -> None:
    conditions = [Condition("test", name, m, o) for name, (m, o) in CASES.items()]
    side_by_side = batch(conditions, 1)
    for solver in (static_optimal, almgren_chriss):
        together = solver(*side_by_side, 13).inventory
        for i, c in enumerate(conditions):
            alone = solver(c.market, c.order, 13).inventory
            u = [float(expected_utility(c.market, c.order, q)) for q in (together[:, i], alone)]
            assert u[0] == pytest.approx(u[1], rel=1e-6)
            assert (together[:, i] - alone).abs().max() < 2e-3


def test_expected_utility_is_the_mean_of_simulated_utility() -> None:
    m = market(delta=0.7, illiquidity=2.0, depth_sd=0.5, amplitude=0.9, drift=25.0)
    n_paths, n = 40_000, 13
    paths = simulate(m, n_paths, n, generator(5, "test"))
    for o in (order(), order(2e-3, 0.05, -1.0)):
        for schedule in (
            almgren_chriss(m, o, n),
            static_optimal(m, o, n),
            Schedule(torch.linspace(1, 0, n + 1) ** 3),
        ):
            done = execute(schedule, paths, m, o, generator(5, "policy"))

            def z_score(sample: Tensor, expected: Tensor) -> float:
                error = sample.double().std() / math.sqrt(n_paths)
                return float((sample.double().mean() - expected) / error)

            plan = schedule.inventory.double()
            assert abs(z_score(done.utility_bps(o), expected_utility(m, o, plan))) < 4.5
            assert abs(z_score(done.pnl_bps, -expected_cost(m, o, plan))) < 4.5
            assert abs(z_score(done.controlled_pnl_bps, -expected_cost(m, o, plan))) < 4.5
            assert abs(z_score(done.risk, expected_risk(m, plan))) < 4.5


# --- Almgren and Chriss -----------------------------------------------------------------------------


@pytest.mark.parametrize("risk_aversion", [1e-6, 5e-4, 5e-2])
def test_almgren_chriss_solves_its_linear_system(risk_aversion: float) -> None:
    m, o = market(beta=0.6, depth_sd=0.4), order(risk_aversion)
    # Linear impact that charges TWAP C: C N a_k^2 + (R / N) q_{k+1}^2 per bucket. First-order conditions:
    # q_{k-1} - (2 + R / (C N^2)) q_k + q_{k+1} = 0, with q_0 = 1 and q_N = 0.
    cost, risk, beta = flat_costs(m, o)
    cost *= math.exp(beta**2 * 0.4**2 / 2)
    bands = np.ones((3, N - 1))
    bands[1] = -2 - risk / (cost * N**2)
    right = np.zeros(N - 1)
    right[0] = -1
    exact = np.concatenate(([1], solve_banded((1, 1), bands, right), [0]))
    np.testing.assert_allclose(almgren_chriss(m, o, N).inventory, exact, rtol=1e-5, atol=1e-12)


def test_almgren_chriss_is_optimal_where_impact_is_linear() -> None:
    m, o = market(beta=1.0), order()
    torch.testing.assert_close(
        almgren_chriss(m, o, N).inventory, static_optimal(m, o, N).inventory, rtol=1e-6, atol=1e-9
    )
    # Elsewhere the static optimum is better, at a cost that it knows.
    concave = market(beta=0.5)
    u = [expected_utility(concave, o, s(concave, o, N).inventory) for s in (almgren_chriss, static_optimal)]
    assert u[1] > u[0] + 1e-3


def test_risk_neutral_orders_are_spread_evenly() -> None:
    even = torch.linspace(1, 0, N + 1, dtype=torch.float64)
    for solver in (almgren_chriss, static_optimal):
        torch.testing.assert_close(solver(market(), order(0.0), N).inventory, even, rtol=0, atol=1e-6)
    done = inventory_of(replanned, paths_with(4e-4), market(), order(0.0))
    torch.testing.assert_close(done, even, rtol=0, atol=1e-5)


def test_almgren_chriss_is_a_function_of_volume_time() -> None:
    # The inventory is a function of the volume gone by: sinh(K (1 - tau)) / sinh(K).
    m, o = market(amplitude=1.0), order(1e-3)
    cost, risk, _ = flat_costs(m, o)
    total = math.acosh(1 + risk / cost / N**2 / 2) * N
    clock = np.linspace(0, 1, N + 1)
    tau = clock + ((2 * clock - 1) ** 3 - (2 * clock - 1)) / 4
    exact = np.sinh(total * (1 - tau)) / np.sinh(total)
    np.testing.assert_allclose(almgren_chriss(m, o, N).inventory, exact, rtol=1e-5, atol=1e-6)


def linear_optimum(m: Market, o: Order, n: int) -> NDArray[np.float64]:
    """Unconstrained minimum of sum C N a_k^2 + (R q_{k+1}^2 - mu q_{k+1}) / N: a tridiagonal system."""
    cost, risk, _ = flat_costs(m, o)
    drift = o.side.item() * m.drift.item()
    bands = np.ones((3, n - 1))
    bands[1] = -2 - risk / (cost * n**2)
    right = np.full(n - 1, -drift / (2 * cost * n**2))
    right[0] -= 1
    return np.concatenate(([1], solve_banded((1, 1), bands, right), [0]))


def linear_utility(m: Market, o: Order, q: NDArray[np.float64]) -> float:
    """Of a schedule under the linear impact that charges TWAP what the concave one does."""
    n = len(q) - 1
    cost, risk, _ = flat_costs(m, o)
    drift = o.side.item() * m.drift.item()
    return float(drift * q[1:].sum() / n - cost * n * (np.diff(q) ** 2).sum() - risk * (q[1:] ** 2).sum() / n)


# Drifts, in bps a day, that neither tempt to buy back nor to sell more than there is.
@pytest.mark.parametrize(
    ("drift", "risk_aversion", "side"),
    [(8.0, 5e-4, 1.0), (-10.0, 5e-4, 1.0), (12.0, 5e-4, -1.0), (6.0, 1e-5, 1.0), (-6.0, 0.0, 1.0)],
)
def test_almgren_chriss_takes_a_known_drift_into_account(
    drift: float, risk_aversion: float, side: float
) -> None:
    m, o = market(drift=drift), order(risk_aversion, side=side)
    exact = linear_optimum(m, o, N)
    assert (np.diff(exact) < 0).all()
    found = almgren_chriss(m, o, N).inventory.numpy()
    # Its kappa is that of N buckets, and its q* that of continuous trading.
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-4)
    fine = linear_optimum(m, o, 600)
    np.testing.assert_allclose(almgren_chriss(m, o, 600).inventory, fine, rtol=0, atol=2e-6)
    # And the drift makes a difference.
    blind = almgren_chriss(market(), o, N).inventory.numpy()
    assert np.abs(found - blind).max() > 0.02
    reached, best = (linear_utility(m, o, q) for q in (found, exact))
    assert best - 1e-5 < reached <= best + 1e-9
    assert reached > linear_utility(m, o, blind) + 0.02


def test_almgren_chriss_with_drift_is_what_a_general_optimiser_finds() -> None:
    m, o, n = market(drift=9.0), order(3e-4), 8

    def loss(q: NDArray[np.float64]) -> float:
        return -linear_utility(m, o, np.concatenate(([1], q, [0])))

    best = minimize(loss, np.linspace(1, 0, n + 1)[1:-1], method="BFGS", options={"gtol": 1e-8}).x
    found = almgren_chriss(m, o, n).inventory.numpy()[1:-1]
    np.testing.assert_allclose(found, best, rtol=0, atol=3e-3)


@pytest.mark.parametrize("risk_aversion", [0.0, 1e-5, 5e-4, 5e-3])
@pytest.mark.parametrize("drift", [-3e4, -300.0, 80.0, 300.0, 3e4])
def test_no_drift_makes_almgren_chriss_buy_back_or_oversell(drift: float, risk_aversion: float) -> None:
    for side in (1.0, -1.0):
        q = almgren_chriss(market(drift=drift), order(risk_aversion, side=side), N).inventory
        assert torch.isfinite(q).all()
        assert [float(q[0]), float(q[-1])] == [1, 0]
        assert (q.diff(dim=0) <= 0).all()
        assert ((q >= 0) & (q <= 1)).all()


def test_a_strong_favourable_drift_delays_trades_and_an_adverse_one_advances_them() -> None:
    wait, run = (almgren_chriss(market(drift=d), order(), N).inventory for d in (300.0, -3000.0))
    assert (wait[: N // 2] == 1).all()
    assert 0 < wait[-2] < 1
    assert (run[2:] == 0).all()
    # The more of it, the longer.
    rising = torch.stack(
        [almgren_chriss(market(drift=d), order(), N).inventory for d in range(-400, 401, 50)]
    )
    assert (rising.diff(dim=0) >= 0).all()
    assert (rising[:, 5].diff() > 0)[4:9].all()


# --- re-planned -------------------------------------------------------------------------------------


@pytest.mark.parametrize("risk_aversion", [1e-5, 5e-4, 5e-3])
def test_replanning_is_time_consistent_where_nothing_changes(risk_aversion: float) -> None:
    m, o = market(beta=1.0), order(risk_aversion)
    done = inventory_of(replanned, paths_with(4e-4), m, o)
    torch.testing.assert_close(done, almgren_chriss(m, o, N).inventory, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("risk_aversion", "drift"), [(1e-9, -8.0), (1e-9, 8.0), (1e-4, -4.0), (5e-4, 8.0), (5e-3, 8.0)]
)
def test_replanning_under_known_drift_solves_the_linear_quadratic_program(
    risk_aversion: float, drift: float
) -> None:
    m, o = market(beta=1.0, drift=drift), order(risk_aversion)
    cost, risk, _ = flat_costs(m, o)
    # First-order conditions of cost N a^2 + (risk q^2 - drift q) / N in q_1 ... q_{N-1}.
    bands = np.full((3, N - 1), -2 * cost * N)
    bands[1] = 4 * cost * N + 2 * risk / N
    pull = np.full(N - 1, drift / N)
    pull[0] += 2 * cost * N
    exact = torch.from_numpy(solve_banded((1, 1), bands, pull))
    assert (exact.diff() < 0).all()
    done = inventory_of(replanned, paths_with(m.heston.theta), m, o)
    torch.testing.assert_close(done[1:-1], exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_replanning_starts_near_the_optimum_under_concave_impact(beta: float) -> None:
    m, o = market(beta=beta), order(5e-3)
    done = inventory_of(replanned, paths_with(4e-4), m, o)
    best = static_optimal(m, o, N).inventory
    worst = {0.5: 0.02, 1.0: 1e-3}[beta]
    assert float((done - best).abs().max()) < worst
    assert float((almgren_chriss(m, o, N).inventory - best).abs().max()) > 3 * worst or beta == 1


@pytest.mark.parametrize("ratio", [0.0, 0.3, 2.0, 8.0])
def test_replanning_forecasts_the_variance_of_the_rest(ratio: float) -> None:
    m, kappa = market(beta=1.0), 5.0
    # 3 int_0^1 (1 - s)^2 E[V_s | V_0] ds / theta of a mean-reverting process.
    lasting = 3 * (1 / kappa - 2 / kappa**2 + 2 * (1 - math.exp(-kappa)) / kappa**3)
    done = inventory_of(replanned, paths_with(4e-4 * ratio), m, order(5e-4))
    planned = almgren_chriss(m, order(5e-4 * (1 + (ratio - 1) * lasting)), N).inventory
    assert float(done[1]) == pytest.approx(float(planned[1]), rel=1e-3)


def test_replanning_follows_the_depth() -> None:
    # Risk-neutral, trades are as depth now and its expected mean until the close.
    m = market(depth_sd=0.5)
    pace = float(m.liquidity.depth_reversion)
    for log_depth in (-1.0, 0.0, 1.0):
        done = inventory_of(replanned, paths_with(4e-4, log_depth), m, order(0.0))
        share = math.exp(log_depth * (1 - (1 - math.exp(-pace)) / pace))
        assert 1 - float(done[1]) == pytest.approx(share / (share + N - 1), rel=1e-4)


def test_replanning_beats_the_schedule_where_variance_moves() -> None:
    m = dataclasses.replace(
        market(depth_sd=0.5), heston=Heston(scalar(4e-4), scalar(5.0), scalar(1.6), scalar(-0.6))
    )
    o, n_paths = order(), 5_000
    paths = simulate(m, n_paths, N, generator(6, "test"))
    best, fixed = (
        execute(p, paths, m, o, generator(6, "policy")).utility_bps(o)
        for p in (replanned, almgren_chriss(m, o, N))
    )
    gain = (best - fixed).double()
    assert gain.mean() > 4 * gain.std() / math.sqrt(n_paths)


# --- volume, similarity, ensemble ------------------------------------------------------------------


def test_vwap_trades_in_proportion_to_volume() -> None:
    m = market(amplitude=1.1)
    paths = simulate(m, 3, N, generator(7, "test"))
    for policy, tolerance in ((vwap, 1e-5), (replanned, 1e-4)):
        done = execute(policy, paths, m, order(0.0), generator(7, "policy"))
        share = -done.inventory.diff(dim=0)
        torch.testing.assert_close(share, (paths.volume / N).expand(-1, 3), rtol=tolerance, atol=1e-6)


@settings(max_examples=6)
@given(
    volatility=st.floats(0.005, 0.05),
    illiquidity=st.floats(1, 4),
    size=st.floats(0.01, 0.25),
    ratio=st.floats(0.05, 30),
)
def test_conditions_of_one_urgency_have_one_schedule(
    volatility: float, illiquidity: float, size: float, ratio: float
) -> None:
    def with_urgency(m: Market, size: float) -> Order:
        cost, risk, _ = flat_costs(m, order(1.0, size))
        return order(ratio * cost / risk, size)

    first, second = market(), market(volatility, illiquidity=illiquidity)
    o1, o2 = with_urgency(first, 0.1), with_urgency(second, size)
    assert float(urgency(first, o1)) == pytest.approx(ratio, rel=1e-5)
    assert float(urgency(second, o2)) == pytest.approx(ratio, rel=1e-5)
    for solver in (almgren_chriss, static_optimal):
        torch.testing.assert_close(
            solver(first, o1, N).inventory, solver(second, o2, N).inventory, rtol=1e-4, atol=1e-6
        )
    wave = torch.linspace(0.2, 3, N)[:, None]
    plans = [
        inventory_of(replanned, paths_with(m.heston.theta * wave), m, o)
        for m, o in ((first, o1), (second, o2))
    ]
    torch.testing.assert_close(*plans, rtol=1e-3, atol=1e-5)


def test_schedule_joined_midway_keeps_its_shape() -> None:
    m, o = market(), order(1e-3)
    plan = static_optimal(m, o, N).inventory

    def late(obs: Observation, noise: Tensor) -> Tensor:
        return torch.zeros_like(noise) if obs.k < 10 else Schedule(plan)(obs, noise)

    done = inventory_of(late, paths_with(4e-4), m, o)
    assert (done[:11] == 1).all()
    torch.testing.assert_close(done[10:], plan[10:] / plan[10], rtol=1e-4, atol=1e-6)


def test_ensemble_calibrates_each_expert_to_each_condition() -> None:
    conditions = [Condition("test", name, *CASES[name]) for name in ("plain", "urgent", "volume and depth")]
    together, n = batch(conditions, 2), 13
    paths = simulate(together[0], 6, n, generator(8, "test"))
    alone: dict[str, Callable[[Market, Order], Policy]] = {
        "twap": lambda m, o: twap,
        "vwap": lambda m, o: vwap,
        "almgren_chriss": lambda m, o: almgren_chriss(m, o, n),
        "static_optimal": lambda m, o: static_optimal(m, o, n),
        "replanned": lambda m, o: replanned,
        "mpc": lambda m, o: mpc,
    }
    assert set(alone) == set(SCHEDULE_EXPERTS)
    for name, calibrate in SCHEDULE_EXPERTS.items():
        done: Execution = execute(calibrate(conditions, 2, n), paths, *together, generator(8, "policy"))
        for i, c in enumerate(conditions):
            two = slice(2 * i, 2 * i + 2)

            def day(field: Tensor, two: slice = two) -> Tensor:
                return field if field.shape[-1] == 1 else field[..., two]

            mine = map_tensors(day, paths)
            single = execute(alone[name](c.market, c.order), mine, c.market, c.order, generator(8, "policy"))
            torch.testing.assert_close(done.inventory[:, two], single.inventory, rtol=1e-4, atol=1e-6)


# --- schedules for estimates -----------------------------------------------------------------------

FAMILIES = {"almgren_chriss": almgren_chriss, "static_optimal": static_optimal}


def run_as_believed(policy: Policy, m: Market, o: Order, believed: Market, n_paths: int) -> Execution:
    paths = simulate(m, n_paths, N, generator(9, "test"))
    known = Information(believed, paths.variance, paths.log_depth)
    return execute(policy, paths, m, o, generator(9, "policy"), known)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("case", ["plain", "volume and depth"])
def test_schedule_for_estimates_is_that_of_the_estimated_urgency(name: str, case: str) -> None:
    m, o = CASES[case]
    family = EstimatedSchedule.around(FAMILIES[name], Condition("test", case, m, o), N)
    # Estimates of volatility and illiquidity off by up to a factor: ratio of urgencies from 1/4 to 4.
    volatility = torch.tensor([0.5, 0.8, 1.0, 1.0, 1.0, 1.3, 2.0])
    illiquidity = torch.tensor([2.0, 1.0, 1.3, 1.0, 0.6, 1.0, 0.5])
    believed = dataclasses.replace(
        m,
        heston=dataclasses.replace(m.heston, theta=m.heston.theta * volatility**2),
        liquidity=dataclasses.replace(m.liquidity, illiquidity=m.liquidity.illiquidity * illiquidity),
    )
    done = run_as_believed(family, m, o, believed, len(volatility)).inventory.double()
    exact = FAMILIES[name](believed, o, N).inventory
    torch.testing.assert_close(done, exact, rtol=0, atol=3e-4)
    # They do differ, and the truth is met exactly.
    assert (exact.amax(1) - exact.amin(1)).max() > 0.2
    truth = run_as_believed(family, m, o, m, 2).inventory.double()
    torch.testing.assert_close(truth[:, 0], FAMILIES[name](m, o, N).inventory, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_schedule_for_estimates_ends_at_five_times_the_urgency_and_at_a_fifth(name: str) -> None:
    m, o = CASES["plain"]
    family = EstimatedSchedule.around(FAMILIES[name], Condition("test", "plain", m, o), N)
    beliefs = dataclasses.replace(m.heston, theta=m.heston.theta * torch.tensor([1e-3, 1 / 25, 25.0, 1e3]))
    done = run_as_believed(family, m, o, dataclasses.replace(m, heston=beliefs), 4).inventory.double()
    for i, factor in enumerate((1 / 5, 1 / 5, 5, 5)):
        ends = dataclasses.replace(o, risk_aversion=o.risk_aversion * factor)
        torch.testing.assert_close(done[:, i], FAMILIES[name](m, ends, N).inventory, rtol=1e-4, atol=1e-6)


def test_experts_from_estimates_are_the_ensemble_where_estimates_are_true() -> None:
    m, o = CASES["volume and depth"]
    condition = Condition("test", "volume and depth", m, o)
    paths = simulate(m, 20, N, generator(10, "test"))
    estimated = from_estimates(condition, N)
    assert set(estimated) == set(SCHEDULE_EXPERTS)
    for name, policy in estimated.items():
        exact = SCHEDULE_EXPERTS[name]([condition], 20, N)
        inventories = [execute(p, paths, m, o, generator(10, "policy")).inventory for p in (policy, exact)]
        torch.testing.assert_close(*inventories, rtol=1e-4, atol=1e-6)
