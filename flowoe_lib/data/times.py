"""Times as vendors write them: ISO 8601, month or day first, epochs of any unit, day numbers of Excel."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowoe_lib.data.vendors import BarsError

YEARS = (pd.Timestamp("1900-01-01"), pd.Timestamp("2101-01-01"))


ORDERS = {
    "ymd": ("%Y/%m/%d", "%Y%m%d"),
    "mdy": ("%m/%d/%Y", "%m/%d/%y", "%b/%d/%Y", "%B/%d/%Y"),
    "dmy": ("%d/%m/%Y", "%d/%m/%y", "%d/%b/%Y", "%d/%b/%y", "%d/%B/%Y"),
}
"""Forms of a date, with / for whatever separates its parts."""


OFFSET = r"^(.*?[T ].*?\d)\s*(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?|[A-Za-z]+(?:/[\w+-]+)+)$"
"""A time and its offset from UTC or the name of its time zone."""


PARTS = (
    r"^(\S+|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}|\d{1,2} [A-Za-z]{3,9},? \d{2,4})"
    r"(?:,?\s+(\d{1,2}:?\d\d(?::?\d\d(?:\.\d+)?)?)\s*([AaPp][Mm])?)?$"
)
"""A date and a time of day."""


@dataclass(frozen=True)
class Times:
    """Times read from a column; NaT where they cannot be, or outside the years 1900 to 2100."""

    times: pd.Series
    """In UTC if the column says which instants they are, otherwise without a time zone."""
    written: pd.Series
    """Date and time of day as written, without a time zone."""
    form: str = ""
    """How they are written, in words."""
    epoch: bool = False
    """Whether they are numbers since 1970."""


def read_times(column: pd.Series, order: str | None, label: str) -> Times:
    """Read ``column``; ``order`` is that of day and month, a key of :data:`ORDERS`, None to find it.

    Raises
    ------
    BarsError
        If day and month could be either way round.
    """
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(column):
        times = pd.Series(pd.DatetimeIndex(column), column.index)
        found = Times(times, times.dt.tz_localize(None))
    else:
        text = column.astype(str).str.strip()
        numbers = pd.to_numeric(text, errors="coerce")
        most = numbers.notna().mean() > 0.5
        found = _from_numbers(text, numbers) if most else _from_text(text, order, label)
    plausible = found.written.between(*YEARS, inclusive="left")
    times, written = (x.where(plausible).dt.as_unit("us") for x in (found.times, found.written))
    return Times(times, written, found.form, found.epoch)


def _from_numbers(text: pd.Series, numbers: pd.Series) -> Times:
    """Times from numbers: 20241122 or 20241122093500, days of Excel, or seconds to nanoseconds since 1970."""
    calendar = text.where(text.str.fullmatch(r"(?:19|20)\d{6}(?:\d{4}|\d{6})?"))
    days = pd.to_datetime(calendar.str.ljust(14, "0"), format="%Y%m%d%H%M%S", errors="coerce")
    if days.notna().mean() > 0.5:
        return Times(days, days)
    if numbers.between(20_000, 80_000).mean() > 0.5:
        inside = numbers.where(numbers.between(20_000, 80_000))
        days = pd.Timestamp("1899-12-30") + pd.to_timedelta(inside, unit="D").dt.round("s")
        return Times(days, days, "day numbers of Excel")
    # Each row by its own size: a vendor may change the unit within a file.
    known = numbers.where(numbers.between(1e8, 4.2e18)).fillna(0)
    sizes, units = (1e11, 1e14, 1e17), ("seconds", "milliseconds", "microseconds", "nanoseconds")
    which = np.searchsorted(sizes, known, side="right")
    micros = np.round(known.to_numpy() * np.array([1e6, 1e3, 1.0, 1e-3])[which]).astype("int64")
    times = pd.Series(pd.DatetimeIndex(micros.astype("datetime64[us]"), tz="UTC"), text.index)
    used = " and ".join(units[k] for k in sorted({*which[known > 0]}))
    times = times.where(known > 0)
    return Times(times, times.dt.tz_localize(None), f"times in {used} since 1970", epoch=True)


def _from_text(text: pd.Series, order: str | None, label: str) -> Times:
    """Times from text; an offset or a time zone is followed if most rows have one."""
    form, parts = "", text.str.extract(OFFSET)
    zone = parts[1]
    aware = zone.notna().mean() > 0.5
    body = parts[0].fillna(text)
    written = pd.to_datetime(body, format="ISO8601", errors="coerce")
    if written.notna().mean() <= 0.5:
        body, form = _iso(body, order, label)
        written = pd.to_datetime(body, format="ISO8601", errors="coerce")
    # Rows that differ from most in whether they have an offset are not read.
    times = written = written.where(zone.notna() == aware)
    named = zone[zone.str.contains("/", na=False)].unique()
    if aware and len(named):
        times = written.where(zone == named[0]).dt.tz_localize(named[0], ambiguous="NaT", nonexistent="NaT")
    elif aware:
        clock = body.where(written.notna()) + zone.replace({"UTC": "Z", "GMT": "Z"})
        times = pd.to_datetime(clock, format="ISO8601", errors="coerce", utc=True)
    return Times(times, written, form)


def _iso(body: pd.Series, order: str | None, label: str) -> tuple[pd.Series, str]:
    """Rewrite dates of other forms in ISO 8601."""
    parts = body.str.extract(PARTS)
    days = parts[0].str.replace(r"[\s./,-]+", "/", regex=True)
    if order is None and parts[0].str.contains(r"^\d+\.\d+\.", na=False).mean() > 0.5:
        order = "dmy"
    each = days.dropna().drop_duplicates()
    read = {}
    for key in [order] if order else ORDERS:
        forms = (pd.to_datetime(each, format=form, errors="coerce") for form in ORDERS[key])
        read[key] = max(forms, key=lambda dates: dates.notna().sum())
    best = max(read, key=lambda key: read[key].notna().sum())
    for found in read.values():
        if found.notna().sum() == read[best].notna().sum() > 0 and (found != read[best]).any():
            example = parts[0][each.index[0]]
            doubt = f"dates such as {example} may have the month or the day first"
            raise BarsError(f"{label}: {doubt}; say which (dates, DATES=mdy or DATES=dmy)")
    clock, half = parts[1], parts[2]
    if half.notna().mean() > 0.5:
        clock = pd.to_datetime(clock + " " + half, format="mixed", errors="coerce").dt.strftime("%H:%M:%S")
    clock = clock.str.replace(r"^(\d:)", r"0\1", regex=True)
    dates = days.map(dict(zip(each, read[best].dt.strftime("%Y-%m-%d"), strict=True)))
    text = dates.astype("str") + (" " + clock.astype("str")).fillna("")
    return text, {"mdy": "month first", "dmy": "day first", "ymd": ""}[best]
