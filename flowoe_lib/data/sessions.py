"""Recorded sessions cut into equal buckets: price, realised variance and volume."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from flowoe_lib.data.bars import Bars
from flowoe_lib.data.estimators import garman_klass
from flowoe_lib.data.vendors import BarsError

Array = npt.NDArray[np.float64]


HOLE, BREAK = 3600, 1800
"""Seconds without a bar: more than a hole makes a day incomplete, and a break is reported."""


@dataclass(frozen=True)
class Tape:
    """Price, realised variance and volume of recorded sessions, in equal buckets."""

    times: pd.DatetimeIndex
    """Start of each bucket in exchange time, session after session, [sessions * buckets]."""
    price: Array
    """Price at the edges of the buckets, [sessions, buckets + 1]."""
    variance: Array
    """Realised variance of each bucket, [sessions, buckets]."""
    volume: Array
    """Volume of each bucket, [sessions, buckets]."""


def lay_out(bars: Bars, n_buckets: int, opens: str, closes: str) -> Tape:
    """Cut the sessions of ``bars`` into ``n_buckets`` buckets each, from ``opens`` to ``closes``.

    Times are in ``bars.timezone``; a close after midnight is given as, for example, "32:30". The variance of
    a bucket is the sum of the Garman-Klass variances of its bars; the prices at its edges are the last ones
    known then. Raises BarsError if no session is covered or a bucket has no volume.
    """
    variance, volume = session_clocks(bars, n_buckets, opens, closes)
    if not (volume > 0).all(axis=None):
        raise BarsError(f"{bars.source}: a bucket from {opens} to {closes} has no volume; take longer ones")
    days = pd.DatetimeIndex(volume.index)
    first, last = (_instants(days, clock, bars.timezone) for clock in (opens, closes))
    offsets = np.linspace(0.0, _seconds(last, first), n_buckets + 1, axis=1)
    edges = first.to_numpy()[:, None] + pd.to_timedelta(offsets.ravel(), unit="s").to_numpy().reshape(
        offsets.shape
    )
    known = np.searchsorted(bars.index.tz_convert(None).to_numpy(), edges, side="right")
    price = np.r_[bars.frame["open"].iloc[0], bars.frame["close"]][known]
    starts = pd.DatetimeIndex(edges[:, :-1].ravel(), tz="UTC").tz_convert(bars.timezone)
    return Tape(starts.tz_localize(None), price, variance.to_numpy(), volume.to_numpy())


def session_clock(
    bars: Bars, amount: pd.Series, n_buckets: int, *, opens: str = "08:30", closes: str = "15:00"
) -> pd.DataFrame:
    """Lay what each bar holds (variance, volume) onto equal buckets of the session, shape [days, buckets].

    A bar's amount is spread evenly over its duration. Days that the bars do not cover from the
    opening to the close, or only with a gap of more than an hour, are left out: holidays, a last day
    cut short. A gap at the same time on most days is a break of the market, whose buckets hold nothing.
    Times are those of ``bars.timezone``; where its clock changes within a session, buckets are
    equal parts of the time that passes. Raises BarsError when no whole day remains.
    """
    starts, ends, _ = _spans(bars)
    total = np.cumsum(amount.to_numpy(dtype=float)[-len(ends) :])
    # Cumulative amount as a piecewise linear function of time: rising within bars, flat between them.
    corners = np.column_stack([starts, ends]).ravel()
    heights = np.column_stack([np.r_[0.0, total[:-1]], total]).ravel()
    days = _coverage(bars, opens, closes)
    whole = days[days["whole"]]
    if whole.empty:
        raise BarsError(f"{bars.source}: {_uncovered(bars, opens, closes)}")
    edges = np.linspace(whole["first"], whole["last"], n_buckets + 1, axis=1)
    return pd.DataFrame(np.diff(np.interp(edges, corners, heights), axis=1), index=whole.index)


def session_clocks(bars: Bars, n_buckets: int, opens: str, closes: str) -> list[pd.DataFrame]:
    """Garman-Klass variance and volume of each bucket, laid out by :func:`session_clock`."""
    amounts = (garman_klass(bars.frame), bars.frame["volume"])
    return [session_clock(bars, x, n_buckets, opens=opens, closes=closes) for x in amounts]


def breaks(bars: Bars, opens: str, closes: str) -> tuple[tuple[str, str], ...]:
    """Start and end of each break of half an hour or more that most sessions have at the same time."""
    begin = pd.Timedelta(f"{opens}:00").total_seconds()
    gaps = _usual_gaps(_coverage(replace(bars, minutes=bars.interval), opens, closes)["gaps"])
    return tuple((_clock(begin + a), _clock(begin + b)) for a, b in gaps)


def session_flags(bars: Bars, opens: str, closes: str) -> tuple[str, ...]:
    """What does not fit a session from ``opens`` to ``closes``, one sentence each; daily bars fit any.

    That is breaks, days that are not covered (half days, days cut short) and volume outside the session.
    """
    if bars.index.tz_localize(None).normalize().is_unique:
        return ()
    flags = [f"no trading from {a} to {b} on most days: a break" for a, b in breaks(bars, opens, closes)]
    bars = replace(bars, minutes=bars.interval)
    days = _coverage(bars, opens, closes)
    cut = days.index[~days["whole"]]
    if 0 < len(cut) < len(days):
        some = ", ".join(f"{day:%Y-%m-%d}" for day in cut[-3:])
        left = f"{len(cut)} of {len(days)} days are not covered from {opens} to {closes} and are left out"
        flags.append(f"{left}, the last ones {some}")
    _, ends, _ = _spans(bars)
    total = np.r_[0.0, np.cumsum(bars.frame["volume"].to_numpy()[-len(ends) :])]
    within = total[np.searchsorted(ends, days[["first", "last"]], side="right")]
    outside = 1 - float((within[:, 1] - within[:, 0]).sum()) / max(total[-1], 1e-300)
    if total[-1] > 0 and outside > 0.01:
        flags.append(f"{outside:.0%} of the volume is outside {opens} to {closes} and is not counted")
    return tuple(flags)


def _spans(bars: Bars) -> tuple[Array, Array, pd.Timestamp]:
    """Start and end of each bar whose start is known, in seconds since an origin, and that origin in UTC."""
    origin = _instants(bars.index[:1].tz_localize(None).normalize(), "00:00", bars.timezone)[0]
    seconds = _seconds(bars.index.tz_convert(None), origin)
    if not bars.minutes:
        # The start of the first bar of equal activity is unknown.
        return seconds[:-1], seconds[1:], origin
    # The last bar of a session may be shorter than the others; it starts where the one before it ended.
    return np.maximum(seconds - 60 * bars.minutes, np.r_[-np.inf, seconds[:-1]]), seconds, origin


def _coverage(bars: Bars, opens: str, closes: str) -> pd.DataFrame:
    """One row per day with bars in the session: its edges and gaps, and whether it is covered as a whole.

    Edges (first, last) are in seconds since the origin of :func:`_spans`, gaps in seconds since the open.
    """
    starts, ends, origin = _spans(bars)
    days = bars.index.tz_localize(None).normalize().unique()
    first, last = (_seconds(_instants(days, clock, bars.timezone), origin) for clock in (opens, closes))
    low, high = np.searchsorted(ends, first, side="right"), np.searchsorted(starts, last, side="left")
    # Bars of equal activity leave no gaps, so a pause of the market appears as a long bar.
    begun, ended = (ends[:-1], starts[1:]) if bars.minutes else (starts, ends)
    rows = {}
    for day, a, b, i, j in zip(days, first, last, low, high, strict=True):
        if i < j:
            long = i + np.flatnonzero((ended - begun)[i : j - bool(bars.minutes)] >= BREAK)
            gaps = tuple((round(begun[k] - a), round(ended[k] - a)) for k in long)
            rows[day] = (a, b, gaps, starts[i] <= a and ends[j - 1] >= b)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["first", "last", "gaps", "whole"])
    usual = _usual_gaps(table["gaps"])
    holes = [any(b - a > HOLE for a, b in gaps if (a, b) not in usual) for gaps in table["gaps"]]
    table["whole"] = table["whole"].astype(bool) & ~np.array(holes, dtype=bool)
    return table.rename_axis("day")


def _usual_gaps(gaps: pd.Series) -> list[tuple[int, int]]:
    """Gaps that most days have, at least three."""
    counts = Counter(gap for day in gaps for gap in day)
    return sorted(gap for gap, n in counts.items() if n > max(2, len(gaps) / 2))


def _uncovered(bars: Bars, opens: str, closes: str) -> str:
    """Why no day is covered: the hours that are, and other readings of the times that would fit."""
    length = pd.Timedelta(minutes=bars.minutes or 0)
    naive = bars.index.tz_localize(None)
    spans = naive.to_series().groupby((naive - length).normalize()).agg(["min", "max"])
    clocks = zip((spans["min"] - length).dt.strftime("%H:%M"), spans["max"].dt.strftime("%H:%M"), strict=True)
    seen = ", ".join(f"{a} to {b} ({n} days)" for (a, b), n in Counter(clocks).most_common(2))
    text = f"no day is covered by bars from {opens} to {closes} {bars.timezone}; the bars cover {seen}"
    other = {
        "the times are those of UTC (dates, DATES=UTC)": naive.tz_localize("UTC").tz_convert(bars.timezone),
        "bars are stamped at their start (bars, BARS=start)": bars.index + length,
    }
    for reason, index in other.items():
        moved = replace(bars, frame=bars.frame.set_axis(index, axis=0))
        if _coverage(moved, opens, closes)["whole"].mean() > 0.5:
            return f"{text}; it fits if {reason}"
    return f"{text}; give the session (SESSION) or the time zone (TIMEZONE) of the market"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _instants(days: pd.DatetimeIndex, clock: str, timezone: str) -> pd.DatetimeIndex:
    """When it is ``clock`` in ``timezone`` on each of ``days``, in UTC.

    A time that the clock repeats is the first one, a time that it skips is the moment of the change.
    """
    local = (days + pd.Timedelta(f"{clock}:00")).tz_localize(
        timezone, ambiguous=np.full(len(days), True), nonexistent="shift_forward"
    )
    return local.tz_convert(None)


def _seconds(times: pd.DatetimeIndex, origin: pd.Timestamp | pd.DatetimeIndex) -> Array:
    return np.asarray((times - origin).total_seconds(), dtype=float)
