"""What looks wrong in bars that break no rule: splits, units, days without trade, an unfinished day."""

from fractions import Fraction

import numpy as np
import pandas as pd

RECENT = 21
"""Days over which volume is averaged."""


JUMP = 1.45
"""Factor between close and next open beyond which a split or another unit is more likely than news."""


def suspicions(frame: pd.DataFrame, daily: bool, value: pd.Series | None) -> tuple[pd.DataFrame, list[str]]:
    """The bars on days with trade, and what looks wrong, one sentence each.

    Days without trade do not count where most days have some. ``value`` is what was traded in each bar,
    price times volume, if the source states it.
    """
    day = pd.DatetimeIndex(frame.index).tz_localize(None).normalize()
    rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    days, flags = frame.groupby(day).agg(rules), list[str]()
    quiet = days.index[(days["volume"] == 0) & (days["volume"].median() > 0)]
    if len(quiet):
        flags.append(f"{len(quiet)} days without trade are left out of average volume: {_some(quiet)}")
    days = days.drop(quiet)
    flags += _jumps(days) or _new_level(days["volume"])
    last, usual = days["volume"].iloc[-1], days["volume"].iloc[-RECENT:-1].median()
    if daily and last < usual / 4:
        date = _some(days.index[-1:])
        flags.append(f"volume of the last day, {date}, is {last / usual:.0%} of the usual: is the day over?")
    flags += _units(frame, value)
    for off, missing, names in ((6, 4, "Sunday to Thursday"), (5, 0, "Tuesday to Saturday")):
        weekday = pd.DatetimeIndex(days.index).day_of_week
        if daily and (weekday == off).mean() > 0.1 and (weekday == missing).mean() < 0.02:
            flags.append(f"dates run from {names}: an offset from UTC may have moved them by a day")
    return frame[~day.isin(quiet)], flags


def _some(dates: pd.Index) -> str:
    return ", ".join(f"{date:%Y-%m-%d}" for date in dates[:3]) + (", ..." if len(dates) > 3 else "")


def _jumps(days: pd.DataFrame) -> list[str]:
    """Prices that change overnight by the factor of a split, or of another unit."""
    ratio, volume, flags = days["open"] / days["close"].shift(), days["volume"], []
    for k in np.flatnonzero(np.abs(np.log(ratio)) > np.log(JUMP))[-3:]:
        jump, date = ratio.iloc[k], _some(days.index[k : k + 1])
        text = f"the price changes overnight by a factor of {jump:.4g} on {date}"
        split = Fraction(max(jump, 1 / jump)).limit_denominator(4)
        factor = float(split) if jump < 1 else float(1 / split)
        change = np.log(volume.iloc[k : k + RECENT].median() / volume.iloc[max(k - RECENT, 0) : k].median())
        adv = pd.concat([volume.iloc[:k] * factor, volume.iloc[k:]]).iloc[-RECENT:].mean()
        if not 1 / 50 < jump < 50:
            flags.append(f"{text}: pence among pounds, or another unit?")
        elif abs(change - np.log(factor)) < abs(change):
            flags.append(f"{text}: a split? if so, average volume in shares of today is {adv:,.0f} (ADV)")
        else:
            flags.append(f"{text}: a split? volume does not follow")
    return flags


def _new_level(volume: pd.Series) -> list[str]:
    """A lasting change of volume by a factor of 2.5 or more within three months."""
    logs = np.log(volume[volume > 0].iloc[-3 * RECENT :])
    best, factor, at = 6.0, 1.0, 0
    for k in range(8, len(logs) - 7):
        before, after = logs.iloc[max(k - RECENT, 0) : k], logs.iloc[k : k + RECENT]
        step = after.mean() - before.mean()
        score = abs(step) / np.sqrt(before.var() / len(before) + after.var() / len(after) + 1e-9)
        if abs(step) > np.log(2.5) and score > best:
            best, factor, at = score, np.exp(step), k
    change = f"volume changes by a factor of {factor:.2g} on {_some(logs.index[at : at + 1])}"
    return [f"{change} and prices do not: a split not adjusted for?"] if at else []


def _units(frame: pd.DataFrame, turnover: pd.Series | None) -> list[str]:
    """Units of price and volume that do not fit."""
    prices, volume = frame[["open", "high", "low", "close"]], frame["volume"]
    value = volume * (prices["high"] + prices["low"]) / 2
    shares = pd.Series([1.0]) if turnover is None else turnover.to_numpy() / value.where(value > 0)
    ratio = float(shares.quantile())
    wide = frame.index[prices["high"] > 10 * prices["low"]]
    found = {
        "all prices are whole hundreds above 100,000: are they in units of 1/10,000?": (
            ((prices % 100 == 0) & (prices > 1e5)).all(axis=None)
        ),
        f"high is more than ten times low on {_some(wide)}: are prices in two units?": len(wide) > 0,
        "volumes have two decimals: are they in lots of 100?": (
            ((volume * 100).round(4) % 1 == 0).all() and (volume % 1 != 0).mean() > 0.5
        ),
        f"turnover is {ratio:.3g} times price x volume: one of them is in another unit, such as lots of 100 "
        '(COLUMNS="volume=...*100")': ratio > 0 and not 0.5 < ratio < 2,
    }
    return [text for text, wrong in found.items() if wrong]
