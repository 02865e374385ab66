"""Contenders of each world and measures special to worlds, on policies with known results."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from flowoe_lib.evaluation.scorecard import Evaluation, evaluate, market_days
from flowoe_lib.execution.execution import Policy, execute
from flowoe_lib.execution.information import blind_to_regimes, exact, with_errors
from flowoe_lib.market.model import BPS, Condition, Heston, Market, Order, Regimes, scalar
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.replanning import replanned
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.schedules import EstimatedSchedule, Schedule
from flowoe_lib.randomness import generator
from flowoe_lib.studies.comparison import (
    error_costs,
    experts_in,
    hidden_gain,
    multiple_comparison,
    score_in_world,
    share_of_informed_gain,
    whole_range,
)
from flowoe_lib.studies.worlds import World

N = 9
HESTON = Heston(theta=scalar(4e-4), kappa=scalar(2), cv=scalar(0.5), rho=scalar(-0.5))
ORDER = Order(scalar(0.1), scalar(5e-4))
PLAIN = Condition("liquidity", "plain", Market(HESTON), ORDER)


def days(n_paths: int) -> Evaluation:
    chunk = min(n_paths, 5_000)
    return Evaluation(n_paths=n_paths, n_few=100, n_validation=100, n_buckets=N, seed=1, chunk=chunk)


def field(seed: int = 0) -> EndpointField:
    return EndpointField(generator(seed, "field"))


def rl_expert(seed: int) -> RLExpert:
    from flowoe_lib.execution.features import FEATURES

    g = generator(seed, "rl")
    sizes = [(32, len(FEATURES)), (32, 32), (1, 32)]
    layers = tuple((0.1 * torch.randn(1, *s, generator=g), torch.zeros(1, 1, s[0])) for s in sizes)
    return RLExpert(layers, False)


def test_an_rl_expert_competes_only_where_it_was_trained() -> None:
    rl = {"plain": rl_expert(1)}
    assert experts_in(exact, PLAIN, N, rl)["rl"] is rl["plain"]
    assert "rl" not in experts_in(exact, replace(PLAIN, name="other"), N, rl)
    estimated = experts_in(with_errors, PLAIN, N, rl)
    assert "rl" not in estimated
    assert isinstance(estimated["static_optimal"], EstimatedSchedule)


def test_experts_of_hidden_regimes_are_calibrated_to_the_average() -> None:
    regimes = Regimes(scalar(2.0), scalar(3.0), scalar(2.0), scalar(4.0))
    switching = replace(PLAIN, market=replace(PLAIN.market, regimes=regimes))
    mean = replace(PLAIN, market=moment_matched(switching.market))
    found, expected = (
        experts_in(perceive, c, N, {})["static_optimal"]
        for perceive, c in ((blind_to_regimes, switching), (exact, mean))
    )
    assert isinstance(found, Schedule)
    assert isinstance(expected, Schedule)
    torch.testing.assert_close(found.inventory, expected.inventory)


def test_whole_range_measures_capture_and_regret_against_the_oracle() -> None:
    fields = {3: field(3), 5: field(5)}
    table = whole_range(fields, PLAIN, days(400))
    assert list(zip(table["training_seed"], table["solver_steps"], strict=True)) == [
        (3, 1), (5, 1), (3, 8),
    ]  # fmt: skip
    policies: dict[str, Policy] = {
        "flow": FlowPolicy(fields[5], 1),
        "oracle": solve_oracle(PLAIN.market, ORDER, N),
    }
    out = evaluate(policies, PLAIN, days(400), "design")
    flow, oracle = (out[k].utility.mean().item() for k in ("flow", "oracle"))
    assert table["regret"][1] == pytest.approx((oracle - flow) / -oracle, rel=1e-4)


def test_share_of_hidden_gain_is_one_for_the_belief_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    heston = replace(HESTON, cv=scalar(0.02))
    sd = 0.8 * BPS * heston.theta.sqrt()
    condition = Condition("hidden", "h", Market(heston, drift_sd=sd), ORDER)
    optimum: Policy = solve_belief(condition.market, ORDER, N)
    monkeypatch.setattr("flowoe_lib.studies.comparison.FlowPolicy", lambda field, steps: optimum)
    [row] = hidden_gain(field(), condition, days(6000)).to_dict("records")
    assert row["share"] == pytest.approx(1, abs=1e-6)
    assert row["worth_bps"] > 0
    # On days that fall a sale is brought forward, on days that rise it waits: both gain, the flat pay.
    assert row["falling"] > row["flat"]
    assert row["rising"] > row["flat"]
    # Thirds are equal parts of the days, so they average to the realised gain of all.
    blind: Policy = solve_oracle(replace(condition.market, drift_sd=scalar(0.0)), ORDER, N)
    gains = []
    for chunk, paths in enumerate(market_days(condition, days(6000), "test")):
        draws = generator(1, "unused", chunk)
        pair = [execute(p, paths, condition.market, ORDER, draws) for p in [optimum, blind]]
        earned = [e.pnl_bps - ORDER.risk_aversion * e.expected_risk for e in pair]
        gains.append(earned[0] - earned[1])
    mean = torch.cat(gains)[:6000].double().mean().item()
    assert (row["falling"] + row["flat"] + row["rising"]) / 3 == pytest.approx(mean, abs=1e-3)


def test_share_of_informed_gain_is_over_the_static_optimum() -> None:
    rows = [
        ("a", "static_optimal", pd.NA, pd.NA, -10.0),
        ("a", "flow_refined", 1, 0, -9.4),
        ("a", "flow_refined", 1, 1, -5.0),
        ("a", "flow_refined", 8, 0, -6.0),
        ("a", "flow_informed", 1, 0, -9.0),
    ]
    table = pd.DataFrame(
        rows, columns=["condition", "policy", "solver_steps", "training_seed", "utility_bps"]
    )
    table = table.astype({"solver_steps": "Int64", "training_seed": "Int64"})
    assert share_of_informed_gain(table)["a"] == pytest.approx(0.6)


def test_informed_policies_are_scored_only_where_something_is_hidden() -> None:
    regimes = Regimes(scalar(2.0), scalar(3.0), scalar(2.0), scalar(4.0))
    switching = Condition("switching", "s", Market(HESTON, regimes=regimes), ORDER)
    fields = {0: field(0), 1: field(1)}
    for condition, perceive in ((PLAIN, exact), (switching, blind_to_regimes)):
        scores, comparisons, checks = score_in_world(perceive, condition, fields, {}, days(300))
        informed = scores["policy"] == "flow_informed"
        assert informed.any() == (perceive is blind_to_regimes)
        assert "flow_informed" not in set(comparisons["policy"])
        flows = scores[scores["policy"] == "flow_refined"]
        first_seed = flows[(flows["training_seed"] == 0) & (flows["solver_steps"] == 1)]
        assert first_seed["n_paths"].tolist() == [300]
        assert set(flows["n_paths"]) == {300, 100}
        assert (checks["inventory_left"] == 0).all()


def test_model_confidence_set_holds_the_best_alone() -> None:
    world = World("liquidity", [PLAIN], "variance", "all")
    row = multiple_comparison(world, PLAIN, field(), {}, 200, days(2000)).iloc[0]
    # An untrained policy is no better than the static optimum, which is in the set.
    assert row["spa_p"] == pytest.approx(0, abs=0.01)
    assert "flow_refined" not in str(row["best_set"])
    assert row["std_ci_low"] <= row["std"] <= row["std_ci_high"]


def test_error_costs_are_the_utility_regained_without_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Re-planning reacts to parameters and variance; depth is constant, so observing it changes nothing.
    monkeypatch.setattr("flowoe_lib.studies.comparison.FlowPolicy", lambda field, steps: replanned)
    restless = replace(PLAIN, market=Market(replace(HESTON, cv=scalar(1.5))))
    table = error_costs(field(), restless, days(20_000)).set_index("healed")
    assert table.index.tolist() == ["parameters", "variance", "depth", "all"]
    regained = table["regained_bps"]
    assert regained["depth"] == 0
    assert (table.loc[["parameters", "variance", "all"], "ci_low"] > 0).all()
    assert regained["parameters"] + regained["variance"] == pytest.approx(regained["all"], rel=0.4)
    blurred, sharp = (
        evaluate({"r": replanned}, restless, days(20_000), "test", perceive)["r"].utility.double()
        for perceive in (with_errors, exact)
    )
    assert regained["all"] == pytest.approx(float((sharp - blurred).mean()), rel=1e-6)
