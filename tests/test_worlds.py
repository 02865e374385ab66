"""The worlds beyond the Heston grid: what varies, what agents know, and conditions outside training."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from flowoe_lib.data.calibration import Calibration, Estimate
from flowoe_lib.data.conditions import (
    base_condition,
    conditions_from_records,
    conditions_to_records,
    heston_grid,
)
from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.execution.information import blind_to_regimes, exact, with_errors
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Condition, Liquidity
from flowoe_lib.market.pre_trade import posterior_drift, urgency
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import from_estimates
from flowoe_lib.policies.oracle import solve_belief
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.randomness import generator
from flowoe_lib.studies.worlds import DRIFT, World, beyond_training, dynamic_worlds, liquid_day
from flowoe_lib.training.plateau import validation_captures
from flowoe_lib.training.universal import universal_range

VALUES = {
    "calm": 0.0072, "stressed": 0.0189, "crisis": 0.039, "vix_ratio": 0.7, "vix_correlation": 0.9,
    "rho": -0.82, "kappa": 2.2, "cv_month": 0.51, "profile_amplitude": 0.83, "depth_sd": 0.27,
    "depth_reversion": 11.4, "cv_years": 1.27,
}  # fmt: skip
VOLATILITIES = {"calm": 0.007, "stressed": 0.02, "crisis": 0.04}


@pytest.fixture(scope="module")
def estimates() -> dict[str, dict[str, float]]:
    return {name: {"value": value, "ci_low": value, "ci_high": value} for name, value in VALUES.items()}


@pytest.fixture(scope="module")
def grid() -> list[Condition]:
    calibration = Calibration(**{f.name: Estimate(*[VALUES[f.name]] * 3) for f in fields(Calibration)})
    return heston_grid(calibration)


@pytest.fixture(scope="module")
def day(estimates: dict[str, dict[str, float]]) -> Liquidity:
    return liquid_day(estimates)


@pytest.fixture(scope="module")
def worlds(grid: list[Condition], day: Liquidity) -> dict[str, World]:
    return {world.name: world for world in dynamic_worlds(grid, day)}


def records_of(conditions: Sequence[Condition]) -> dict[str, dict[str, float]]:
    """The numbers of each condition by its name."""
    records = conditions_to_records(conditions)
    return {r["name"]: {k: v for k, v in r.items() if k not in ("world", "name")} for r in records}


def differences(one: dict[str, float], other: dict[str, float]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def test_day_has_the_estimates_to_one_digit(day: Liquidity) -> None:
    found = [day.depth_sd, day.depth_reversion, day.profile_amplitude, day.illiquidity]
    assert [round(x.item(), 6) for x in found] == [0.3, 10, 0.8, 1]


def test_worlds_have_their_conditions_and_each_its_name(worlds: dict[str, World]) -> None:
    sizes = {name: len(world.conditions) for name, world in worlds.items()}
    assert sizes == {"liquidity": 18, "drift": 18, "hidden": 6, "switching": 12, "realistic": 18}
    for name, world in worlds.items():
        assert {c.world for c in world.conditions} == {name}
        assert len({c.name for c in world.conditions}) == len(world.conditions)
        numbers = [tuple(r.values()) for r in records_of(world.conditions).values()]
        assert len(set(numbers)) == len(numbers)
    # All agents have the same information, which belongs to the world.
    blurred = {name: world.perceive for name, world in worlds.items() if world.perceive is not exact}
    assert blurred == {"switching": blind_to_regimes, "realistic": with_errors}


def test_worlds_leave_order_impact_and_the_rest_of_the_grid_alone(
    worlds: dict[str, World], grid: list[Condition]
) -> None:
    steady = next(iter(records_of(grid[:1]).values()))
    moved = {
        "liquidity": {"illiquidity", "depth_sd", "depth_reversion", "profile_amplitude"},
        "realistic": {"illiquidity", "depth_sd", "depth_reversion", "profile_amplitude"},
        "drift": {"illiquidity", "drift"},
        "hidden": {"illiquidity", "rho", "drift_sd"},
        "switching": {"volatility_multiplier", "cost_multiplier", "enter", "leave"},
    }
    cvs = {"hidden": (0.02,), "switching": (0.02, 0.5, 1.3)}
    for name, world in worlds.items():
        for record in records_of(world.conditions).values():
            assert differences(record, steady) <= {"theta", "cv", *moved[name]}
            assert round(math.sqrt(record["theta"]), 6) in VOLATILITIES.values()
            assert round(record["cv"], 6) in cvs.get(name, (0.5, 1.3))


def test_liquidity_and_realistic_worlds_differ_only_in_information(
    worlds: dict[str, World], day: Liquidity
) -> None:
    first, second = (records_of(worlds[name].conditions) for name in ("liquidity", "realistic"))
    assert first == second
    illiquidities = {"normal": 1.0, "lean": 2.0, "thin": 3.0}
    for name, record in first.items():
        volatility, level, cv = name.split("/")
        assert record["illiquidity"] == illiquidities[level]
        assert math.sqrt(record["theta"]) == pytest.approx(VOLATILITIES[volatility])
        assert f"cv{record['cv']:g}"[:5] == cv
        for field in ("depth_sd", "depth_reversion", "profile_amplitude"):
            assert record[field] == getattr(day, field).item()


def test_drift_is_three_tenths_of_the_day_s_volatility_either_way(worlds: dict[str, World]) -> None:
    ways = {"down": -0.3, "none": 0.0, "up": 0.3}
    assert ways["up"] == DRIFT
    for name, record in records_of(worlds["drift"].conditions).items():
        volatility, liquidity, way = name.split("/")
        assert record["drift"] == pytest.approx(ways[way] * 1e4 * VOLATILITIES[volatility])
        assert record["illiquidity"] == {"normal": 1, "thin": 3}[liquidity]
        assert record["cv"] == pytest.approx(0.5)


def test_hidden_drift_has_that_spread_at_steady_variance(worlds: dict[str, World]) -> None:
    for name, record in records_of(worlds["hidden"].conditions).items():
        volatility, liquidity = name.split("/")
        assert record["drift"] == 0
        assert record["drift_sd"] == pytest.approx(0.3 * 1e4 * VOLATILITIES[volatility])
        assert record["illiquidity"] == {"normal": 1, "thin": 3}[liquidity]


def test_regimes_lead_from_one_volatility_level_to_the_next(worlds: dict[str, World]) -> None:
    steps = {f"{a}-{b}": (VOLATILITIES[a], VOLATILITIES[b]) for a, b in pairwise(VOLATILITIES)}
    for c in worlds["switching"].conditions:
        step, pace, _ = c.name.split("/")
        calm, stressed = steps[step]
        regimes, heston = c.market.regimes, c.market.heston
        assert float(heston.theta.sqrt()) == pytest.approx(calm)
        assert float(heston.theta.sqrt() * regimes.volatility_multiplier) == pytest.approx(stressed)
        # A market of that volatility at twice the cost.
        assert float(regimes.cost_multiplier) == pytest.approx(2 * stressed / calm)
        rate = {"rare": 2.0, "frequent": 6.0}[pace]
        assert [float(regimes.enter), float(regimes.leave)] == [rate, rate]
        assert float(regimes.stressed_share) == 0.5


def test_records_round_trip_in_every_world(
    worlds: dict[str, World], grid: list[Condition], day: Liquidity
) -> None:
    unseen = [c for c, _ in beyond_training(base_condition(grid), day).values()]
    for conditions in (*(world.conditions for world in worlds.values()), unseen):
        records = conditions_to_records(conditions)
        again = conditions_from_records(json.loads(json.dumps(records)))
        assert conditions_to_records(again) == records
        for one, other in zip(conditions, again, strict=True):
            assert (one.world, one.name) == (other.world, other.name)
            for part in ("market", "order"):
                same: list[bool] = []

                def note(a: Tensor, b: Tensor, same: list[bool] = same) -> Tensor:
                    same.append(torch.equal(a, b))
                    return a

                map_tensors(note, getattr(one, part), getattr(other, part))
                assert len(same) >= 3
                assert all(same)


def test_conditions_beyond_training_differ_in_the_named_parameters(
    grid: list[Condition], day: Liquidity
) -> None:
    base = base_condition(grid)
    unseen = beyond_training(base, day)
    conditions = {name: c for name, (c, _) in unseen.items()}
    numbers = records_of(list(conditions.values()))
    assert list(numbers) == list(unseen)
    assert {c.world for c in conditions.values()} == {"unseen"}
    trained = numbers["as trained"]
    liquid = {"depth_sd", "depth_reversion", "profile_amplitude"}
    assert differences(trained, records_of([base])[base.name]) == liquid
    for name, (_, n_buckets) in unseen.items():
        changed = differences(numbers[name], trained)
        named = 0 if name == "as trained" else len(name.split(", "))
        assert len(changed) + (n_buckets != 39) == named, name
    assert {name: n for name, (_, n) in unseen.items() if n != 39} == {"13 buckets": 13, "78 buckets": 78}


def test_conditions_beyond_training_violate_the_range(grid: list[Condition], day: Liquidity) -> None:
    bounds = universal_range(-0.8)
    fields = ("cv", "kappa", "depth_reversion")
    limits = {name: getattr(bounds, name) for name in fields}
    drawn = urgency(*bounds.draw(20_000, generator(3, "test")))
    limits["urgency"] = (drawn.quantile(0.005).item(), drawn.quantile(0.995).item())
    numbers = records_of([c for c, n in beyond_training(base_condition(grid), day).values() if n == 39])
    for record in numbers.values():
        cost = (
            record["eta"] * record["illiquidity"] * record["theta"] ** 0.5 * record["size"] ** record["beta"]
        )
        depth = math.exp((record["beta"] * record["depth_sd"]) ** 2 / 2)
        record["urgency"] = 1e4 * record["risk_aversion"] * record["theta"] / (cost * depth)
    outside = {
        name: [field for field, (low, high) in limits.items() if not low <= record[field] <= high]
        for name, record in numbers.items()
    }
    assert outside.pop("as trained") == []
    assert {name: len(found) for name, found in outside.items()} == {n: len(n.split(", ")) for n in outside}
    assert len(outside) == 10
    for field, (low, high) in limits.items():
        values = [numbers[name][field] for name, found in outside.items() if field in found]
        assert min(values) < low < high < max(values)


@pytest.mark.parametrize("name", ["liquidity", "drift", "hidden", "switching", "realistic"])
def test_every_condition_can_be_traded_in_as_it_is_perceived(name: str, worlds: dict[str, World]) -> None:
    world = worlds[name]
    for c in world.conditions[::3]:
        days = Evaluation(n_paths=20, n_buckets=13, seed=1, chunk=20)
        for outcome in evaluate(from_estimates(c, 13), c, days, "test", world.perceive).values():
            assert torch.isfinite(outcome.utility).all()
            assert torch.isfinite(outcome.pnl).all()
            assert outcome.left.max() == 0


def test_with_a_hidden_drift_variance_tells_nothing_that_prices_do_not(worlds: dict[str, World]) -> None:
    for condition in worlds["hidden"].conditions:
        market, order = condition.market, condition.order
        paths = simulate(market, 5_000, 13, generator(1, "hidden", condition.name))
        price = paths.martingale_bps + paths.drift_bps
        shocks = torch.stack((price, paths.integrated_variance - paths.expected_variance)).flatten(1)
        assert abs(torch.corrcoef(shocks)[0, 1]) < 4 / shocks.shape[1] ** 0.5
        # The simulator's forecast is the posterior mean given prices and variances.
        by_both, by_price = (
            13 * paths.drift_bps[-1],
            posterior_drift(market, order, price[:-1].sum(0), 12 / 13),
        )
        assert (by_both - by_price).square().mean() < 1e-3 * by_both.var()


def test_with_a_hidden_drift_replanning_reaches_the_belief_optimum(worlds: dict[str, World]) -> None:
    conditions = worlds["hidden"].conditions
    captured = validation_captures(conditions, 1_000, 13, 1, limit=solve_belief)(mpc)
    assert captured.min() > 0.999
