"""Dominance is detected where it exists, and chosen on other paths than it is measured on."""

import pytest
import torch
from torch import Tensor

from flowoe_lib.evaluation.frontier import dominance, frontier, with_risk_aversion
from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.execution.execution import Observation, Policy
from flowoe_lib.market.model import Condition, Heston, Liquidity, Market, Order, scalar
from flowoe_lib.policies.schedules import Schedule, expected_cost, expected_risk, static_optimal, twap

N = 13
MARKET = Market(
    Heston(theta=scalar(4e-4), kappa=scalar(2), cv=scalar(0.5), rho=scalar(-0.5)),
    liquidity=Liquidity(depth_sd=scalar(0.8), depth_reversion=scalar(20)),
)
CONDITION = Condition("test", "deep and thin", MARKET, Order(scalar(0.1), scalar(5e-4)))


def days(n_paths: int, seed: int) -> Evaluation:
    return Evaluation(n_paths=n_paths, n_validation=4000, n_buckets=N, seed=seed, chunk=min(n_paths, 5_000))


def patient(obs: Observation, noise: Tensor) -> Tensor:
    """Sells faster than TWAP by the risk aversion, and more while the book is deep."""
    urgency = 0.6 * (obs.order.risk_aversion / 5e-4 - 1).clamp_min(-0.9)
    pace = torch.exp(obs.log_depth.clamp(-1.5, 1.5) + urgency) / (obs.n_buckets - obs.k)
    return pace.clamp(0, 1).expand_as(noise)


def test_with_risk_aversion_changes_only_the_order() -> None:
    other = with_risk_aversion(CONDITION, 1e-4)
    assert (other.market, other.name, other.world) == (MARKET, CONDITION.name, CONDITION.world)
    assert other.order.risk_aversion.item() == pytest.approx(1e-4)
    runs: dict[str, Policy] = {"twap": twap}
    one, two = (evaluate(runs, c, days(200, 1), "test")["twap"] for c in (CONDITION, other))
    assert torch.equal(one.pnl, two.pnl)


def test_frontier_of_a_schedule_is_its_exact_one() -> None:
    aversions = [1e-4, 1e-3]
    table = frontier(
        lambda c: {"s": static_optimal(c.market, c.order, N)}, CONDITION, aversions, days(20_000, 1)
    )
    for row, aversion in zip(table.itertuples(), aversions, strict=True):
        c = with_risk_aversion(CONDITION, aversion)
        plan = static_optimal(c.market, c.order, N).inventory
        cost, risk = (
            f.item() for f in (expected_cost(c.market, c.order, plan), expected_risk(c.market, plan))
        )
        assert row.mean_bps == pytest.approx(-cost, rel=0.01)
        assert row.std_bps == pytest.approx((risk + 1) ** 0.5, rel=0.03)
    assert table["std_bps"].is_monotonic_decreasing


def test_dominance_is_measured_at_the_risk_aversion_that_is_clearest_on_validation_paths() -> None:
    slow = Schedule(torch.linspace(1, 0, N + 1))
    aversions = [2e-4, 6e-4, 9e-4]
    table = dominance(patient, lambda condition: {"slow": slow}, CONDITION, aversions, days(8000, 3))
    [row] = table.to_dict("records")
    assert row["risk_aversion"] in aversions
    assert row["mean_ci_low"] > 0
    assert row["std_ci_high"] < 0
    # The test paths, at the chosen risk aversion, by hand.
    at_chosen = with_risk_aversion(CONDITION, row["risk_aversion"])
    ours = evaluate({"p": patient}, at_chosen, days(8000, 3), "test")["p"]
    theirs = evaluate({"s": slow}, CONDITION, days(8000, 3), "test")["s"]
    gain = (ours.controlled_pnl - theirs.controlled_pnl).double().mean().item()
    assert row["mean"] == pytest.approx(gain, abs=1e-6)
    assert row["reference_std_bps"] == pytest.approx(theirs.pnl.std().item(), rel=1e-6)


def test_a_policy_does_not_dominate_itself() -> None:
    table = dominance(twap, lambda condition: {"twap": twap}, CONDITION, [5e-4], days(1000, 3))
    assert table[["mean", "std"]].abs().to_numpy().max() == 0
