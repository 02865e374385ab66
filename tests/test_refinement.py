"""Refinement reaches known optima, beats its start on new paths, and gives equal results for every K."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowoe_lib.execution import information as perception
from flowoe_lib.execution.execution import Execution, Observation, Policy, execute
from flowoe_lib.execution.features import FEATURES, features, fraction_of_action
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition, Heston, Impact, Liquidity, Market, Order, scalar
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, TrainingRun
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.training.imitation import demonstrate, imitate
from flowoe_lib.training.refinement import CHECKS, RefiningPolicy, muon_and_adam, refine, utility_scale

N, PATHS = 13, 2000
STEPS = (1, 2, 4, 8)


def conditions(cv: float) -> list[Condition]:
    def condition(volatility: float, risk_aversion: float) -> Condition:
        heston = Heston(scalar(volatility**2), scalar(5.0), scalar(cv), scalar(-0.6))
        return Condition("test", f"{volatility:g}", Market(heston), Order(scalar(0.1), scalar(risk_aversion)))

    return [condition(0.01, 5e-4), condition(0.02, 5e-4), condition(0.03, 1e-3)]


def training(cv: tuple[float, float]) -> TrainingRange:
    """A range that holds the conditions above."""
    return TrainingRange(
        kappa=(5.0, 5.0),
        rho=-0.6,
        volatility=(0.008, 0.035),
        illiquidity=(1.0, 2.0),
        cv=cv,
        size=(0.05, 0.2),
        risk_aversion=(2e-4, 1.2e-3),
    )


def utilities(policy: Policy, grid: list[Condition]) -> Tensor:
    """On paths that no training draws, [conditions, paths]."""
    market, order = batch(grid, PATHS)
    paths = simulate(market, len(grid) * PATHS, N, generator(9, "test"))
    with torch.no_grad():
        done = execute(policy, paths, market, order, generator(9, "policy"))
    return done.utility_bps(order).double().reshape(len(grid), PATHS)


def lower_bound(difference: Tensor) -> Tensor:
    """Four standard errors below the mean of paired differences, [conditions]."""
    return difference.mean(1) - 4 * difference.std(1) / math.sqrt(PATHS)


@pytest.fixture(scope="module")
def wild() -> TrainingRun:
    """Refined from scratch with a high volatility of variance."""
    torch.set_num_threads(1)
    return refine(EndpointField(generator(1, "init")), training((0.8, 1.8)), N, 150, 1)


def test_refined_policy_finds_the_static_optimum_where_volatility_is_constant() -> None:
    grid = conditions(cv=0.05)
    learned = refine(EndpointField(generator(1, "init")), training((0.04, 0.06)), N, 160, 1, paths=128)
    best = utilities(SCHEDULE_EXPERTS["static_optimal"](grid, PATHS, N), grid).mean(1)
    even = utilities(twap, grid).mean(1)
    for steps in STEPS:
        share = (utilities(FlowPolicy(learned.field, steps), grid).mean(1) - even) / (best - even)
        assert (share > 0.995).all()
        assert (share < 1.002).all()


def test_refined_policy_finds_twap_where_only_temporary_cost_counts() -> None:
    # On a flat day the cost is convex in the trades, so that an even schedule alone is cheapest.
    grid = conditions(cv=0.8)
    learned = refine(
        EndpointField(generator(2, "init")),
        training((0.4, 1.2)),
        N,
        120,
        2,
        paths=96,
        earned=lambda done, order: -done.temporary_bps,
    )
    market, order = batch(grid, 50)
    paths = simulate(market, 150, N, generator(9, "test"))
    with torch.no_grad():
        done, even = (
            execute(p, paths, market, order, generator(9, "policy"))
            for p in (FlowPolicy(learned.field, 2), twap)
        )
    excess = done.temporary_bps / even.temporary_bps - 1
    assert excess.min() > -1e-5
    assert excess.mean() < 2e-3


def test_refinement_beats_the_experts_it_starts_from(wild: TrainingRun) -> None:
    grid = conditions(cv=1.4)
    shown = demonstrate(SCHEDULE_EXPERTS, grid, 100, N, seed=3)
    imitated = imitate(shown, 300, 3, learning_rate=1e-2)
    before = copy.deepcopy(imitated.field.state_dict())
    refined = refine(imitated.field, training((0.8, 1.8)), N, 120, 3, paths=96)
    for name, value in imitated.field.state_dict().items():
        assert torch.equal(value, before[name])
        assert not torch.equal(value, refined.field.state_dict()[name])
    start = utilities(FlowPolicy(imitated.field, 2), grid)
    static = utilities(SCHEDULE_EXPERTS["static_optimal"](grid, PATHS, N), grid)
    for learned in (refined, wild):
        end = utilities(FlowPolicy(learned.field, 2), grid)
        assert (lower_bound(end - start) > 0).all()
        assert (lower_bound(end - static) > 0).all()


def test_result_is_the_same_for_every_number_of_solver_steps(wild: TrainingRun) -> None:
    grid = conditions(cv=1.4)
    even = utilities(twap, grid).mean(1)
    gain = torch.stack([utilities(FlowPolicy(wild.field, k), grid).mean(1) - even for k in STEPS])
    assert ((gain.amax(0) - gain.amin(0)) / gain.amax(0) < 0.003).all()
    # It is not so before refinement, where the flow still transports its noise.
    field = EndpointField(generator(1, "init"))
    with torch.no_grad():
        field.corrupt.weight.mul_(4)
        field.out.weight.mul_(20)
    raw = torch.stack([utilities(FlowPolicy(field, k), grid).mean(1) for k in STEPS])
    assert ((raw.amax(0) - raw.amin(0)) / gain.amax(0) > 0.005).all()


def test_curves_are_measured_on_the_same_days_in_every_training_and_rise() -> None:
    start = EndpointField(generator(1, "init"))
    wide = training((0.8, 1.8))
    first, second = (refine(start, wide, N, 50, seed, 192, 1e-2).curves for seed in (1, 2))
    for curves in (first, second):
        assert curves["utility"].shape == (CHECKS + 1,)
        assert curves["gradient"].shape == (50,)
        assert (curves["gradient"] > 0).all()
        assert (curves["utility"][2:] > curves["utility"][0]).all()
    assert first["utility"][0] == second["utility"][0]
    assert first["utility"][1] != second["utility"][1]


def test_the_curve_ends_at_what_the_policy_earns_on_other_days(wild: TrainingRun) -> None:
    market, order = training((0.8, 1.8)).draw(PATHS, generator(5, "conditions"))
    paths = simulate(market, PATHS, N, generator(5, "days"))
    with torch.no_grad():
        earned, even = (
            execute(policy, paths, market, order, generator(5, "policy")).utility_bps(order).double()
            for policy in (FlowPolicy(wild.field, 1), twap)
        )
    gain = (earned - even) / utility_scale(market, order)
    # The curve is measured on half the paths of an iteration.
    error = gain.std().item() * math.sqrt(1 / PATHS + 2 / 576)
    assert abs(gain.mean().item() - wild.curves["utility"][-1].item()) < 4 * error


def test_the_curve_counts_from_twap() -> None:
    def even(field: EndpointField, times: Tensor) -> Policy:
        learned = RefiningPolicy(field, times)
        return lambda obs, noise: twap(obs, noise) + 0 * learned(obs, noise)

    field = EndpointField(generator(1, "init"))
    curve = refine(field, training((0.8, 1.8)), N, 3, 1, paths=48, acting=even).curves["utility"]
    # float32 sums of thousands of bps.
    torch.testing.assert_close(curve, torch.zeros(4), atol=1e-3, rtol=0)


def test_every_weight_is_updated_once_and_inner_matrices_equally_in_all_directions() -> None:
    field = EndpointField(generator(1, "init"))
    movers = muon_and_adam(field, 0.1)
    moved = [id(p) for mover in movers for group in mover.param_groups for p in group["params"]]
    assert sorted(moved) == sorted(id(p) for p in field.parameters())
    before = copy.deepcopy(field.state_dict())
    gradients = {}
    for name, weight in field.named_parameters():
        gradient = torch.randn(weight.shape, generator=generator(2, name))
        if name.startswith("hidden") and gradient.dim() == 2:
            left, _, right = torch.linalg.svd(gradient)
            gradient = left @ torch.logspace(0, -1.5, len(left)).diag() @ right
        gradients[name] = weight.grad = gradient
    for mover in movers:
        mover.step()
    steps = {name: (before[name] - weight) / 0.1 for name, weight in field.state_dict().items()}
    for name in ("hidden.0.weight", "hidden.1.weight"):
        lengths = torch.linalg.svdvals(steps[name])
        assert lengths.min() > 0.5
        assert lengths.max() < 1.5
    # Elsewhere a step has the sign of the gradient and the same length in every weight.
    torch.testing.assert_close(steps["out.weight"], gradients["out.weight"].sign(), rtol=1e-4, atol=0)


def test_training_is_determined_by_its_seed() -> None:
    start = EndpointField(generator(4, "init"))
    first, again, other = (refine(start, training((0.4, 1.2)), 6, 3, seed, paths=16) for seed in (1, 1, 2))
    for a, b in zip(first.field.parameters(), again.field.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.curves["utility"], again.curves["utility"])
    assert not torch.equal(first.curves["utility"], other.curves["utility"])


def observation(n_paths: int) -> Observation:
    draws = generator(8, "test")
    return Observation(
        k=3,
        n_buckets=N,
        inventory=torch.rand(n_paths, generator=draws),
        return_bps=torch.zeros(n_paths),
        variance=4e-4 * torch.rand(n_paths, generator=draws),
        log_depth=torch.zeros(1),
        volume=torch.ones(N, 1),
        market=conditions(0.8)[0].market,
        order=conditions(0.8)[0].order,
        pre_trade=PreTrade.of(conditions(0.8)[0].market, conditions(0.8)[0].order),
    )


def test_decision_is_the_endpoint_seen_from_a_corruption_of_the_policy_s_own() -> None:
    field, obs = EndpointField(generator(5, "init")), observation(30)
    noise = torch.randn(30, generator=generator(6, "test"))
    t = torch.linspace(0, 1, 30)
    times = torch.full((N, 30), 0.3)
    times[3] = t
    fraction = RefiningPolicy(field, times)(obs, noise)
    with torch.no_grad():
        encoded = field.encode(features(obs))
        own = field(noise, torch.zeros(30), encoded)
        torch.testing.assert_close(
            fraction, fraction_of_action(obs, field((1 - t) * noise + t * own, t, encoded))
        )
        # Uncorrupted it is the one-step sample.
        uncorrupted = RefiningPolicy(field, torch.zeros(N, 30))(obs, noise)
        torch.testing.assert_close(uncorrupted, FlowPolicy(field, 1)(obs, noise))
    # The gradient is that of the answer alone: the corrupted action counts as given.
    fraction.sum().backward()
    corrupted = (1 - t) * noise + t * own
    twin = copy.deepcopy(field)
    twin.zero_grad()
    fraction_of_action(obs, twin(corrupted, t, twin.encode(features(obs)))).sum().backward()
    for a, b in zip(field.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_policy_that_acts_and_what_it_earns_can_be_replaced() -> None:
    executed: list[Execution] = []
    acting: list[Tensor] = []

    def act(field: EndpointField, times: Tensor) -> Policy:
        acting.append(times)
        return FlowPolicy(field, 2)

    def earn(done: Execution, order: Order) -> Tensor:
        executed.append(done)
        return done.pnl_bps

    refine(
        EndpointField(generator(1, "init")), training((0.4, 1.2)), N, 4, 1, paths=200, acting=act, earned=earn
    )
    # TWAP trades on the validation days once, the policy before training and after each of four iterations.
    measured = [times for times in acting if times.shape == (N, 100)]
    assert not torch.stack(measured).any()
    times = torch.stack([times for times in acting if times.shape == (N, 200)])
    assert (len(times), len(measured), len(executed)) == (4, 5, 4 + 5 + 1)
    # Half uncorrupted, the rest uniform.
    assert float((times == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(times[times > 0].mean()) == pytest.approx(0.5, abs=0.02)
    assert times.max() <= 1


def test_regimes_are_observed_as_depth_around_the_drawn_averages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where signals are plain.
    monkeypatch.setattr(perception, "SIGNALS", (0.02, 0.03))
    met: list[Observation] = []

    def act(field: EndpointField, times: Tensor) -> Policy:
        def policy(obs: Observation, noise: Tensor) -> Tensor:
            met.append(obs)
            return RefiningPolicy(field, times)(obs, noise)

        return policy

    switching = dataclasses.replace(training((0.4, 1.2)), regimes=1.0)
    refine(EndpointField(generator(1, "init")), switching, N, 1, 1, paths=500, acting=act)
    # On the days of one iteration, and on the validation days before and after it.
    assert len(met) == 3 * (N - 1)
    for obs in met:
        assert not obs.market.regimes.present
        volatility = obs.market.heston.theta.sqrt()
        assert volatility.min() > 0.008 - 1e-6
        assert volatility.max() < 0.035 + 1e-6
        # Two levels on each path, about as far apart as the averages say.
        spread = obs.market.liquidity.depth_sd
        assert float((obs.log_depth / spread).square().mean()) == pytest.approx(1, abs=0.3)
    levels = torch.stack([obs.log_depth for obs in met if len(obs.inventory) == 500])
    either = torch.minimum((levels - levels.amin(0)).abs(), (levels - levels.amax(0)).abs())
    assert either.max() < 1e-4
    assert (levels.amax(0) - levels.amin(0) > 0.1).float().mean() > 0.5


@given(
    volatility=st.floats(0.005, 0.05),
    size=st.floats(0.01, 0.25),
    risk_aversion=st.floats(0, 1e-3),
    depth_sd=st.floats(0, 0.6),
    amplitude=st.floats(0, 1.2),
    factor=st.floats(0.1, 10),
)
def test_utility_scale_is_positive_and_of_degree_one_in_cost(
    volatility: float, size: float, risk_aversion: float, depth_sd: float, amplitude: float, factor: float
) -> None:
    heston = Heston(scalar(volatility**2), scalar(5.0), scalar(0.8), scalar(-0.6))

    def scale(eta: float, risk_aversion: float) -> float:
        liquidity = Liquidity(depth_sd=scalar(depth_sd), profile_amplitude=scalar(amplitude))
        market = Market(heston, Impact(eta=scalar(eta)), liquidity)
        return float(utility_scale(market, Order(scalar(size), scalar(risk_aversion))))

    one = scale(0.142, risk_aversion)
    assert math.isfinite(one)
    assert one > 0
    # Scaling trading cost and risk charge by one factor changes the unit of account only.
    assert scale(0.142 * factor, risk_aversion * factor) == pytest.approx(factor * one, rel=1e-4)


def test_field_reads_every_feature_of_the_observation() -> None:
    field, obs = EndpointField(generator(5, "init")), observation(30)
    assert field.observe.weight.shape[1] == len(FEATURES) == features(obs).shape[1]
    assert torch.isfinite(features(obs)).all()
