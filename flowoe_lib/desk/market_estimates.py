"""What a desk's own bars say of its market, and the suite's own estimates where they say nothing.

Daily bars tell volatility and volume; intraday bars also the shape of the day, and, once there are a
month of them, how variance and depth move within it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowoe_lib.data.bars import Bars, BarsError
from flowoe_lib.data.calibration import BUCKETS, within_day
from flowoe_lib.data.estimators import garman_klass, profile_amplitude
from flowoe_lib.data.sessions import session_clock
from flowoe_lib.market.ranges import TrainingRange

__all__ = ["Estimated", "MarketEstimates", "estimate"]


Array = NDArray[np.float64]


SUITE_SESSION_MINUTES = 390
"""Length of the session that the suite's rates are per."""


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
    bars: Bars,
    suite: Mapping[str, float],
    within: TrainingRange,
    session: tuple[str, str],
    adv: float | None = None,
) -> MarketEstimates:
    """The market of ``bars``; ``suite`` holds the estimates used where they are silent.

    ``session`` are the times of open and close in the bars' time zone, and ``adv`` takes the place of the
    bars' own volume. What a month of bars of at most two buckets' length says of the motion within the day
    is kept ``within`` what policies are trained on, because it is the least certain of all. Raises
    BarsError where there are fewer than 21 days, or five whole sessions, or nothing is traded in them, or
    bars are longer than a day.
    """
    minutes = (pd.Timedelta(f"{session[1]}:00") - pd.Timedelta(f"{session[0]}:00")) / pd.Timedelta(minutes=1)
    found = _of_suite(suite, minutes)
    days = bars.index.normalize()
    if days.is_unique:
        if bars.index.to_series().diff().median() > pd.Timedelta(days=2):
            raise BarsError(f"{bars.source}: bars are longer than a day; daily or intraday ones are needed")
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
        short = bars.minutes is not None and bars.minutes <= 2 * minutes / BUCKETS
        found |= _within_day(np.stack([c.to_numpy() for c in clocks], axis=1), within, label, short)
    if not variance.mean() > 0:
        raise BarsError(f"{bars.source}: no price moved in the last {RECENT} days")
    if adv is None and not volume.mean() > 0:
        raise BarsError(
            f"{bars.source}: nothing was traded in the last {RECENT} days; give an average volume"
        )
    return MarketEstimates(
        price=Estimated(float(bars.frame["close"].iloc[-1]), "last close"),
        adv=Estimated(float(volume.mean()), label) if adv is None else Estimated(adv, "ticket"),
        volatility=Estimated(float(np.sqrt(variance.mean())), label),
        **found,
    )


def _of_suite(suite: Mapping[str, float], minutes: float) -> dict[str, Estimated]:
    """The suite's own estimates, rates scaled to a session of so many ``minutes``."""
    longer = minutes / SUITE_SESSION_MINUTES
    values = {name: suite[name] for name in ("rho", "depth_sd", "profile_amplitude")}
    values |= {name: suite[name] * longer for name in ("kappa", "depth_reversion")}
    values["cv"] = suite["cv_years"]
    return {name: Estimated(value, "suite") for name, value in values.items()}


def _clocked(bars: Bars) -> Bars:
    """The bars with their length, where most follow each other at one distance."""
    if bars.minutes is not None:
        return bars
    gaps = bars.index.to_series().diff().dropna()
    usual = gaps.mode().iloc[0]
    minutes = usual / pd.Timedelta(minutes=1) if (gaps == usual).mean() > 0.5 else None
    return Bars(bars.frame, bars.source, bars.timezone, minutes)


def _within_day(clocks: Array, within: TrainingRange, label: str, short: bool) -> dict[str, Estimated]:
    """The shape of the day, and its motion where a month of whole sessions of short bars tells it."""
    if not (clocks[:, 1] > 0).any():
        return {}
    if len(clocks) < RECENT or not short or not (clocks > 0).all():
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
