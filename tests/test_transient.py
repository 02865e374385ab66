"""Impact with memory against closed forms, published numbers, brute force and the model without memory."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, minimize
from torch import Tensor

from flowoe_lib.evaluation.extrapolation import violations
from flowoe_lib.execution.environment import advance, advantage_over_twap, controlled_utility, twap_value
from flowoe_lib.execution.execution import Observation, OrderSimulation, Policy, execute, execute_schedule
from flowoe_lib.execution.features import FEATURES, MEMORY_FEATURES, feature_count, features
from flowoe_lib.execution.information import Perceive, exact, variance_revealed
from flowoe_lib.market.impact import impact_path, impact_slope, memory_weights, temporary_cost
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, Regimes, scalar, volume_profile
from flowoe_lib.market.pre_trade import PreTrade, moment_matched
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.alfonsi_fruth_schied import alfonsi_fruth_schied
from flowoe_lib.policies.dynamic_programming import Optimum
from flowoe_lib.policies.filtered import solve_filtered_regimes
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.policies.schedules import expected_cost, expected_utility, static_optimal, twap
from flowoe_lib.policies.trajectory import best_trades
from flowoe_lib.randomness import generator
from flowoe_lib.training.refinement import refine

N = 39
HALF_LIVES = [0.05, 0.15, 0.4]
Array = NDArray[np.float64]


def market(
    half_life: float, beta: float = 0.6, volatility: float = 0.02, cv: float = 0.8, amplitude: float = 0.0
) -> Market:
    heston = Heston(scalar(volatility**2), scalar(5.0), scalar(cv), scalar(-0.6))
    resilience = scalar(math.log(2) / half_life if half_life else math.inf)
    liquidity = Liquidity(profile_amplitude=scalar(amplitude))
    return Market(heston, Impact(beta=scalar(beta), resilience=resilience), liquidity)


def order(risk_aversion: float = 5e-4) -> Order:
    return Order(scalar(0.1), scalar(risk_aversion))


def days(m: Market, n: int, n_buckets: int = N) -> MarketPaths:
    return simulate(m, n, n_buckets, generator(1, "transient"))


def fractions(seed: int) -> Tensor:
    return 0.3 * torch.rand(N, 1, generator=generator(seed, "fractions"))


def random_policy(seed: int) -> Policy:
    def policy(obs: Observation, noise: Tensor) -> Tensor:
        return fractions(seed)[obs.k].expand_as(noise)

    return policy


def test_a_plan_is_the_same_alone_and_beside_other_plans() -> None:
    draws, shape = generator(6, "batch"), (13, 60)
    normal = [torch.randn(shape, generator=draws).double() for _ in range(3)]
    slope, pull, gain = 10 * normal[0].exp(), 10 * normal[1].exp(), 30 * normal[2]
    held, state = torch.rand(2, 60, generator=draws).double()
    decay, beta = torch.tensor([0.8, 0.6]).double()
    together = best_trades(slope, decay, beta, pull, gain, held, state)
    for i in range(60):
        one = slice(i, i + 1)
        alone = best_trades(slope[:, one], decay, beta, pull[:, one], gain[:, one], held[one], state[one])
        torch.testing.assert_close(together[:, one], alone, rtol=0, atol=1e-12)


def book_cost(traded: Array, slope: Array, decay: float, beta: float) -> float:
    """Cost of trades, by walking the book one trade at a time."""
    state = total = 0.0
    for x, s in zip(traded, slope, strict=True):
        total += s * (abs(state + x) ** (1 + beta) - abs(state) ** (1 + beta))
        state = (state + x) * decay
    return total


def test_infinite_resilience_is_the_model_without_memory_to_the_last_digit() -> None:
    m, o = market(0.0, cv=1.3, amplitude=0.8), order()
    paths, draw = days(m, 300), generator(2, "noise")
    done = execute(random_policy(3), paths, m, o, draw)
    pace = o.size / (paths.volume * torch.exp(paths.log_depth))
    slope = m.temporary_cost_bps(pace) * paths.dt ** (-m.impact.beta)
    cost = torch.zeros(300)
    inventory = torch.ones(300)
    for k in range(N):
        sold = inventory if k == N - 1 else inventory * fractions(3)[k]
        cost = cost + slope[k] * sold ** (1 + m.impact.beta)
        inventory = inventory - sold
    assert torch.equal(done.temporary_bps, cost)
    assert not done.impact.any()
    # One path with memory sends all through the formula with memory, which changes no other path.
    mixed = torch.full((300,), math.inf)
    mixed[7] = 3.0
    some = replace(m, impact=replace(m.impact, resilience=mixed))
    other = execute(random_policy(3), paths, some, o, generator(2, "noise"))
    rest = torch.arange(300) != 7
    assert torch.equal(other.temporary_bps[rest], done.temporary_bps[rest])
    assert other.temporary_bps[7] != done.temporary_bps[7]


def test_a_small_half_life_approaches_the_model_without_memory() -> None:
    paths, o = days(market(0.0), 50), order()
    limit, near = (execute(twap, paths, market(h), o, generator(1, "n")) for h in (0.0, 1e-3))
    torch.testing.assert_close(near.utility_bps(o), limit.utility_bps(o), rtol=1e-6, atol=0)


@pytest.mark.parametrize("resilience", [0.0, -1.0, math.nan])
def test_resilience_must_be_positive(resilience: float) -> None:
    with pytest.raises(ValueError, match=r"Impact\.resilience = .*: must be > 0"):
        Impact(resilience=scalar(resilience))


@pytest.mark.parametrize(("half_life", "factor"), [(0.05, 2.84), (0.15, 4.89), (0.4, 6.81)])
def test_an_even_schedule_costs_the_same_with_and_without_memory(half_life: float, factor: float) -> None:
    m, o = market(half_life), order()
    slope, plain = (impact_slope(x, o.size, N) for x in (m, market(0.0)))
    assert (plain / slope).item() == pytest.approx(factor, abs=0.005)
    even = torch.linspace(1, 0, N + 1)
    done = execute_schedule(even, days(m, 3), m, o)
    torch.testing.assert_close(done.temporary_bps, m.temporary_cost_bps(o.size).expand(3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("half_life", HALF_LIVES)
def test_execution_schedules_and_a_walk_through_the_book_agree(half_life: float) -> None:
    m, o = market(half_life, amplitude=0.8), order()
    plan = static_optimal(m, o, N)
    paths = days(m, 4)
    done = execute(plan, paths, m, o, generator(1, "noise"))
    followed = execute_schedule(plan.inventory.float(), paths, m, o)
    torch.testing.assert_close(done.temporary_bps, followed.temporary_bps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(done.impact, followed.impact, rtol=1e-4, atol=1e-5)
    slope = impact_slope(m, o.size / volume_profile(m.liquidity, N), N).double().numpy()
    cost = book_cost(-plan.inventory.diff().numpy(), slope, 2 ** (-1 / N / half_life), 0.6)
    assert done.temporary_bps[0].item() == pytest.approx(cost, rel=1e-4)
    whole = expected_cost(m, o, plan.inventory) - done.permanent_bps[0]
    assert whole.item() == pytest.approx(cost, rel=1e-4)


def test_the_closed_form_at_the_published_exponent() -> None:
    m, o = market(0.15), order(0.0)
    traded = -alfonsi_fruth_schied(m, o, N).inventory.diff()
    assert traded[0].item() == pytest.approx(0.1584, abs=5e-5)
    torch.testing.assert_close(traded[1:-1], torch.full((N - 2,), 0.0177).double(), rtol=0, atol=5e-5)
    assert traded[-1].item() == pytest.approx(0.1866, abs=5e-5)
    done = execute_schedule(alfonsi_fruth_schied(m, o, N).inventory.float(), days(m, 1), m, o)
    assert (done.temporary_bps / m.temporary_cost_bps(o.size)).item() == pytest.approx(0.9426, abs=5e-5)


@pytest.mark.parametrize("half_life", HALF_LIVES)
@pytest.mark.parametrize("beta", [0.45, 0.6, 1.0])
def test_the_closed_form_solves_its_equation_and_is_the_static_optimum(half_life: float, beta: float) -> None:
    m, o, a = market(half_life, beta), order(0.0), 2 ** (-1 / N / half_life)
    plan = alfonsi_fruth_schied(m, o, N).inventory
    block = 1 - plan[1].item()
    left = (1 - (N - 1) * block * (1 - a)) ** beta
    assert left == pytest.approx((block**beta - a * (a * block) ** beta) / (1 - a), rel=1e-6)
    torch.testing.assert_close(static_optimal(m, o, N).inventory, plan, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("aversion", "ends", "cost"),
    [(0.0, (19_230.77, 19_230.77), 3_076_923.08), (1e-4, (36_515.15, 10_650.95), 4_890_151.08)],
)
def test_linear_impact_gives_the_published_numbers(
    aversion: float, ends: tuple[float, float], cost: float
) -> None:
    # Obizhaeva and Wang (2013), 1e5 shares in ten trades, 40 % of the impact gone from one to the next.
    shares, slope = 1e5, torch.full((10, 1), 1 / 500 / 2, dtype=torch.float64)
    flat = torch.ones_like(slope)
    decay, beta = torch.tensor([0.6, 1.0], dtype=torch.float64)
    one = torch.tensor([shares]).double()
    traded = best_trades(slope, decay, beta, 2 * aversion * flat, 0 * flat, one, 0 * one)
    assert traded[0].item() == pytest.approx(ends[0], abs=0.005)
    assert traded[-1].item() == pytest.approx(ends[1], abs=0.005)
    paid = book_cost(traded[:, 0].numpy(), slope[:, 0].numpy(), 0.6, 1.0)
    held = shares - traded.cumsum(0)
    assert paid + aversion * float(held.square().sum()) == pytest.approx(cost, abs=0.005)


def objective(
    a: Array, slope: Array, decay: float, beta: float, pull: Array, drift: float, q: float, state: float
) -> float:
    total = 0.0
    for k, x in enumerate(a):
        total += slope[k] * ((state + x) ** (1 + beta) - state ** (1 + beta))
        q, state = q - x, (state + x) * decay
        total += pull[k] / 2 * q * q - drift * q
    return total


@pytest.mark.parametrize("seed", range(6))
def test_best_trades_are_those_of_sequential_quadratic_programming(seed: int) -> None:
    rng, n = np.random.default_rng(seed), 8
    beta, decay = rng.choice([0.45, 0.6, 0.75]), 2 ** (-1 / n / rng.choice(HALF_LIVES))
    slope = 10 * np.exp(0.1 * rng.normal(size=n))
    pull = 10 ** rng.uniform(-1, 1.5) * np.exp(0.3 * rng.normal(size=n))
    drift, q, state = rng.choice([0.0, 3.0, -3.0]), rng.uniform(0.2, 1), 0.3 * rng.uniform() * (seed % 2)
    columns = [torch.from_numpy(x)[:, None] for x in (slope, pull, np.full(n, drift))]
    start, law = torch.tensor([[q], [state]]).double(), torch.tensor([decay, beta]).double()
    ours = best_trades(columns[0], *law, *columns[1:], *start)[:, 0].numpy()

    def loss(a: Array) -> float:
        return objective(a, slope, decay, beta, pull, drift, q, state)

    search: dict[str, Any] = {
        "method": "SLSQP",
        "bounds": [(0, q)] * n,
        "constraints": {"type": "eq", "fun": lambda a: a.sum() - q},
        "options": {"maxiter": 300, "ftol": 1e-12},
    }
    best = min(minimize(loss, rng.dirichlet(np.ones(n)) * q, **search).fun for _ in range(2))
    assert ours.min() > -1e-12
    assert ours.sum() == pytest.approx(q)
    assert loss(ours) <= best + 1e-6 * abs(best)


def test_the_static_optimum_beats_all_small_changes_of_it() -> None:
    m, o = market(0.15, amplitude=0.8), order()
    plan = static_optimal(m, o, N).inventory
    best = expected_utility(m, o, plan)
    draws = generator(5, "changes")
    for scale in (1e-3, 1e-2):
        traded = -plan.diff()[:, None] * torch.exp(scale * torch.randn(N, 200, generator=draws).double())
        left = 1 - (traded / traded.sum(0)).cumsum(0)
        others = expected_utility(m, o, torch.cat((torch.ones(1, 200).double(), left)))
        assert (others < best + 1e-9).all()


@pytest.mark.parametrize("half_life", [0.04, *HALF_LIVES])
@pytest.mark.parametrize("amplitude", [0.0, 0.8])
def test_no_round_trip_earns_money(half_life: float, amplitude: float) -> None:
    m = market(half_life, amplitude=amplitude)
    slope = impact_slope(m, scalar(0.1) / volume_profile(m.liquidity, N), N).double()
    decay = torch.exp(-m.impact.resilience.double() / N)
    weights = memory_weights(slope, decay, m.impact.beta.double())
    assert (weights > 0).all()
    trades = torch.randn(N, 500, generator=generator(1, "trips")).double()
    trades = trades - trades.mean(0)
    states = impact_path(trades, decay, torch.zeros(1).double())[:-1]
    cost = (slope[:, None] * temporary_cost(states, trades, m.impact.beta.double())).sum(0)
    assert (cost > 0).all()
    after = (states + trades).abs() ** 1.6
    torch.testing.assert_close((weights[:, None] * after).sum(0), cost, rtol=1e-6, atol=0)


def test_a_round_trip_earns_money_where_depth_vanishes_faster_than_impact() -> None:
    # Buy while the book is deep, sell what moved the price once it is thin; the rest is sold over the day.
    decay, beta = torch.tensor([0.95, 0.6]).double()
    slope = torch.tensor([1.0] + [30.0] * 38).double()
    assert memory_weights(slope, decay, beta)[0] < 0
    trades = torch.full((N,), -0.05 / (N - 2)).double()
    trades[0], trades[1] = 1.0, -0.95
    assert book_cost(trades.numpy(), slope.numpy(), 0.95, 0.6) < 0


def test_the_cost_has_a_finite_gradient_where_nothing_was_traded() -> None:
    m, o = market(0.15), order()
    z = torch.zeros(N, requires_grad=True)

    def policy(obs: Observation, noise: Tensor) -> Tensor:
        return (z[obs.k] * (1 + obs.impact)).expand_as(noise)

    execute(policy, days(m, 2), m, o, generator(1, "n")).utility_bps(o).sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad[:-1]).all()
    assert (z.grad[:-1] > 0).all()


@pytest.mark.parametrize("half_life", HALF_LIVES)
def test_replanning_with_constant_variance_is_the_static_optimum(half_life: float) -> None:
    m, o = market(half_life, cv=1e-3, amplitude=0.8), order()
    done = execute(mpc, days(m, 2, 13), m, o, generator(1, "n"))
    plan = static_optimal(m, o, 13).inventory
    torch.testing.assert_close(done.inventory[:, 0].double(), plan, rtol=0, atol=2e-3)
    mean = done.utility_bps(o).double().mean().item()
    assert mean == pytest.approx(float(expected_utility(m, o, plan)), rel=1e-3)


def test_the_more_a_policy_takes_into_account_the_higher_its_utility() -> None:
    m, o, n = market(0.15, volatility=0.019, cv=1.3), order(), 13
    paths = days(m, 400, n)
    ranking: list[Policy] = [
        mpc,
        static_optimal(m, o, n),
        static_optimal(market(0.0, volatility=0.019, cv=1.3), o, n),
        alfonsi_fruth_schied(m, o, n),
        twap,
    ]
    u = [execute(policy, paths, m, o, generator(1, "n")).utility_bps(o).mean() for policy in ranking]
    assert u == sorted(u, reverse=True)


@pytest.mark.parametrize("k", [0, 9, N - 1])
def test_the_value_of_twap_counts_earlier_impact(k: int) -> None:
    m, o = market(0.15, cv=1e-3, amplitude=0.8), order()
    simulation = OrderSimulation(days(m, 2), m, o)
    inventory, impact = torch.full((2,), 0.6), torch.full((2,), 0.25)
    value, left, state = twap_value(simulation, k, k, inventory, impact), inventory, impact
    total = torch.zeros(2)
    for j in range(k, N):
        rest, *costs = simulation.fill(j, left, left / (N - j), state)
        booked = simulation.book(j, torch.stack((left, rest)), *costs)
        total = total + booked.utility_bps(o)
        state, left = (state + left - rest) * simulation.decay, rest
    torch.testing.assert_close(value, total, rtol=1e-3, atol=0)


def test_rewards_of_decisions_sum_to_the_utility_of_the_order() -> None:
    m, o = market(0.15, amplitude=0.8), order()
    paths = days(m, 20)
    simulation, scores = OrderSimulation(paths, m, o), torch.randn(N - 1, 20, generator=generator(4, "z"))
    inventory, impact, total = torch.ones(20), torch.zeros(20), torch.zeros(20)
    for k, score in enumerate(scores):
        held = inventory
        even = advance(simulation, k, held, torch.zeros(20), advantage_over_twap, impact)[1]
        assert even.abs().max() < 1e-4
        inventory, earned = advance(simulation, k, held, score, controlled_utility, impact)
        impact, total = (impact + held - inventory) * simulation.decay, total + earned

    def replay(obs: Observation, noise: Tensor) -> Tensor:
        return torch.sigmoid(scores[obs.k] - math.log(N - obs.k - 1))

    done = execute(replay, paths, m, o, generator(1, "n")).utility_bps(o)
    torch.testing.assert_close(total, done, rtol=1e-4, atol=1e-4)


SHORT = 13
NODES = {"inventory_nodes": 25, "impact_nodes": 17, "variance_nodes": 11}
STRESSED = market(0.15, volatility=0.019, cv=1.3)


@pytest.fixture(scope="module")
def optimum() -> Optimum:
    return solve_oracle(STRESSED, order(), SHORT, **NODES)


def utility(policy: Policy, n: int = 4_000) -> Tensor:
    paths = days(STRESSED, n, SHORT)
    return execute(policy, paths, STRESSED, order(), generator(1, "n")).utility_bps(order()).double()


def test_the_value_of_the_oracle_is_its_simulated_utility(optimum: Optimum) -> None:
    u = utility(optimum)
    assert u.mean().item() == pytest.approx(optimum.value_bps, abs=4 * float(u.std()) / 4_000**0.5)


def test_no_policy_beats_the_oracle(optimum: Optimum) -> None:
    best, replanned, static, even = (
        utility(policy, 1_000) for policy in (optimum, mpc, static_optimal(STRESSED, order(), SHORT), twap)
    )
    # Replanning ignores that variance is random, which costs a little here.
    assert best.mean() > replanned.mean() > static.mean() > even.mean()
    assert (replanned - even).mean() / (best - even).mean() > 0.97


@pytest.mark.parametrize("half_life", [0.05, 0.4])
@pytest.mark.parametrize("drift", [0.0, 60.0])
def test_with_constant_variance_the_oracle_is_worth_the_static_optimum(
    half_life: float, drift: float
) -> None:
    m = replace(market(half_life, cv=1e-3, amplitude=0.8), drift=scalar(drift))
    plan = static_optimal(m, order(), SHORT).inventory
    value = solve_oracle(m, order(), SHORT, variance_nodes=4).value_bps
    assert value == pytest.approx(float(expected_utility(m, order(), plan)), rel=1e-3)


def test_without_memory_it_is_the_oracle_without_memory() -> None:
    m = market(1e-3, cv=1.3)
    plain = solve_oracle(market(0.0, cv=1.3), order(), SHORT)
    assert solve_oracle(m, order(), SHORT, **NODES).value_bps == pytest.approx(plain.value_bps, rel=5e-4)


def test_the_oracle_times_trades_to_random_depth_under_memory_too() -> None:
    m = replace(STRESSED, liquidity=Liquidity(depth_sd=scalar(0.5), depth_reversion=scalar(8.0)))
    nodes = {"inventory_nodes": 21, "impact_nodes": 13, "variance_nodes": 7, "depth_nodes": 7}
    oracle = solve_oracle(m, order(), SHORT, **nodes)
    paths = days(m, 4_000, SHORT)
    u, planned = (
        execute(policy, paths, m, order(), generator(1, "n")).utility_bps(order()).double()
        for policy in (oracle, mpc)
    )
    error = float(u.std()) / 4_000**0.5
    assert u.mean().item() == pytest.approx(oracle.value_bps, abs=4 * error)
    # Re-planning takes the forecasts of variance and depth for certain, which costs little.
    assert 0 < u.mean() - planned.mean() < 0.02 * abs(oracle.value_bps)


@pytest.mark.parametrize(("delta", "half_life"), [(0.7, 0.05), (0.3, 0.05), (0.45, 0.3)])
def test_static_optimum_under_sublinear_permanent_impact_is_the_best_that_another_optimiser_finds(
    delta: float, half_life: float
) -> None:
    m, o, n = market(half_life, amplitude=0.5), order(), 6
    m = replace(m, impact=replace(m.impact, delta=scalar(delta)))

    def loss(x: Array) -> float:
        left = torch.from_numpy(np.r_[1, 1 - np.clip(x, 0, 1).cumsum()])
        return -float(expected_utility(m, o, left.clamp_min(0)))

    whole = LinearConstraint(np.ones((1, n)), 1, 1)
    starts = np.random.default_rng(0).dirichlet(np.full(n, 0.5), size=12)
    others = [minimize(loss, x, method="SLSQP", bounds=Bounds(0, 1), constraints=whole).x for x in starts]
    best = max(-loss(np.clip(x, 0, 1) / np.clip(x, 0, 1).sum()) for x in others)
    found = float(expected_utility(m, o, static_optimal(m, o, n).inventory))
    assert found > best - 5e-4 * abs(best)


REGIMES = Regimes(scalar(2.0), scalar(3.0), scalar(2.0), scalar(6.0))
GRID = {"inventory_nodes": 25, "impact_nodes": 15, "variance_nodes": 7}
REMEMBERING: dict[str, tuple[Market, Callable[[Market], Optimum], Perceive]] = {
    "regimes": (
        replace(STRESSED, regimes=REGIMES),
        lambda m: solve_oracle(m, order(), SHORT, **GRID),
        exact,
    ),
    "regimes and sub-linear permanent impact": (
        replace(STRESSED, regimes=REGIMES, impact=replace(STRESSED.impact, delta=scalar(0.7))),
        lambda m: solve_oracle(m, order(), SHORT, **GRID),
        exact,
    ),
    "hidden regimes": (
        replace(STRESSED, regimes=REGIMES),
        lambda m: solve_filtered_regimes(
            m, order(), SHORT, inventory_nodes=25, variance_nodes=7, belief_nodes=9
        ),
        variance_revealed,
    ),
    "impact that depends on variance": (
        replace(STRESSED, impact=replace(STRESSED.impact, variance_exponent=scalar(0.5))),
        lambda m: solve_oracle(m, order(), SHORT, **GRID | {"variance_nodes": 15}),
        exact,
    ),
    "hidden drift": (
        replace(market(0.15, cv=0.02), drift_sd=scalar(60.0)),
        lambda m: solve_belief(m, order(), SHORT, inventory_nodes=31, belief_nodes=21),
        exact,
    ),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_every_optimum_under_memory_has_the_value_that_it_is_solved_for(name: str) -> None:
    m, solve, perceive = REMEMBERING[name]
    m = replace(m, heston=replace(m.heston, rho=scalar(0.0)))
    optimum, paths = solve(m), days(m, 6_000, SHORT)
    known = perceive(paths, m, generator(2, "perception"))
    u, fixed = (
        execute(policy, paths, m, order(), generator(1, "n"), known).utility_bps(order()).double()
        for policy in (optimum, static_optimal(moment_matched(m), order(), SHORT))
    )
    assert u.mean().item() == pytest.approx(optimum.value_bps, abs=4 * float(u.std()) / 6_000**0.5)
    lead = u - fixed
    assert lead.mean() > 4 * lead.std() / 6_000**0.5


def test_too_few_nodes_of_impact_are_refused() -> None:
    with pytest.raises(ValueError, match="25 x 9 x 13 x 3 nodes"):
        solve_oracle(STRESSED, order(), SHORT, inventory_nodes=25, variance_nodes=9, impact_nodes=3)


def test_memory_features_are_finite_and_constant_without_memory() -> None:
    columns = len(FEATURES) + len(MEMORY_FEATURES)
    assert (feature_count(market(0.0)), feature_count(STRESSED)) == (len(FEATURES), columns)
    impact, left = torch.tensor([0.0, 1e-9, 0.3]), torch.tensor([1.0, 0.0, 0.4])
    shown = {}
    for half_life in (0.0, 0.15):
        m = market(half_life)
        obs = OrderSimulation(days(m, 3), m, order()).observe(5, left, impact)
        shown[half_life] = features(obs, columns)
        assert torch.equal(shown[half_life][:, : len(FEATURES)], features(obs))
    assert torch.equal(shown[0.0][:, len(FEATURES) :], torch.zeros(3, len(MEMORY_FEATURES)))
    assert torch.isfinite(shown[0.15]).all()
    # The closed forms of the columns at E = .3, q = .4, half-life .15.
    decay = 2 ** (-1 / N / 0.15)
    expected = [0.3**0.5, (decay * 0.3) ** 0.6, math.log(0.75) / 2, decay, 2 + math.log(0.15)]
    torch.testing.assert_close(shown[0.15][2, len(FEATURES) :], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("half_life", [0.08, 0.15, 0.4])
@pytest.mark.parametrize("beta", [0.45, 0.75])
def test_the_attainable_gain_is_near_that_of_the_closed_form(half_life: float, beta: float) -> None:
    m, o = market(half_life, beta, cv=0.02), order(0.0)
    done = execute_schedule(alfonsi_fruth_schied(m, o, N).inventory.float(), days(m, 1), m, o)
    gain = 1 - (done.temporary_bps / m.temporary_cost_bps(o.size)).item()
    assert 0.5 < PreTrade.of(m, o).attainable_gain.item() / gain < 2


def test_a_range_with_memory_draws_half_lives_log_uniformly_and_changes_nothing_else() -> None:
    plain = TrainingRange(kappa=(1.0, 5.0), rho=-0.5)
    some = replace(plain, memory=0.6)
    (m, o), (other, same) = (r.draw(4_000, generator(3, "range")) for r in (plain, some))
    assert torch.equal(m.heston.theta, other.heston.theta)
    assert torch.equal(o.size, same.size)
    half_life = math.log(2) / other.impact.resilience
    present = half_life > 0
    assert present.float().mean().item() == pytest.approx(0.6, abs=0.03)
    place = (half_life[present] / 0.04).log() / math.log(0.5 / 0.04)
    torch.testing.assert_close(place.sort().values, torch.linspace(0, 1, len(place)), rtol=0, atol=0.04)
    refused = [str(v) for v in violations(plain, STRESSED, order())]
    assert any("half-life of impact = 0.15: trained on 0 to 0" in v for v in refused)
    assert not any("half-life" in str(v) for v in violations(some, STRESSED, order()))


def test_refinement_through_the_simulator_reaches_the_oracle(optimum: Optimum) -> None:
    one = TrainingRange(
        kappa=(5.0, 5.0),
        rho=-0.6,
        volatility=(0.018, 0.02),
        illiquidity=(1.0, 1.0),
        cv=(1.2, 1.4),
        size=(0.09, 0.11),
        risk_aversion=(5e-4, 5e-4),
        memory=1.0,
        half_life=(0.14, 0.16),
    )
    start = EndpointField(generator(1, "weights"), feature_count(STRESSED))
    field = refine(start, one, SHORT, 50, 1, paths=96).field
    with torch.no_grad():
        floor, learned, best = (utility(p, 1_000).mean() for p in (twap, FlowPolicy(field, 1), optimum))
    assert (learned - floor) / (best - floor) > 0.97
