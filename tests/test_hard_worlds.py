"""The worlds of impact with memory, of a signal, and of everything at once: conditions and scores."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from flowoe_lib.evaluation.scorecard import Evaluation
from flowoe_lib.execution.features import FEATURES, MEMORY_FEATURES, SIGNAL_FEATURES
from flowoe_lib.execution.information import CONSTANT_CV, with_errors
from flowoe_lib.market.impact import impact_slope, with_half_life
from flowoe_lib.market.model import Condition, Heston, Liquidity, Market, Order, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField
from flowoe_lib.policies.schedules import expected_utility, static_optimal
from flowoe_lib.randomness import generator
from flowoe_lib.studies import opponents
from flowoe_lib.studies.comparison import opponents_in, score_in_world, share_of_value, unaware_of_memory
from flowoe_lib.studies.worlds import HALF_LIVES, World, full_world, signal_world, transient_world

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
DAY = Liquidity(depth_sd=scalar(0.3), depth_reversion=scalar(2.0), profile_amplitude=scalar(0.8))
WORLD, SIGNAL, FULL = transient_world(GRID), signal_world(GRID), full_world(GRID, DAY)
CONDITIONS = WORLD.conditions
WIDTH = len(FEATURES) + len(MEMORY_FEATURES) + len(SIGNAL_FEATURES)


def test_every_normal_condition_is_there_once_and_every_half_life_twice() -> None:
    found = [
        (
            c.market.heston.theta.sqrt().item(),
            c.market.heston.cv.item(),
            math.log(2) / c.market.impact.resilience.item(),
        )
        for c in CONDITIONS
    ]
    assert len({(vol, cv) for vol, cv, _ in found}) == len(found) == 6
    for half_life in HALF_LIVES:
        vols, cvs = zip(*((v, cv) for v, cv, h in found if h == pytest.approx(half_life)), strict=True)
        assert (len({*vols}), len({*cvs})) == (2, 2)
    assert {c.world for c in CONDITIONS} == {"transient"}
    assert CONDITIONS[3].name == "stressed/half-life 0.4/cv1.3"


def test_a_trader_unaware_of_memory_knows_everything_else() -> None:
    market = CONDITIONS[3].market
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
    costs = [
        expected_utility(with_half_life(GRID[0].market, scalar(h)), order, even) for h in (0.0, 0.05, 0.4)
    ]
    torch.testing.assert_close(costs[1:], [costs[0]] * 2, rtol=1e-6, atol=0)
    slopes = [impact_slope(with_half_life(GRID[0].market, scalar(h)), order.size, N) for h in (0.0, 0.4)]
    assert slopes[1].item() < slopes[0].item()


def test_signals_cross_volatility_strength_and_noise_at_steady_variance() -> None:
    names = [c.name for c in SIGNAL.conditions]
    assert len({*names}) == len(names) == 12
    assert names[:2] == ["calm/strong/exact", "calm/strong/noisy"]
    laws = {(c.market.heston.cv.item(), c.market.heston.rho.item()) for c in SIGNAL.conditions}
    assert laws == {(scalar(CONSTANT_CV).item(), 0.0)}
    ratios = {
        c.name.split("/")[2]: (c.market.signal.noise_sd / c.market.signal.sd).item()
        for c in SIGNAL.conditions
    }
    assert ratios == {"exact": 0, "noisy": pytest.approx(2)}


def test_everything_at_once_is_the_transient_world_with_depth_signal_and_errors() -> None:
    assert FULL.perceive is with_errors
    for c, remembered in zip(FULL.conditions, CONDITIONS, strict=True):
        assert c.name == remembered.name
        assert c.market.signal.present
        assert bool(c.market.signal.noise_sd > c.market.signal.sd)
        assert c.market.impact == remembered.market.impact
        assert c.market.liquidity == DAY
        assert c.market.heston == remembered.market.heston


def test_schedules_aware_of_memory_expect_more() -> None:
    for c in CONDITIONS:
        named = opponents_in(WORLD.perceive, c, N, {})
        aware, unaware = (named[f"static_{kind}"] for kind in ("optimal", "unaware"))
        plain = static_optimal(with_half_life(c.market, scalar(0.0)), c.order, N)
        assert torch.equal(unaware.inventory, plain.inventory)  # type: ignore[attr-defined]
        utility = [
            expected_utility(c.market, c.order, plan.inventory)  # type: ignore[attr-defined]
            for plan in (aware, unaware)
        ]
        assert utility[0] > utility[1]


@pytest.fixture(params=[WORLD, SIGNAL, FULL], ids=lambda world: world.name)
def one(request: pytest.FixtureRequest) -> World:
    """A world of a single condition."""
    world: World = request.param
    return replace(world, conditions=world.conditions[3:4])


@pytest.mark.usefixtures("in_this_process")
def test_every_policy_is_scored_between_twap_and_the_limit(one: World) -> None:
    rl = {"patience": 1, "tolerance": 0.5, "days": 1, "n_orders": 64}
    specialist = {"patience": 1, "tolerance": 0.5, "iterations": 2, "paths": 8}
    made = opponents.train_opponents([one], [0], N, 200, 1, rl=rl, specialist=specialist)
    trained = opponents.unpack(load(save(made.policies)))
    [condition] = one.conditions
    assert set(trained[f"{one.name}/{condition.name}"]) == {"rl", "specialist"}
    fields = {s: EndpointField(generator(s, "weights"), WIDTH) for s in (0, 1)}
    days = Evaluation(n_paths=500, n_buckets=N, seed=1, chunk=500)
    scores = score_in_world(one.perceive, condition, fields, trained, days)
    rivals = opponents_in(one.perceive, condition, N, trained)
    references = {
        "transient": {"limit", "flow_unaware", "mpc_unaware"},
        "signal": {"limit"},
        "full": {"dynamic_program_informed", "mpc_informed", "flow_informed"},
    }[one.name]
    table = scores.scorecard[scores.scorecard["solver_steps"].fillna(1) == 1]
    utility = table.groupby("policy")["utility_bps"].mean()
    assert set(utility.index) == {*rivals, *references, "flow_refined"}
    assert utility.idxmax() in ("limit", "dynamic_program_informed")
    best = table[table["policy"] == utility.idxmax()]
    assert best["capture"].tolist() == [1]
    if one.name == "transient":
        assert utility["mpc"] > utility["mpc_unaware"]
    if one.name == "signal":
        share = table.assign(share=share_of_value(table)).set_index("policy")["share"]
        assert (share["static_optimal"], share["limit"]) == (pytest.approx(0), pytest.approx(1))
        assert share["mpc"] > share["linear_quadratic"] > share["twap"]
    # Both networks of a learner are compared together, and those with other information are not opponents.
    rows = scores.comparisons
    rows = rows[(rows["policy"] == "flow_refined") & (rows["solver_steps"] == 1)].set_index("reference")
    assert rows["training_seeds"]["mpc"] == 2
    assert set(rows.index) == {*rivals}
