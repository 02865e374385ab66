"""Metrics against numpy and the bootstrap, and the paired comparison against known differences."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from arch.bootstrap import IIDBootstrap

from flowoe_lib.execution import Observation
from flowoe_lib.experts.almgren_chriss import replanned
from flowoe_lib.experts.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.experts.schedules import expected_utility, twap
from flowoe_lib.market import Condition, Heston, Market, Order, scalar
from flowoe_lib.scorecard import (
    CHUNK,
    COLUMNS,
    Entry,
    Outcome,
    best_expert,
    captures,
    compare,
    evaluate,
    market_days,
    paired_interval,
    reactions,
    score_condition,
)

Array = npt.NDArray[np.float64]
N_BUCKETS = 8
CONDITION = Condition(
    "heston",
    "test",
    Market(Heston(scalar(4e-4), scalar(2.0), scalar(0.8), scalar(-0.7))),
    Order(scalar(0.1), scalar(5e-4)),
)


def outcome(pnl: torch.Tensor, shift: float = 0.0) -> Outcome:
    return Outcome(pnl, pnl + shift, pnl - pnl.mean(), pnl + shift, 0.0)


def hasty(seen: Observation, noise: torch.Tensor) -> torch.Tensor:
    return torch.full_like(noise, 0.5)


def test_cvar_is_the_mean_of_the_worst_twentieth() -> None:
    pnl = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    worst = np.sort(pnl.numpy().astype(float))[:200]
    assert outcome(pnl).cvar95 == pytest.approx(worst.mean())


def test_cvar_of_a_normal_law() -> None:
    pnl = torch.randn(400_000, generator=torch.Generator().manual_seed(2))
    # E[X | X < q05] = -density(1.6449) / .05
    assert outcome(pnl).cvar95 == pytest.approx(-2.0627, abs=0.02)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draws = torch.randn(2000, 400, generator=torch.Generator().manual_seed(3)) + 0.3
    covered = [low < 0.3 < high for _, low, high in map(paired_interval, draws)]
    # Binomial(2000, .95) has a standard deviation of .0049.
    assert abs(np.mean(covered) - 0.95) < 0.02


def test_std_interval_agrees_with_the_bootstrap() -> None:
    g = torch.Generator().manual_seed(4)
    a = torch.randn(3000, generator=g).double()
    b = 1.1 * a + 0.3 * torch.randn(3000, generator=g).double()
    measured = compare(outcome(a), outcome(b))

    def difference(x: Array, y: Array) -> Array:
        return np.atleast_1d(x.std(ddof=1) - y.std(ddof=1))

    low, high = IIDBootstrap(a.numpy(), b.numpy(), seed=5).conf_int(difference, 1000, method="basic").ravel()
    width = high - low
    assert measured["std"] == pytest.approx(difference(a.numpy(), b.numpy())[0])
    assert measured["std_ci_low"] == pytest.approx(low, abs=0.15 * width)
    assert measured["std_ci_high"] == pytest.approx(high, abs=0.15 * width)


def test_compare_uses_the_paths_both_ran_on() -> None:
    pnl = torch.randn(100, generator=torch.Generator().manual_seed(6))
    shorter = outcome(pnl[:40], shift=1.0)
    measured = compare(shorter, outcome(pnl))
    assert measured["utility"] == pytest.approx(1.0, abs=1e-6)
    assert measured["std"] == pytest.approx(0.0, abs=1e-9)


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    long = CHUNK + 700
    runs = evaluate({"a": (twap, long), "b": (twap, 300)}, CONDITION, N_BUCKETS, 1, "test")
    assert len(runs["a"].pnl) == long
    assert torch.equal(runs["a"].pnl[:300], runs["b"].pnl)
    alone = evaluate({"a": (twap, 300)}, CONDITION, N_BUCKETS, 1, "test")
    # The path count of a chunk shapes its draws, so runs compare only within one call.
    assert not torch.equal(alone["a"].pnl, runs["a"].pnl[:300])


def test_streams_share_no_path() -> None:
    days = [
        next(market_days(CONDITION, 200, N_BUCKETS, seed, stream)).martingale_bps
        for seed in (1, 2)
        for stream in ("validation", "test", "refinement check")
    ]
    first = torch.stack([d[0] for d in days])
    assert len(torch.unique(first)) == first.numel()


def test_evaluation_agrees_with_the_exact_utility() -> None:
    runs = evaluate({"twap": (twap, 20_000)}, CONDITION, N_BUCKETS, 7, "test")
    exact = expected_utility(CONDITION.market, CONDITION.order, torch.linspace(1, 0, N_BUCKETS + 1)).item()
    mean, low, high = paired_interval(runs["twap"].utility)
    assert abs(mean - exact) < 2 * (high - low)
    assert abs(runs["twap"].martingale_z) < 4


def test_best_expert_and_scores() -> None:
    experts = {n: make([CONDITION], 1, N_BUCKETS) for n, make in SCHEDULE_EXPERTS.items()}
    experts["hasty"] = hasty
    best = best_expert(experts, CONDITION, 2000, N_BUCKETS, 1)
    assert best != "hasty"
    contenders = [Entry(hasty, "flow_imitation", 1, 0), Entry(twap, "flow_refined", 1, 0, n_paths=500)]
    scores, comparisons, checks = score_condition(CONDITION, experts, contenders, 3000, 2000, N_BUCKETS, 1)
    assert list(scores.columns) == COLUMNS
    assert len(scores) == len(checks) == len(experts) + 3
    by_policy = scores.set_index("policy")
    assert by_policy["vs_best_expert_bps"][best] == 0
    # The same policy under two names scores the same where it ran on the same paths.
    assert by_policy["utility_bps"]["flow_imitation"] == by_policy["utility_bps"]["hasty"]
    assert by_policy["n_paths"]["flow_refined"] == 500
    assert by_policy["capture"]["twap"] == 0
    assert by_policy["capture"]["oracle"] == 1
    assert by_policy["capture"].idxmax() == "oracle"
    assert set(comparisons["reference"]) == {*experts, "flow_imitation"}
    row = comparisons[(comparisons["policy"] == "flow_refined") & (comparisons["reference"] == "hasty")].iloc[
        0
    ]
    assert row["utility_ci_low"] < row["utility"] < row["utility_ci_high"]
    assert isinstance(scores["solver_steps"].dtype, pd.Int64Dtype)


def test_captures_are_paired_with_the_first_policy() -> None:
    table = captures({"replanned": replanned, "twap too": twap}, CONDITION, 2_000, N_BUCKETS, 1, "test")
    first, second = table.to_dict("records")
    assert (first["difference"], first["low"], first["high"]) == (0, 0, 0)
    assert 0 < first["capture"] < 1
    assert second["capture"] == 0
    assert second["difference"] == pytest.approx(-first["capture"], rel=1e-4)


def test_reactions_are_the_decisions_of_the_policies() -> None:
    ratios = torch.tensor([0.2, 1.0, 5.0])
    table = reactions({"twap": twap, "replanned": replanned}, CONDITION, N_BUCKETS, 2, scalar(0.6), ratios)
    by_policy = table.groupby("policy")["fraction"].apply(list)
    assert by_policy["twap"] == pytest.approx([1 / 6] * 3)
    assert by_policy["replanned"] == sorted(by_policy["replanned"])
    assert by_policy["replanned"][0] > 1 / 6
    assert set(table["twap_fraction"]) == {1 / 6}
