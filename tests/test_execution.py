"""Execution of policies: costs against closed forms and simple bookkeeping, and no look-ahead."""

import copy
import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowoe_lib.execution.execution import (
    SCORE_LIMIT,
    Execution,
    Observation,
    OrderSimulation,
    Policy,
    execute,
    execute_schedule,
    fraction_of_score,
    score_of_fraction,
)
from flowoe_lib.execution.information import Information
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.impact import permanent_shift, round_trip_cost
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, scalar
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.almgren_chriss import almgren_chriss
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.policies.schedules import Schedule, static_optimal, twap, vwap
from flowoe_lib.randomness import generator

THETA, N, ETA, GAMMA = 4e-4, 39, 0.142, 0.314 * 263**0.25
HESTON = Heston(scalar(THETA), scalar(5.0), scalar(0.8), scalar(-0.6))
RICH = Market(
    HESTON,
    Impact(delta=scalar(0.7)),
    Liquidity(scalar(2.0), scalar(0.5), scalar(12.0), scalar(0.8)),
    drift=scalar(30.0),
)
ORDER = Order(scalar(0.1), scalar(5e-4))


def run(
    policy: Policy,
    market: Market = RICH,
    order: Order = ORDER,
    n_paths: int = 64,
    n_buckets: int = N,
    seed: int = 1,
) -> Execution:
    paths = simulate(market, n_paths, n_buckets, generator(seed, "test"))
    return execute(policy, paths, market, order, generator(seed, "policy"))


def still(n_buckets: int) -> MarketPaths:
    """One day on which nothing happens."""
    quiet = torch.zeros(n_buckets, 1)
    flat = quiet + THETA / n_buckets
    calm = torch.zeros_like(quiet, dtype=torch.bool)
    return MarketPaths(
        1 / n_buckets, quiet, quiet, quiet + THETA, flat, flat, quiet, quiet + 1, quiet[0], calm
    )


def scattered(obs: Observation, noise: Tensor) -> Tensor:
    """Trades at random, and faster when the price has moved."""
    return torch.sigmoid(noise - 2 + obs.return_bps / 100)


def fractions(plan: list[float]) -> Policy:
    return lambda obs, noise: torch.full_like(noise, plan[obs.k])


plans = st.lists(st.floats(0, 1), min_size=N - 1, max_size=N - 1)


def test_profit_equals_a_ledger() -> None:
    done, paths = run(scattered), simulate(RICH, 64, N, generator(1, "test"))
    phi, beta, delta, dt = 0.1, 0.6, 0.7, 1 / N
    daily = 1e4 * math.sqrt(THETA)
    for path in range(5):
        mid, cash, impact, risk = 0.0, 0.0, 0.0, 0.0
        inventory = done.inventory[:, path].tolist()
        for k in range(N):
            sold = inventory[k] - inventory[k + 1]
            ready = paths.volume[k, 0].item() * math.exp(paths.log_depth[k, path].item()) * dt
            slippage = daily * ETA * 2 * (phi * sold / ready) ** beta
            shift = daily * GAMMA * (phi * sold / dt) ** delta * dt
            cash += sold * (mid - impact - shift / 2 - slippage)
            impact += shift
            mid += paths.martingale_bps[k, path].item() + 30 / N
            risk += 1e8 * inventory[k + 1] ** 2 * paths.integrated_variance[k, path].item()
        assert done.pnl_bps[path].item() == pytest.approx(cash, rel=1e-3, abs=1e-3)
        assert done.risk[path].item() == pytest.approx(risk, rel=1e-4)


@pytest.mark.parametrize(("amplitude", "illiquidity"), [(0.0, 1.0), (0.8, 3.0), (-0.5, 1.0)])
def test_twap_cost_in_closed_form(amplitude: float, illiquidity: float) -> None:
    market = Market(HESTON, Impact(), Liquidity(scalar(illiquidity), profile_amplitude=scalar(amplitude)))
    done = run(twap, market)
    flat = 1e4 * ETA * illiquidity * math.sqrt(THETA) * 0.1**0.6
    # Bucket means of the profile 1 + A (3 x^2 - 1) / 2 over x in [-1, 1].
    edges = [2 * k / N - 1 for k in range(N + 1)]
    profile = [1 + amplitude * N / 4 * (b**3 - b - a**3 + a) for a, b in pairwise(edges)]
    expected = flat * sum(u**-0.6 for u in profile) / N
    torch.testing.assert_close(done.temporary_bps, torch.full((64,), expected), rtol=1e-5, atol=0)
    even = torch.linspace(1, 0, N + 1)
    torch.testing.assert_close(done.inventory, even[:, None].expand(-1, 64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("buckets", "temporary", "total"), [(1, 22, 32), (2, 15, 25), (5, 8, 18)])
def test_published_example_of_ibm(buckets: int, temporary: int, total: int) -> None:
    """Almgren et al. (2005), table 2: 10 % of the day's volume within .1, .2 or .5 of a day, bps."""
    impact = Impact(turnover_days=scalar(1728 / 6.561))
    market = Market(dataclasses.replace(HESTON, theta=scalar(0.0157**2)), impact)
    evenly = (1 - torch.arange(11) / buckets).clamp(min=0)
    done = execute_schedule(evenly, still(10), market, ORDER)
    assert 2 * done.permanent_bps.item() == pytest.approx(19.9, abs=0.05)
    assert done.temporary_bps.item() == pytest.approx(temporary, abs=0.5)
    assert (done.temporary_bps + done.permanent_bps).item() == pytest.approx(total, abs=0.5)


@given(plans)
def test_linear_permanent_impact_costs_half_its_total_whatever_the_schedule(plan: list[float]) -> None:
    market = Market(HESTON)
    done = execute(fractions(plan), still(N), market, ORDER, generator(1, "test"))
    half = 1e4 * GAMMA * math.sqrt(THETA) * 0.1 / 2
    assert done.permanent_bps.item() == pytest.approx(half, rel=1e-5)


def test_concave_permanent_impact_depends_on_the_schedule() -> None:
    market = Market(HESTON, Impact(delta=scalar(0.5)))
    even, rushed = (
        execute(p, still(N), market, ORDER, generator(1, "test")).permanent_bps.item()
        for p in (twap, fractions([0.5] * (N - 1)))
    )
    whole = 1e4 * GAMMA * math.sqrt(THETA) * 0.1**0.5
    assert even == pytest.approx(whole / 2, rel=1e-5)
    # Half of what is left each time: shifts whole (2^-k N / 2)^.5 / N, met by (3/4) 2^-k of the order.
    expected = sum(whole * (2.0**-k * N / 2) ** 0.5 / N * 0.75 * 2.0**-k for k in range(N - 1))
    assert rushed == pytest.approx(expected, rel=1e-4)
    assert rushed < 0.7 * even


def test_buy_is_a_mirrored_sell() -> None:
    field = EndpointField(generator(2, "init"))
    # A drift of which traders know one half and learn the other from the price.
    rising = dataclasses.replace(RICH, drift_sd=scalar(30.0))
    falling = dataclasses.replace(rising, drift=-rising.drift)
    buy = dataclasses.replace(ORDER, side=scalar(-1.0))
    policies: list[tuple[Policy, Policy]] = [
        (p, p) for p in (twap, replanned, scattered, FlowPolicy(field, 2))
    ]
    policies += [(plan(rising, ORDER, N), plan(falling, buy, N)) for plan in (almgren_chriss, static_optimal)]
    for seller, buyer in policies:
        paths = simulate(rising, 64, N, generator(1, "test"))
        mirrored = dataclasses.replace(
            paths, martingale_bps=-paths.martingale_bps, drift_bps=-paths.drift_bps
        )
        sell = execute(seller, paths, rising, ORDER, generator(1, "policy"))
        bought = execute(buyer, mirrored, falling, buy, generator(1, "policy"))
        for f in dataclasses.fields(Execution):
            torch.testing.assert_close(getattr(bought, f.name), getattr(sell, f.name), rtol=0, atol=0)
    # The same day is good for one and bad for the other.
    sold, bought = run(twap), run(twap, order=dataclasses.replace(ORDER, side=scalar(-1.0)))
    torch.testing.assert_close(sold.martingale_bps, -bought.martingale_bps)
    torch.testing.assert_close(sold.drift_bps, -bought.drift_bps)
    torch.testing.assert_close(sold.temporary_bps, bought.temporary_bps)


@given(plans)
def test_inventory_falls_from_one_to_zero(plan: list[float]) -> None:
    inventory = execute(fractions(plan), still(N), RICH, ORDER, generator(1, "test")).inventory
    assert inventory.shape == (N + 1, 1)
    assert inventory[0] == 1
    assert inventory[-1] == 0
    assert (inventory.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("answer", [float("nan"), 1.2, -0.1, float("inf"), -1e-9, 1 + 1e-6])
@pytest.mark.parametrize("bucket", [0, N - 2])
def test_impossible_answers_are_refused(answer: float, bucket: int) -> None:
    def wrong(obs: Observation, noise: Tensor) -> Tensor:
        fraction = torch.full_like(noise, 0.1)
        if obs.k == bucket:
            fraction[3] = answer
        return fraction

    with pytest.raises(ValueError, match=rf"policy: answered .* in bucket {bucket}: must be within \[0, 1\]"):
        run(wrong)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda fraction: fraction.double(), r"torch.float64 of shape \[\d+\]"),
        (lambda fraction: fraction[:1], r"torch.float32 of shape \[1\]"),
        (lambda fraction: fraction[None], r"torch.float32 of shape \[1, \d+\]"),
        (lambda fraction: 0.1, "0.1"),
    ],
)
def test_answers_are_a_fraction_for_each_path(answer: Callable[[Tensor], Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"policy: answered {named} in bucket 0: must be torch.float32"):
        run(lambda obs, noise: answer(torch.full_like(noise, 0.1)))


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda x: x.mul_(0.5),
    "past autograd": lambda x: x.data.mul_(0.5),
    "through numpy": lambda x: np.multiply(x.numpy(), 0.5, out=x.numpy()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
@pytest.mark.parametrize("bucket", [0, 3, N - 2])
def test_inventory_does_not_vanish_unpaid(write: Callable[[Tensor], object], bucket: int) -> None:
    def thief(obs: Observation, noise: Tensor) -> Tensor:
        if obs.k == bucket:
            write(obs.inventory)
        return twap(obs, noise)

    with pytest.raises(ValueError, match=f"policy: wrote into obs.inventory of bucket {bucket}"):
        run(thief)


def test_a_policy_may_answer_with_the_same_tensor_every_time() -> None:
    buffer = torch.empty(64)

    def thrifty(obs: Observation, noise: Tensor) -> Tensor:
        return buffer.copy_(twap(obs, noise))

    assert torch.equal(run(thrifty).pnl_bps, run(twap).pnl_bps)


def test_writing_into_an_earlier_observed_inventory_is_refused() -> None:
    obs_of: dict[int, Observation] = {}

    def thief(obs: Observation, noise: Tensor) -> Tensor:
        obs_of[obs.k] = obs
        if obs.k == 5:
            obs_of[2].inventory.mul_(0.5)
        return twap(obs, noise)

    with pytest.raises(ValueError, match=r"policy: wrote into obs\.inventory of bucket 2"):
        run(thief)


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_writing_into_an_observation_changes_no_day(write: Callable[[Tensor], object]) -> None:
    market, order, paths = copy.deepcopy(RICH), copy.deepcopy(ORDER), simulate(RICH, 16, N, generator(1, "d"))
    before = copy.deepcopy(paths)

    def vandal(obs: Observation, noise: Tensor) -> Tensor:
        answer = twap(obs, noise)
        leaves = [obs.return_bps, obs.variance, obs.log_depth, obs.volume, noise]

        def note(x: Tensor) -> Tensor:
            leaves.append(x)
            return x

        # Once is enough: they are no market and no order any more.
        for tree in (obs.market, obs.order, obs.pre_trade) if obs.k == 0 else ():
            map_tensors(note, tree)
        for x in leaves:
            write(x)
        return answer

    done, clean = (execute(p, paths, market, order, generator(1, "n")) for p in (vandal, twap))
    for f in dataclasses.fields(MarketPaths):
        a, b = getattr(paths, f.name), getattr(before, f.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert (market, order) == (RICH, ORDER)
    assert torch.equal(done.pnl_bps, clean.pnl_bps)


class Recorded:
    """A policy that records its observations and answers."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.obs: list[Observation] = []
        self.answers: list[Tensor] = []

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        answer = self.policy(obs, noise)
        self.obs.append(obs)
        self.answers.append(answer)
        return answer


def test_observation_is_the_past_of_the_path() -> None:
    watch, paths = Recorded(scattered), simulate(RICH, 64, N, generator(1, "test"))
    done = execute(watch, paths, RICH, ORDER, generator(1, "policy"))
    moves = paths.martingale_bps + paths.drift_bps
    assert [s.k for s in watch.obs] == list(range(N - 1))
    for k, obs in enumerate(watch.obs):
        assert obs.n_buckets == N
        torch.testing.assert_close(obs.return_bps, moves[:k].sum(0), rtol=1e-4, atol=1e-3)
        assert torch.equal(obs.variance, paths.variance[k])
        assert torch.equal(obs.log_depth, paths.log_depth[k])
        assert torch.equal(obs.inventory, done.inventory[k])


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_traders_attribute_to_the_order_the_permanent_impact_that_they_believe(side: float) -> None:
    market, order = (
        dataclasses.replace(RICH, impact=Impact(), drift_sd=scalar(80.0)),
        Order(scalar(0.1), scalar(5e-4), scalar(side)),
    )
    paths = simulate(market, 64, N, generator(1, "test"))
    moves, held = side * (paths.martingale_bps + paths.drift_bps), []
    for factor in (0.5, 1.0, 2.0):
        believed = dataclasses.replace(market, impact=Impact(gamma=factor * market.impact.gamma))
        watch = Recorded(mpc)
        information = Information(believed, paths.variance, paths.log_depth)
        done = execute(watch, paths, market, order, generator(1, "policy"), information)
        for k, obs in enumerate(watch.obs):
            own = 1e4 * GAMMA * math.sqrt(THETA) * 0.1 * (1 - obs.inventory)
            expected = moves[:k].sum(0) + (factor - 1) * own
            torch.testing.assert_close(obs.return_bps, expected, rtol=1e-4, atol=1e-3)
        held.append(done.inventory[N // 4].mean())
    # Whoever underestimates the order's own impact takes the rest of it for an adverse drift and hurries.
    assert held[0] < held[1] < held[2]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_impact_follows_variance_by_its_exponent(exponent: float) -> None:
    market = dataclasses.replace(RICH, impact=Impact(variance_exponent=scalar(exponent)))
    paths = simulate(market, 64, N, generator(1, "test"))
    plain = OrderSimulation(paths, RICH, ORDER).slope
    slope = OrderSimulation(paths, market, ORDER).slope
    if exponent:
        expected = plain.double() * (paths.variance.double() / THETA).clamp_min(0.1) ** exponent
        torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=0)
    else:
        assert torch.equal(slope, plain)


def test_policy_observes_estimates_and_pays_true_costs() -> None:
    believed = Market(HESTON, liquidity=Liquidity(illiquidity=scalar(4.0)))
    watch, paths = Recorded(twap), simulate(RICH, 8, N, generator(1, "test"))
    known = Information(believed, 2 * paths.variance, paths.log_depth + 1)
    done = execute(watch, paths, RICH, ORDER, generator(1, "policy"), known)
    assert all(obs.market == believed for obs in watch.obs)
    assert all(torch.equal(obs.variance, known.variance[obs.k]) for obs in watch.obs)
    assert all(torch.equal(obs.log_depth, known.log_depth[obs.k]) for obs in watch.obs)
    truth = execute(twap, paths, RICH, ORDER, generator(1, "policy"))
    assert torch.equal(done.temporary_bps, truth.temporary_bps)


# Where the drift is hidden, learned policies infer it from the price.
LEARNING = dataclasses.replace(RICH, drift_sd=scalar(90.0))


def other_future(paths: MarketPaths, k: int) -> MarketPaths:
    """The same day up to the start of bucket ``k``; what happens in it and after is drawn anew."""
    other = simulate(RICH, paths.n_paths, N, generator(99, "test"))

    def splice(name: str, known: int) -> Tensor:
        return torch.cat((getattr(paths, name)[:known], getattr(other, name)[known:]))

    drift = paths.drift_bps.expand(N, -1)
    drift = torch.cat((drift[:k], 5 - drift[k:]))
    return dataclasses.replace(
        paths,
        drift_bps=drift,
        martingale_bps=splice("martingale_bps", k),
        integrated_variance=splice("integrated_variance", k),
        expected_variance=splice("expected_variance", k + 1),
        variance=splice("variance", k + 1),
        log_depth=splice("log_depth", k + 1),
    )


def answers(policy: Policy, paths: MarketPaths, market: Market = RICH) -> Tensor:
    watch = Recorded(policy)
    with torch.no_grad():
        execute(watch, paths, market, ORDER, generator(1, "policy"))
    return torch.stack(watch.answers)


POLICIES: dict[str, Callable[[], Policy]] = {
    "twap": lambda: twap,
    "vwap": lambda: vwap,
    "almgren-chriss": lambda: almgren_chriss(RICH, ORDER, N),
    "static optimal": lambda: static_optimal(RICH, ORDER, N),
    "replanned": lambda: replanned,
    "flow, 1 step": lambda: FlowPolicy(EndpointField(generator(2, "init")), 1),
    "flow, 3 steps": lambda: FlowPolicy(EndpointField(generator(2, "init")), 3),
    "scattered": lambda: scattered,
}


@pytest.mark.parametrize("market", [RICH, LEARNING], ids=["known drift", "hidden drift"])
@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_looks_ahead(name: str, market: Market) -> None:
    policy, paths = POLICIES[name](), simulate(market, 64, N, generator(1, "test"))
    before = answers(policy, paths, market)
    for k in (0, 1, 17, N - 2):
        after = answers(policy, other_future(paths, k), market)
        assert torch.equal(after[: k + 1], before[: k + 1])
    if name in ("replanned", "flow, 1 step", "flow, 3 steps", "scattered"):
        assert not torch.equal(answers(policy, other_future(paths, 17), market), before)
    # Where the drift is hidden the price alone makes learned policies act differently, and only there.
    moved = dataclasses.replace(paths, martingale_bps=other_future(paths, 0).martingale_bps)
    if name.startswith("flow"):
        assert torch.equal(answers(policy, moved, market), before) == (market is RICH)


def peeking(paths: MarketPaths) -> Policy:
    """Sells faster ahead of a fall that it cannot know of."""

    def policy(obs: Observation, noise: Tensor) -> Tensor:
        coming = paths.martingale_bps[obs.k]
        return torch.where(coming < 0, 2.0, 0.5) / (obs.n_buckets - obs.k + 1)

    return policy


def test_look_ahead_check_detects_a_policy_that_looks_ahead() -> None:
    paths = simulate(RICH, 64, N, generator(1, "test"))
    other = other_future(paths, 17)
    assert not torch.equal(answers(peeking(other), other)[:18], answers(peeking(paths), paths)[:18])


def z_score(sample: Tensor) -> float:
    return float(sample.double().mean() / sample.double().std()) * math.sqrt(len(sample))


@pytest.mark.parametrize("name", POLICIES)
def test_control_variate_keeps_the_mean_of_honest_policies(name: str) -> None:
    with torch.no_grad():
        done = run(POLICIES[name](), n_paths=20_000, seed=3)
    raw, controlled = done.pnl_bps - ORDER.risk_aversion * done.risk, done.utility_bps(ORDER)
    assert abs(z_score(raw - controlled)) < 4
    assert abs(z_score(done.martingale_bps)) < 4
    assert abs(z_score(done.risk - done.expected_risk)) < 4
    assert controlled.std() < 0.4 * raw.std()


@pytest.mark.parametrize("name", ["scattered", "flow, 1 step", "static optimal"])
def test_control_variate_keeps_the_mean_of_policies_that_learn_a_hidden_drift(name: str) -> None:
    with torch.no_grad():
        done = run(POLICIES[name](), LEARNING, n_paths=20_000, seed=3)
    assert abs(z_score(done.martingale_bps)) < 4
    assert abs(z_score(done.risk - done.expected_risk)) < 4
    assert done.utility_bps(ORDER).std() < 0.6 * (done.pnl_bps - ORDER.risk_aversion * done.risk).std()


def test_martingale_term_detects_knowledge_of_a_hidden_drift() -> None:
    paths = simulate(LEARNING, 20_000, N, generator(3, "test"))

    def insider(obs: Observation, noise: Tensor) -> Tensor:
        return torch.where(paths.day_drift_bps > LEARNING.drift, 0.0, 0.5)

    done = execute(insider, paths, LEARNING, ORDER, generator(3, "policy"))
    assert z_score(done.martingale_bps) > 10


def test_martingale_term_detects_look_ahead_and_the_controlled_utility_does_not() -> None:
    paths = simulate(RICH, 20_000, N, generator(3, "test"))
    honest, done = (execute(p, paths, RICH, ORDER, generator(3, "policy")) for p in (twap, peeking(paths)))
    assert z_score(done.martingale_bps) > 10
    raw = done.pnl_bps - honest.pnl_bps - ORDER.risk_aversion * (done.risk - honest.risk)
    assert z_score(raw) > 10
    assert z_score(done.utility_bps(ORDER) - honest.utility_bps(ORDER)) < 0


@pytest.mark.parametrize("delta", [1.0, 0.6])
def test_gradient_with_respect_to_the_decisions(delta: float) -> None:
    rich = dataclasses.replace(RICH, impact=Impact(delta=scalar(delta)))
    market, order = (map_tensors(Tensor.double, x) for x in (rich, ORDER))
    paths = simulate(market, 3, 6, generator(4, "test"))
    assert paths.martingale_bps.dtype == torch.float64
    scores = torch.randn(5, 3, generator=generator(5, "test"), dtype=torch.float64)

    def outcomes(scores: Tensor) -> tuple[Tensor, Tensor]:
        done = execute(
            lambda obs, noise: fraction_of_score(scores[obs.k], 6 - obs.k),
            paths,
            market,
            order,
            generator(6, "policy"),
        )
        return done.pnl_bps, done.utility_bps(order)

    assert torch.autograd.gradcheck(outcomes, scores.requires_grad_(), eps=1e-6, atol=1e-5)
    gradient = torch.autograd.grad(outcomes(scores)[1].sum(), scores)[0]
    assert (gradient.abs() > 1e-6).all()


def test_gradient_is_finite_where_nothing_is_traded() -> None:
    fraction = torch.zeros(N - 1, 1, requires_grad=True)
    done = execute(lambda obs, noise: fraction[obs.k], still(N), RICH, ORDER, generator(1, "test"))
    done.utility_bps(ORDER).sum().backward()
    assert fraction.grad is not None
    assert torch.isfinite(fraction.grad).all()


@given(st.floats(1e-6, 1 - 1e-6), st.integers(2, 400))
def test_scores_and_fractions_are_inverse(fraction: float, n_left: int) -> None:
    exact = torch.tensor(fraction, dtype=torch.float64)
    score = score_of_fraction(exact, n_left)
    assert abs(float(score)) <= SCORE_LIMIT
    # logit(f) + log(n - 1), written out.
    free = math.log(fraction / (1 - fraction)) + math.log(n_left - 1)
    assert float(score) == pytest.approx(min(max(free, -SCORE_LIMIT), SCORE_LIMIT), abs=1e-5)
    if abs(free) < SCORE_LIMIT:
        assert float(fraction_of_score(score, n_left)) == pytest.approx(fraction, rel=1e-6)


@given(st.floats(-SCORE_LIMIT, SCORE_LIMIT), st.integers(2, 400))
def test_fractions_and_scores_are_inverse(score: float, n_left: int) -> None:
    fraction = fraction_of_score(torch.tensor(score, dtype=torch.float64), n_left)
    assert 0 < float(fraction) < 1
    assert float(score_of_fraction(fraction, n_left)) == pytest.approx(score, abs=1e-5)


def test_score_zero_is_twap_and_extremes_are_clamped() -> None:
    for n_left in (2, 5, 39):
        assert float(fraction_of_score(scalar(0.0), n_left)) == pytest.approx(1 / n_left, rel=1e-6)
    assert float(score_of_fraction(scalar(1.0), 5)) == SCORE_LIMIT
    assert float(score_of_fraction(scalar(0.0), 5)) == -SCORE_LIMIT
    assert torch.equal(fraction_of_score(scalar(50.0), 5), fraction_of_score(scalar(SCORE_LIMIT), 5))


positive = st.floats(0.01, 1.0)


@given(
    volatility=st.floats(0.002, 0.06), size=positive, beta=st.floats(0.1, 1.0), buy=positive, sell=positive
)
def test_round_trip_never_pays_with_linear_permanent_impact(
    volatility: float, size: float, beta: float, buy: float, sell: float
) -> None:
    heston = dataclasses.replace(HESTON, theta=scalar(volatility**2))
    market = Market(heston, Impact(beta=scalar(beta)))
    cost = round_trip_cost(market, scalar(size), scalar(buy), scalar(sell))
    assert float(cost) > 0
    # The shifts cancel: what is left is the temporary impact of both legs.
    temporary = 1e4 * ETA * volatility * size**beta * (buy**-beta + sell**-beta)
    assert float(cost) == pytest.approx(temporary, rel=1e-4)


def test_round_trip_can_pay_with_concave_permanent_impact() -> None:
    market = Market(HESTON, Impact(eta=scalar(0.005), delta=scalar(0.3)))
    days = torch.linspace(0.05, 1, 20)
    cost = round_trip_cost(market, scalar(0.1), days[:, None], days)
    assert cost.min() < -1
    # Slow buying and fast selling can be profitable, never the reverse.
    slow, fast = divmod(int(cost.argmin()), 20)
    assert slow > fast
    assert (cost[days[:, None] <= days] > 0).all()


@pytest.mark.parametrize("delta", [1.0, 0.3])
@pytest.mark.parametrize(("buy", "sell"), [(30, 30), (40, 10), (5, 25)])
def test_round_trip_agrees_with_two_executions(delta: float, buy: int, sell: int) -> None:
    n = 40
    market = Market(HESTON, Impact(eta=scalar(0.01), delta=scalar(delta)))

    def leg(buckets: int) -> Execution:
        held = (1 - torch.arange(n + 1) / buckets).clamp(min=0)
        return execute(Schedule(held), still(n), market, ORDER, generator(1, "test"))

    bought, sold = leg(buy), leg(sell)
    # The buyer moved the price up, and sells the whole position from there.
    left_behind = buy * permanent_shift(market, ORDER.size, scalar(1 / buy), 1 / n)
    paid = bought.temporary_bps + bought.permanent_bps + sold.temporary_bps + sold.permanent_bps
    predicted = round_trip_cost(market, ORDER.size, scalar(buy / n), scalar(sell / n))
    torch.testing.assert_close((paid - left_behind)[0], predicted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [(), (200,)], ids=["one", "each"])
def test_following_a_schedule_is_executing_it(columns: tuple[int, ...]) -> None:
    market = Market(
        Heston(scalar(THETA), scalar(5.0), scalar(1.2), scalar(-0.6)),
        liquidity=Liquidity(depth_sd=scalar(0.4), profile_amplitude=scalar(0.8)),
        drift=scalar(30.0),
        drift_sd=scalar(20.0),
    )
    paths = simulate(market, 200, 13, generator(3, "test"))
    left = torch.rand(12, *columns, generator=generator(3, "plan")).sort(0, descending=True).values
    whole = torch.ones_like(left[:1])
    inventory = torch.cat((whole, left, 0 * whole))

    def scheduled(obs: Observation, noise: Tensor) -> Tensor:
        return 1 - inventory[obs.k + 1] / inventory[obs.k] + torch.zeros_like(noise)

    one = execute_schedule(inventory, paths, market, ORDER)
    other = execute(scheduled, paths, market, ORDER, generator(3, "policy"))
    for name in vars(one):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)
