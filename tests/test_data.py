"""The loader accepts valid bars and names every fault; downloaded samples must match their pinned hash."""

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowoe_lib.data.bars import load_bars, resample_trades
from flowoe_lib.data.records import (
    EMINI,
    FetchError,
    emini_bars,
    emini_trades,
    eurusd_hours,
    fetch,
    sp500_daily,
    vix_daily,
)
from flowoe_lib.data.vendors import BarsError

CACHE = Path(__file__).parents[1] / ".cache"


def sound(days: int = 5) -> pd.DataFrame:
    close = 100.0 + np.arange(days)
    columns = {"open": close - 0.5, "high": close + 1, "low": close - 1, "close": close, "volume": 10.0}
    return pd.DataFrame({"time": pd.date_range("2020-01-01", periods=days).astype(str)} | columns)


def write(frame: pd.DataFrame, folder: Path, suffix: str) -> Path:
    path = folder / f"bars{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return path


def put(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Spoil the third row."""

    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].tolist()
        values[2] = value
        return frame.assign(**{column: pd.Series(values, frame.index)})

    return spoil


FAULTS = {
    "not a number": (put("close", np.nan), "close", "must be a finite number"),
    "infinite": (put("high", np.inf), "high", "must be a finite number"),
    "negative price": (put("low", -1.0), "low", "must be > 0"),
    "zero price": (put("low", 0.0), "low", "must be > 0"),
    "negative volume": (put("volume", -1.0), "volume", "must be >= 0"),
    "high below low": (put("high", 100.5), "high", "must be at least low"),
    "open above high": (put("open", 103.5), "open", "must lie within"),
    "close below low": (put("close", 100.9), "close", "must lie within"),
    "duplicate time": (put("time", "2020-01-02"), "time", "must not repeat"),
    "unsorted time": (put("time", "2019-01-02"), "time", "must be later than the row before"),
    "unreadable time": (put("time", "third of May"), "time", "must be an ISO 8601 time"),
    "one offset": (put("time", "2020-01-03T00:00+02:00"), "time", "either in every row or in none"),
    "no time": (put("time", None), "time", "must be an ISO 8601 time"),
}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_column_and_row(fault: str, suffix: str, tmp_path: Path) -> None:
    spoil, column, allowed = FAULTS[fault]
    path = write(spoil(sound()), tmp_path, suffix)
    with pytest.raises(BarsError) as caught:
        load_bars(path)
    message = str(caught.value)
    row = "line 4" if suffix == ".csv" else "row 3"
    for part in (str(path), f"column '{column}'", row, allowed):
        assert part in message
    if column != "time":
        assert "2020-01-03" in message


def test_text_for_a_number(tmp_path: Path) -> None:
    path = write(sound().astype({"open": object}).pipe(put("open", "n/a")), tmp_path, ".csv")
    with pytest.raises(BarsError, match=r"column 'open', line 4 .*is n/a; must be a finite number"):
        load_bars(path)
    wrong = write(sound().assign(volume=True), tmp_path, ".parquet")
    with pytest.raises(BarsError, match="column 'volume' is of type bool; must be numbers"):
        load_bars(wrong)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_sound_file_is_read_whole(suffix: str, tmp_path: Path) -> None:
    frame = sound()
    shouted = frame.rename(columns={"time": "Date", "open": "OPEN", "volume": " Volume"}).assign(adjusted="x")
    bars = load_bars(write(shouted, tmp_path, suffix), timezone="America/New_York", min_days=5)
    np.testing.assert_array_equal(bars.frame.to_numpy(), frame.drop(columns="time").to_numpy())
    assert bars.index[0] == pd.Timestamp("2020-01-01", tz="America/New_York")
    assert (bars.index.name, bars.timezone) == ("time", "America/New_York")


def test_missing_and_doubled_columns(tmp_path: Path) -> None:
    path = write(sound().drop(columns=["low", "time"]), tmp_path, ".csv")
    with pytest.raises(BarsError, match="missing column time, low; found open, high, close, volume"):
        load_bars(path)
    with pytest.raises(BarsError, match="column 'close' is given 2 times, as close, Close"):
        load_bars(sound().assign(Close=1.0))


def test_more_fields_than_columns(tmp_path: Path) -> None:
    path = write(sound(), tmp_path, ".csv")
    path.write_text(path.read_text().replace("100.0,10.0", "100.0,1,000"))
    with pytest.raises(BarsError, match=r"bars\.csv: has rows with more fields than the header"):
        load_bars(path)


def test_an_index_named_like_a_column() -> None:
    frame = sound()
    frame.index = pd.DatetimeIndex(frame["time"], name="time")
    with pytest.raises(BarsError, match="column 'time' is given 2 times, as a column and as the index"):
        load_bars(frame)


def test_too_few_days() -> None:
    assert len(load_bars(sound(5), min_days=5).frame) == 5
    with pytest.raises(BarsError, match="covers 5 days; at least 6 are needed"):
        load_bars(sound(5), min_days=6)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BarsError, match="no such file"):
        load_bars(tmp_path / "absent.csv")
    (tmp_path / "bars.xlsx").touch()
    with pytest.raises(
        BarsError, match=r"unknown extension '.xlsx'; allowed are .csv, .txt, .tsv and .parquet"
    ):
        load_bars(tmp_path / "bars.xlsx")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(BarsError, match=r"empty\.csv: is empty"):
        load_bars(tmp_path / "empty.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR?")
    with pytest.raises(BarsError, match=r"broken\.parquet: cannot be read as parquet"):
        load_bars(tmp_path / "broken.parquet")
    for suffix in (".csv", ".parquet"):
        with pytest.raises(BarsError, match="holds no bars"):
            load_bars(write(sound(0), tmp_path, suffix))


def test_blank_lines_keep_the_numbers_of_the_file(tmp_path: Path) -> None:
    header, *lines = sound().to_csv(index=False).splitlines()
    path = tmp_path / "bars.csv"
    path.write_text("\n".join([header, "", *lines, ""]))
    assert len(load_bars(path).frame) == 5
    path.write_text("\n".join([header, "", *lines]).replace("2020-01-02", "soon"))
    with pytest.raises(BarsError, match="line 4: is soon"):
        load_bars(path)


def test_times_without_an_offset_are_new_york_s_as_in_an_order() -> None:
    assert str(load_bars(sound()).index[0]) == "2020-01-01 00:00:00-05:00"
    skipped = sound().assign(time=lambda f: "2020-03-08 02:30:0" + pd.Series(range(5)).astype(str))
    with pytest.raises(BarsError, match=r"clock of America/New_York; .* time zone of times without one"):
        load_bars(skipped)


def test_time_zones() -> None:
    utc = sound().assign(time=lambda f: f["time"] + "T15:30:00Z")
    assert load_bars(utc, timezone="America/Chicago").index[0].hour == 9
    hours = sound(2).assign(time=["2020-01-02 09:30:00-05", "2020-07-02 09:30:00-04"])
    assert [t.hour for t in load_bars(hours, timezone="America/New_York").index] == [9, 9]
    with pytest.raises(BarsError, match="timezone = 'Mars/Base': unknown time zone"):
        load_bars(sound(), timezone="Mars/Base")
    skipped = sound(2).assign(time=["2020-03-08 01:00", "2020-03-08 02:30"])
    with pytest.raises(BarsError, match=r"row 2: .*skipped or repeated by the clock of America/Chicago"):
        load_bars(skipped, timezone="America/Chicago")


prices = st.floats(0.01, 1e6)


@given(st.lists(st.tuples(prices, prices, prices, prices), min_size=1, max_size=8))
def test_bars_pass_exactly_when_the_range_holds_open_and_close(rows: list[tuple[float, ...]]) -> None:
    frame = pd.DataFrame(rows, columns=["open", "high", "low", "close"]).assign(volume=1)
    frame["time"] = pd.date_range("2020-01-01", periods=len(frame))
    # Rounding noise of 1e-9 is no fault.
    if all(
        low * (1 - 1e-9) <= min(o, c, high) and max(o, c) <= high * (1 + 1e-9) for o, high, low, c in rows
    ):
        assert len(load_bars(frame).frame) == len(rows)
    else:
        with pytest.raises(BarsError, match=r"row \d"):
            load_bars(frame)


@given(st.lists(st.tuples(st.integers(0, 599), st.floats(1, 100), st.integers(1, 9)), min_size=1))
def test_resampling_keeps_every_trade(trades: list[tuple[int, float, int]]) -> None:
    seconds, price, volume = zip(*sorted(trades), strict=True)
    times = pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(list(seconds), unit="s")
    bars = resample_trades(pd.DataFrame({"price": price, "volume": volume}, index=times), 1)
    assert bars.frame["volume"].sum() == sum(volume)
    assert (bars.frame["open"].iloc[0], bars.frame["close"].iloc[-1]) == (price[0], price[-1])
    assert (bars.frame["high"].max(), bars.frame["low"].min()) == (max(price), min(price))
    # A bar's time is its end: no trade falls on or after it.
    assert bars.index[-1] > times[-1] >= bars.index[-1] - pd.Timedelta(minutes=1)


def test_resampling_needs_ordered_local_times() -> None:
    times = pd.DatetimeIndex(["2020-01-01 00:01", "2020-01-01 00:00"], tz="UTC")
    with pytest.raises(BarsError, match="ordered index"):
        resample_trades(pd.DataFrame({"price": 1.0, "volume": 1}, index=times), 1)


def test_resampling_names_what_is_missing() -> None:
    trades = pd.DataFrame({"price": [1.0]}, pd.DatetimeIndex(["2020-01-02"], tz="UTC"))
    with pytest.raises(BarsError, match="day: missing column volume"):
        resample_trades(trades, 1, name="day")
    for minutes in (0, -5, np.inf):
        with pytest.raises(BarsError, match=f"day: minutes = {minutes}: must be finite and > 0"):
            resample_trades(trades.assign(volume=1.0), minutes, name="day")
        with pytest.raises(BarsError, match=f"bars: minutes = {minutes}: must be finite and > 0"):
            load_bars(sound(), minutes=minutes)


def test_daily_records_are_whole() -> None:
    daily, vix = sp500_daily(), vix_daily()
    assert (len(daily.frame), daily.index[0].year, daily.index[-1].year) == (5031, 1999, 2018)
    assert vix.between(9, 41).all()
    assert len(vix.index.intersection(daily.index)) > 1200


def test_emini_samples_are_the_pinned_ones() -> None:
    trades, bars = emini_trades(CACHE), emini_bars(CACHE)
    assert len(trades) == 500_000
    assert (trades["price"] % 0.25 == 0).all()
    assert len(bars.frame) == 1000
    dollars = bars.frame["close"] * bars.frame["volume"]
    assert dollars.between(69e6, 73e6).all()


def test_a_dollar_bar_is_stamped_at_its_end() -> None:
    """The Swiss franc was unpegged at 3:30 Chicago time: the bar stamped just before must not show it."""
    frame = emini_bars(CACHE).frame
    span = frame["high"] - frame["low"]
    news = pd.Timestamp("2015-01-15 03:30", tz="America/Chicago")
    before, after = span[span.index <= news], span[span.index > news]
    assert news - before.index[-1] < pd.Timedelta(minutes=2)
    assert before.iloc[-1] < 8 < 25 < after.iloc[0]


def test_the_eurusd_record_is_the_pinned_one() -> None:
    hours = eurusd_hours(CACHE)
    assert len(hours.frame) == 6225
    assert (hours.frame["volume"] > 0).all()


def test_the_hourly_weeks_open_at_five_in_new_york() -> None:
    """All year round, so the file's clock is UTC; the last bar before a weekend ends there at five too."""
    index = eurusd_hours(CACHE).index
    gap = np.flatnonzero(np.diff(index) > np.timedelta64(1, "D"))
    assert len(gap) > 45
    assert (pd.Series(index[gap + 1].hour).mode() == 18).all()
    assert (index[gap + 1].hour == 18).mean() > 0.9


def test_what_cannot_be_fetched_is_named_with_its_place(tmp_path: Path) -> None:
    empty = tmp_path / "index"
    empty.mkdir()
    with pytest.raises(FetchError) as caught:
        fetch(EMINI, tmp_path / "cache", ("--no-index", f"--find-links={empty}"))
    for part in (
        EMINI.file,
        EMINI.sha256,
        str(tmp_path / "cache" / EMINI.file),
        "No matching distribution",
    ):
        assert part in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wrong_file_in_the_cache_is_never_used(tmp_path: Path) -> None:
    (tmp_path / EMINI.file).write_bytes(b"something else")
    with pytest.raises(FetchError, match=EMINI.sha256):
        fetch(EMINI, tmp_path, ("--no-index",))
    assert (tmp_path / EMINI.file).read_bytes() == b"something else"
    assert hashlib.sha256(fetch(EMINI, tmp_path).read_bytes()).hexdigest() == EMINI.sha256


def test_a_download_that_is_not_the_pinned_file_is_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(EMINI, sha256="0" * 64)
    with pytest.raises(FetchError, match=f"{EMINI.file} is not the pinned file"):
        fetch(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


ODD_ROWS = {
    "live quote": (40, "2024-02-26 15:59:59"),
    "a second later": (40, "2024-02-26 00:00:01"),
    "long ago": (5, "2024-01-08 12:00"),
}


@pytest.mark.parametrize("odd", ODD_ROWS)
def test_one_more_row_on_a_day_does_not_make_daily_bars_intraday(odd: str, tmp_path: Path) -> None:
    position, time = ODD_ROWS[odd]
    frame = sound(40).assign(time=pd.bdate_range("2024-01-02", periods=40).astype(str))
    more = frame.iloc[[position - 1]].assign(time=time)
    path = write(pd.concat([frame.iloc[:position], more, frame.iloc[position:]]), tmp_path, ".csv")
    with pytest.raises(BarsError, match=f"line {position + 2}: is {time}; is a second row on its day"):
        load_bars(path)


ODD_TIMES = {
    "one year out of range": (put("time", "9999-12-31"), r"line 4: is 9999-12-31; .* years 1900 to 2100"),
    "one of another form": (put("time", "03.01.2020"), r"line 4: is 03.01.2020; must be"),
    "one number": (put("time", "1577923200000"), "line 4: is 1577923200000; must be"),
    "long numbers": (
        lambda frame: frame.assign(time=10**25),
        "line 2: is 10000000000000000000000000; must be",
    ),
}


@pytest.mark.parametrize("odd", ODD_TIMES)
def test_a_time_unlike_the_others_is_named(odd: str, tmp_path: Path) -> None:
    spoil, message = ODD_TIMES[odd]
    with pytest.raises(BarsError, match=message):
        load_bars(write(spoil(sound()), tmp_path, ".csv"))


def test_times_less_than_a_microsecond_apart_are_the_same() -> None:
    times = pd.to_datetime(["2020-01-01 10:00:00.000000100", "2020-01-01 10:00:00.000000900"])
    with pytest.raises(BarsError, match=r"row 2: .* must not repeat an earlier row"):
        load_bars(sound(2).assign(time=times))


@pytest.mark.parametrize("source", [None, [1.0], io.StringIO("time,open")])
def test_what_is_no_path_is_refused(source: Any) -> None:
    with pytest.raises(BarsError, match=rf"source is a {type(source).__name__}; must be the path of a file"):
        load_bars(source)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    content = write(sound(), tmp_path, ".parquet").read_bytes()
    damaged = tmp_path / "damaged.parquet"
    rng = np.random.default_rng(1)
    for length in rng.integers(4, len(content), 20):
        damaged.write_bytes(content[:length])
        with pytest.raises(BarsError, match="cannot be read as parquet"):
            load_bars(damaged)


def test_arrow_types_dates_and_long_integers_are_read() -> None:
    frame = sound().assign(time=pd.date_range("2020-01-01", periods=5))
    expected = load_bars(frame).frame
    for time in (
        frame["time"].astype("date32[pyarrow]"),
        frame["time"].astype("timestamp[us][pyarrow]"),
        frame["time"].dt.date,
        frame["time"].dt.to_period("D"),
    ):
        pd.testing.assert_frame_equal(load_bars(frame.assign(time=time)).frame, expected)
    pd.testing.assert_frame_equal(load_bars(frame.convert_dtypes(dtype_backend="pyarrow")).frame, expected)
    long = frame.assign(volume=pd.Series([10**17] * 5, dtype=object))
    assert (load_bars(long).frame["volume"] == 1e17).all()
    with pytest.raises(BarsError, match=r"column 'volume', row 1 .*must be a finite number"):
        load_bars(frame.assign(volume=pd.Series([10**30] * 5, dtype=object)))


def test_an_index_named_time_is_the_time() -> None:
    frame = sound()
    for index in (frame.set_index("time"), frame.rename(columns={"time": "Date"}).set_index("Date")):
        pd.testing.assert_frame_equal(load_bars(index).frame, load_bars(frame).frame)


def test_a_csv_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = write(sound(), tmp_path, ".csv")
    path.write_text(path.read_text().replace("close,volume", "close,close"))
    with pytest.raises(BarsError, match="column 'close' is given 2 times, as close, close"):
        load_bars(path)


def test_rounding_noise_is_no_fault() -> None:
    frame = sound()
    noisy = frame.assign(high=frame["close"] * (1 - 1e-12))
    np.testing.assert_array_equal(load_bars(noisy).frame["high"], frame["close"])


@pytest.mark.parametrize("bad", [-1.0, np.nan])
@pytest.mark.parametrize("column", ["price", "volume"])
def test_resampling_refuses_what_no_bar_may_hold(column: str, bad: float) -> None:
    times = pd.date_range("2020-01-02 10:00", periods=3, freq="s", tz="UTC")
    trades = pd.DataFrame({"price": 1.0, "volume": 1.0}, times)
    trades.loc[times[1], column] = bad
    with pytest.raises(BarsError, match=f"column '{column}', trade 2 "):
        resample_trades(trades, 1)


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Africa/Cairo", "2024-04-26"),
        ("America/Havana", "2024-03-10"),
        ("America/Santiago", "2024-09-08"),
        ("America/Sao_Paulo", "2018-11-04"),
        ("Asia/Beirut", "2024-03-31"),
    ],
)
def test_days_whose_clock_skips_midnight_are_counted(zone: str, day: str) -> None:
    times = pd.date_range(f"{day} 00:00", periods=48, freq="h", tz="UTC")
    bars = sound(48).assign(time=times)
    assert len(load_bars(bars, timezone=zone, min_days=2).frame) == 48
    with pytest.raises(BarsError, match="at least 9 are needed"):
        load_bars(bars, timezone=zone, min_days=9)
    # A date is its day, though midnight does not exist.
    daily = load_bars(sound(3).assign(time=pd.date_range(day, periods=3)), timezone=zone)
    assert daily.index[0] == times[0].tz_localize(None).tz_localize(zone, nonexistent="shift_forward")
