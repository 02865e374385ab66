"""Features and actions of learned policies: against hand calculation, free of units, and finite."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowoe_lib.execution.execution import (
    LEAST_TRADE,
    SCORE_LIMIT,
    Observation,
    OrderSimulation,
    execute,
    score_of_fraction,
)
from flowoe_lib.execution.features import (
    FEATURES,
    action_of_fraction,
    features,
    fraction_of_action,
)
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.first_trade import first_trade
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, scalar
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import expected_utility, static_optimal
from flowoe_lib.randomness import generator
from flowoe_lib.training.universal import universal_range

N = 39
RICH = Market(
    Heston(scalar(4e-4), scalar(5.0), scalar(1.2), scalar(-0.6)),
    liquidity=Liquidity(scalar(2.0), scalar(0.4), scalar(6.0), scalar(0.8)),
    drift=scalar(-12.0),
    drift_sd=scalar(50.0),
)
SELL = Order(scalar(0.1), scalar(5e-4))
BUY = dataclasses.replace(SELL, side=scalar(-1.0))


def met(market: Market, order: Order, k: int, n_paths: int = 40, n_buckets: int = N) -> Observation:
    """States of days that began differently, with different inventories left."""
    paths = simulate(market, n_paths, n_buckets, generator(1, "test"))
    left = torch.rand(n_paths, generator=generator(2, "test"))
    return OrderSimulation(paths, market, order).observe(k, left)


def columns(obs: Observation) -> dict[str, Tensor]:
    return dict(zip(FEATURES, features(obs).unbind(-1), strict=True))


@pytest.mark.parametrize("order", [SELL, BUY], ids=["sell", "buy"])
@pytest.mark.parametrize("k", [0, 17, N - 1])
def test_every_column_is_what_its_name_says(k: int, order: Order) -> None:
    obs = met(RICH, order, k)
    found = columns(obs)
    left, elapsed = 1 - k / N, k / N
    cost = 1e4 * 0.142 * 2 * 0.02 * 0.1**0.6 * math.exp(0.6**2 * 0.4**2 / 2)
    urgent = 5e-4 * 1e8 * 4e-4 / cost
    unit = float(PreTrade.of(RICH, order).score_unit)
    # Bucket means of the profile, from the primitive of the second Legendre polynomial.
    edges = [2 * i / N - 1 for i in range(N + 1)]
    volume = [
        1 + 0.8 * N / 4 * (edges[i + 1] ** 3 - edges[i + 1] - edges[i] ** 3 + edges[i]) for i in range(N)
    ]
    ahead = math.log(volume[k] / (sum(volume[k:]) / (N - k)))
    side = float(order.side)
    for i in range(5):
        ratio, depth = float(obs.variance[i]) / 4e-4, float(obs.log_depth[i])
        inventory, price = float(obs.inventory[i]), float(obs.return_bps[i])
        # The normal drift of mean -12 and sd 50 given a normal return of 200 bps a day.
        weight = 50**2 / (50**2 * elapsed + 200**2)
        believed = -12 * side + weight * (price + 12 * side * elapsed)
        # Variance is expected to revert to its mean at rate 5; the risk of an even schedule weights it.
        fade = 5 * left
        lasts = 3 * (1 / fade - 2 / fade**2 + 2 * (1 - math.exp(-fade)) / fade**3)
        exposure = left * (1 + (ratio - 1) * lasts)
        held = max(inventory, 0.001)
        rest = urgent * exposure * left**0.6 * held**0.4
        waiting = believed / cost * left * (left / held) ** 0.6
        planned, gain = scalar(rest)[None], scalar(waiting)[None]
        pace = float(first_trade(planned, gain, scalar(0.6), N - k))
        pace = 1e-4 + float(np.logaddexp(0, (pace - 1e-4) / 5e-5)) * 5e-5
        kept = (1 - math.exp(-6 * left)) / (6 * left)
        tilt = volume[k] / max(sum(volume[k + 1 :]) / max(N - k - 1, 1), 1e-9)
        odds = pace * (N - k - 1) / (N - k - pace)
        score = math.log(odds) + math.log(tilt) + depth * (1 - kept) if k < N - 1 else 0.0
        expected = {
            "time left": 2 * left - 1,
            "log time left": math.log(left) / 2 + 1,
            "log variance over its mean": math.log(max(ratio, 1e-3)) / 2,
            "vol of vol": 2 * 1.2 - 2,
            "log mean reversion of variance": math.log(5 / 4),
            "log depth": 2 * depth,
            "sd of log depth": 2 * 0.4,
            "log depth reversion, where depth moves": math.log(6 / 4),
            "log volume now over what is left": ahead,
            "log volume at the close over what is left": math.log(volume[-1] / volume[k] * math.exp(ahead)),
            "exponent of temporary impact": 8 * 0.6 - 5,
            "log urgency": math.log(urgent) / 2 - 0.5,
            "log urgency of the rest": math.log(rest) / 2,
            "inventory": 2 * inventory - 1,
            "log inventory over the TWAP line": math.log(inventory / left) / 2,
            "drift over cost": math.copysign(math.log1p(abs(believed) / cost), believed),
            "sd of the hidden drift over cost": math.log1p(50 / cost),
            "log volume now over what is left, in units of scores": ahead / unit,
            "log depth, in units of scores": depth / unit,
            "log urgency of the rest plus one, in units of scores": math.log1p(rest) / unit,
            "score of the re-planned schedule, in units of scores": score / unit,
            "drift over the marginal cost of the rest, in units of scores": waiting
            / (1 + abs(waiting))
            / unit,
        }
        assert set(expected) == set(FEATURES)
        if k == N - 1:
            # The last bucket trades all that is left, whatever the score.
            del expected["score of the re-planned schedule, in units of scores"]
        for name, value in expected.items():
            assert float(found[name][i]) == pytest.approx(value, rel=2e-4, abs=2e-4), name


EXTREMES: dict[str, tuple[Market, Order]] = {
    "nothing to gain": (Market(RICH.heston), dataclasses.replace(SELL, risk_aversion=scalar(0.0))),
    "calm and tiny": (
        Market(Heston(scalar(1e-8), scalar(0.1), scalar(0.01), scalar(-1.0))),
        Order(scalar(1e-5), scalar(1e-9)),
    ),
    "wild and huge": (
        Market(
            Heston(scalar(0.09), scalar(60.0), scalar(5.0), scalar(1.0)),
            Impact(beta=scalar(1.0), delta=scalar(0.3)),
            Liquidity(scalar(80.0), scalar(2.0), scalar(200.0), scalar(1.99)),
            drift=scalar(-3e3),
            drift_sd=scalar(3e3),
        ),
        Order(scalar(3.0), scalar(0.5), scalar(-1.0)),
    ),
    "drift alone": (dataclasses.replace(Market(RICH.heston), drift=scalar(1e4)), SELL),
    "upside-down volume": (
        Market(RICH.heston, liquidity=Liquidity(profile_amplitude=scalar(-0.99))),
        SELL,
    ),
    "urgent in a deep market": (
        Market(RICH.heston, liquidity=Liquidity(illiquidity=scalar(1e-3))),
        dataclasses.replace(SELL, risk_aversion=scalar(10.0)),
    ),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("n_buckets", [2, N])
def test_every_column_is_finite_in_extreme_conditions(name: str, n_buckets: int) -> None:
    market, order = EXTREMES[name]
    for k in {0, n_buckets // 2, n_buckets - 1}:
        obs = met(market, order, k, n_buckets=n_buckets)
        ends = torch.tensor([0.0, 1e-30, 1e-3, 1.0])
        obs = dataclasses.replace(
            obs,
            inventory=torch.cat((ends, obs.inventory[4:])),
            variance=torch.cat((torch.tensor([0.0, 1e-30]), obs.variance[2:])),
        )
        assert torch.isfinite(features(obs)).all()
        if k < n_buckets - 1:
            for action in (-1e3, 0.0, 1e3):
                fraction = fraction_of_action(obs, torch.full((40,), action))
                assert ((fraction >= 0) & (fraction <= 1)).all()


def test_every_column_is_of_order_one_where_policies_are_trained() -> None:
    market, order = universal_range(-0.6).draw(400, generator(3, "test"))
    for k in (0, 20, N - 2):
        paths = simulate(market, 400, N, generator(4, "test"))
        inventory = (1 - k / N) * torch.rand(400, generator=generator(5, "test"))
        obs = features(OrderSimulation(paths, market, order).observe(k, inventory))
        assert obs.square().mean(0).sqrt().max() < 6
        assert obs.abs().max() < 40
    # Everything but the time differs between paths.
    constant = {name for name, x in zip(FEATURES, obs.unbind(-1), strict=True) if x.std() < 1e-3}
    assert constant == {"time left", "log time left"}


@given(factor=st.floats(0.2, 5), k=st.integers(0, N - 2), drift=st.floats(-40, 40), drift_sd=st.floats(0, 80))
def test_features_are_equal_for_equal_urgency(factor: float, k: int, drift: float, drift_sd: float) -> None:
    heston = dataclasses.replace(RICH.heston, theta=RICH.heston.theta * factor**2)
    market = dataclasses.replace(RICH, drift=scalar(drift), drift_sd=scalar(drift_sd))
    other = dataclasses.replace(
        RICH, heston=heston, drift=scalar(factor * drift), drift_sd=scalar(factor * drift_sd)
    )
    obs = met(market, SELL, k, n_paths=8)
    scaled = dataclasses.replace(
        obs,
        market=other,
        order=dataclasses.replace(SELL, risk_aversion=SELL.risk_aversion / factor),
        pre_trade=PreTrade.of(other, dataclasses.replace(SELL, risk_aversion=SELL.risk_aversion / factor)),
        variance=obs.variance * factor**2,
        return_bps=obs.return_bps * factor,
    )
    torch.testing.assert_close(features(scaled), features(obs), rtol=2e-4, atol=2e-4)
    action = torch.linspace(-3, 3, 8)
    torch.testing.assert_close(
        fraction_of_action(scaled, action), fraction_of_action(obs, action), rtol=1e-4, atol=1e-7
    )


@given(factor=st.floats(0.2, 5), k=st.integers(0, N - 2))
def test_features_are_equal_for_equal_cost(factor: float, k: int) -> None:
    # Three times as illiquid and 3^(1 / .6) times smaller an order costs the same.
    liquidity = dataclasses.replace(RICH.liquidity, illiquidity=RICH.liquidity.illiquidity * factor)
    other, order = (
        dataclasses.replace(RICH, liquidity=liquidity),
        dataclasses.replace(SELL, size=SELL.size * factor ** (-1 / 0.6)),
    )
    obs = met(RICH, SELL, k, n_paths=8)
    scaled = dataclasses.replace(obs, market=other, order=order, pre_trade=PreTrade.of(other, order))
    torch.testing.assert_close(features(scaled), features(obs), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("k", [1, 20, N - 2])
def test_price_enters_the_features_only_through_the_posterior_drift(k: int) -> None:
    for market, told in ((dataclasses.replace(RICH, drift_sd=scalar(0.0)), False), (RICH, True)):
        obs = met(market, SELL, k)
        moved = dataclasses.replace(obs, return_bps=obs.return_bps + 37)
        before, after = columns(obs), columns(moved)
        changed = {name for name in FEATURES if not torch.equal(before[name], after[name])}
        drifts = {
            "drift over cost",
            "score of the re-planned schedule, in units of scores",
            "drift over the marginal cost of the rest, in units of scores",
        }
        assert changed == (drifts if told else set())
    # The return is measured in the order's favour, so a rise always favours waiting.
    assert (after["drift over cost"] > before["drift over cost"]).all()


@given(
    risk_aversion=st.floats(0, 1e-2),
    depth_sd=st.floats(0, 1),
    drift=st.floats(-200, 200),
    drift_sd=st.floats(0, 200),
    n_left=st.integers(2, N),
    share=st.floats(-0.9, 0.9),
)
def test_actions_and_fractions_are_inverse(
    risk_aversion: float, depth_sd: float, drift: float, drift_sd: float, n_left: int, share: float
) -> None:
    market = dataclasses.replace(
        RICH,
        liquidity=dataclasses.replace(RICH.liquidity, depth_sd=scalar(depth_sd)),
        drift=scalar(drift),
        drift_sd=scalar(drift_sd),
    )
    order = dataclasses.replace(SELL, risk_aversion=scalar(risk_aversion))
    market, order = map_tensors(Tensor.double, market), map_tensors(Tensor.double, order)
    obs = met(market, order, N - n_left, n_paths=1)
    unit = float(obs.pre_trade.correction_unit)
    # Scores are clamped, fractions beyond 1e-7 too.
    score = share * SCORE_LIMIT
    action = (score - obs.anchor) / unit
    fraction = fraction_of_action(obs, action)
    assert float(fraction) == pytest.approx(1 / (1 + (n_left - 1) * math.exp(-score)), rel=1e-5)
    assert float(action_of_fraction(obs, fraction)) == pytest.approx(float(action), rel=1e-5, abs=1e-5 / unit)


def test_units_are_roots_of_gains_within_limits() -> None:
    def units(gain: float) -> tuple[float, float]:
        plan = PreTrade(scalar(1.0), scalar(1.0), scalar(gain), scalar(gain))
        return float(plan.score_unit), float(plan.correction_unit)

    assert units(0.0) == units(1e-7) > (0, 0)
    assert units(4e-5)[0] / units(1e-5)[0] == pytest.approx(2, rel=0.01)
    sizes = [units(10.0**e)[0] for e in range(-6, 5)]
    assert sizes == sorted(sizes)
    assert SCORE_LIMIT / 2 < sizes[-1] <= SCORE_LIMIT
    assert units(0.3)[1] == pytest.approx(units(0.3)[0] / 3, rel=1e-6)


def test_anchor_falls_smoothly_to_the_least_trade() -> None:
    obs = met(dataclasses.replace(RICH, drift=torch.linspace(0, 600, 40), drift_sd=scalar(0.0)), SELL, 0)
    obs = dataclasses.replace(obs, inventory=torch.ones(40), variance=scalar(4e-4), log_depth=scalar(0.0))
    assert (obs.anchor.diff() <= 0.02).all()
    least = score_of_fraction(scalar(LEAST_TRADE / N), N)
    volume = score_of_fraction(obs.volume_ratio / N, N)
    assert float((obs.anchor - volume).min()) == pytest.approx(float(least), abs=0.2)


@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_no_correction_trades_the_replanned_schedule(beta: float) -> None:
    """It is close to the optimum, which is solved numerically here."""

    def uncorrected(obs: Observation, noise: Tensor) -> Tensor:
        return fraction_of_action(obs, torch.zeros_like(noise))

    for risk_aversion, drift in ((1e-3, 0.0), (4e-3, 0.0), (1e-3, -6.0), (4e-3, 6.0)):
        market = Market(Heston(scalar(4e-4), scalar(5.0), scalar(0.01), scalar(0.0)), drift=scalar(drift))
        market = dataclasses.replace(market, impact=Impact(beta=scalar(beta)))
        order = dataclasses.replace(SELL, risk_aversion=scalar(risk_aversion))
        paths = simulate(market, 200, N, generator(6, "test"))
        even = torch.linspace(1, 0, N + 1, dtype=torch.float64)
        best = static_optimal(market, order, N).inventory
        floor, limit = (float(expected_utility(market, order, path)) for path in (even, best))
        earned = execute(uncorrected, paths, market, order, generator(7, "test")).utility_bps(order)
        assert 0.998 < (float(earned.mean()) - floor) / (limit - floor) < 1.002


def gain(market: Market, order: Order) -> float:
    """Gain of the optimum over TWAP, as a multiple of the cost; the best schedule if nothing varies."""
    even = expected_utility(market, order, torch.linspace(1, 0, N + 1, dtype=torch.float64))
    if float(market.heston.cv) > 0.1 or float(market.liquidity.depth_sd):
        best = solve_oracle(market, order, N).value_bps
    else:
        best = float(expected_utility(market, order, static_optimal(market, order, N).inventory))
    return (best - float(even)) / float(PreTrade.of(market, order).cost_bps)


@pytest.mark.parametrize("risk_aversion", [0.0, 4e-5, 5e-4, 5e-3])
@pytest.mark.parametrize(
    ("cv", "depth_sd", "amplitude", "drift", "side"),
    [
        (0.02, 0.0, 0.0, 0.0, 1.0),
        (0.02, 0.0, 0.8, 0.0, 1.0),
        (0.02, 0.0, 0.0, -60.0, 1.0),
        (0.02, 0.0, 0.0, 60.0, -1.0),
        (1.2, 0.0, 0.0, 0.0, 1.0),
        (0.8, 0.5, 0.0, 0.0, 1.0),
    ],
)
def test_attainable_gain_is_close_to_the_optimal_gain(
    cv: float, depth_sd: float, amplitude: float, drift: float, side: float, risk_aversion: float
) -> None:
    market = Market(
        dataclasses.replace(RICH.heston, cv=scalar(cv)),
        liquidity=Liquidity(depth_sd=scalar(depth_sd), profile_amplitude=scalar(amplitude)),
        drift=scalar(drift),
    )
    order = Order(scalar(0.1), scalar(risk_aversion), scalar(side))
    attainable_gain, exact = float(PreTrade.of(market, order).attainable_gain), gain(market, order)
    # The optimum on a grid is off by a millionth or so.
    if exact < 1e-5:
        assert attainable_gain < 1e-5
    else:
        assert 0.4 < attainable_gain / exact < 1.6
