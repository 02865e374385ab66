"""The world of impact with memory: its conditions, what ignoring memory means, networks and scores."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from flowoe_lib.evaluation.scorecard import Evaluation
from flowoe_lib.execution.features import FEATURES, MEMORY_FEATURES
from flowoe_lib.market.impact import impact_slope
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField
from flowoe_lib.policies.schedules import expected_utility, static_optimal
from flowoe_lib.randomness import generator
from flowoe_lib.studies import opponents, transient_world
from flowoe_lib.studies.transient_world import (
    imitate_experts,
    opponents_in,
    refine_twice,
    score,
    transient_conditions,
    unaware_of_memory,
    with_half_life,
)
from flowoe_lib.studies.worlds import World

N = 4
GRID = [
    Condition(
        "heston",
        f"{level}/{liquidity}/cv{cv:g}",
        Market(Heston(scalar(vol**2), scalar(2.0), scalar(cv), scalar(-0.8))),
        Order(scalar(0.1), scalar(5e-4)),
    )
    for level, vol in {"calm": 0.01, "stressed": 0.02, "crisis": 0.04}.items()
    for liquidity in ("normal", "thin")
    for cv in (0.5, 1.3)
]
WORLD = transient_conditions(GRID)
RANGE = TrainingRange(kappa=(1.0, 4.0), rho=-0.8, memory=1.0)


def test_every_normal_condition_is_there_once_and_every_half_life_twice() -> None:
    found = [
        (
            c.market.heston.theta.sqrt().item(),
            c.market.heston.cv.item(),
            math.log(2) / c.market.impact.resilience.item(),
        )
        for c in WORLD
    ]
    assert len({(vol, cv) for vol, cv, _ in found}) == len(found) == 6
    for half_life in transient_world.HALF_LIVES:
        vols, cvs = zip(*((v, cv) for v, cv, h in found if h == pytest.approx(half_life)), strict=True)
        assert (len({*vols}), len({*cvs})) == (2, 2)
    assert {c.world for c in WORLD} == {"transient"}
    assert WORLD[3].name == "stressed/half-life 0.4/cv1.3"


def test_a_trader_unaware_of_memory_knows_everything_else() -> None:
    market = WORLD[3].market
    paths = simulate(market, 5, N, generator(1, "days"))
    known = unaware_of_memory(paths, market, generator(1, "errors"))
    assert torch.equal(known.variance, paths.variance)
    assert known.regimes is not None
    for believed in (known.market, known.regimes.market):
        assert not believed.impact.has_memory
        assert replace(believed, impact=market.impact) == market
        assert replace(believed.impact, resilience=market.impact.resilience) == market.impact


def test_an_even_schedule_costs_the_same_at_every_half_life() -> None:
    even = torch.linspace(1, 0, N + 1).double()
    order = GRID[0].order
    costs = [expected_utility(with_half_life(GRID[0].market, h), order, even) for h in (0.0, 0.05, 0.4)]
    torch.testing.assert_close(costs[1:], [costs[0]] * 2, rtol=1e-6, atol=0)
    slopes = [impact_slope(with_half_life(GRID[0].market, h), order.size, N) for h in (0.0, 0.4)]
    assert slopes[1].item() < slopes[0].item()


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_memory_is_observed_where_there_is_some(memory: float) -> None:
    drawn = replace(RANGE, memory=memory)
    imitated = imitate_experts(drawn, 6, 2, 2, 1).field
    refined = refine_twice(imitated, drawn, 6, 1, 1, 1).field
    count = len(FEATURES) + (len(MEMORY_FEATURES) if memory else 0)
    assert (imitated.observe.in_features, refined.observe.in_features) == (count, count)
    learned = (refined.observe.weight != imitated.observe.weight).any(0)
    assert learned[len(FEATURES) :].all()


def test_schedules_aware_of_memory_expect_more() -> None:
    for c in WORLD:
        named = opponents_in(c, N, {})
        aware, unaware = (named[f"static_{kind}"] for kind in ("optimal", "unaware"))
        plain = static_optimal(with_half_life(c.market, 0.0), c.order, N)
        assert torch.equal(unaware.inventory, plain.inventory)  # type: ignore[attr-defined]
        utility = [
            expected_utility(c.market, c.order, plan.inventory)  # type: ignore[attr-defined]
            for plan in (aware, unaware)
        ]
        assert utility[0] > utility[1]


@pytest.mark.usefixtures("in_this_process")
def test_every_policy_is_scored_between_twap_and_the_limit() -> None:
    chosen = [WORLD[3]]
    rl = {"patience": 1, "tolerance": 0.5, "days": 1, "n_orders": 64}
    specialist = {"patience": 1, "tolerance": 0.5, "iterations": 2, "paths": 8}
    world = World("transient", chosen, "variance", "everything")
    made = opponents.train_opponents([world], [0], N, 100, 1, rl=rl, specialist=specialist)
    assert made.training["capture"].max() <= 1
    trained = opponents.unpack(load(save(made.policies)))[f"transient/{WORLD[3].name}"]
    assert set(trained) == {"rl", "specialist"}
    start = imitate_experts(replace(RANGE, memory=0.0), N, 4, 3, 1).field
    wider = EndpointField(generator(1, "weights"), len(FEATURES) + len(MEMORY_FEATURES))
    days = Evaluation(n_paths=500, n_buckets=N, seed=1, chunk=500)
    rivals = opponents_in(WORLD[3], N, trained)
    scores = score(WORLD[3], rivals, {0: start}, {0: wider, 1: wider}, {5: start}, days)
    table = scores.scorecard.set_index("policy")
    assert set(table.index) == {
        *rivals,
        "flow_imitation",
        "flow_refined",
        "flow_unaware",
        "limit",
        "mpc_unaware",
    }
    assert table.loc[["twap", "limit"], "capture"].tolist() == [0, 1]
    assert table["utility_bps"].idxmax() == "limit"
    assert table["utility_bps"]["mpc"] > table["utility_bps"]["mpc_unaware"]
    # Both networks of a learner are compared together, and those that are unaware are not opponents.
    rows = scores.comparisons
    rows = rows[(rows["policy"] == "flow_refined") & (rows["solver_steps"] == 1)].set_index("reference")
    assert rows["training_seeds"]["mpc"] == 2
    assert set(rows.index) == {*rivals, "flow_imitation"}
