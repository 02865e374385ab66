"""Recorded sessions on equal buckets: price, realised variance and volume, and where orders may arrive."""

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
    """What a market did in each of the equal buckets of its sessions."""

    times: pd.DatetimeIndex
    """Start of each bucket by the exchange's clock, one session after the other, [sessions * buckets]."""
    price: Array
    """At the edges of the buckets, [sessions, buckets + 1]."""
    variance: Array
    """Realised over the bucket, [sessions, buckets]."""
    volume: Array
    """Traded in the bucket, [sessions, buckets]."""


def lay_out(bars: Bars, n_buckets: int, opens: str, closes: str) -> Tape:
    """Cut the sessions of ``bars`` into ``n_buckets`` buckets each, from ``opens`` to ``closes``.

    Times are those of ``bars.timezone``; what closes after midnight closes at, say, "32:30". A bucket's
    variance is the sum of its bars' Garman-Klass variances, its prices are the last ones known at its
    edges. Raises BarsError where no session is covered or a bucket has no volume.
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
    """Buckets of the tape at which orders over ``n_buckets`` arrive, [orders].

    In each session after ``warm_up`` buckets and then ``every`` so many, as long as they end within it.
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
    # The first bar of a record cut by activity began before it, nobody knows when.
    ends = seconds if bars.minutes else seconds[1:]
    # A session may end in a bar shorter than the others, which began where the one before it ended.
    starts = np.maximum(ends - 60 * bars.minutes, np.r_[-np.inf, ends[:-1]]) if bars.minutes else seconds[:-1]
    total = np.cumsum(amount.to_numpy(dtype=float)[-len(ends) :])
    # Cumulated amount as the corners of a function of time: rising within a bar, flat between bars.
    corners = np.column_stack([starts, ends]).ravel()
    heights = np.column_stack([np.r_[0.0, total[:-1]], total]).ravel()
    rows = {}
    edges_of_days = (_seconds(_instants(days, clock, bars.timezone), origin) for clock in (opens, closes))
    for day, first, last in zip(days, *edges_of_days, strict=True):
        inside = (ends > first) & (starts < last)
        if not inside.any():
            continue
        begun, ended = starts[inside], ends[inside]
        # Bars cut by activity leave no gap, so a pause of the market shows in their length.
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
