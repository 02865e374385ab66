"""Training ends when the validation score stops rising; specialists trained this way are near the optimum."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.execution.execution import (
    ACTION_LIMIT,
    Observation,
    OrderSimulation,
    Policy,
    fraction_of_score,
)
from flowoe_lib.execution.information import Perceive, blind_to_regimes, exact, with_errors
from flowoe_lib.market.impact import with_half_life
from flowoe_lib.market.model import (
    Condition,
    Heston,
    Impact,
    Liquidity,
    Market,
    Order,
    Regimes,
    Signal,
    scalar,
)
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.random_policy import uniform_scores
from flowoe_lib.policies.rl import Specialist
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.training.plateau import Days, Round, best_round, until_plateau, validation_captures
from flowoe_lib.training.specialist import train_specialists

N = 9
MARKET = Market(Heston(scalar(9e-4), scalar(5.0), scalar(1.2), scalar(-0.5)))
CONDITION = Condition("test", "one", MARKET, Order(scalar(0.1), scalar(1e-3)))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def days(n: int, seed: int) -> Evaluation:
    return Evaluation(n_paths=n, n_few=n, n_validation=n, n_buckets=N, seed=seed, chunk=n)


def rounds_of(
    scores: list[float], patience: int, tolerance: float = 0.1, least: int = 0
) -> tuple[list[Round[Policy]], list[float]]:
    """Rounds of a learner with given validation scores, and its learning rates relative to the first."""
    shares: list[float] = []
    following: Iterator[float] = iter(scores)

    def train(share: float) -> tuple[Policy, int]:
        shares.append(share)
        return twap, 7

    def score(policy: Policy) -> torch.Tensor:
        return torch.tensor([next(following)])

    return until_plateau(train, score, patience, tolerance, least), shares


def test_training_ends_after_patience_rounds_in_a_row_without_improvement() -> None:
    rounds, shares = rounds_of([0, 1, 1, 2, 1, 2.05, 9, 9], patience=2)
    assert [round(r.score.item(), 6) for r in rounds] == [0, 1, 1, 2, 1, 2.05]
    assert [r.decisions for r in rounds] == [7, 14, 21, 28, 35, 42]
    assert [r.seconds for r in rounds] == sorted(r.seconds for r in rounds)
    # The rate falls with each round without improvement, and an improvement restores it.
    assert shares == [1, 1, 1, 1 / 2, 1, 1 / 2]


def test_slow_improvement_counts_once_it_exceeds_the_tolerance() -> None:
    rounds, _ = rounds_of([0, 0.06, 0.12, 0.18, 0.24, 0.24, 0.24], patience=2)
    assert len(rounds) == 7


def test_the_first_rounds_never_count_as_without_improvement() -> None:
    falling_first = [0, -1, -2, -1, 0.5, 0.4, 0.3, 9]
    assert len(rounds_of(falling_first, patience=2)[0]) == 3
    rounds, shares = rounds_of(falling_first, patience=2, least=4)
    assert len(rounds) == 7
    assert shares == [1, 1, 1, 1, 1, 1, 1 / 2]
    # Those after them count even if the best round is among the first.
    assert len(rounds_of([1, 0, 0, 0, 0, 0], patience=2, least=3)[0]) == 5


def test_the_best_round_has_the_highest_score() -> None:
    rounds, _ = rounds_of([0, 1, 1.05, 0.5], patience=2)
    assert best_round(rounds) is rounds[2]
    other, _ = rounds_of([3, 0], patience=1)
    assert best_round([*rounds, *other]) is other[0]


@pytest.mark.parametrize(
    ("scores", "patience", "tolerance", "message"),
    [
        ([0], 0, 0.1, "patience = 0"),
        ([0], 1, 0, "tolerance = 0"),
        ([0], 1, math.inf, "tolerance = inf"),
        ([0, math.nan], 1, 0.1, "score = \\[nan\\] after round 2"),
    ],
)
def test_bad_settings_and_scores_are_named(
    scores: list[float], patience: int, tolerance: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rounds_of(scores, patience, tolerance)


def test_capture_is_zero_for_twap_and_one_for_the_limit() -> None:
    oracle = solve_oracle(MARKET, CONDITION.order, N)
    score = validation_captures([CONDITION], 500, N, seed=1)
    assert score(twap).item() == pytest.approx(0, abs=1e-5)
    assert score(oracle).item() == pytest.approx(1)
    assert score(uniform_scores) < 0

    def half(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        return (twap(obs, noise) + oracle(obs, noise)) / 2

    beaten = validation_captures([CONDITION], 500, N, seed=1, limit=lambda market, order, n_buckets: half)
    assert beaten(oracle) > 1


def test_validation_days_are_those_of_the_scorecard() -> None:
    calm = dataclasses.replace(CONDITION, name="calm")
    score = validation_captures([calm, CONDITION], 300, N, seed=4, perceive=with_errors)
    oracle = solve_oracle(MARKET, CONDITION.order, N)
    peeked: list[Observation] = []

    def keen(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        peeked.append(obs)
        return (2 * twap(obs, noise)).clamp(max=1)

    captured = score(keen)[1].item()
    evaluation = days(300, 4)
    done = evaluate({"keen": keen, "twap": twap}, CONDITION, evaluation, "validation", with_errors)
    scored, evaluated = peeked[N - 2], peeked[2 * (N - 1) - 1]
    for seen in ("return_bps", "variance"):
        assert torch.equal(getattr(scored, seen)[300:], getattr(evaluated, seen))
    # The observation contains estimates.
    assert torch.equal(scored.market.heston.theta[300:], evaluated.market.heston.theta)
    best = evaluate({"oracle": oracle}, CONDITION, evaluation, "validation")["oracle"]
    keen_gain, gap = ((x.utility - done["twap"].utility).double().mean() for x in (done["keen"], best))
    assert captured == pytest.approx(float(keen_gain / gap), rel=0.1)


WORLDS: dict[str, tuple[Market, Perceive]] = {
    "known drift": (dataclasses.replace(MARKET, drift=scalar(-60.0)), exact),
    "hidden drift": (dataclasses.replace(MARKET, drift=scalar(20.0), drift_sd=scalar(300.0)), exact),
    "estimates": (
        dataclasses.replace(MARKET, liquidity=Liquidity(scalar(2.0), scalar(0.5), scalar(5.0), scalar(0.8))),
        with_errors,
    ),
    "hidden regimes": (
        dataclasses.replace(MARKET, regimes=Regimes(scalar(2.0), scalar(3.0), scalar(4.0), scalar(4.0))),
        blind_to_regimes,
    ),
    "signal": (dataclasses.replace(MARKET, signal=Signal(scalar(200.0), scalar(5.0), scalar(1.0))), exact),
    "memory": (dataclasses.replace(MARKET, impact=Impact(resilience=scalar(6.0))), exact),
}


@pytest.mark.parametrize("world", WORLDS)
def test_advantages_sum_to_the_difference_of_utilities_with_less_noise(world: str) -> None:
    """The policy reacts to everything that it observes, so an advantage that is not a martingale shows."""
    market, perceive = WORLDS[world]
    condition = dataclasses.replace(CONDITION, market=market)
    n_days = 20_000
    sample = Days.draw(condition, n_days, N, perceive, generator(6, "days"))

    def reactive(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        surprise = (obs.variance / MARKET.heston.theta).clamp_min(1e-3).log() + obs.log_depth
        return fraction_of_score(0.5 + 0.2 * surprise - obs.return_bps / 1000 + 0.1 * noise, N - obs.k)

    gain = sample.gain_over_twap(reactive, generator(6, "noise")).double()
    ours, even = (sample.utility(policy, generator(6, "noise")).double() for policy in (reactive, twap))
    excess = gain - (ours - even)
    assert excess.mean().abs() < 4 * excess.std() / math.sqrt(n_days)
    assert gain.mean().abs() > 10 * excess.std() / math.sqrt(n_days)
    assert gain.std() < 0.9 * (ours - even).std()


def test_twap_without_a_value_in_closed_form_is_refused() -> None:
    market = dataclasses.replace(MARKET, impact=Impact(variance_exponent=scalar(1.0)))
    with pytest.raises(ValueError, match=r"variance_exponent > 0"):
        validation_captures([dataclasses.replace(CONDITION, market=market)], 50, N, seed=1)


def test_a_limit_below_twap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit - TWAP = .* in one: must be > 0"):
        validation_captures([CONDITION], 50, N, seed=1, limit=lambda market, order, n_buckets: uniform_scores)


def seen(k: int, n_paths: int = 4_000) -> Observation:
    paths = simulate(MARKET, n_paths, N, generator(2, "days"))
    return OrderSimulation(paths, MARKET, CONDITION.order).observe(k, torch.ones(n_paths))


def test_random_scores_are_uniform_within_the_limit() -> None:
    obs, noise = seen(2), torch.randn(4_000, generator=generator(3, "noise"))
    fraction = uniform_scores(obs, noise)
    for share in (0.1, 0.5, 0.9):
        below = fraction < fraction_of_score(torch.tensor(ACTION_LIMIT * (2 * share - 1)), N - 2)
        assert below.float().mean().item() == pytest.approx(share, abs=0.025)
    torch.testing.assert_close(uniform_scores(obs, torch.zeros(4_000)), twap(obs, noise))
    edge = uniform_scores(obs, torch.full((4_000,), 99.0))
    torch.testing.assert_close(edge, fraction_of_score(torch.full((4_000,), ACTION_LIMIT), N - 2))


def test_a_specialist_ignores_noise_and_is_differentiable() -> None:
    policy = Specialist.drawn(generator(1, "weights"), width=8)
    weights = [tensor.requires_grad_() for layer in policy.layers for tensor in layer]
    obs = seen(3, 20)
    fraction = policy(obs, torch.zeros(20))
    assert torch.equal(fraction, policy(obs, torch.randn(20)))
    assert ((fraction > 0) & (fraction < 1)).all()
    fraction.sum().backward()
    assert all(weight.grad is not None for weight in weights)


def test_specialists_side_by_side_trade_as_each_alone_and_survive_the_store() -> None:
    one, two = (Specialist.drawn(generator(seed, "weights")) for seed in (1, 2))
    obs = seen(2, 40)
    both = Specialist.of(load(save(Specialist.beside([one, two]).to_tensors())))
    together = both(obs, torch.zeros(40))
    for i, single in enumerate((one, two)):
        mine = slice(20 * i, 20 * i + 20)
        torch.testing.assert_close(together[mine], single(obs, torch.zeros(40))[mine])
        assert torch.equal(both.alone(i)(obs, torch.zeros(40)), single(obs, torch.zeros(40)))


def trained(
    *conditions: Condition, seed: int = 1, perceive: Perceive = exact, **options: Any
) -> list[Round[Specialist]]:
    score = validation_captures(conditions, 400, N, 9, perceive)
    settings = {"patience": 1, "tolerance": 10.0, "iterations": 20, "paths": 64} | options
    return train_specialists(conditions, N, seed, score, perceive=perceive, **settings)


def test_a_specialist_reaches_the_optimum_of_its_condition() -> None:
    rounds = trained(CONDITION, iterations=40, tolerance=1e-3)
    best = best_round(rounds)
    # The result holds on test days too.
    everyone: dict[str, Policy] = {
        "specialist": best.policy,
        "twap": twap,
        "oracle": solve_oracle(MARKET, CONDITION.order, N),
    }
    done = evaluate(everyone, CONDITION, days(4_000, 5), "test")
    mean = {name: o.utility.double().mean() for name, o in done.items()}
    assert (mean["specialist"] - mean["twap"]) / (mean["oracle"] - mean["twap"]) > 0.995
    assert rounds[-1].decisions == len(rounds) * 40 * 64 * (N - 1)


def test_a_specialist_does_not_end_by_selling_everything_at_once() -> None:
    # Most of the order is sold in the first bucket, but to sell all of it there captures only .95.
    crisis = Market(Heston(scalar(1.6e-3), scalar(2.0), scalar(0.5), scalar(-0.8)))
    order = Order(scalar(0.1), scalar(5e-4))
    condition = Condition("test", "memory", with_half_life(crisis, scalar(0.4)), order)
    score = validation_captures([condition], 400, N, 0, limit=partial(solve_oracle, variance_nodes=17))
    once = Specialist(((torch.zeros(1, 1, 27), torch.full((1, 1, 1), 99.0)),))
    assert score(once) < 0.96
    rounds = train_specialists([condition], N, 1, score, patience=1, tolerance=1e-2, iterations=40, paths=64)
    assert best_round(rounds).score > 0.99


def test_specialists_trained_side_by_side_are_those_trained_alone() -> None:
    thin = Market(MARKET.heston, liquidity=Liquidity(scalar(3.0), scalar(0.3), scalar(2.0)))
    other = Condition("test", "other", thin, CONDITION.order)
    # Muon works in bfloat16, so a difference in rounding grows from step to step.
    [*_, both] = trained(CONDITION, other, iterations=2)
    for i, condition in enumerate((CONDITION, other)):
        [*_, alone] = trained(condition, iterations=2)
        for ours, theirs in zip(both.policy.alone(i).layers, alone.policy.layers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert both.score[i].item() == pytest.approx(alone.score.item(), abs=1e-4)
    assert best_round([alone, both], 0) is max(alone, both, key=lambda r: r.score[0].item())


def test_each_round_keeps_its_own_weights_and_a_seed_gives_one_specialist() -> None:
    first, again, other = (trained(CONDITION, seed=seed, iterations=2) for seed in (1, 1, 2))
    weights = [[r.policy.layers[0][0] for r in run] for run in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])
    assert not torch.equal(weights[0][0], weights[0][1])


@pytest.mark.parametrize("perceive", [with_errors, blind_to_regimes])
def test_a_specialist_learns_under_the_information_of_its_world(perceive: Perceive) -> None:
    liquidity = Liquidity(depth_sd=scalar(0.4 if perceive is with_errors else 0.0))
    regimes = (
        Regimes() if perceive is with_errors else Regimes(scalar(2.0), scalar(3.0), scalar(4.0), scalar(4.0))
    )
    market = dataclasses.replace(MARKET, liquidity=liquidity, regimes=regimes)
    rounds = trained(dataclasses.replace(CONDITION, market=market), perceive=perceive)
    assert best_round(rounds).score > 0.3
