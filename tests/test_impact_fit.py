"""Impact coefficients are recovered from orders that the simulator executed, and from exact costs."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from flowoe_lib.data.impact_fit import fit_impact
from flowoe_lib.execution.execution import execute
from flowoe_lib.market.impact import impact_in_window
from flowoe_lib.market.model import Heston, Impact, Liquidity, Market, Order, scalar, volume_share
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator

TRUE = {"eta": 0.2, "beta": 0.5, "gamma": 0.4}


def orders(n: int, seed: int = 1) -> pd.DataFrame:
    """Orders of .2 to 25 % of ADV over 10 minutes to a day, without their cost."""
    draws = np.random.default_rng(seed)

    def between(low: float, high: float) -> NDArray[np.float64]:
        return np.exp(draws.uniform(np.log(low), np.log(high), n))

    adv = between(1e5, 1e7)
    columns = {"side": np.where(draws.random(n) < 0.6, "buy", "sell"), "shares": adv * between(0.002, 0.25)}
    columns |= {"adv": adv, "volatility": between(0.008, 0.04), "duration": between(0.025, 1)}
    return pd.DataFrame(columns | {"shares_outstanding": adv * between(80, 800)})


def expected_cost(table: pd.DataFrame) -> pd.Series:
    """Almgren et al. (2005), eq. (5) and (6): J = I / 2 + K."""
    size = table["shares"] / table["adv"]
    temporary = TRUE["eta"] * (size / table["duration"]) ** TRUE["beta"]
    permanent = TRUE["gamma"] * size * (table["shares_outstanding"] / table["adv"]) ** 0.25 / 2
    return 1e4 * table["volatility"] * (temporary + permanent)


def test_exact_costs_give_the_exact_coefficients_and_the_drift() -> None:
    table = orders(60)
    drift = 7 * table["duration"] / 2 * table["side"].map({"buy": 1, "sell": -1})
    fit = fit_impact(table.assign(cost_bps=expected_cost(table) + drift), reps=100)
    np.testing.assert_allclose(fit.table["estimate"], [*TRUE.values(), 7], rtol=1e-5)
    np.testing.assert_allclose(fit.table[["ci_low", "ci_high"]].mean(axis=1), [*TRUE.values(), 7], rtol=1e-4)
    assert fit.options == pytest.approx(TRUE)
    assert fit.table["published"].tolist() == pytest.approx([0.142, 0.6, 0.314, 0])


def test_unknown_shares_outstanding_are_those_of_a_large_stock() -> None:
    table = orders(60)
    table["shares_outstanding"] = 263 * table["adv"]
    table["cost_bps"] = expected_cost(table)
    fit = fit_impact(table.drop(columns="shares_outstanding"), reps=100)
    assert fit.options == pytest.approx(TRUE, rel=1e-4)


@pytest.fixture(scope="module")
def simulated() -> pd.DataFrame:
    """Orders worked as TWAP by the simulator, in random markets, with the price moves of their days."""
    table, n = orders(6_000), 13
    size, volatility, duration, turnover = (
        torch.tensor(x.to_numpy(), dtype=torch.float32)
        for x in (
            table["shares"] / table["adv"],
            table["volatility"],
            table["duration"],
            table["shares_outstanding"] / table["adv"],
        )
    )
    heston = Heston(volatility.square() * duration, scalar(2), scalar(0.5), scalar(-0.6))
    liquidity = Liquidity(window_end=duration.clamp_max(1))
    eta, beta, gamma = map(scalar, TRUE.values())
    impact = Impact(eta, beta, gamma, turnover_days=turnover)
    market = Market(heston, impact_in_window(impact, duration, volume_share(liquidity)), liquidity)
    side = torch.tensor(table["side"].map({"buy": -1.0, "sell": 1.0}).to_numpy(), dtype=torch.float32)
    order = Order(size / duration, scalar(5e-4), side)
    days = simulate(market, len(table), n, generator(3, "fills"))
    done = execute(twap, days, market, order, generator(3, "noise"))
    return table.assign(cost_bps=-done.pnl_bps.double().numpy())


def test_coefficients_are_recovered_from_simulated_orders(simulated: pd.DataFrame) -> None:
    """The noise of an order's cost is several times its expectation."""
    noise = (simulated["cost_bps"] - expected_cost(simulated)).std()
    assert noise > 2 * expected_cost(simulated).mean()
    fit = fit_impact(simulated, reps=100)
    table = fit.table.drop("drift")
    true = np.array(list(TRUE.values()))
    sd = (table["ci_high"] - table["ci_low"]) / (2 * 1.96)
    assert (((table["estimate"] - true) / sd).abs() < 3).all()
    assert (sd / true < [0.1, 0.1, 0.25]).all()
    # An interval shrinks by the square root of the number of orders.
    half = fit_impact(simulated.iloc[::2], reps=100).table["orders_needed"] / fit.table["orders_needed"]
    assert half.drop("drift").between(0.5, 2).all()


def test_weights_are_those_of_the_price_moves(simulated: pd.DataFrame) -> None:
    """The sd of cost over an even schedule is sigma sqrt(T / 3), so its z-scores have unit variance."""
    sd = 1e4 * simulated["volatility"] * np.sqrt(simulated["duration"] / 3)
    z = (simulated["cost_bps"] - expected_cost(simulated)) / sd
    # Thirteen trades at the start of their bucket: sum (k / 13)^2 / 13 = .2840 in place of 1 / 3.
    assert z.std() == pytest.approx(np.sqrt(0.2840 * 3), abs=0.04)


REFUSED: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "few orders": (lambda t: t.iloc[:29], "orders: 29 rows; must be at least 30"),
    "no cost": (lambda t: t.drop(columns="cost_bps"), "missing column cost_bps; found side, shares"),
    "no volume": (
        lambda t: t.assign(adv=[0.0, *t["adv"][1:]]),
        "adv, row 1: is .*0.0.*; must be finite",
    ),
    "a gap": (lambda t: t.assign(cost_bps=[1.0, np.nan, *t["cost_bps"][2:]]), "cost_bps, row 2: is .*nan"),
    "text": (lambda t: t.assign(duration=["a", *t["duration"][1:]]), "duration, row 1: is 'a'; must be"),
    "a side": (
        lambda t: t.assign(side=["short", *t["side"][1:]]),
        "side, row 1: is 'short'; must be buy or",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_orders_are_refused_by_name(case: str) -> None:
    table = orders(40)
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        fit_impact(change(table.assign(cost_bps=expected_cost(table))), reps=100)


def test_few_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="reps = 99: must be at least 100"):
        fit_impact(orders(40).assign(cost_bps=1.0), reps=99)
