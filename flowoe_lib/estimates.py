"""What a desk's own bars say of its market, and the suite's own estimates where they say nothing.

Daily bars tell volatility and volume; intraday bars also the shape of the day, and, once there are a
month of them, how variance and depth move within it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowoe_lib.calibration import BUCKETS, within_day
from flowoe_lib.data import Bars, BarsError
from flowoe_lib.estimators import garman_klass, profile_amplitude, session_clock
from flowoe_lib.ranges import TrainingRange

__all__ = ["Estimated", "MarketEstimates", "estimate"]

RECENT = 21
"""Days that volatility and volume are averaged over: a month."""
SESSIONS = 5
"""Fewest whole sessions that an intraday record is used with; a month for the motion within the day."""
WITHIN = ("kappa", "cv", "profile_amplitude", "depth_sd", "depth_reversion")


@dataclass(frozen=True)
class Estimated:
    """A figure and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class MarketEstimates:
    """A market as known before the open; volatility per sqrt(day), rates per day, volume in shares."""

    price: Estimated
    adv: Estimated
    volatility: Estimated
    kappa: Estimated
    cv: Estimated
    rho: Estimated
    depth_sd: Estimated
    depth_reversion: Estimated
    profile_amplitude: Estimated

    def table(self) -> pd.DataFrame:
        """One row a figure: value and source."""
        return pd.DataFrame.from_dict(
            {k: vars(v) for k, v in vars(self).items()}, orient="index"
        ).rename_axis("figure")


def estimate(
    bars: Bars, suite: Mapping[str, float], within: TrainingRange, session: tuple[str, str]
) -> MarketEstimates:
    """The market of ``bars``; ``suite`` holds the estimates used where they are silent.

    ``session`` are the times of open and close in the bars' time zone, for intraday bars. What a month of
    intraday bars says of the motion within the day is kept ``within`` what policies are trained on,
    because it is the least certain of all. Raises BarsError where there are fewer than 21 days, or five
    whole sessions, or nothing is traded in them.
    """
    found = {
        name: Estimated(suite[name if name != "cv" else "cv_years"], "suite") for name in (*WITHIN, "rho")
    }
    days = bars.index.normalize()
    if days.is_unique:
        frame = bars.frame.iloc[-RECENT:]
        variance, volume, label = garman_klass(frame), frame["volume"], "daily bars"
        if len(frame) < RECENT:
            raise BarsError(f"{bars.source}: covers {len(frame)} days; at least {RECENT} are needed")
    else:
        bars = _clocked(bars)
        amounts = (garman_klass(bars.frame), bars.frame["volume"])
        clocks = [session_clock(bars, x, BUCKETS, opens=session[0], closes=session[1]) for x in amounts]
        variance, volume = (clock.sum(axis=1).iloc[-RECENT:] for clock in clocks)
        label = f"{len(clocks[0])} sessions of bars"
        if len(clocks[0]) < SESSIONS:
            raise BarsError(
                f"{bars.source}: covers {len(clocks[0])} whole sessions from {session[0]} to {session[1]} "
                f"{bars.timezone}; at least {SESSIONS} are needed"
            )
        found |= _within_day(np.stack([c.to_numpy() for c in clocks], axis=1), within, label)
    if not (variance.mean() > 0 and volume.mean() > 0):
        raise BarsError(f"{bars.source}: no price moved or nothing was traded in the last {RECENT} days")
    return MarketEstimates(
        price=Estimated(float(bars.frame["close"].iloc[-1]), "last close"),
        adv=Estimated(float(volume.mean()), label),
        volatility=Estimated(float(np.sqrt(variance.mean())), label),
        **found,
    )


def _clocked(bars: Bars) -> Bars:
    """The bars with their length, where most follow each other at one distance."""
    if bars.minutes is not None:
        return bars
    gaps = bars.index.to_series().diff().dropna()
    usual = gaps.mode().iloc[0]
    minutes = usual / pd.Timedelta(minutes=1) if (gaps == usual).mean() > 0.5 else None
    return Bars(bars.frame, bars.source, bars.timezone, minutes)


def _within_day(clocks: np.ndarray, within: TrainingRange, label: str) -> dict[str, Estimated]:
    """The shape of the day, and its motion where a month of whole sessions tells it."""
    if len(clocks) < RECENT or not (clocks > 0).all():
        bounds = {"profile_amplitude": within.profile_amplitude}
        values = {"profile_amplitude": profile_amplitude(clocks[:, 1])}
    else:
        bounds = {name: getattr(within, name) for name in WITHIN}
        values = dict(zip(WITHIN, within_day(clocks), strict=True))
    kept = {}
    for name, value in values.items():
        inside = float(np.clip(value, *bounds[name]))
        kept[name] = Estimated(inside, label if inside == value else f"{label}, kept within {bounds[name]}")
    return kept
