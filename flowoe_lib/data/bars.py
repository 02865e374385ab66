"""Market bars: one loader, with one set of rules, for CSV and Parquet files, data frames and packages.

All bars pass through :func:`load_bars`, so code that uses them does not check them again.
"""

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

__all__ = ["DEFAULT_TIMEZONE", "Bars", "BarsError", "load_bars", "resample_trades"]


DEFAULT_TIMEZONE = "America/New_York"
"""Time zone of times without an offset from UTC; the default session of an order is New York's too."""


_OFFSET = "give times with an offset from UTC, or the time zone of times without one (timezone, TIMEZONE)"


PRICES = ("open", "high", "low", "close")


COLUMNS = (*PRICES, "volume")


TIME_NAMES = ("time", "date", "datetime", "date_time", "timestamp")


class BarsError(ValueError):
    """Bars that break a rule; the message names source, column, row and what is allowed."""


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
    or timestamp and may be the index. Names are matched without regard to case; other columns are ignored.
    Times are in ISO 8601: the date of a daily bar, the end of an intraday one.

    Parameters
    ----------
    source : str, Path or DataFrame
        A .csv or .parquet file, or a data frame.
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
        Which column is what, if the names do not say: "time=Datum, volume=Stuecke". For a file without a
        header, the columns in order: "time, open, high, low, close, volume".
    dates : str, optional
        Order of day and month in dates, dmy, mdy or ymd.
    bars : {"start", "end"}, optional
        Whether the time of an intraday bar is its start or its end.
    session : tuple of str, optional
        Open and close of the market, by which bars stamped at their start are recognised.

    Returns
    -------
    flowoe_lib.data.bars.Bars
        Checked bars, sorted by time; prices in the units of the source, volume in shares or contracts.

    Raises
    ------
    BarsError
        For a file that cannot be read, a missing or repeated column, a value that is not a finite number,
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
    label = name or ("data frame" if isinstance(source, pd.DataFrame) else str(source))
    raw, word = (source, "row") if isinstance(source, pd.DataFrame) else _read(Path(source))
    given = dict(re.findall(r"(\w+)\s*=\s*([^,]+?)\s*(?:,|$)", columns or ""))
    raw = _named_columns(raw.rename(columns={theirs: ours for ours, theirs in given.items()}), label)
    if raw.empty:
        raise BarsError(f"{label}: holds no bars; at least one row below the header is needed")
    if word == "row":
        raw.index = pd.RangeIndex(1, len(raw) + 1)
    check = _Check(label, word, raw)
    index = _times(raw["time"], timezone, check, dates)
    if bars == "start":
        index += pd.Series(index).diff().mode()[0]
    frame = pd.DataFrame({column: _numbers(raw[column], check) for column in COLUMNS})
    for column in PRICES:
        check.rule(column, frame[column] > 0, "must be > 0")
    check.rule("volume", frame["volume"] >= 0, "must be >= 0")
    check.rule("high", frame["high"] >= frame["low"], "must be at least low")
    for column in ("open", "close"):
        inside = frame[column].between(frame["low"], frame["high"])
        check.rule(column, inside, "must lie within [low, high]")
    days = index.tz_localize(None).normalize().nunique()
    if days < min_days:
        raise BarsError(f"{label}: covers {days} days; at least {min_days} are needed")
    reading = f"{label}: {len(frame)} bars from {index[0]} to {index[-1]}, times of {timezone}"
    return Bars(frame.set_axis(index, axis=0), label, timezone, minutes, reading)


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
        shown = "is missing" if pd.isna(row[column]) or row[column] == "" else f"is {row[column]}"
        raise BarsError(f"{self.source}: column '{column}', {place}: {shown}; {allowed}{more}")


def _read(path: Path) -> tuple[pd.DataFrame, str]:
    """Read a file without conversion; a CSV as text, indexed by line number."""
    if not path.is_file():
        raise BarsError(f"{path}: no such file; give a .csv or .parquet file of bars")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise BarsError(f"{path}: unknown extension '{path.suffix}'; allowed are .csv and .parquet")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path), "row"
        # Blank lines are read and dropped afterwards, so that line numbers are those of the file.
        with warnings.catch_warnings():
            # pandas only warns when it drops fields beyond the last column.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            text = pd.read_csv(
                path, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False
            )
    except pd.errors.EmptyDataError:
        raise BarsError(f"{path}: is empty; a header and at least one row are needed") from None
    except pd.errors.ParserWarning as error:
        raise BarsError(f"{path}: has rows with more fields than the header: {error}") from None
    except (ValueError, OSError) as error:
        raise BarsError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from error
    text.index = pd.RangeIndex(2, len(text) + 2)
    return text[(text.fillna("") != "").any(axis=1)], "line"


def _named_columns(raw: pd.DataFrame, label: str) -> pd.DataFrame:
    """Select the six columns and give them their standard names."""
    if isinstance(raw.index, pd.DatetimeIndex):
        name = "time" if raw.index.name is None else str(raw.index.name)
        if name in raw.columns:
            raise BarsError(f"{label}: column '{name}' is given 2 times, as a column and as the index")
        raw = raw.rename_axis(name).reset_index()
    wanted = dict.fromkeys(TIME_NAMES, "time") | dict(zip(COLUMNS, COLUMNS, strict=True))
    names = [wanted.get(str(column).strip().lower(), "") for column in raw.columns]
    for column in ("time", *COLUMNS):
        if names.count(column) > 1:
            found = [str(c) for c, n in zip(raw.columns, names, strict=True) if n == column]
            raise BarsError(f"{label}: column '{column}' is given {len(found)} times, as {', '.join(found)}")
    missing = [column for column in ("time", *COLUMNS) if column not in names]
    if missing:
        found = [str(c) for c in raw.columns]
        raise BarsError(f"{label}: missing column {', '.join(missing)}; found {', '.join(found) or 'none'}")
    return raw.set_axis(names, axis=1)[["time", *COLUMNS]].copy()


def _numbers(column: pd.Series, check: _Check) -> pd.Series:
    """Convert a column to finite floats."""
    name = str(column.name)
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        raise BarsError(f"{check.source}: column '{name}' is of type {column.dtype}; must be numbers")
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    check.rule(name, pd.Series(np.isfinite(numbers), column.index), "must be a finite number")
    return numbers


def _times(column: pd.Series, timezone: str, check: _Check, dates: str | None) -> pd.DatetimeIndex:
    """Convert a column to strictly increasing times in ``timezone``."""
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise BarsError(f"{check.source}: timezone = {timezone!r}: unknown time zone") from None
    if pd.api.types.is_datetime64_any_dtype(column):
        times = column
    else:
        text = column.astype(str).str.strip()
        offset = text.str.contains(re.compile(r"[T ].*(?:Z|[+-]\d\d(?::?\d\d)?)$"))
        uniform = offset == offset.iloc[0]
        check.rule("time", uniform, "must carry an offset from UTC either in every row or in none")
        form: dict[str, Any] = (
            {"format": "mixed", "dayfirst": dates == "dmy"} if dates else {"format": "ISO8601"}
        )
        times = pd.to_datetime(text, errors="coerce", utc=bool(offset.iloc[0]), **form)
    check.rule("time", times.notna(), "must be an ISO 8601 time such as 2015-01-02 14:30:00")
    if times.dt.tz is None:
        times = times.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
        check.rule("time", times.notna(), f"is skipped or repeated by the clock of {timezone}; {_OFFSET}")
    times = times.dt.tz_convert(zone)
    check.rule("time", ~times.duplicated(), "must not repeat an earlier row")
    check.rule("time", ~(times.diff() < pd.Timedelta(0)), "must be later than the row before")
    return pd.DatetimeIndex(times, name="time").as_unit("us")


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
    groups = trades.resample(pd.Timedelta(minutes=minutes), label="right", closed="left")
    frame = groups["price"].ohlc().assign(volume=groups["volume"].sum()).dropna(subset=["close"])
    return load_bars(frame, name=name, timezone=str(index.tz), minutes=minutes)
