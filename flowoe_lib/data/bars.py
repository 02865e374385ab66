"""Market bars: one loader, with one set of rules, for files of many vendors, data frames and packages.

All bars pass through :func:`load_bars`, so code that uses them does not check them again.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from flowoe_lib.data.flags import suspicions
from flowoe_lib.data.times import ORDERS, Times, read_times
from flowoe_lib.data.vendors import COLUMNS, PRICES, BarsError, decimal_comma, read_columns, read_numbers

DEFAULT_TIMEZONE = "America/New_York"
"""Time zone of times without an offset from UTC; the default session of an order is New York's too."""


_OFFSET = "give times with an offset from UTC, or the time zone of times without one (timezone, TIMEZONE)"


_TIME = (
    "must be an ISO 8601 time such as 2015-01-02 14:30:00, in the years 1900 to 2100, with an offset from "
    "UTC either in every row or in none"
)


NOISE = 1e-9
"""Relative rounding error of prices that is no fault."""


LARGEST = 1e18
"""Prices and volumes are smaller."""


MISSING = ("", "nan", "nat", "none", "null", "na")


@dataclass(frozen=True)
class Bars:
    """Validated bars; build them with :func:`load_bars`.

    ``frame`` has float columns open, high, low, close (prices) and volume, and a strictly increasing
    ``time`` index in ``timezone``: the date of a daily bar, the **end** of an intraday one.
    """

    frame: pd.DataFrame
    source: str
    timezone: str
    minutes: float | None = None
    """Length of time bars; None for bars of equal activity, which follow each other without gaps."""
    reading: str = ""
    """How the source was read, in one line."""
    flags: tuple[str, ...] = ()
    """What looks wrong in the bars, one sentence each."""

    @property
    def index(self) -> pd.DatetimeIndex:
        """Times of the bars."""
        return pd.DatetimeIndex(self.frame.index)

    @property
    def interval(self) -> float | None:
        """Length of the bars in minutes: ``minutes``, or what most of them are apart; None if they vary."""
        return self.minutes or _usual_minutes(self.frame.index.to_series())


def load_bars(
    source: str | Path | pd.DataFrame,
    *,
    name: str | None = None,
    timezone: str = DEFAULT_TIMEZONE,
    minutes: float | None = None,
    min_days: int = 1,
    columns: str | None = None,
    dates: str | None = None,
    bars: Literal["start", "end"] | None = None,
    session: tuple[str, str] | None = None,
) -> Bars:
    """Read and check market bars.

    Columns are open, high, low, close, volume, and time, which may also be called date, datetime, date_time
    or timestamp and may be the index. Files of many vendors are recognised by their content: other names,
    dates and numbers, no header, newest row first, bars stamped at their start (``vendors.toml`` lists them).
    Most rows decide what a file is; rows that differ are refused. The result says how the source was read
    and what looks wrong.

    Parameters
    ----------
    source : str, Path or DataFrame
        A text file (.csv, .txt, .tsv) or a .parquet file, or a data frame.
    name : str, optional
        Name of the bars in error messages.
    timezone : str
        Time zone of the result, by default New York, as with ``make order``. Times without an offset from UTC
        are taken to be in it, times with one are converted to it.
    minutes : float, optional
        Length of the bars if they are cut by the clock.
    min_days : int
        Smallest number of days that the bars must cover.
    columns : str, optional
        Which column is what, if the names do not say: "time=Day, volume=Lots*100". For a file without a
        header, the columns in order: "time, open, high, low, close, volume".
    dates : str, optional
        Order of day and month, dmy, mdy or ymd; or the time zone in which times without an offset are
        written, if that is not ``timezone``; or both: "dmy UTC".
    bars : {"start", "end"}, optional
        Whether the time of an intraday bar is its start or its end; by default as the vendor writes it, or
        as the hours of the bars suggest. Times of the result are ends.
    session : tuple of str, optional
        Open and close of the market, as ("09:30", "16:00"); tells starts from ends in doubt.

    Returns
    -------
    flowoe_lib.data.bars.Bars
        Checked bars, sorted by time; volume in shares or contracts. ``reading`` says in one line how the
        source was read, ``flags`` what looks wrong: splits, units, days without trade (left out), empty rows
        (left out), an unfinished last day, dates moved by an offset.

    Raises
    ------
    BarsError
        For a file that cannot be read, a missing or repeated column, dates whose month and day could be
        either way round, a second row on a day of daily bars, a value that is not a finite number,
        times that are unreadable, unsorted or repeated, a price that is not positive, a negative volume,
        prices outside [low, high], or fewer than ``min_days`` days. The message names source, column, row
        (the line of a CSV file, otherwise counted from 1) and what is allowed.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"open": [10.0], "high": [11.0], "low": [9.0], "close": [10.5], "volume": [1e6]})
    >>> bars = fo.load_bars(frame.assign(time="2024-01-02"))
    >>> str(bars.index[0]), bars.timezone
    ('2024-01-02 00:00:00-05:00', 'America/New_York')
    """
    if minutes is not None:
        _check_minutes(name or "bars", minutes)
    if not isinstance(source, str | Path | pd.DataFrame):
        kind = type(source).__name__
        raise BarsError(f"{name or 'bars'}: source is a {kind}; must be the path of a file, or a data frame")
    label = name or ("data frame" if isinstance(source, pd.DataFrame) else str(source))
    raw, mark, vendor, notes = read_columns(source, columns, label)
    if raw.empty:
        raise BarsError(f"{label}: holds no bars; at least one row below the header is needed")
    check = _Check(label, "line" if mark else "row", raw)
    words = (dates or vendor.dates or "").split()
    order = next((word for word in words if word in ORDERS), None)
    zone = next((word for word in words if word not in ORDERS), timezone)
    for option, given in (("timezone", timezone), ("dates", zone)):
        try:
            ZoneInfo(given)
        except (KeyError, ValueError, OSError):
            others = f", nor one of {', '.join(ORDERS)}" if option == "dates" else ""
            raise BarsError(f"{label}: {option} = {given!r}: unknown time zone{others}") from None
    comma = decimal_comma(raw, mark)
    notes += ["decimal comma"] if comma else []
    for column, kind in raw[[*COLUMNS]].dtypes.items():
        if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind):
            raise BarsError(f"{label}: column '{column}' is of type {kind}; must be numbers")
    frame = pd.DataFrame({column: read_numbers(raw[column], comma) for column in COLUMNS})
    empty = frame[[*PRICES]].isna().all(axis=1) & ~(frame["volume"] > 0)
    flags: list[str] = []
    if 0 < empty.sum() < len(raw):
        places = ", ".join(f"{check.word} {k} ({raw['time'][k]})" for k in raw.index[empty][:3])
        flags.append(f"{empty.sum()} rows without prices and volume are left out: {places}")
        raw, frame = raw[~empty], frame[~empty]
    stamps = read_times(raw["time"], order, label)
    notes.append(stamps.form)
    check.rule("time", stamps.times.notna(), _TIME)
    index, daily = _located(stamps, zone, timezone, minutes is None, check)
    if (index.diff() < pd.Timedelta(0)).mean() > 0.5:
        raw, frame, index = raw[::-1], frame[::-1], index[::-1]
        notes.append("newest row first, so the order was reversed")
    hint = "" if daily or stamps.times.dt.tz else f"; if the clock was set back then, {_OFFSET}"
    check.rule("time", ~index.duplicated(), f"must not repeat an earlier row of one instrument{hint}")
    check.rule("time", ~(index.diff() < pd.Timedelta(0)), "must be later than the row before")
    if daily:
        second = index.dt.tz_localize(None).dt.normalize().duplicated()
        check.rule("time", ~second, "is a second row on its day, and other bars are daily; remove one row")
    for column in COLUMNS:
        check.rule(column, frame[column].abs() < LARGEST, "must be a finite number")
    if vendor.price_scale != 1 and (frame[[*PRICES]] % 1 == 0).all(axis=None):
        frame[[*PRICES]] /= vendor.price_scale
        notes.append(f"prices divided by {vendor.price_scale:g}")
    if vendor.lot != 1:
        frame["volume"] *= vendor.lot
        notes.append(f"volume in lots of {vendor.lot:g}")
    for column in PRICES:
        hint = " (CRSP marks the midpoint of a day without a closing trade by a minus)" * (column == "close")
        check.rule(column, frame[column] > 0, f"must be > 0{hint}")
    check.rule("volume", frame["volume"] >= 0, "must be >= 0")
    check.rule("high", frame["high"] >= frame["low"] * (1 - NOISE), "must be at least low")
    for column in ("open", "close"):
        inside = frame[column].between(frame["low"] * (1 - NOISE), frame["high"] * (1 + NOISE))
        check.rule(column, inside, "must lie within [low, high]")
    frame["high"], frame["low"] = frame[[*PRICES]].max(axis=1), frame[[*PRICES]].min(axis=1)
    if not daily:
        length = minutes or _usual_minutes(index)
        stamp = bars or vendor.bars or ("start" if stamps.epoch else _stamp(index, length, session))
        if stamp == "start":
            index = _ends(index, length, session, label)
        notes.append(f"stamped at the {stamp} of a bar")
    turnover = read_numbers(raw["turnover"], comma) if "turnover" in raw and vendor.lot == 1 else None
    frame = frame.set_axis(pd.DatetimeIndex(index, name="time"), axis=0)
    frame, found = suspicions(frame, daily, turnover)
    times = pd.DatetimeIndex(frame.index)
    days = times.tz_localize(None).normalize().nunique()
    if days < min_days:
        raise BarsError(f"{label}: covers {days} days; at least {min_days} are needed")
    first, last = (str(t.date() if daily else t) for t in times[[0, -1]])
    kind = f"{len(frame):,} {'daily ' if daily else ''}bars from {first} to {last}, {timezone}"
    reading = "; ".join(filter(None, [f"{label}: {kind}", vendor.name, *notes]))
    return Bars(frame, label, timezone, minutes, reading, (*flags, *found))


@dataclass(frozen=True)
class _Check:
    """Checks a rule on every row; the error names the place in the source."""

    source: str
    word: str
    raw: pd.DataFrame

    def rule(self, column: str, ok: pd.Series, allowed: str) -> None:
        """Raise BarsError for the first row that is not ``ok``."""
        bad = ok.index[~ok.to_numpy()]
        if len(bad) == 0:
            return
        row = self.raw.loc[bad[0]]
        place = f"{self.word} {bad[0]}" + ("" if column == "time" else f" ({row['time']})")
        more = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
        shown = "is missing" if str(row[column]).lower() in MISSING else f"is {row[column]}"
        raise BarsError(f"{self.source}: column '{column}', {place}: {shown}; {allowed}{more}")


def _located(stamps: Times, zone: str, timezone: str, dated: bool, check: _Check) -> tuple[pd.Series, bool]:
    """Times by the clock of ``timezone``, and whether most rows are the only one of their day."""
    local = _localised(stamps.written, zone) if stamps.times.dt.tz is None else stamps.times
    check.rule("time", local.notna(), f"is skipped or repeated by the clock of {zone}; {_OFFSET}")
    local = local.dt.tz_convert(timezone)
    naive = local.dt.tz_localize(None)
    alone = ~naive.dt.normalize().duplicated(keep=False)
    daily = dated and alone.mean() > 0.5
    dated_as_written, dated_here = ((t == t.dt.normalize()).mean() for t in (stamps.written, naive))
    # The date of a daily bar is the one written, whatever the offset.
    return (_localised(stamps.written, timezone) if daily and dated_as_written > dated_here else local), daily


def _localised(written: pd.Series, zone: str) -> pd.Series:
    """Times by the clock of ``zone``; NaT where the clock skips or repeats one, except the start of a day."""
    exact = written.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    first = np.full(len(written), True)
    shifted = written.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")
    midnight = written == written.dt.normalize()
    return pd.Series(exact.mask(midnight & (midnight.mean() > 0.5), shifted))


def _usual_minutes(index: pd.Series) -> float | None:
    """Minutes that most neighbours are apart; None if there is no such number."""
    gaps = index.diff().value_counts(normalize=True)
    return gaps.index[0] / pd.Timedelta(minutes=1) if len(gaps) and gaps.iloc[0] > 0.5 else None


def _stamp(index: pd.Series, length: float | None, session: tuple[str, str] | None) -> str:
    """Whether bars are stamped at their start or end, by the session or else by its full or half hours."""
    if length is None:
        return "end"
    naive = index.dt.tz_localize(None)
    clock = (naive - naive.dt.normalize()) / pd.Timedelta(minutes=1)
    pause = index.diff() > pd.Timedelta(minutes=max(120.0, 2 * length))
    ends = (pause | (np.arange(len(index)) == 0), pause.shift(-1, fill_value=True))
    (first, begun), (last, ended) = (next(clock[end].value_counts(normalize=True).items()) for end in ends)
    if min(begun, ended) > 0.5 and session is not None:
        opens, closes = (pd.Timedelta(f"{time}:00").seconds / 60 for time in session)
        if (first == opens) != (last == closes):
            return "start" if first == opens else "end"
    starts, closed = (((first + x) % 30, (last + y) % 30) == (0, 0) for x, y in ((0, length), (-length, 0)))
    return "start" if starts and not closed and min(begun, ended) > 0.5 else "end"


def _ends(index: pd.Series, length: float | None, session: tuple[str, str] | None, label: str) -> pd.Series:
    """Ends of bars stamped at their start; the last one of a session is no longer than the session."""
    if length is None:
        raise BarsError(f"{label}: bars = 'start': bars vary in length, so their ends are unknown")
    ends = index + pd.Timedelta(minutes=length)
    if session is None:
        return ends
    naive = index.dt.tz_localize(None)
    closes = naive.dt.normalize() + pd.Timedelta(f"{session[1]}:00")
    over = (naive + pd.Timedelta(minutes=length) - closes).where(naive < closes)
    return pd.Series(ends - over.clip(lower=pd.Timedelta(0)).fillna(pd.Timedelta(0)))


def _check_minutes(label: str, minutes: float) -> None:
    if not 0 < minutes < math.inf:
        raise BarsError(f"{label}: minutes = {minutes}: must be finite and > 0")


def resample_trades(trades: pd.DataFrame, minutes: float, *, name: str = "trades") -> Bars:
    """Aggregate trades, columns price and volume, into bars of ``minutes``; empty intervals have no bar.

    Raises BarsError as :func:`load_bars`, and for trades without time zone, out of order, or without one of
    the columns.
    """
    index = trades.index
    if not isinstance(index, pd.DatetimeIndex) or index.tz is None or not index.is_monotonic_increasing:
        raise BarsError(f"{name}: trades need an ordered index of times with a time zone")
    _check_minutes(name, minutes)
    if missing := [column for column in ("price", "volume") if column not in trades.columns]:
        raise BarsError(f"{name}: missing column {', '.join(missing)}")
    rows = trades[["price", "volume"]].assign(time=index).set_axis(pd.RangeIndex(1, len(index) + 1))
    check = _Check(name, "trade", rows)
    check.rule("price", rows["price"].between(0, LARGEST, inclusive="neither"), "must be finite and > 0")
    check.rule("volume", rows["volume"].between(0, LARGEST), "must be finite and >= 0")
    groups = trades.rename_axis("time").resample(pd.Timedelta(minutes=minutes), label="right", closed="left")
    frame = groups["price"].ohlc().assign(volume=groups["volume"].sum()).dropna(subset=["close"])
    return load_bars(frame, name=name, timezone=str(index.tz), minutes=minutes, bars="end")
