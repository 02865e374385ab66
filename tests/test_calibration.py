"""Every estimator recovers the true parameters, on paths simulated here with numpy and scipy only."""

import dataclasses
import json
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from flowoe_lib.data.bars import Bars, load_bars
from flowoe_lib.data.calibration import (
    GK_NOISE,
    Calibration,
    Estimate,
    autocovariance_table,
    calibrate,
    calibration_table,
    session_autocovariance,
)
from flowoe_lib.data.conditions import (
    base_condition,
    conditions_from_records,
    conditions_to_records,
    heston_grid,
)
from flowoe_lib.data.estimators import (
    FIRST_LAG,
    LAST_LAG,
    decay_curve,
    fit_decay,
    garman_klass,
    log_to_profile,
    profile_amplitude,
    relative_to_profile,
    volatility_level,
    yang_zhang,
)
from flowoe_lib.data.sessions import lay_out, session_clock
from flowoe_lib.data.vendors import BarsError
from flowoe_lib.market.model import Condition

Array = NDArray[np.float64]
BUCKETS = 39


def brownian_bars(
    days: int, sigma: float, night: float, rng: np.random.Generator, steps: int = 4000
) -> pd.DataFrame:
    """Driftless bars whose extremes are those of the continuous path: bridges between the steps."""
    moves = sigma / np.sqrt(steps) * rng.standard_normal((days, steps))
    path = np.concatenate([np.zeros((days, 1)), moves.cumsum(axis=1)], axis=1)
    left, right = path[:, :-1], path[:, 1:]
    reach = -2 * sigma**2 / steps * np.log(rng.random((2, days, steps)))
    up, down = (np.sqrt((right - left) ** 2 + r) for r in reach)
    high, low = ((left + right + up) / 2).max(axis=1), ((left + right - down) / 2).min(axis=1)
    gaps = night * rng.standard_normal(days)
    start = np.r_[0, (path[:, -1] + np.r_[gaps[1:], 0]).cumsum()[:-1]]
    logs = {"open": start, "high": start + high, "low": start + low, "close": start + path[:, -1]}
    times = pd.date_range("1990-01-01", periods=days, tz="UTC")
    return pd.DataFrame({k: 100 * np.exp(v) for k, v in logs.items()}, index=times).assign(volume=1.0)


def cir_days(days: int, kappa: float, cv: float, rng: np.random.Generator, fine: int = 4) -> Array:
    """Mean-one square-root variance averaged over buckets, [days, buckets], exact transitions."""
    dt, xi2 = 1 / (BUCKETS * fine), 2 * kappa * cv**2
    v = rng.gamma(1 / cv**2, cv**2, days)
    scale = xi2 * -np.expm1(-kappa * dt) / (4 * kappa)
    path = [v]
    for _ in range(BUCKETS * fine):
        v = scale * stats.ncx2.rvs(4 * kappa / xi2, v * np.exp(-kappa * dt) / scale, random_state=rng)
        path.append(v)
    nodes = np.array(path).T
    return np.asarray(((nodes[:, 1:] + nodes[:, :-1]) / 2).reshape(days, BUCKETS, fine).mean(axis=2))


def ou_days(days: int, rate: float, sd: float, rng: np.random.Generator) -> Array:
    step = np.exp(-rate / BUCKETS)
    path = [sd * rng.standard_normal(days)]
    for _ in range(BUCKETS - 1):
        path.append(step * path[-1] + sd * np.sqrt(1 - step**2) * rng.standard_normal(days))
    return np.array(path).T


def u_shape(amplitude: float) -> Array:
    x = 2 * (np.arange(BUCKETS) + 0.5) / BUCKETS - 1
    return np.asarray(1 + amplitude * (3 * x**2 - 1) / 2)


def test_range_variances_are_unbiased_and_as_precise_as_published() -> None:
    sigma, night = 0.012, 0.007
    bars = brownian_bars(4000, sigma, night, np.random.default_rng(1), steps=400)
    gk = garman_klass(bars) / sigma**2
    assert gk.mean() == pytest.approx(1, abs=4 * np.sqrt(GK_NOISE / 4000))
    assert gk.var() == pytest.approx(GK_NOISE, rel=0.12)
    assert yang_zhang(bars) == pytest.approx(sigma**2 + night**2, rel=0.05)


def test_volatility_level_is_known_the_evening_before_and_unbiased() -> None:
    rng = np.random.default_rng(2)
    logs = np.zeros(3000)
    for t in range(1, 3000):
        logs[t] = 0.97 * logs[t - 1] + 0.15 * rng.standard_normal()
    noise = rng.gamma(1 / GK_NOISE, GK_NOISE, 3000)
    variance = pd.Series(1e-4 * np.exp(logs) * noise, pd.date_range("2000-01-01", periods=3000))
    level = volatility_level(variance)
    assert (variance / level).mean() == pytest.approx(1)
    assert np.corrcoef(np.log(level), logs[22:])[0, 1] > 0.85
    last = variance.copy()
    last.iloc[-1] *= 50
    # The weights use the whole record; beyond them, the level must not depend on its own day.
    assert volatility_level(last).iloc[-1] == pytest.approx(level.iloc[-1], rel=0.1)


def test_decay_curve_is_the_bucket_average_of_an_exponential() -> None:
    rate, lag, nodes = 9.0, 3, (np.arange(400) + 0.5) / 400
    apart = np.abs(lag + nodes[:, None] - nodes[None, :]) / BUCKETS
    assert decay_curve(rate, np.array([float(lag)]), BUCKETS)[0] == pytest.approx(
        np.exp(-rate * apart).mean(), rel=1e-6
    )


@pytest.mark.parametrize(("kappa", "cv"), [(2.0, 0.5), (5.0, 0.8), (5.0, 1.6)])
def test_kappa_and_cv_are_recovered_through_the_noise(kappa: float, cv: float) -> None:
    rng = np.random.default_rng(3)
    obs = cir_days(3000, kappa, cv, rng) * u_shape(0.8) * rng.gamma(2, 0.5, (3000, BUCKETS))
    found_cv, found_kappa = fit_decay(relative_to_profile(obs), FIRST_LAG, LAST_LAG)
    assert found_cv == pytest.approx(cv, rel=0.07)
    assert found_kappa == pytest.approx(kappa, rel=0.12)
    # The observed values vary far more than the underlying variance.
    assert relative_to_profile(obs).std() > 1.15 * cv


def test_depth_is_recovered_through_the_noise() -> None:
    rng = np.random.default_rng(4)
    volume = u_shape(0.8) * np.exp(ou_days(2000, 8.0, 0.5, rng) + 0.4 * rng.standard_normal((2000, BUCKETS)))
    sd, rate = fit_decay(log_to_profile(volume), FIRST_LAG, LAST_LAG)
    assert sd == pytest.approx(0.5, rel=0.07)
    assert rate == pytest.approx(8.0, rel=0.12)


@pytest.mark.parametrize("amplitude", [0.0, 0.75, 1.2])
def test_profile_amplitude_is_recovered(amplitude: float) -> None:
    volume = u_shape(amplitude) * np.random.default_rng(5).gamma(50, 1 / 50, (100, BUCKETS))
    assert profile_amplitude(volume) == pytest.approx(amplitude, abs=0.01)


def test_intervals_of_the_autocovariance_cover_the_truth() -> None:
    """25 records of 60 days: the nominal 95 % may fall short, by no more than small samples explain."""
    truth, hits = 0.25 * decay_curve(4.0, np.arange(FIRST_LAG, LAST_LAG + 1.0), BUCKETS), []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        logs = ou_days(60, 4.0, 0.5, rng)
        table = autocovariance_table(
            np.exp(logs + 0.3 * rng.standard_normal(logs.shape)), log_to_profile, reps=200, seed=seed
        )
        hits.append((table["ci_low"] <= truth) & (truth <= table["ci_high"]))
    assert 0.83 < np.mean(hits) < 0.99


def test_one_session_of_noise_has_no_significant_autocovariance() -> None:
    session = u_shape(0.8) * np.random.default_rng(7).gamma(4, 0.25, BUCKETS)
    table = session_autocovariance(session, u_shape(0.8), reps=400, seed=7)
    assert ((table["ci_low"] < 0) & (table["ci_high"] > 0)).mean() > 0.5
    assert (table["ci_high"] > table["ci_low"]).all()


def minute_bars(clock: Array, start: str = "2020-01-06") -> Bars:
    """Bars of ten minutes whose volume is ``clock``, in the session of every weekday."""
    days = pd.bdate_range(start, periods=len(clock), tz="America/Chicago")
    ends = [
        d + pd.Timedelta("08:30:00") + pd.Timedelta(minutes=10 * (k + 1)) for d in days for k in range(39)
    ]
    flat = dict.fromkeys(("open", "high", "low", "close"), 100.0)
    frame = pd.DataFrame(flat, index=pd.DatetimeIndex(ends, name="time")).assign(volume=clock.ravel())
    return load_bars(frame, timezone="America/Chicago", minutes=10)


def test_session_clock_preserves_totals() -> None:
    volume = np.random.default_rng(8).gamma(2, 1, (4, BUCKETS))
    bars = minute_bars(volume)
    np.testing.assert_allclose(session_clock(bars, bars.frame["volume"], BUCKETS), volume, rtol=1e-9)
    thirds = session_clock(bars, bars.frame["volume"], 13).to_numpy()
    np.testing.assert_allclose(thirds, volume.reshape(4, 13, 3).sum(axis=2), rtol=1e-9)


def test_session_clock_spreads_a_bar_over_its_duration() -> None:
    ends = ["08:00", "09:00", "09:30", "10:30"]
    index = pd.DatetimeIndex([f"2020-01-06 {t}" for t in ends], tz="UTC", name="time")
    frame = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), 1.0), index).assign(
        volume=[9, 6, 4, 8]
    )
    bars = load_bars(frame, timezone="UTC")
    # 8:30-9:00 holds half of 6, 9:00-9:30 all of 4, 9:30-10:00 half of 8.
    clock = session_clock(bars, bars.frame["volume"], 3, opens="08:30", closes="10:00")
    np.testing.assert_allclose(clock, [[3, 4, 4]])


def test_session_clock_leaves_out_days_on_which_a_bar_cut_by_activity_spans_a_pause() -> None:
    ends = ["2020-01-06 08:00", "2020-01-06 09:00", "2020-01-06 10:00"]
    ends += ["2020-01-07 08:00", "2020-01-07 08:30", "2020-01-07 10:00"]
    index = pd.DatetimeIndex(ends, tz="UTC", name="time")
    frame = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), 1.0), index).assign(volume=1.0)
    bars = load_bars(frame, timezone="UTC")
    clock = session_clock(bars, bars.frame["volume"], 3, opens="08:30", closes="10:00")
    assert list(clock.index) == [pd.Timestamp("2020-01-06")]


@pytest.mark.parametrize("minutes", [60, 120])
def test_session_clock_of_long_bars_whose_last_is_short(minutes: int) -> None:
    opens, closes = pd.Timestamp("2020-01-06 09:30", tz="UTC"), pd.Timestamp("2020-01-06 16:00", tz="UTC")
    ends = pd.date_range(opens, closes, freq=f"{minutes}min")[1:].union([closes])
    frame = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), 1.0), ends.rename("time"))
    # One trade a minute, so that every bucket holds as many as it has minutes.
    length = ends.to_series().diff().fillna(pd.Timedelta(minutes=minutes)) / pd.Timedelta(minutes=1)
    bars = load_bars(frame.assign(volume=length.to_numpy()), timezone="UTC", minutes=minutes)
    clock = session_clock(bars, bars.frame["volume"], BUCKETS, opens="09:30", closes="16:00")
    np.testing.assert_allclose(clock, np.full((1, BUCKETS), 390 / BUCKETS), rtol=1e-9)


def test_session_clock_leaves_out_days_with_holes() -> None:
    bars = minute_bars(np.ones((3, BUCKETS)))
    holes = bars.frame.drop(bars.frame.index[39 + 10 : 39 + 18])
    short = holes.iloc[:-1]
    clock = session_clock(dataclasses.replace(bars, frame=short), short["volume"], BUCKETS)
    assert list(clock.index) == [pd.Timestamp("2020-01-06")]
    with pytest.raises(BarsError, match="no day is covered by bars from 08:30 to 15:00"):
        session_clock(dataclasses.replace(bars, frame=short.iloc[39:]), short["volume"].iloc[39:], BUCKETS)


def half_hours_around_the_clock(first: str, days: int) -> Bars:
    """Half-hour bars by day and night, of New York, with volumes and closes that differ from bar to bar."""
    draws = np.random.default_rng(6)
    begin = pd.Timestamp(first, tz="America/New_York").tz_convert("UTC")
    ends = pd.date_range(begin, periods=48 * days + 1, freq="30min")[1:]
    close = 100 + draws.integers(-50, 50, len(ends)) / 10
    prices = dict.fromkeys(("open", "high", "low", "close"), close)
    frame = pd.DataFrame(prices, ends.rename("time")).assign(volume=draws.gamma(2, 1, len(ends)))
    return load_bars(frame, timezone="America/New_York", minutes=30)


def moment(day: str, clock: str) -> datetime:
    """When a clock in New York shows ``clock``, counted from the midnight before ``day``, in UTC."""
    hours, minutes = map(int, clock.split(":"))
    wall = datetime.fromisoformat(day) + timedelta(hours=hours, minutes=minutes)
    return wall.replace(tzinfo=ZoneInfo("America/New_York")).astimezone(ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("day", "opens", "closes", "n_buckets"),
    [
        ("2024-11-03", "00:00", "24:00", 50),
        ("2024-11-03", "00:00", "24:00", 48),
        ("2024-11-03", "09:30", "16:00", 13),
        ("2024-11-02", "18:00", "41:00", 24),
        ("2024-11-04", "00:00", "24:00", 48),
        ("2024-03-10", "00:00", "24:00", 46),
        ("2024-03-10", "00:00", "24:00", 48),
        ("2024-03-10", "03:00", "16:00", 39),
        ("2024-03-11", "00:00", "24:00", 48),
    ],
)
def test_clock_changes_leave_each_amount_in_its_bucket(
    day: str, opens: str, closes: str, n_buckets: int
) -> None:
    """Against the overlap of every bar with every bucket, in exact time by Python's own clock."""
    bars = half_hours_around_the_clock(str(pd.Timestamp(day) - pd.Timedelta(days=2))[:10], 5)
    first, last = moment(day, opens), moment(day, closes)
    edges = [first + i * (last - first) / n_buckets for i in range(n_buckets + 1)]
    half_hour = timedelta(minutes=30)
    ends = [time.to_pydatetime().astimezone(ZoneInfo("UTC")) for time in bars.index]
    volumes, closes_of_bars = bars.frame["volume"].to_list(), bars.frame["close"].to_list()
    wanted = [
        sum(
            volume * max((min(end, high) - max(end - half_hour, low)) / half_hour, 0.0)
            for end, volume in zip(ends, volumes, strict=True)
        )
        for low, high in pairwise(edges)
    ]
    clock = session_clock(bars, bars.frame["volume"], n_buckets, opens=opens, closes=closes)
    np.testing.assert_allclose(clock.loc[day], wanted, rtol=1e-9)
    laid = lay_out(bars, n_buckets, opens, closes)
    row = list(clock.index).index(pd.Timestamp(day))
    known = [closes_of_bars[max(i for i, end in enumerate(ends) if end <= edge)] for edge in edges]
    np.testing.assert_allclose(laid.price[row], known)
    shown = laid.times[row * n_buckets : (row + 1) * n_buckets]
    local = [edge.astimezone(ZoneInfo("America/New_York")).replace(tzinfo=None) for edge in edges[:-1]]
    np.testing.assert_allclose((shown - pd.DatetimeIndex(local)).total_seconds(), 0, atol=2e-6)


def simulated_market(seed: int) -> tuple[Bars, pd.Series, Bars]:
    """A market with known kappa 4, cv .8, rho -.6, level 1 % and VIX half as high again."""
    rng = np.random.default_rng(seed)
    days = 2000
    bars = brownian_bars(days, 1.0, 0.0, rng, steps=200)
    mean_v = cir_days(days, 4.0, 0.8, rng, fine=1).mean(axis=1)
    sd = 0.01 * np.sqrt(mean_v)[:, None]
    raw = bars[["open", "high", "low", "close"]].to_numpy()
    moves = np.log(raw / raw[:, :1]) * sd
    start = np.r_[0, moves[:-1, 3].cumsum()][:, None]
    prices = pd.DataFrame(100 * np.exp(start + moves), bars.index, ["open", "high", "low", "close"])
    standard = moves[:, 3] / sd[:, 0]
    shocks = 0.05 * (-0.6 * standard + 0.8 * rng.standard_normal(days))
    log_vix = np.zeros(days)
    for t in range(1, days):
        log_vix[t] = 0.99 * log_vix[t - 1] + shocks[t]
    vix = pd.Series(1.5 * np.sqrt(252) * np.exp(log_vix - log_vix.mean()), bars.index, name="vix")
    clock = cir_days(120, 4.0, 0.8, rng)
    volume = u_shape(0.7) * np.exp(ou_days(120, 6.0, 0.4, rng))
    intraday = minute_bars(volume)
    # One bar a bucket with open = close, so that its Garman-Klass variance is span^2 / 2.
    span = np.exp(np.sqrt(2 * clock.ravel() * rng.gamma(3, 1 / 3, clock.size)) * 1e-3)
    frame = intraday.frame.assign(high=100 * span)
    daily = load_bars(prices.assign(volume=1.0))
    return daily, vix.set_axis(daily.index), dataclasses.replace(intraday, frame=frame)


def test_calibrate_finds_simulated_markets_within_its_intervals() -> None:
    truths = {"kappa": 4.0, "cv_month": 0.8, "cv_years": 0.8}
    truths |= {"profile_amplitude": 0.7, "depth_sd": 0.4, "depth_reversion": 6.0}
    found = [calibrate(*simulated_market(seed), reps=150, seed=seed) for seed in range(6)]
    hits = [e.ci_low <= truth <= e.ci_high for c in found for e, truth in pairs(c, truths)]
    # 34 of 36 in the mean if the intervals are honest; below 28 once in ten thousand.
    assert sum(hits) >= 28
    for name, truth in truths.items():
        estimates = [getattr(c, name) for c in found]
        assert np.mean([e.value for e in estimates]) == pytest.approx(truth, rel=0.2), name
        assert np.mean([e.ci_high - e.ci_low for e in estimates]) < 1.2 * truth, name
    # Returns of days of changing variance are correlated a little less than their shocks.
    assert np.mean([c.rho.value for c in found]) == pytest.approx(-0.6, rel=0.06)
    assert np.mean([c.calm.value for c in found]) == pytest.approx(0.01, rel=0.05)
    assert np.mean([c.vix_ratio.value for c in found]) == pytest.approx(1 / 1.5, rel=0.2)


def pairs(found: Calibration, truths: dict[str, float]) -> list[tuple[Estimate, float]]:
    return [(getattr(found, name), truth) for name, truth in truths.items()]


def test_calibrate_takes_the_session_and_few_levels_on_few_days() -> None:
    daily, vix, intraday = simulated_market(3)
    few = dataclasses.replace(daily, frame=daily.frame.iloc[-120:])
    later = intraday.frame.set_axis(intraday.index + pd.Timedelta(hours=1), axis=0)
    usual = calibrate(few, vix, intraday, reps=20, seed=1, levels=2)
    shifted = dataclasses.replace(intraday, frame=later)
    moved = calibrate(few, vix, shifted, reps=20, seed=1, session=("09:30", "16:00"), levels=2)
    assert calibration_table(usual).equals(calibration_table(moved))
    assert np.isnan(usual.crisis.value)
    assert usual.calm.ci_low <= usual.calm.value < usual.stressed.value
    clear = dataclasses.replace(usual, stressed=Estimate(0.03, 0.02, 0.04), cv_years=Estimate(1.3, 1, 2))
    names = [c.name.split("/")[0] for c in heston_grid(clear)]
    assert names == ["calm"] * 4 + ["stressed"] * 4
    with pytest.raises(ValueError, match="levels = 4: must be from 1 to 3"):
        calibrate(few, vix, intraday, reps=20, seed=1, levels=4)
    with pytest.raises(ValueError, match="vix: shares 0 days with"):
        calibrate(few, vix.iloc[:-200], intraday, reps=20, seed=1)


def test_calibrate_is_determined_by_its_seed() -> None:
    market = simulated_market(12)
    first, again, other = (calibrate(*market, reps=20, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.kappa.ci_high != other.kappa.ci_high
    assert first.kappa.value == other.kappa.value
    assert list(calibration_table(first).columns) == ["value", "ci_low", "ci_high"]


def calibration(**values: float) -> Calibration:
    base = {
        "calm": 0.0072, "stressed": 0.0189, "crisis": 0.039, "vix_ratio": 0.7, "vix_correlation": 0.9,
        "rho": -0.82, "kappa": 5.2, "cv_month": 0.51, "profile_amplitude": 0.8, "depth_sd": 0.3,
        "depth_reversion": 2.0, "cv_years": 1.27,
    }  # fmt: skip
    return Calibration(**{k: Estimate(v, v, v) for k, v in (base | values).items()})


def test_grid_crosses_the_rounded_estimates() -> None:
    grid = heston_grid(calibration())
    assert len({c.name for c in grid}) == 12
    assert grid[0].name == "calm/normal/cv0.5"
    assert grid[-1].name == "crisis/thin/cv1.3"
    assert {round(c.market.heston.theta.sqrt().item(), 6) for c in grid} == {0.007, 0.02, 0.04}
    assert {c.market.liquidity.illiquidity.item() for c in grid} == {1.0, 3.0}
    assert {c.market.heston.kappa.item() for c in grid} == {5.0}
    assert {c.market.heston.rho.item() for c in grid} == {np.float32(-0.8)}
    assert {c.market.impact.beta.item() for c in heston_grid(calibration(), beta=0.5)} == {0.5}
    assert base_condition(grid).name == "stressed/normal/cv0.5"


def test_grid_keeps_to_sensible_limits_and_distinct_levels() -> None:
    wild = heston_grid(calibration(kappa=40.0, cv_month=0.1, cv_years=3.0))
    assert {c.market.heston.kappa.item() for c in wild} == {12.0}
    assert {c.market.heston.cv.item() for c in wild} == {np.float32(0.4), np.float32(1.8)}
    with pytest.raises(ValueError, match="levels must differ"):
        heston_grid(calibration(cv_years=0.52))
    with pytest.raises(ValueError, match="no stressed/normal"):
        base_condition(wild[:2])


@given(st.floats(0.001, 0.09), st.floats(0.01, 0.5), st.floats(1e-6, 1e-2))
def test_records_round_trip_exactly(calm: float, size: float, risk_aversion: float) -> None:
    rounded = {float(f"{x:.0e}") for x in (calm, 0.0189, 0.039)}
    if len(rounded) < 3:
        return
    grid = heston_grid(calibration(calm=calm), size=size, risk_aversion=risk_aversion)
    records = conditions_to_records(grid)
    again = conditions_from_records(json.loads(json.dumps(records, allow_nan=False)))
    assert conditions_to_records(again) == records
    assert all(isinstance(c, Condition) for c in again)
    assert [c.market.heston.xi.item() for c in again] == [c.market.heston.xi.item() for c in grid]
    assert {type(v) for r in records for k, v in r.items() if k not in ("world", "name", "resilience")} == {
        float
    }
    assert {r["resilience"] for r in records} == {None}


def test_records_refuse_what_is_missing_unknown_or_no_number() -> None:
    record = conditions_to_records(heston_grid(calibration()))[0]
    with pytest.raises(ValueError, match=r"calm/normal/cv0\.5: fields kappa are missing"):
        conditions_from_records([{k: v for k, v in record.items() if k != "kappa"}])
    with pytest.raises(ValueError, match="fields colour are missing or unknown"):
        conditions_from_records([record | {"colour": 1.0}])
    for value in ("2", True, float("nan")):
        with pytest.raises(ValueError, match=r"kappa = .*: must be a finite number"):
            conditions_from_records([record | {"kappa": value}])
    with pytest.raises(ValueError, match=r"Heston.kappa"):
        conditions_from_records([record | {"kappa": -1.0}])
