"""Recorded sessions on equal buckets: price, realised variance and volume, and where orders may arrive."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from flowoe_lib.data import Bars, BarsError
from flowoe_lib.estimators import garman_klass, session_clock

__all__ = ["Tape", "arrivals", "lay_out"]

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
    first, last = (pd.Timedelta(f"{clock}:00") for clock in (opens, closes))
    offsets = pd.to_timedelta(np.linspace(0, (last - first).total_seconds(), n_buckets + 1), unit="s")
    edges = (volume.index.to_numpy()[:, None] + first.to_numpy()) + offsets.to_numpy()
    known = np.searchsorted(bars.index.tz_localize(None).to_numpy(), edges, side="right")
    price = np.r_[bars.frame["open"].iloc[0], bars.frame["close"]][known]
    times = pd.DatetimeIndex(edges[:, :-1].ravel())
    return Tape(times, price, variance.to_numpy(), volume.to_numpy())


def arrivals(tape: Tape, n_buckets: int, every: int, warm_up: int = 0) -> Places:
    """Buckets of the tape at which orders over ``n_buckets`` arrive, [orders].

    In each session after ``warm_up`` buckets and then ``every`` so many, as long as they end within it.
    """
    sessions, length = tape.volume.shape
    within = np.arange(warm_up, length - n_buckets + 1, every)
    places: Places = (np.arange(sessions)[:, None] * length + within).ravel()
    return places
