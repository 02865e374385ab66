"""Files in the shapes of many vendors give the bars they were made from; doubtful ones are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flowoe_lib.data.bars import Bars, load_bars
from flowoe_lib.data.records import sp500_daily
from flowoe_lib.data.sessions import breaks, session_clock, session_flags
from flowoe_lib.data.vendors import BarsError

PRICES = ["open", "high", "low", "close"]
ZONE = "America/New_York"
DAY = pd.Timedelta(days=1)


def bars(times: pd.DatetimeIndex) -> pd.DataFrame:
    """Bars with prices in cents; the second has the high at the open and the low at the close."""
    draws = np.random.default_rng(2)
    close = (1100 * np.exp(0.01 * draws.standard_normal(len(times)).cumsum())).round(2)
    opened = np.r_[1100.0, close[:-1]]
    prices = {
        "open": opened,
        "high": np.maximum(opened, close) + 0.25,
        "low": np.minimum(opened, close) - 0.5,
    }
    frame = pd.DataFrame({"time": times} | prices | {"close": close})
    return frame.assign(volume=draws.integers(9_000, 11_000, len(times)) * 100).round(
        dict.fromkeys(PRICES, 2)
    )


DAILY = bars(pd.bdate_range("2024-09-30", periods=40))
DAYS = pd.bdate_range("2024-10-28", periods=6)
"""Six days around the change of New York's clock."""


def session(first: str, last: str, minutes: int = 15, days: pd.DatetimeIndex = DAYS) -> pd.DatetimeIndex:
    times = [
        pd.date_range(f"{d:%Y-%m-%d} {first}", f"{d:%Y-%m-%d} {last}", freq=f"{minutes}min") for d in days
    ]
    return pd.DatetimeIndex(np.concatenate(times))


INTRADAY = bars(session("09:45", "16:00"))
STARTS = INTRADAY.assign(time=INTRADAY["time"] - pd.Timedelta(minutes=15))


def utc(frame: pd.DataFrame) -> pd.Series:
    return pd.Series(frame["time"].dt.tz_localize(ZONE).dt.tz_convert("UTC"))


def epoch(frame: pd.DataFrame, unit: str = "ms") -> pd.Series:
    return pd.Series(utc(frame).dt.as_unit(unit).astype("int64"))


def clock(frame: pd.DataFrame, form: str) -> pd.Series:
    return pd.Series(frame["time"].dt.strftime(form))


def names(frame: pd.DataFrame, *new: str) -> pd.DataFrame:
    return frame.set_axis(list(new), axis=1)


def csv(frame: pd.DataFrame, header: bool = True, sep: str = ",") -> str:
    return frame.to_csv(index=False, header=header, sep=sep)


def euro(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers as 1.127,35."""
    text = frame[[*PRICES, "volume"]].map(lambda x: f"{x:,.2f}".removesuffix(".00"))
    return frame.assign(
        **text.apply(lambda c: c.str.replace(",", "_").str.replace(".", ",").str.replace("_", "."))
    )


def yfinance() -> str:
    frame = DAILY[["time", "close", "high", "low", "open", "volume"]]
    header = "Price,Close,High,Low,Open,Volume\nTicker,XYZ,XYZ,XYZ,XYZ,XYZ\nDate,,,,,\n"
    return header + csv(frame, header=False)


def nasdaq() -> str:
    text = DAILY[PRICES].map("${}".format).assign(time=clock(DAILY, "%m/%d/%Y"), volume=DAILY["volume"])
    return csv(names(text[["time", "close", "volume", "open", "high", "low"]][::-1], *NASDAQ))


NASDAQ = ("Date", "Close/Last", "Volume", "Open", "High", "Low")


def investing() -> str:
    text = DAILY[PRICES].map("{:,.2f}".format).assign(time=clock(DAILY, "%b %d, %Y"))
    text = text.assign(volume=(DAILY["volume"] / 1e3).map("{:.1f}K".format), change="1.0%")[::-1]
    text = text[["time", "close", "open", "high", "low", "volume", "change"]]
    return csv(names(text, "Date", "Price", "Open", "High", "Low", "Vol.", "Change %"))


def binance() -> str:
    """The unit of times changes within the file."""
    times = epoch(STARTS).where(STARTS.index < 50, 1000 * epoch(STARTS))
    rest = dict.fromkeys(("closes", "turnover", "trades", "buys", "buy_turnover", "none"), 0)
    return csv(STARTS.assign(time=times, **rest), header=False)


def databento() -> str:
    scaled = (STARTS[PRICES] * 1e9).round().astype("int64")
    table = STARTS.assign(**scaled, time=epoch(STARTS, "ns"), rtype=33)
    return csv(table.rename(columns={"time": "ts_event"}))


def two_columns(form: str = "%H:%M", date: str = "%Y-%m-%d", frame: pd.DataFrame = INTRADAY) -> pd.DataFrame:
    text = pd.DataFrame({"Date": clock(frame, date), "Time": clock(frame, form)})
    return text.join(frame[[*PRICES, "volume"]])


def tradestation() -> str:
    up = INTRADAY["volume"] // 3
    table = two_columns("%H%M", "%m/%d/%Y").drop(columns="volume")
    return csv(table.assign(Up=up, Down=INTRADAY["volume"] - up))


def metatrader() -> str:
    table = two_columns("%H:%M:%S", "%Y.%m.%d", STARTS).assign(tickvol=5, spread=1)
    columns = ("DATE", "TIME", "OPEN", "HIGH", "LOW", "CLOSE", "VOL", "TICKVOL", "SPREAD")
    return csv(names(table, *(f"<{name}>" for name in columns)), sep="\t")


def histdata() -> str:
    standard = STARTS["time"].dt.tz_localize(ZONE).dt.tz_convert("Etc/GMT+5").dt.strftime("%Y%m%d %H%M%S")
    return csv(STARTS.assign(time=standard), header=False, sep=";")


def brokers() -> str:
    return csv(STARTS.assign(time=clock(STARTS, "%Y%m%d  %H:%M:%S US/Eastern"), barCount=7))


def tushare() -> str:
    table = DAILY.assign(time=clock(DAILY, "%Y%m%d"), volume=DAILY["volume"] / 100)[::-1]
    table = table.assign(ts_code="600000.SH", amount=1.0)
    return csv(table.rename(columns={"time": "trade_date", "volume": "vol"}))


def german() -> bytes:
    table = euro(DAILY).assign(time=clock(DAILY, "%d.%m.%Y"), turnover="532.259.748")[::-1]
    columns = ("Datum", "Erster", "Hoch", "Tief", "Schlusskurs", "Stücke", "Volumen")
    return csv(names(table, *columns), sep=";").encode("cp1252")


def excel(frame: pd.DataFrame) -> str:
    return csv(frame.assign(time=(frame["time"] - pd.Timestamp("1899-12-30")) / DAY))


def polygon() -> str:
    return csv(names(STARTS.assign(time=epoch(STARTS)), "t", "o", "h", "l", "c", "v"))


def alpha_vantage() -> str:
    return csv(names(DAILY[::-1], "timestamp", "1. open", "2. high", "3. low", "4. close", "5. volume"))


def dukascopy() -> str:
    times = utc(STARTS).dt.strftime("%d.%m.%Y %H:%M:%S.000")
    return csv(STARTS.assign(time=times).rename(columns={"time": "Gmt time"}))


FILES: dict[str, tuple[Callable[[], str | bytes], pd.DataFrame, str]] = {
    "yfinance": (yfinance, DAILY, ""),
    "Nasdaq.com": (nasdaq, DAILY, "Nasdaq.com; Close/Last is close; month first; newest row first"),
    "Investing.com": (investing, DAILY, "Investing.com; Price is close; Vol. is volume; month first; newest"),
    "Alpha Vantage": (alpha_vantage, DAILY, "newest row first"),
    "Tushare": (tushare, DAILY, "volume in lots of 100"),
    "German": (
        german,
        DAILY,
        "Schlusskurs is close; Stücke is volume; decimal comma; day first; newest row first",
    ),
    "German, with BOM": (
        lambda: csv(euro(DAILY).assign(time=clock(DAILY, "%d.%m.%Y")), sep=";").encode("utf-8-sig"),
        DAILY,
        "decimal comma; day first",
    ),
    "UTF-16": (lambda: csv(DAILY).encode("utf-16"), DAILY, ""),
    "a title above": (lambda: "Prices of XYZ\n\n" + csv(DAILY), DAILY, ""),
    "Excel days": (lambda: excel(DAILY), DAILY, "day numbers of Excel"),
    "yyyymmdd": (lambda: csv(DAILY.assign(time=clock(DAILY, "%Y%m%d"))), DAILY, ""),
    "UTC midnights": (lambda: csv(DAILY.assign(time=clock(DAILY, "%Y-%m-%dT00:00:00Z"))), DAILY, ""),
    "local midnights": (lambda: csv(DAILY.assign(time=utc(DAILY))), DAILY, ""),
    "Binance": (binance, INTRADAY, "Binance, no header"),
    "Kraken": (lambda: csv(STARTS.assign(time=epoch(STARTS, "s"), n=1), header=False), INTRADAY, "Kraken"),
    "CCXT": (lambda: csv(STARTS.assign(time=epoch(STARTS)), header=False), INTRADAY, "stamped at the start"),
    "Databento": (databento, INTRADAY, "nanoseconds since 1970; prices divided by 1e+09"),
    "Polygon": (polygon, INTRADAY, "Polygon"),
    "Dukascopy": (dukascopy, INTRADAY, "day first; stamped at the start"),
    "Interactive Brokers": (brokers, INTRADAY, "Interactive Brokers"),
    "HistData": (histdata, INTRADAY, "HistData, no header; stamped at the start"),
    "MetaTrader": (metatrader, INTRADAY, "MetaTrader"),
    "MetaTrader 4": (lambda: csv(two_columns(frame=STARTS), header=False), INTRADAY, "MetaTrader, no header"),
    "TradeStation": (tradestation, INTRADAY, "TradeStation; month first; stamped at the end"),
    "date and time apart": (lambda: csv(two_columns()), INTRADAY, "stamped at the end"),
    "AM and PM": (lambda: csv(INTRADAY.assign(time=clock(INTRADAY, "%m/%d/%Y %I:%M %p"))), INTRADAY, "month"),
    "Excel times": (lambda: excel(INTRADAY), INTRADAY, "day numbers of Excel"),
    "starts": (lambda: csv(STARTS), INTRADAY, "stamped at the start"),
    "UTC": (lambda: csv(INTRADAY.assign(time=utc(INTRADAY))), INTRADAY, "stamped at the end"),
}


def check(read: Bars, truth: pd.DataFrame) -> None:
    expected = truth.set_index(truth["time"].dt.tz_localize(ZONE).dt.as_unit("us"))
    pd.testing.assert_frame_equal(read.frame, expected[[*PRICES, "volume"]].astype(float), rtol=1e-15)


@pytest.mark.parametrize("vendor", FILES)
def test_a_file_of_a_vendor_gives_the_bars_it_was_made_from(vendor: str, tmp_path: Path) -> None:
    make, truth, note = FILES[vendor]
    content = make()
    path = tmp_path / "bars.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    read = load_bars(path, timezone=ZONE)
    check(read, truth)
    assert note in read.reading
    assert read.flags == ()


FRAMES: dict[str, tuple[Callable[[], pd.DataFrame], pd.DataFrame]] = {
    "short floats": (lambda: INTRADAY.astype(dict.fromkeys(PRICES, "float32")), INTRADAY),
    "text and epochs": (
        lambda: STARTS.astype(dict.fromkeys(PRICES, str)).assign(time=epoch(STARTS)),
        INTRADAY,
    ),
    "index of times": (lambda: INTRADAY.assign(time=utc(INTRADAY)).set_index("time"), INTRADAY),
    "dates": (lambda: DAILY.assign(time=DAILY["time"].dt.date), DAILY),
    "integers apart": (
        lambda: two_columns("%H%M", "%Y%m%d").astype({"Date": "int64", "Time": "int64"}),
        INTRADAY,
    ),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_parquet_of_the_same_kinds_is_read(kind: str, tmp_path: Path) -> None:
    make, truth = FRAMES[kind]
    path = tmp_path / "bars.parquet"
    make().to_parquet(path)
    check(load_bars(path, timezone=ZONE), truth)


def test_columns_of_several_levels_are_those_of_one_symbol() -> None:
    frame = DAILY.set_index("time").rename(columns=str.title)
    check(load_bars(pd.concat({"XYZ": frame}, axis=1), timezone=ZONE), DAILY)
    with pytest.raises(BarsError, match="column 'open' is given 2 times"):
        load_bars(pd.concat({"A": frame, "B": frame}, axis=1))


UNKNOWN: dict[str, tuple[Callable[[], str], str, dict[str, str]]] = {
    "month or day": (
        lambda: csv(
            DAILY.iloc[24:29].assign(
                time=["11/01/2024", "11/04/2024", "11/05/2024", "11/06/2024", "11/07/2024"]
            )
        ),
        r"dates such as 11/01/2024 may have the month or the day first; .*DATES=mdy",
        {"dates": "mdy"},
    ),
    "no header": (
        lambda: csv(DAILY.assign(a=1, b=2, c=3), header=False),
        "has no header and 9 columns, as no known vendor's; say which column is what",
        {"columns": "time, open, high, low, close, volume, a, b, c"},
    ),
    "names": (
        lambda: csv(
            DAILY.rename(columns={"close": "PRC", "volume": "lots"}).assign(lots=DAILY["volume"] / 100)
        ),
        "missing column close, volume; found time, open, high, low, PRC, lots; say which",
        {"columns": "close=PRC, volume=lots*100"},
    ),
    "two times": (
        lambda: csv(DAILY.assign(timestamp=epoch(DAILY))),
        "column 'time' is given 2 times, as time, timestamp",
        {"columns": "time=timestamp"},
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_cannot_be_known_is_asked(case: str, tmp_path: Path) -> None:
    make, question, answer = UNKNOWN[case]
    path = tmp_path / "bars.csv"
    path.write_text(make())
    with pytest.raises(BarsError, match=question):
        load_bars(path, timezone=ZONE)
    truth = DAILY.iloc[24:29] if case == "month or day" else DAILY
    check(load_bars(path, timezone=ZONE, **answer), truth.reset_index(drop=True))  # type: ignore[arg-type]


def test_answers_that_fit_nothing_are_refused() -> None:
    with pytest.raises(BarsError, match="dates = 'ydm': unknown time zone, nor one of ymd, mdy, dmy"):
        load_bars(DAILY, dates="ydm")
    with pytest.raises(BarsError, match="columns = 'time, open': must name all 6 columns"):
        load_bars(DAILY, columns="time, open")
    with pytest.raises(BarsError, match="missing column volume; found time"):
        load_bars(DAILY, columns="volume=Shares")
    uneven = INTRADAY.assign(time=INTRADAY["time"] + pd.to_timedelta(INTRADAY.index**2 % 17, unit="s"))
    with pytest.raises(BarsError, match="bars = 'start': bars vary in length"):
        load_bars(uneven, bars="start")


def test_hours_on_the_hour_are_starts_if_the_session_says_so() -> None:
    """Half past nine to half past three: the last of these hours has thirty minutes."""
    hours = bars(session("09:30", "15:30", 60))
    read = load_bars(hours, timezone=ZONE, session=("09:30", "16:00"))
    assert [str(t)[11:16] for t in read.index[:7]] == [f"{h}:30" for h in range(10, 16)] + ["16:00"]
    assert "start" in read.reading
    assert "end of a bar" in load_bars(hours, timezone=ZONE).reading
    assert load_bars(hours, timezone=ZONE, bars="start").index[6].hour == 16
    ends = bars(session("10:30", "16:30", 60))
    assert "end of a bar" in load_bars(ends, timezone=ZONE, session=("09:30", "16:30")).reading


def test_a_market_that_never_closes_tells_starts_from_ends_by_the_edges_of_the_file() -> None:
    for first, last, stamp in (("00:00", "23:45", "start"), ("00:15", "00:00", "end")):
        days = "2024-01-03", f"2024-01-0{6 if stamp == 'start' else 7}"
        times = pd.date_range(f"{days[0]} {first}", f"{days[1]} {last}", freq="15min", tz="UTC")
        assert f"{stamp} of a bar" in load_bars(bars(times), timezone="UTC").reading


def daily(**changes: Any) -> tuple[str, ...]:
    return load_bars(DAILY.assign(**changes), timezone=ZONE).flags


def test_sound_bars_have_no_flags() -> None:
    assert daily() == ()
    assert load_bars(INTRADAY, timezone=ZONE).flags == ()
    assert sp500_daily().flags == ()


def test_a_split_is_flagged_with_the_volume_in_shares_of_today() -> None:
    before = pd.Series(np.where(DAILY.index < 28, 4.0, 1.0))
    unadjusted = {name: DAILY[name] * before for name in PRICES} | {"volume": DAILY["volume"] / before}
    [flag] = daily(**unadjusted)
    adv = DAILY["volume"].iloc[-21:].mean()
    assert "overnight by a factor of 0.25 on 2024-11-07: a split?" in flag
    assert f"{adv:,.0f} (ADV)" in flag
    [flag] = daily(**{name: unadjusted[name] for name in PRICES})
    assert flag.endswith("a split? volume does not follow")
    [flag] = daily(volume=unadjusted["volume"])
    assert "volume changes by a factor of 4.1 on 2024-11-07 and prices do not" in flag


def test_units_that_do_not_fit_are_flagged() -> None:
    pence = pd.Series(np.where(DAILY.index < 28, 1.0, 100.0))
    [flag] = daily(**{name: DAILY[name] * pence for name in PRICES})
    assert "pence among pounds" in flag
    [flag] = daily(**{name: (DAILY[name] * 1e4).round() for name in PRICES})
    assert "units of 1/10,000" in flag
    value = DAILY["volume"] * (DAILY["high"] + DAILY["low"]) / 2
    assert daily(amount=value) == ()
    [flag] = daily(amount=value / 1000)
    assert flag.startswith("turnover is 0.001 times price x volume")
    [flag] = daily(volume=DAILY["volume"] / 100 + 0.01)
    assert "lots of 100" in flag
    [flag] = daily(
        open=DAILY["open"].where(DAILY.index != 3, 60.0), low=DAILY["low"].where(DAILY.index != 3, 50.0)
    )[1:]
    assert "more than ten times low on 2024-10-03" in flag


def test_days_without_trade_are_left_out_and_named(tmp_path: Path) -> None:
    quiet = DAILY.index.isin([25, 26])
    for halted in (
        DAILY.assign(volume=DAILY["volume"].mask(quiet, 0)),
        DAILY.assign(**{name: DAILY[name].mask(quiet) for name in (*PRICES, "volume")}),
    ):
        path = tmp_path / "bars.csv"
        path.write_text(csv(halted))
        read = load_bars(path, timezone=ZONE)
        check(read, DAILY[~quiet])
        [flag] = read.flags
        assert "2024-11-04" in flag
        assert "left out" in flag
    path.write_text(csv(DAILY.assign(volume=DAILY["volume"].mask(DAILY.index == 25))))
    with pytest.raises(BarsError, match=r"column 'volume', line 27 .*is missing"):
        load_bars(path)


def test_an_unfinished_last_day_is_flagged() -> None:
    [flag] = daily(volume=DAILY["volume"].where(DAILY.index < 39, 100_000))
    assert flag == "volume of the last day, 2024-11-22, is 10% of the usual: is the day over?"


def test_dates_moved_by_an_offset_are_flagged() -> None:
    berlin = DAILY["time"].dt.tz_localize("Europe/Berlin").dt.tz_convert("UTC")
    moved = load_bars(DAILY.assign(time=berlin), timezone=ZONE)
    assert "dates run from Sunday to Thursday" in moved.flags[0]
    right = load_bars(DAILY.assign(time=berlin), timezone="Europe/Berlin")
    assert right.flags == ()
    assert [t.date() for t in right.index] == [t.date() for t in DAILY["time"]]


def test_a_lunch_break_belongs_to_the_session_and_holds_nothing() -> None:
    times = session("09:45", "11:30").union(session("13:15", "15:00"))
    read = load_bars(bars(times), timezone="Asia/Shanghai", minutes=15)
    assert breaks(read, "09:30", "15:00") == (("11:30", "13:00"),)
    assert session_flags(read, "09:30", "15:00") == ("no trading from 11:30 to 13:00 on most days: a break",)
    clocks = session_clock(read, read.frame["volume"], 11, opens="09:30", closes="15:00")
    assert len(clocks) == 6
    assert (clocks.iloc[:, 4:7] == 0).all(axis=None)
    np.testing.assert_allclose(clocks.sum(axis=1).sum(), read.frame["volume"].sum())
    # A hole beside the break is no break.
    short = load_bars(bars(times.delete(7)), timezone="Asia/Shanghai", minutes=15)
    assert len(session_clock(short, short.frame["volume"], 11, opens="09:30", closes="15:00")) == 5


def test_half_days_and_trading_outside_the_session_are_flagged() -> None:
    times = session("08:15", "16:00")
    half = times[(times < pd.Timestamp("2024-11-01 13:15")) | (times > pd.Timestamp("2024-11-02"))]
    read = load_bars(bars(half).assign(volume=100.0), timezone=ZONE)
    left, outside = session_flags(read, "09:30", "16:00")
    assert (
        left == "1 of 6 days are not covered from 09:30 to 16:00 and are left out, the last ones 2024-11-01"
    )
    # Six bars before the open, 26 within; 20 on the half day.
    assert outside == f"{36 / (5 * 32 + 20):.0%} of the volume is outside 09:30 to 16:00 and is not counted"
    assert session_flags(load_bars(DAILY), "09:30", "16:00") == ()


def test_a_session_that_is_not_covered_is_refused_with_the_hours_that_are() -> None:
    naive = INTRADAY.assign(time=utc(INTRADAY).dt.tz_localize(None))
    read = load_bars(naive, timezone=ZONE, minutes=15)
    with pytest.raises(BarsError) as caught:
        session_clock(read, read.frame["volume"], 13, opens="09:30", closes="16:00")
    message = str(caught.value)
    assert "no day is covered by bars from 09:30 to 16:00 America/New_York" in message
    assert "the bars cover 13:30 to 20:00 (5 days), 14:30 to 21:00 (1 days)" in message
    assert message.endswith("it fits if the times are those of UTC (dates, DATES=UTC)")
    check(load_bars(naive, timezone=ZONE, dates="UTC"), INTRADAY)
    starts = load_bars(STARTS, timezone=ZONE, minutes=15, bars="end")
    with pytest.raises(BarsError, match="it fits if bars are stamped at their start"):
        session_clock(starts, starts.frame["volume"], 13, opens="09:30", closes="16:00")
