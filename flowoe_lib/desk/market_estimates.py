"""Estimates of a market from a user's bars, completed by the suite's own estimates.

Daily bars give volatility and volume. Intraday bars also give the volume profile, and a month of them the
variance and depth processes within the day. An order that no market could take is refused here, without
loading torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from flowoe_lib.data.bars import Bars
from flowoe_lib.data.estimators import BUCKETS, garman_klass, profile_amplitude, within_day
from flowoe_lib.data.sessions import Array, breaks, session_clock
from flowoe_lib.data.vendors import BarsError
from flowoe_lib.desk.ticket import OrderError, Ticket, minutes_of
from flowoe_lib.market.volume import traded_by

SUITE_SESSION_MINUTES = 390
"""Length of the session to which the suite's rates refer."""


RECENT = 21
"""Days over which volatility and volume are averaged: one month."""


SESSIONS = 5
"""Smallest number of whole sessions of intraday bars."""


Breaks = tuple[tuple[int, int], ...]


WITHIN = ("kappa", "cv", "profile_amplitude", "depth_sd", "depth_reversion")


@dataclass(frozen=True)
class Estimated:
    """An estimate and its source."""

    value: float
    source: str


@dataclass(frozen=True)
class MarketEstimates:
    """Estimates of a market before the open; volatility per sqrt(day), rates per day, volume in shares."""

    price: Estimated
    adv: Estimated
    volatility: Estimated
    kappa: Estimated
    cv: Estimated
    rho: Estimated
    depth_sd: Estimated
    depth_reversion: Estimated
    profile_amplitude: Estimated
    breaks: Breaks = ()
    """Start and end of each part of the session in which nothing is ever traded, minutes since midnight."""

    def figures(self) -> dict[str, Estimated]:
        """The estimates by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimated)}


def estimate(
    bars: Bars,
    suite: Mapping[str, float],
    within: Mapping[str, Any],
    session: tuple[str, str],
    adv: float | None = None,
) -> MarketEstimates:
    """Estimate the market of ``bars``; ``suite`` holds estimates for what the bars cannot give.

    ``session`` holds open and close in the time zone of the bars; ``adv`` replaces the volume of the bars.
    The variance and depth processes are estimated from at least a month of bars no longer than two buckets,
    and clipped to the training ranges ``within``, because these estimates are the least certain. Raises
    BarsError for fewer than 21 daily bars or five whole sessions, for bars without volume or price moves, and
    for bars longer than a day.
    """
    minutes = minutes_of(session[1]) - minutes_of(session[0])
    closed: Breaks = ()
    found = _of_suite(suite, minutes)
    days = bars.index.tz_localize(None).normalize()
    if days.is_unique:
        if bars.index.to_series().diff().median() > pd.Timedelta(days=2):
            raise BarsError(f"{bars.source}: bars are longer than a day; daily or intraday ones are needed")
        frame = bars.frame.iloc[-RECENT:]
        variance, volume, label = garman_klass(frame), frame["volume"], f"last {RECENT} days"
        if len(frame) < RECENT:
            raise BarsError(f"{bars.source}: covers {len(frame)} days; at least {RECENT} are needed")
    else:
        bars = replace(bars, minutes=bars.interval)
        amounts = (garman_klass(bars.frame), bars.frame["volume"])
        clocks = [session_clock(bars, x, BUCKETS, opens=session[0], closes=session[1]) for x in amounts]
        variance, volume = (clock.sum(axis=1).iloc[-RECENT:] for clock in clocks)
        label = f"last {len(variance)} sessions"
        if len(clocks[0]) < SESSIONS:
            raise BarsError(
                f"{bars.source}: covers {len(clocks[0])} whole sessions from {session[0]} to {session[1]} "
                f"{bars.timezone}; at least {SESSIONS} are needed"
            )
        closed = tuple((minutes_of(a), minutes_of(b)) for a, b in breaks(bars, *session))
        short = bars.minutes is not None and bars.minutes <= 2 * minutes / BUCKETS
        found |= _within_day(np.stack([c.to_numpy() for c in clocks], axis=1), within, short)
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
        breaks=closed,
        **found,
    )


def expected_volume(ticket: Ticket, known: MarketEstimates, before: int = 0) -> Array:
    """Volume expected in each bucket of the order's window, shares, [N]; none in a break of the market.

    ``before`` buckets of the same length come first, [before + N].
    """
    opening, closing = map(minutes_of, ticket.session)
    start, end = ticket.window
    length = (end - start) / ticket.n_buckets
    bounds = np.linspace(start - before * length, end, before + ticket.n_buckets + 1)
    # Breaks begin and end on whole minutes.
    edges = np.unique(np.r_[opening : closing + 1, bounds])
    open_now = ~np.any([(edges[:-1] >= a) & (edges[:-1] < b) for a, b in known.breaks or [(0, 0)]], axis=0)
    traded = traded_by(known.profile_amplitude.value, (edges - opening) / (closing - opening))
    total = np.r_[0.0, np.cumsum(np.diff(traded) * open_now)]
    return np.asarray(known.adv.value * np.diff(np.interp(bounds, edges, total)) / total[-1])


def prepared(bars: Bars, ticket: Ticket, card: Mapping[str, Any]) -> tuple[Ticket, MarketEstimates]:
    """The order in whole lots, and the estimates of its market; ``card`` is that of the pretrained policy.

    Raises BarsError as :func:`estimate`, and OrderError for more shares than the volume expected in the
    window or than its cap allows.
    """
    known = estimate(bars, card["calibration"], card["range"], ticket.session, ticket.adv)
    ticket = ticket.sized(known.price.value)
    volume, lot = expected_volume(ticket, known), ticket.lot
    window = " to ".join(ticket.hours)
    if ticket.shares > volume.sum():
        raise OrderError(
            f"shares = {ticket.shares:,.10g}: must be at most {volume.sum():,.0f}, the volume expected from "
            f"{window} with an average daily volume of {known.adv.value:,.0f} (adv, ADV: {known.adv.source})"
            + "".join(f"; {flag}" for flag in bars.flags)
        )
    room = ticket.room(volume)
    most = room.sum() if lot is None else lot * np.floor(room / lot).sum()
    if most < ticket.shares:
        needed = math.ceil(1e4 * ticket.shares / volume.sum()) / 1e4
        raise OrderError(
            f"participation_cap = {ticket.participation_cap:g}: must be at least {needed:g}, the order's "
            f"share of the volume expected from {window}, or shares at most {most:,.10g}"
        )
    return ticket, known


def _of_suite(suite: Mapping[str, float], minutes: int) -> dict[str, Estimated]:
    """The suite's estimates, with rates scaled to a session of ``minutes``."""
    factors = dict.fromkeys(("kappa", "depth_reversion"), minutes / SUITE_SESSION_MINUTES)
    values = {**suite, "cv": suite["cv_years"]}
    return {name: Estimated(values[name] * factors.get(name, 1), "suite") for name in (*WITHIN, "rho")}


def _within_day(clocks: Array, within: Mapping[str, Any], short: bool) -> dict[str, Estimated]:
    """Estimate the volume profile, and from a month of short bars the variance and depth processes."""
    if not (clocks[:, 1] > 0).any():
        return {}
    if len(clocks) < RECENT or not short or not (clocks > 0).all():
        values = {"profile_amplitude": profile_amplitude(clocks[:, 1])}
    else:
        values = dict(zip(WITHIN, within_day(clocks), strict=True))
    estimates, label = {}, f"{len(clocks)} sessions"
    for name, value in values.items():
        low, high = within[name]
        inside = float(np.clip(value, low, high))
        source = label if inside == value else f"{label}, clipped to {low:g} to {high:g}"
        estimates[name] = Estimated(inside, source)
    return estimates
