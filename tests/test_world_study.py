"""Contenders of each world and measures special to worlds, on policies with known results."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from flowoe_lib.evaluation.contestants import contestants_digest
from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.information import Perceive, blind_to_regimes, exact, with_errors
from flowoe_lib.market.model import Condition, Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.replanning import replanned
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.schedules import EstimatedSchedule, Schedule, twap
from flowoe_lib.randomness import generator
from flowoe_lib.recipes import LOADED
from flowoe_lib.studies.comparison import (
    Trained,
    contestants_in,
    error_costs,
    multiple_comparison,
    opponents_in,
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
    return RLExpert(layers)


def test_a_trained_policy_competes_only_in_its_condition() -> None:
    trained: Trained = {"liquidity/plain": {"rl": rl_expert(1), "specialist": twap}}
    there = opponents_in(exact, PLAIN, N, trained)
    assert (there["rl"], there["specialist"]) == tuple(trained["liquidity/plain"].values())
    for elsewhere in (replace(PLAIN, name="other"), replace(PLAIN, world="realistic")):
        assert set(there) - set(opponents_in(exact, elsewhere, N, trained)) == {"rl", "specialist"}
    estimated = opponents_in(with_errors, replace(PLAIN, world="realistic"), N, trained)
    assert set(estimated) == set(there) - {"rl", "specialist"}
    assert isinstance(estimated["static_optimal"], EstimatedSchedule)


HIDDEN = Condition("hidden", "h", Market(replace(HESTON, cv=scalar(0.02)), drift_sd=scalar(60.0)), ORDER)
REGIMES = Regimes(scalar(2.0), scalar(3.0), scalar(2.0), scalar(4.0))
SWITCHING = Condition("switching", "s", Market(HESTON, regimes=REGIMES), ORDER)
DEEP = Liquidity(depth_sd=scalar(0.5), depth_reversion=scalar(4.0))
REALISTIC = Condition("realistic", "r", Market(HESTON, liquidity=DEEP), ORDER)


@pytest.mark.parametrize(
    ("condition", "perceive"),
    [(PLAIN, exact), (HIDDEN, exact), (SWITCHING, blind_to_regimes), (REALISTIC, with_errors)],
)
def test_no_opponent_exceeds_the_limit_of_its_world(condition: Condition, perceive: Perceive) -> None:
    scores, comparisons, checks = score_in_world(
        perceive, condition, {0: field(0), 1: field(1)}, {}, days(3_000)
    )
    capture = scores[scores["n_paths"] == 3_000].groupby("policy")["capture_ci_low"].max()
    incomplete = condition in (SWITCHING, REALISTIC)
    assert ("limit" in capture, "oracle" in capture) == (condition is not PLAIN, condition is not HIDDEN)
    assert (capture.drop(["oracle", "flow_informed"], errors="ignore") <= 1).all()
    if incomplete:
        assert capture["oracle"] > 1
    assert capture["random"] < 0
    assert set(comparisons["reference"][comparisons["is_best_opponent"]]) <= {"mpc", "replanned"}
    # The policy with full information is a reference of another kind.
    assert ("flow_informed" in capture) == incomplete
    assert set(comparisons["policy"]) == {"flow_refined"}
    assert set(comparisons["training_seeds"][comparisons["solver_steps"] == 1]) == {2}
    flows = scores[scores["policy"] == "flow_refined"]
    assert flows["n_paths"].groupby(flows["solver_steps"]).unique().to_dict() == {
        1: [3_000], 2: [100], 4: [100], 8: [100],
    }  # fmt: skip
    assert (checks["inventory_left"] == 0).all()


def test_contestants_are_all_policies_whose_content_gives_the_days(monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = [World("liquidity", [PLAIN]), World("hidden", [HIDDEN])]

    def digest(seed: int, trained: Trained) -> str:
        learned = {"flow": FlowPolicy(field(seed), 1)}
        return contestants_digest(contestants_in(worlds, learned, trained), {"n_buckets": N})

    trained = [{"hidden/h": {"rl": rl_expert(seed)}} for seed in (1, 2)]
    assert digest(0, {}) == digest(0, {})
    assert len({digest(0, {}), digest(1, {}), *(digest(0, t) for t in trained)}) == 4
    for name in ("policies.replanning", "policies.trajectory", "execution.information"):
        before, module = digest(0, {}), f"flowoe_lib.{name}"
        with monkeypatch.context() as edited:
            edited.setitem(LOADED, module, LOADED[module]._replace(sha256="edited"))
            assert digest(0, {}) != before, "planners contribute their code"


def test_experts_of_hidden_regimes_are_calibrated_to_the_average() -> None:
    mean = replace(PLAIN, market=moment_matched(SWITCHING.market))
    found, expected = (
        opponents_in(perceive, c, N, {})["static_optimal"]
        for perceive, c in ((blind_to_regimes, SWITCHING), (exact, mean))
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
    # Linear permanent impact costs every policy half of its price move, which is no part of the cost.
    cost = -oracle - PLAIN.market.permanent_cost_bps(ORDER.size).item() / 2
    assert table["regret"][1] == pytest.approx((oracle - flow) / cost, abs=1e-6)


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


def test_model_confidence_set_holds_the_best_alone() -> None:
    world = World("liquidity", [PLAIN])
    row = multiple_comparison(world, PLAIN, field(), {}, 200, days(2000)).iloc[0]
    # An untrained policy is no better than the static optimum, which is in the set.
    assert row["spa_p"] == pytest.approx(0, abs=0.01)
    assert "flow_refined" not in str(row["best_set"])


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
