"""Recorded sessions cut into equal buckets: price, realised variance and volume, and arrivals of orders."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from flowoe_lib.data.bars import Bars, BarsError
from flowoe_lib.data.estimators import garman_klass

__all__ = ["Tape", "arrivals", "lay_out", "session_clock"]


Array = npt.NDArray[np.float64]


Places = npt.NDArray[np.intp]


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
    variance, volume = (
        session_clock(bars, amount, n_buckets, opens=opens, closes=closes)
        for amount in (garman_klass(bars.frame), bars.frame["volume"])
    )
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


def arrivals(tape: Tape, n_buckets: int, every: int, warm_up: int = 0) -> Places:
    """Buckets at which orders of ``n_buckets`` buckets arrive, [orders].

    In each session the first order arrives after ``warm_up`` buckets and the others ``every`` buckets later,
    as long as they end within the session.
    """
    sessions, length = tape.volume.shape
    within = np.arange(warm_up, length - n_buckets + 1, every)
    places: Places = (np.arange(sessions)[:, None] * length + within).ravel()
    return places


def session_clock(
    bars: Bars, amount: pd.Series, n_buckets: int, *, opens: str = "08:30", closes: str = "15:00"
) -> pd.DataFrame:
    """Lay what each bar holds (variance, volume) onto equal buckets of the session, shape [days, buckets].

    A bar's amount is spread evenly over its duration. Days that the bars do not cover from the
    opening to the close, or only with a gap of more than an hour, are left out: holidays, a last day
    cut short. Times are those of ``bars.timezone``; where its clock changes within a session, buckets are
    equal parts of the time that passes. Raises BarsError when no whole day remains.
    """
    instants = bars.index.tz_convert(None)
    days = bars.index.tz_localize(None).normalize().unique()
    origin = _instants(days[:1], "00:00", bars.timezone)[0]
    seconds = _seconds(instants, origin)
    # The start of the first bar of equal activity is unknown.
    ends = seconds if bars.minutes else seconds[1:]
    # The last bar of a session may be shorter than the others; it starts where the one before it ended.
    starts = np.maximum(ends - 60 * bars.minutes, np.r_[-np.inf, ends[:-1]]) if bars.minutes else seconds[:-1]
    total = np.cumsum(amount.to_numpy(dtype=float)[-len(ends) :])
    # Cumulative amount as a piecewise linear function of time: rising within bars, flat between them.
    corners = np.column_stack([starts, ends]).ravel()
    heights = np.column_stack([np.r_[0.0, total[:-1]], total]).ravel()
    rows = {}
    edges_of_days = (_seconds(_instants(days, clock, bars.timezone), origin) for clock in (opens, closes))
    for day, first, last in zip(days, *edges_of_days, strict=True):
        inside = (ends > first) & (starts < last)
        if not inside.any():
            continue
        begun, ended = starts[inside], ends[inside]
        # Bars of equal activity leave no gaps, so a pause of the market appears as a long bar.
        gaps = begun[1:] - ended[:-1] if bars.minutes else ended - begun
        if begun[0] <= first and ended[-1] >= last and gaps.max(initial=0.0) <= 3600:
            edges = np.linspace(first, last, n_buckets + 1)
            rows[day] = np.diff(np.interp(edges, corners, heights))
    if not rows:
        raise BarsError(
            f"{bars.source}: no day is covered by bars from {opens} to {closes} {bars.timezone}; another "
            "time zone can be given when they are loaded (timezone, TIMEZONE)"
        )
    return pd.DataFrame(np.stack(list(rows.values())), index=pd.DatetimeIndex(list(rows), name="day"))


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
