"""Metrics against numpy and the bootstrap, and the paired comparison against known differences."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from arch.bootstrap import IIDBootstrap
from scipy.stats import t as student

from flowoe_lib.evaluation.intervals import cvar95_influence, paired_interval
from flowoe_lib.evaluation.scorecard import (
    CHUNK,
    COLUMNS,
    Contender,
    Evaluation,
    PathResults,
    Scores,
    compare,
    evaluate,
    market_days,
    reactions,
    score_condition,
)
from flowoe_lib.execution.execution import Observation, Policy
from flowoe_lib.execution.information import Information, Perceive, blind_to_regimes, exact, with_errors
from flowoe_lib.market.model import Condition, Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.market.simulator import MarketPaths
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.policies.schedules import expected_utility, twap

Array = npt.NDArray[np.float64]
N_BUCKETS = 8
CONDITION = Condition(
    "heston",
    "test",
    Market(Heston(scalar(4e-4), scalar(2.0), scalar(0.8), scalar(-0.7))),
    Order(scalar(0.1), scalar(5e-4)),
)


def outcome(pnl: torch.Tensor, shift: float = 0.0) -> PathResults:
    return PathResults(pnl, pnl + shift, pnl - pnl.mean(), pnl + shift, -pnl, torch.zeros_like(pnl))


def days(n_paths: int, seed: int = 1, **others: int) -> Evaluation:
    others = {"n_validation": 100, "chunk": min(n_paths, CHUNK)} | others
    return Evaluation(n_paths=n_paths, n_buckets=N_BUCKETS, seed=seed, **others)


def hasty(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
    return torch.full_like(noise, 0.5)


def test_cvar_is_the_mean_of_the_worst_twentieth() -> None:
    pnl = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    worst = np.sort(pnl.numpy().astype(float))[:200]
    assert cvar95_influence(pnl).mean().item() == pytest.approx(worst.mean())


def test_cvar_of_a_normal_law() -> None:
    pnl = torch.randn(400_000, generator=torch.Generator().manual_seed(2))
    # E[X | X < q05] = -density(1.6449) / .05
    assert cvar95_influence(pnl).mean().item() == pytest.approx(-2.0627, abs=0.02)


def test_intervals_have_their_nominal_coverage() -> None:
    draws = torch.randn(2000, 400, generator=torch.Generator().manual_seed(3)) + 0.3
    covered = [low < 0.3 < high for _, low, high in map(paired_interval, draws)]
    # Binomial(2000, .95) has a standard deviation of .0049.
    assert abs(np.mean(covered) - 0.95) < 0.02


def test_intervals_of_std_and_cvar_agree_with_the_bootstrap() -> None:
    g = torch.Generator().manual_seed(4)
    a = torch.randn(3000, generator=g).double()
    b = 1.1 * a + 0.3 * torch.randn(3000, generator=g).double()
    measured = compare(outcome(a), outcome(b))

    def differences(x: Array, y: Array) -> Array:
        tails = (np.sort(values)[: len(values) // 20].mean() for values in (x, y))
        return np.array([x.std(ddof=1) - y.std(ddof=1), next(tails) - next(tails)])

    ends = IIDBootstrap(a.numpy(), b.numpy(), seed=5).conf_int(differences, 1000, method="basic")
    for name, value, low, high in zip(
        ("std", "cvar95"), differences(a.numpy(), b.numpy()), *ends, strict=True
    ):
        width = high - low
        assert measured[name] == pytest.approx(value)
        assert measured[f"{name}_ci_low"] == pytest.approx(low, abs=0.2 * width)
        assert measured[f"{name}_ci_high"] == pytest.approx(high, abs=0.2 * width)


def test_compare_uses_the_paths_both_ran_on() -> None:
    pnl = torch.randn(100, generator=torch.Generator().manual_seed(6))
    shorter = outcome(pnl[:40], shift=1.0)
    measured = compare(shorter, outcome(pnl))
    assert measured["utility"] == pytest.approx(1.0, abs=1e-6)
    assert measured["std"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shorter", [300, 1_000, 1_700, 2_000])
def test_a_shorter_run_is_the_beginning_of_a_longer_one(shorter: int) -> None:
    def noisy(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(noise + obs.variance / obs.market.heston.theta - 3)

    few, many = (
        evaluate({"noisy": noisy}, of_random_depth(), days(n, chunk=1_000), "test", with_errors)["noisy"]
        for n in (shorter, 2_700)
    )
    assert len(few.pnl) == shorter
    assert len(many.pnl) == 2_700
    for name in ("pnl", "controlled_pnl", "martingale", "utility"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:shorter])


def test_fewer_days_of_an_entry_are_the_beginning_of_all() -> None:
    entries = [Contender(hasty, "hasty", 1, 0), Contender(hasty, "hasty", 2, 0, n_paths=300)]
    evaluation = days(700, chunk=500)
    scores = score_condition(CONDITION, {"twap": twap}, entries, evaluation).scorecard.set_index(
        "solver_steps"
    )
    alone = evaluate({"hasty": hasty}, CONDITION, dataclasses.replace(evaluation, n_paths=300), "test")
    assert scores["n_paths"][2] == 300
    assert scores["utility_bps"][2] == alone["hasty"].utility.double().mean().item()


def test_two_policies_of_one_name_are_refused() -> None:
    # The second TWAP would have replaced the reference of capture.
    for contenders, informed in (([Contender(hasty, "twap")], []), ([], [Contender(hasty, "twap")])):
        with pytest.raises(ValueError, match="named twap/None/None"):
            score_condition(CONDITION, {"twap": twap}, contenders, days(100), informed=informed)
    twice = [Contender(hasty, "flow_refined", 1, 0), Contender(twap, "flow_refined", 1, 0)]
    with pytest.raises(ValueError, match="named flow_refined/1/0"):
        score_condition(CONDITION, {"twap": twap}, twice, days(100))


@pytest.mark.parametrize("name", ["n_paths", "n_few", "n_validation", "n_buckets", "chunk"])
def test_counts_of_days_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = 0: must be at least 1"):
        dataclasses.replace(days(100), **{name: 0})


def test_streams_share_no_path() -> None:
    drawn = [
        next(market_days(CONDITION, days(200, seed), stream)).martingale_bps
        for seed in (1, 2)
        for stream in ("validation", "test", "refinement check")
    ]
    first = torch.stack([d[0] for d in drawn])
    assert len(torch.unique(first)) == first.numel()


def test_evaluation_agrees_with_the_exact_utility() -> None:
    runs = evaluate({"twap": twap}, CONDITION, days(20_000, 7), "test")
    exact = expected_utility(CONDITION.market, CONDITION.order, torch.linspace(1, 0, N_BUCKETS + 1)).item()
    mean, low, high = paired_interval(runs["twap"].utility)
    assert abs(mean - exact) < 2 * (high - low)
    assert abs(runs["twap"].martingale_z) < 4


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Every expert and a random policy, imitation and refinement of two seeds each, one of more steps."""
    opponents = {n: make([CONDITION], 1, N_BUCKETS) for n, make in SCHEDULE_EXPERTS.items()}
    opponents["hasty"] = hasty

    def slower(seed: int) -> Policy:
        return lambda obs, noise: mpc(obs, noise) * (0.9 + 0.02 * seed)

    contenders = [Contender(hasty, "flow_imitation", 1, s) for s in (0, 1)]
    contenders += [Contender(slower(s), "flow_refined", 1, s) for s in (0, 1)]
    contenders += [Contender(mpc, "flow_refined", 2, 0, n_paths=200)]
    return score_condition(CONDITION, opponents, contenders, days(1_000))


def test_every_policy_is_scored_on_the_same_days(scores: Scores) -> None:
    table, comparisons, checks = scores
    assert list(table.columns) == COLUMNS
    assert len(table) == len(checks) == len(SCHEDULE_EXPERTS) + 1 + 5 + 1
    by_policy = table.groupby("policy").first()
    # The same policy under two names scores the same.
    assert by_policy["utility_bps"]["flow_imitation"] == by_policy["utility_bps"]["hasty"]
    assert by_policy["capture"]["twap"] == 0
    assert by_policy["capture"]["oracle"] == 1
    assert table["capture"][table["n_paths"] == 1_000].max() == 1
    assert isinstance(table["solver_steps"].dtype, pd.Int64Dtype)
    refined = comparisons[comparisons["policy"] == "flow_refined"]
    assert set(refined["reference"]) == {*SCHEDULE_EXPERTS, "hasty", "flow_imitation"}
    assert "flow_imitation" not in set(comparisons["reference"][comparisons["policy"] == "flow_imitation"])
    assert refined["n_paths"].groupby(refined["solver_steps"]).unique().to_dict() == {1: [1_000], 2: [200]}
    assert refined["training_seeds"].groupby(refined["solver_steps"]).unique().to_dict() == {1: [2], 2: [1]}
    alone = refined[(refined["solver_steps"] == 2) & (refined["reference"] == "mpc")].iloc[0]
    assert (alone["utility"], alone["std_ci_low"], alone["cvar95_ci_high"]) == (0, 0, 0)


def test_every_verdict_is_recomputed_from_the_published_tables(scores: Scores, tmp_path: Path) -> None:
    for name, table in zip(("scorecard", "comparisons"), scores, strict=False):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    scorecard, comparisons = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("scorecard", "comparisons"))
    others = scorecard[scorecard["solver_steps"] != 2].groupby("policy")["utility_bps"].agg(list)
    said = []
    for row in comparisons[comparisons["solver_steps"] == 1].to_dict("records"):
        ours, theirs = others[row["policy"]], others[row["reference"]]
        assert row["utility"] == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-9)
        assert row["reference_utility_bps"] == pytest.approx(np.mean(theirs))
        # Of the interval's width, the spread of the training seeds is a part that this table shows alone.
        spread = student.ppf(0.975, 1) * np.std(ours, ddof=1) / math.sqrt(2)
        assert row["utility_ci_high"] - row["utility_ci_low"] >= 1.9 * spread
        rivals = [np.mean(others[name]) for name in (*SCHEDULE_EXPERTS, "hasty")]
        # Linear permanent impact costs every policy half of its price move.
        vol, phi = scorecard.loc[0, ["vol", "phi"]]
        sunk = 1e4 * 0.314 * 263**0.25 * vol * phi / 2
        assert row["material_bps"] == pytest.approx(1e-3 * (-max(rivals) - sunk))
        assert row["material_bps"] == pytest.approx(1e-3 * scorecard.set_index("policy")["cost_bps"]["mpc"])
        assert row["is_best_opponent"] == (row["reference"] == "mpc")
        low, high = (row[f"utility_ci_{end}"] / row["material_bps"] for end in ("low", "high"))
        inside = "equal" if low >= -1 and high <= 1 else "open"
        said.append("better" if low > 1 else "worse" if high < -1 else inside)
    assert said == comparisons["verdict"][comparisons["solver_steps"] == 1].tolist()
    assert {"better", "worse"} < set(said)


def test_profit_from_drift_is_no_part_of_cost() -> None:
    rising = dataclasses.replace(CONDITION, market=dataclasses.replace(CONDITION.market, drift=scalar(50.0)))
    still, moved = (evaluate({"twap": twap}, c, days(500), "test")["twap"] for c in (CONDITION, rising))
    # Of an even schedule (N - 1) / 2 of N buckets' drift is earned.
    earned = CONDITION.order.side.item() * 50 * (N_BUCKETS - 1) / (2 * N_BUCKETS)
    assert (moved.utility - still.utility).mean().item() == pytest.approx(earned, rel=1e-4)
    torch.testing.assert_close(moved.cost, still.cost)


def test_reactions_are_the_decisions_of_the_policies() -> None:
    ratios = torch.tensor([0.2, 1.0, 5.0])
    policies: dict[str, Policy] = {"twap": twap, "replanned": replanned}
    table = reactions(
        policies, CONDITION, n_buckets=N_BUCKETS, k=2, inventory=scalar(0.6), variance_ratios=ratios
    )
    by_policy = table.groupby("policy")["fraction"].apply(list)
    assert by_policy["twap"] == pytest.approx([1 / 6] * 3)
    assert by_policy["replanned"] == sorted(by_policy["replanned"])
    assert by_policy["replanned"][0] > 1 / 6
    assert set(table["twap_fraction"]) == {1 / 6}


def in_two_regimes() -> Condition:
    regimes = Regimes(scalar(2.0), scalar(3.0), scalar(2.0), scalar(2.0))
    return dataclasses.replace(CONDITION, market=dataclasses.replace(CONDITION.market, regimes=regimes))


def of_random_depth() -> Condition:
    liquidity = Liquidity(depth_sd=scalar(0.5))
    return dataclasses.replace(CONDITION, market=dataclasses.replace(CONDITION.market, liquidity=liquidity))


@pytest.mark.parametrize(
    ("condition", "perceive"), [(in_two_regimes(), blind_to_regimes), (of_random_depth(), with_errors)]
)
def test_information_changes_decisions_but_no_path(condition: Condition, perceive: Perceive) -> None:
    runs: dict[str, Policy] = {"even": twap, "replanned": replanned}
    evaluation = days(CHUNK + 300)
    sharp, blurred = (evaluate(runs, condition, evaluation, "test", view) for view in (exact, perceive))
    default = evaluate(runs, condition, evaluation, "test")
    for name in runs:
        for f in dataclasses.fields(PathResults):
            a, b, c = (getattr(o[name], f.name) for o in (sharp, blurred, default))
            if f.name != "left":
                assert torch.equal(a, c)
                assert torch.equal(a, b) == (name != "replanned"), (name, f.name)
    # A policy that reacts to depth has a lower utility with less information about depth.
    if perceive is with_errors:
        assert paired_interval(sharp["replanned"].utility - blurred["replanned"].utility)[1] > 0
    assert abs(blurred["replanned"].martingale_z) < 4
    # The same is perceived each time, and something else on another set of paths.
    again = evaluate(runs, condition, evaluation, "test", perceive)
    assert torch.equal(again["replanned"].pnl, blurred["replanned"].pnl)


def test_errors_have_a_stream_of_their_own_in_every_chunk() -> None:
    first: list[float] = []

    def perceive(paths: MarketPaths, market: Market, draws: torch.Generator) -> Information:
        first.append(float(torch.randn(1, generator=draws)))
        return exact(paths, market, draws)

    def noisy(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        if obs.k == 0:
            first.append(float(noise[0]))
        return twap(obs, noise)

    others = (CONDITION, 1, "validation"), (CONDITION, 2, "test"), (of_random_depth(), 1, "test")
    for condition, seed, stream in ((CONDITION, 1, "test"), *others):
        named = dataclasses.replace(condition, name=str(float(condition.market.liquidity.depth_sd)))
        evaluate({"noisy": noisy}, named, days(101, seed, chunk=100), stream, perceive)
    # A draw of the errors and one of the policy's noise in each of two chunks, four times.
    assert len(set(first)) == len(first) == 16


class Watching:
    """TWAP, which records the market parameters and the variance that it observes."""

    def __init__(self) -> None:
        self.obs: list[Observation] = []

    def __call__(self, obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        self.obs.append(obs)
        return twap(obs, noise)

    def of_last_day(self) -> tuple[Market, torch.Tensor]:
        """The market it believed in on the last paths it ran on, and the variance that it saw."""
        return self.obs[-1].market, torch.stack([s.variance for s in self.obs[1 - N_BUCKETS :]])


def test_informed_policies_have_full_information_and_others_that_of_the_world() -> None:
    condition = in_two_regimes()
    expert, contender, informed, told = (Watching() for _ in range(4))
    perceived = []

    def perceive(paths: MarketPaths, market: Market, draws: torch.Generator) -> Information:
        perceived.append(paths)
        return blind_to_regimes(paths, market, draws)

    def doubled(paths: MarketPaths, market: Market, draws: torch.Generator) -> Information:
        return Information(market, 2 * paths.variance, paths.log_depth)

    oracle = solve_oracle(moment_matched(condition.market), condition.order, N_BUCKETS)
    scores, comparisons, checks = score_condition(
        condition,
        {"twap": twap, "watching": expert},
        [Contender(contender, "flow_refined", 1, 0)],
        days(400),
        perceive,
        [
            Contender(oracle, "oracle"),
            Contender(informed, "knowing"),
            Contender(told, "told", perceive=doubled),
        ],
    )
    # Each chunk is perceived once for all policies with the same information.
    assert [p.n_paths for p in perceived] == [400]
    [day] = market_days(condition, days(400), "test")
    for watch in (expert, contender):
        market, variance = watch.of_last_day()
        assert market.heston.theta == moment_matched(condition.market).heston.theta
        assert not torch.equal(variance, day.variance[:-1])
        assert variance.shape == (N_BUCKETS - 1, 400)
    market, variance = informed.of_last_day()
    assert market == condition.market
    assert torch.equal(variance, day.variance[:-1])
    assert torch.equal(told.of_last_day()[1], 2 * day.variance[:-1])
    # All ran on the same paths, where TWAP is TWAP; the informed are no contenders.
    by_policy = scores.set_index("policy")["utility_bps"]
    assert len(set(by_policy[["twap", "watching", "flow_refined", "knowing", "told"]])) == 1
    assert set(comparisons["policy"]) == {"flow_refined"}
    assert set(comparisons["reference"]) == {"twap", "watching"}
    assert len(checks) == len(scores) == 6


def test_informed_on_fewer_paths_are_compared_on_these() -> None:
    oracle = solve_oracle(CONDITION.market, CONDITION.order, N_BUCKETS)
    knowing = [Contender(oracle, "oracle"), Contender(twap, "knowing", n_paths=100)]
    scores, _, _ = score_condition(CONDITION, {"twap": twap}, [], days(300), informed=knowing)
    row = scores.set_index("policy").loc["knowing"]
    assert row["n_paths"] == 100
    assert row["capture"] == 0


def test_capture_is_measured_against_the_limit_of_the_information() -> None:
    oracle = solve_oracle(CONDITION.market, CONDITION.order, N_BUCKETS)
    informed = [Contender(replanned, "limit"), Contender(oracle, "oracle")]
    scores, _, _ = score_condition(CONDITION, {"twap": twap}, [], days(300), informed=informed)
    capture = scores.set_index("policy")["capture"]
    assert capture["limit"] == 1
    assert capture["oracle"] > 1
