"""Replayed orders observe only the past of the record and are charged on what follows."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from flowoe_lib.data.bars import Bars, load_bars, resample_trades
from flowoe_lib.data.records import emini_trades
from flowoe_lib.data.sessions import Array, Tape, lay_out
from flowoe_lib.data.vendors import BarsError
from flowoe_lib.execution.execution import Policy
from flowoe_lib.market.model import Heston, Liquidity, Market, Order, scalar, volume_share
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.schedules import expected_utility, twap
from flowoe_lib.studies.replay import (
    Replay,
    break_even_impact,
    expected_under_model,
    outcome_table,
    paired_differences,
    prediction_test,
    replay,
    run,
    session_market,
    walk_forward,
)
from flowoe_lib.training import pretrained as trained

CACHE = Path(__file__).parents[1] / ".cache"
ORDER = Order(scalar(0.1), scalar(5e-4))
SESSION = Market(
    Heston(scalar(1e-4), scalar(2.0), scalar(0.5), scalar(-0.8)),
    liquidity=Liquidity(depth_sd=scalar(0.3), depth_reversion=scalar(2.0), profile_amplitude=scalar(0.5)),
)


def tape(seed: int = 0, sessions: int = 3, length: int = 12) -> Tape:
    draws = np.random.default_rng(seed)
    price = 100 * np.exp(0.001 * draws.standard_normal((sessions, length + 1)).cumsum(1))
    days = pd.date_range("2024-01-02 09:00", periods=sessions, freq="D")
    times = pd.DatetimeIndex([day + pd.Timedelta(minutes=5 * k) for day in days for k in range(length)])
    variance = 1e-6 * draws.exponential(size=(sessions, length))
    return Tape(times, price, variance, draws.uniform(50, 150, (sessions, length)))


STARTS = np.array([4, 6, 16, 18, 28, 30])
"""Two orders in each of three sessions of twelve buckets."""


def replayed(record: Tape, session: Market = SESSION) -> Replay:
    return replay(record, STARTS, 6, session, ORDER, history=4, half_life=2.0)


def policies(days: Replay) -> dict[str, Policy]:
    made = {name: make(days.conditions, 1, 6) for name, make in SCHEDULE_EXPERTS.items()}
    return made | {"flow_refined": trained.load_pretrained().policy()}


def bars(minutes: int = 10) -> Bars:
    """Two sessions from 9:00, with a bar a minute whose open is the last close."""
    draws = np.random.default_rng(1)
    frames = []
    for day in ("2024-01-02", "2024-01-03"):
        times = pd.date_range(f"{day} 09:01", periods=minutes, freq="min")
        close = 100 + draws.integers(-9, 9, minutes) / 10
        opened = np.r_[100.0, close[:-1]]
        top, bottom = np.maximum(opened, close) + 0.05, np.minimum(opened, close) - 0.05
        frame = pd.DataFrame({"time": times, "open": opened, "high": top, "low": bottom, "close": close})
        frames.append(frame.assign(volume=np.arange(minutes) + 1.0))
    return load_bars(pd.concat(frames), minutes=1)


def test_bars_are_laid_out_as_by_hand() -> None:
    source = bars()
    laid = lay_out(source, 2, "09:00", "09:10")
    f = source.frame
    np.testing.assert_allclose(laid.volume, [[15, 40], [15, 40]])
    closes = f["close"].to_numpy()
    # Each session opens at the last price known: the first bar's open, then the evening's close.
    np.testing.assert_allclose(laid.price, [[100, *closes[[4, 9]]], [closes[9], *closes[[14, 19]]]])
    gk = 0.5 * np.log(f["high"] / f["low"]) ** 2 - (2 * np.log(2) - 1) * np.log(f["close"] / f["open"]) ** 2
    np.testing.assert_allclose(laid.variance.ravel(), gk.to_numpy().reshape(4, 5).sum(1))
    assert [str(t) for t in laid.times[1:3]] == ["2024-01-02 09:05:00", "2024-01-03 09:00:00"]


def test_a_bucket_without_volume_is_refused() -> None:
    source = bars()
    quiet = replace(source, frame=source.frame.assign(volume=0.0))
    with pytest.raises(BarsError, match="no volume"):
        lay_out(quiet, 2, "09:00", "09:10")


def test_a_start_without_history_is_refused() -> None:
    with pytest.raises(ValueError, match="4 buckets are needed"):
        replay(tape(), np.array([3]), 6, SESSION, ORDER, history=4, half_life=2.0)
    for late in (7, 31, 36):
        with pytest.raises(ValueError, match="6 buckets must end within its session of 12"):
            replay(tape(), np.array([5, late]), 6, SESSION, ORDER, history=4, half_life=2.0)


def test_the_record_of_an_order_is_as_worked_out_by_hand() -> None:
    """Order 2 arrives at bucket 4 of the second session: bucket 16 of the tape."""
    record, i = tape(), 2
    days = replayed(record)
    paths, known = days.paths, days.information
    price = record.price[1]
    np.testing.assert_allclose(paths.martingale_bps[:, i], 1e4 * np.diff(price)[4:10] / price[4], rtol=1e-4)
    np.testing.assert_allclose(paths.integrated_variance[:, i], record.variance[1, 4:10], rtol=1e-5)
    flat, at = record.variance.ravel(), 16
    np.testing.assert_allclose(known.market.heston.theta[i], 6 * flat[at - 4 : at].mean(), rtol=1e-5)
    # u(t) = 1 + A P2(2t - 1), integrated over twelfths of the session, A = .5.
    edges = 2 * np.linspace(0, 1, 13) - 1
    shape = 12 * np.diff((edges + 1) / 2 + 0.5 * (edges**3 - edges) / 4)
    logs = np.log(record.volume / shape).ravel()
    usual = logs[at - 4 : at].mean()
    np.testing.assert_allclose(paths.log_depth[:, i], logs[at : at + 6] - usual, atol=1e-5)
    np.testing.assert_allclose(paths.volume[:, i], shape[4:10] / shape[4:10].mean(), rtol=1e-5)
    for k in range(6):
        weight = 0.5 ** (np.arange(at + k)[::-1] / 2)
        now = weight @ flat[: at + k] / weight.sum()
        np.testing.assert_allclose(known.variance[k, i], 6 * now, rtol=1e-4)
        depth = weight @ logs[: at + k] / weight.sum() - usual
        np.testing.assert_allclose(known.log_depth[k, i], depth, atol=1e-5)


def test_a_window_is_a_part_of_its_session() -> None:
    market = replayed(tape()).information.market
    np.testing.assert_allclose(market.heston.kappa, 1.0)
    np.testing.assert_allclose(market.liquidity.depth_reversion, 1.0)
    np.testing.assert_allclose(market.liquidity.window_start[:2], [4 / 12, 6 / 12], rtol=1e-6)
    np.testing.assert_allclose(market.liquidity.window_end[:2], [10 / 12, 1.0], rtol=1e-6)
    # The volume shares of consecutive windows add up to that of the session.
    halves = replay(tape(), np.array([12, 18]), 6, SESSION, ORDER, history=4, half_life=2.0)
    np.testing.assert_allclose(volume_share(halves.information.market.liquidity).sum(), 1.0, rtol=1e-6)


def test_a_time_of_day_pattern_shifts_the_forecast() -> None:
    """Where realised variance is its pattern exactly, forecasts are exact from the first bucket on."""
    pattern = np.linspace(1.0, 3.0, 12)
    record = replace(tape(), variance=np.tile(1e-6 * pattern, (3, 1)))
    days = replay(record, STARTS, 6, SESSION, ORDER, history=4, half_life=2.0, pattern=pattern)
    np.testing.assert_allclose(days.information.variance / 6, days.paths.integrated_variance, rtol=1e-5)
    np.testing.assert_allclose(
        days.information.market.heston.theta, days.paths.integrated_variance.sum(0), rtol=1e-5
    )


@pytest.mark.parametrize("k", [0, 2, 4])
def test_decisions_do_not_depend_on_later_buckets(k: int) -> None:
    """Everything from bucket k of the second session's first order on is replaced by another record."""
    record, other, at = tape(0), tape(1), 16 + k

    def spliced(one: Array, two: Array) -> Array:
        mixed: Array = np.r_[one.ravel()[:at], two.ravel()[at:]].reshape(one.shape)
        return mixed

    price = record.price.copy()
    price[1, 4 + k + 1 :] *= 1.01
    price[2] = other.price[2]
    changed = Tape(
        record.times, price, spliced(record.variance, other.variance), spliced(record.volume, other.volume)
    )
    before, after = replayed(record), replayed(changed)
    held, again = (run(policies(d), d, seed=1) for d in (before, after))
    for name in held:
        assert torch.equal(held[name].inventory[: k + 2, 2], again[name].inventory[: k + 2, 2])
    # The test has power: later decisions of adaptive policies do change.
    if k < 4:
        later = slice(k + 2, -1)
        for name in ("replanned", "flow_refined"):
            assert not torch.equal(held[name].inventory[later, 2], again[name].inventory[later, 2])


def test_cost_of_twap_equals_its_closed_form() -> None:
    record, i = tape(), 2
    days = replayed(record)
    row = outcome_table(run({"twap": twap}, days, seed=1), days).iloc[i]
    theta = 6 * record.variance.ravel()[12:16].mean()
    depth, u = days.paths.log_depth[:, i].exp().double().numpy(), days.paths.volume[:, i].double().numpy()
    # Impact is per volatility and volume of the session, of which the order has so much.
    length = 6 / record.volume.shape[1]
    fine = (4 + 6 * (np.arange(1000) + 0.5) / 1000) / 12
    daily, part = (theta / length) ** 0.5, length * (1 + 0.5 * (6 * fine**2 - 6 * fine + 1)).mean()
    temporary = (1e4 * 0.142 * daily * (0.1 / (u * depth)) ** 0.6 / 6).sum()
    permanent = 1e4 * 0.314 * 263**0.25 * daily * 0.1 * part / 2
    left = np.arange(5, -1, -1) / 6
    earned = 1e4 * (left * np.diff(record.price[1])[4:10]).sum() / record.price[1, 4]
    risk = 5e-4 * 1e8 * (left**2 * record.variance[1, 4:10]).sum()
    np.testing.assert_allclose(row["impact"], temporary + permanent, rtol=1e-4)
    np.testing.assert_allclose(row["shortfall"], temporary + permanent - earned, rtol=1e-3)
    np.testing.assert_allclose(row["utility"], earned - temporary - permanent - risk, rtol=1e-3)
    np.testing.assert_allclose(row["without_price"], -temporary - permanent - risk, rtol=1e-4)


def test_without_price_is_the_mean_of_selling_and_buying() -> None:
    days = replayed(tape())
    bought = replace(days, order=replace(ORDER, side=scalar(-1.0)))
    sold, other = (outcome_table(run(policies(d), d, seed=1), d) for d in (days, bought))
    mean = (sold["utility"] + other["utility"]) / 2
    np.testing.assert_allclose(mean, sold["without_price"], atol=2e-4)


def test_expected_utility_under_the_model_is_exact_for_a_schedule() -> None:
    """TWAP's expected cost and risk in closed form, order by order, each at its own levels."""
    days = replayed(tape())
    held = torch.linspace(1, 0, 7, dtype=torch.float64)
    exact = [expected_utility(c.market, c.order, held).item() for c in days.conditions]
    drawn = expected_under_model({"twap": twap}, days, each=4000, seed=1)["twap"]
    np.testing.assert_allclose(drawn, exact, rtol=0.02)
    assert np.ptp(exact) > 0.2 * np.abs(exact).mean()


def test_comparisons_are_paired_order_by_order() -> None:
    """Gains of a over b and c: constant over b, random over c."""
    times, draws = pd.date_range("2024-01-02", periods=500), np.random.default_rng(1)
    base, noise = draws.standard_normal(500), draws.standard_normal(500)
    utility = {"b": base, "a": base + 0.5, "c": base + 0.5 - noise}
    table = pd.concat(
        pd.DataFrame({"time": times, "policy": name, "utility": values, "other": -base})
        for name, values in utility.items()
    )
    rows = paired_differences(table, "a", block=1, reps=2000, seed=1, measures=["utility", "other"])
    numbers = rows[["mean", "ci_low", "ci_high", "error", "p"]].to_numpy(dtype=np.float64)
    gains = dict(zip(zip(rows["measure"], rows["reference"], strict=True), numbers, strict=True))
    np.testing.assert_allclose(gains["utility", "b"], [0.5, 0.5, 0.5, 0, 0], atol=1e-9)
    assert gains["other", "b"][0] == gains["other", "c"][0] == 0
    # Blocks of one order are the ordinary bootstrap, which agrees with the t-test.
    known, (*_, error, p) = stats.ttest_1samp(noise, 0), gains["utility", "c"]
    np.testing.assert_allclose(error, stats.sem(noise), rtol=0.05)
    np.testing.assert_allclose(p, known.pvalue, rtol=0.2)


def test_a_recorded_session_passes_from_trades_to_outcomes() -> None:
    """The E-mini's Tuesday: as much is traded in its buckets as in the trades of their time."""
    trades = emini_trades(CACHE)
    laid = lay_out(resample_trades(trades, 1), 64, "08:30", "13:50")
    assert laid.times[0] == pd.Timestamp("2013-09-03 08:30")
    start = pd.Timestamp("2013-09-03 09:30", tz="America/Chicago")
    within = (trades.index >= start) & (trades.index < start + pd.Timedelta(minutes=5))
    assert laid.volume[0, 12] == trades["volume"][within].sum()
    assert laid.price[0, 12] == trades["price"][trades.index < start].iloc[-1]
    session = replace(SESSION, liquidity=replace(SESSION.liquidity, window_end=scalar(320 / 390)))
    days = replay(laid, np.array([12, 20, 28, 36]), 24, session, ORDER, history=12, half_life=6.0)
    table = outcome_table(run({"twap": twap}, days, seed=1), days)
    assert len(table) == 4
    assert np.isfinite(table[["shortfall", "impact", "utility"]]).all(axis=None)
    assert (table["impact"] > 0).all()


def test_a_month_is_worked_with_estimates_from_the_sessions_before_it() -> None:
    """Later sessions change nothing; earlier ones change the market."""
    record = tape(sessions=70)
    by_month = partial(walk_forward, order=ORDER, calibration=20, level=5, half_life=2.0)
    months = by_month(record)
    assert [str(m.times[0])[:10] for m in months] == ["2024-02-01", "2024-03-01"]
    known = session_market(record.variance[10:30], record.volume[10:30])
    assert months[0].information.market.heston.cv == known.heston.cv
    mine, first_of_march = months[1].information.market, 59

    def march(first: int, last: int) -> Market:
        number = np.arange(70)
        factor = np.where((number >= first) & (number < last), 3.0, 1.0)[:, None]
        other = replace(record, variance=record.variance * factor, volume=record.volume * factor)
        return by_month(other)[1].information.market

    unaware = march(first_of_march, 70)
    assert unaware.heston.cv == mine.heston.cv
    assert unaware.heston.theta[0] == mine.heston.theta[0]
    assert march(50, 51).heston.cv != mine.heston.cv


def test_gains_vanish_at_the_break_even_impact() -> None:
    times = pd.date_range("2024-01-02", periods=2).repeat(2)
    table = pd.DataFrame({"time": times, "policy": ["a", "b"] * 2})
    # Policy a pays 2 bps more impact and saves 5 bps of risk: gains vanish at 2.5 times the impact.
    table["impact"] = [6.0, 4.0, 8.0, 6.0]
    table["without_price"] = -table["impact"] - [1.0, 6.0, 3.0, 8.0]
    assert break_even_impact(table, "a", "b") == pytest.approx(2.5)
    table["without_price"] -= 1.5 * table["impact"]
    assert break_even_impact(table, "b", "a") == pytest.approx(1.0)


def test_a_promise_is_tested_with_its_power() -> None:
    """Against the normal law by hand: error .5, promises far below it, at it and far above it."""
    seen = pd.DataFrame({"mean": [1.0, 1.0, 1.0]}).assign(error=0.5)
    tested = prediction_test(seen, pd.Series([0.1, 2.5, 1.6]))
    assert tested["verdict"].tolist() == ["open", "less", "as predicted"]
    z = (1.0 - 2.5) / 0.5
    assert tested["p"][1] == pytest.approx(2 * stats.norm.cdf(z), rel=1e-3)
    power = stats.norm.sf(1.96 - 3.2) + stats.norm.cdf(-1.96 - 3.2)
    assert tested["power"][2] == pytest.approx(power, abs=1e-4)
