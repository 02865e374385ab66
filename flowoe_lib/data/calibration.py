"""From market bars to the parameters of the market: volatility levels, variance, volume, leverage.

A day's variance is modelled as a level, known the evening before, times a mean-one intraday process.
Twenty years of daily ranges give the levels; a month of intraday bars gives the process. Everything
is a pure function of tables; every figure is an :class:`Estimate` with a bootstrap interval.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from arch.bootstrap import StationaryBootstrap
from numpy.typing import NDArray

from flowoe_lib.data.bars import Bars
from flowoe_lib.data.estimators import (
    autocovariance,
    day_mean_share,
    decay_curve,
    fit_decay,
    garman_klass,
    log_to_profile,
    profile_amplitude,
    relative_to_profile,
    volatility_level,
)
from flowoe_lib.data.sessions import session_clock

__all__ = [
    "Calibration",
    "Estimate",
    "autocovariance_table",
    "calibrate",
    "calibration_table",
    "session_autocovariance",
    "within_day",
]


Array = NDArray[np.float64]


QUANTILES = (0.5, 0.975, 0.999)
"""Volatility levels of the conditions: one day in two, in forty, and in a thousand."""


BUCKETS = 39
"""Ten-minute buckets of the session."""


FIRST_LAG, LAST_LAG = 3, 24
"""Lags fitted: from half an hour, beyond which no bar reaches into both buckets, to four hours."""


GK_NOISE = 0.27
"""Variance of a day's Garman-Klass estimate over its squared mean; a squared return has 2."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap percentile interval."""

    value: float
    ci_low: float
    ci_high: float

    @classmethod
    def of(cls, value: float, draws: Array) -> "Estimate":
        """The estimate ``value`` with the interval that ``draws`` of its bootstrap span."""
        low, high = np.quantile(draws, (0.025, 0.975))
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class Calibration:
    """What the data say; volatilities per sqrt(day), rates per day, the rest without unit."""

    calm: Estimate
    """Median volatility level."""
    stressed: Estimate
    """Volatility level exceeded on one day in forty."""
    crisis: Estimate
    """Volatility level exceeded on one day in a thousand."""
    vix_ratio: Estimate
    """Volatility level over VIX / sqrt(252), root mean squares."""
    vix_correlation: Estimate
    """Correlation of the logarithms of level and VIX."""
    rho: Estimate
    """Correlation of the index return with the change of log VIX: the leverage effect."""
    kappa: Estimate
    """Mean reversion of intraday variance."""
    cv_month: Estimate
    """Coefficient of variation of variance within the sampled month of intraday bars."""
    profile_amplitude: Estimate
    """Amplitude of the U-shaped volume profile."""
    depth_sd: Estimate
    """Standard deviation of the lasting part of log volume around its profile."""
    depth_reversion: Estimate
    """Mean reversion of log volume around its profile."""
    cv_years: Estimate
    """``cv_month`` from twenty years of days instead: how far each turned out from its level."""


def calibrate(daily: Bars, vix: pd.Series, intraday: Bars, *, reps: int, seed: int) -> Calibration:
    """Estimate everything, with intervals from the stationary bootstrap of Politis and Romano (1994).

    Blocks are a year for quantiles of the volatility level, a month for the other daily figures and
    three days for the intraday ones. ``cv_years`` rests on the intraday ``kappa``, and its interval
    carries the uncertainty of both. Raises BarsError when no session is covered by ``intraday``.
    """
    variance = garman_klass(daily.frame)
    level = volatility_level(variance)
    surprises = (variance.loc[level.index] / level).to_numpy()
    returns = np.log(daily.frame["close"]).diff()
    # The level is foreseen from the evening before: it is held against the VIX of that evening.
    implied = (vix / 100 / np.sqrt(252)).shift()
    joint = (
        pd.concat([np.sqrt(level), implied, returns, np.log(vix).diff()], axis=1, join="inner")
        .dropna()
        .to_numpy()
    )
    amounts = (garman_klass(intraday.frame), intraday.frame["volume"])
    clocks = np.stack([session_clock(intraday, x, BUCKETS).to_numpy() for x in amounts], axis=1)

    levels, level_draws = _bootstrap(_levels, level.to_numpy(), 252, reps, seed)
    against, against_draws = _bootstrap(_against_vix, joint, 21, reps, seed + 1)
    within, within_draws = _bootstrap(within_day, clocks, 3, reps, seed + 2)
    spread, spread_draws = _bootstrap(_spread_of_surprises, surprises, 21, reps, seed + 3)
    # A day's mean moves less than variance within it, by a share that depends on kappa.
    years = spread[0] / np.sqrt(day_mean_share(within[0]))
    years_draws = spread_draws[:, 0] / np.sqrt(day_mean_share(within_draws[:, 0]))

    values = np.r_[levels, against, within, years]
    draws = np.column_stack([level_draws, against_draws, within_draws, years_draws])
    return Calibration(*(Estimate.of(v, d) for v, d in zip(values, draws.T, strict=True)))


def _levels(level: Array) -> Array:
    return np.asarray(np.sqrt(np.quantile(level, QUANTILES)))


def _against_vix(joint: Array) -> Array:
    level, implied, returns, shocks = joint.T
    ratio = np.sqrt((level**2).mean() / (implied**2).mean())
    return np.array([ratio, _correlation(np.log(level), np.log(implied)), _correlation(returns, shocks)])


def _correlation(x: Array, y: Array) -> float:
    return float(np.asarray(np.corrcoef(x, y))[0, 1])


def within_day(clocks: Array) -> Array:
    """Kappa, cv, amplitude, depth sd and reversion from ``clocks`` [days, (variance, volume), buckets]."""
    variance, volume = clocks[:, 0], clocks[:, 1]
    cv, kappa = fit_decay(relative_to_profile(variance), FIRST_LAG, LAST_LAG)
    depth_sd, depth_reversion = fit_decay(log_to_profile(volume), FIRST_LAG, LAST_LAG)
    return np.array([kappa, cv, profile_amplitude(volume), depth_sd, depth_reversion])


def _spread_of_surprises(surprises: Array) -> Array:
    """Coefficient of variation of a day's true mean variance, the noise of its estimate taken out."""
    squares = (surprises**2).mean() / surprises.mean() ** 2
    return np.sqrt(np.maximum([squares / (1 + GK_NOISE) - 1], 0.0))


def _bootstrap(
    statistic: Callable[[Array], Array], data: Array, block: int, reps: int, seed: int
) -> tuple[Array, Array]:
    """``statistic`` [values] and its replicates [reps, values] from blocks of about ``block`` rows."""
    bootstrap = StationaryBootstrap(block, data, seed=np.random.default_rng(seed))
    return statistic(data), np.asarray(bootstrap.apply(statistic, reps), dtype=float)


def autocovariance_table(
    clock: Array, deviations: Callable[[Array], Array], *, reps: int, seed: int
) -> pd.DataFrame:
    """Autocovariance of a clock [days, buckets] by lag, with its interval and the fitted decay.

    Columns days (the lag), value, ci_low, ci_high, fit; rows are the lags the fit uses.
    """
    lags = np.arange(FIRST_LAG, LAST_LAG + 1, dtype=float)
    values, draws = _bootstrap(lambda x: autocovariance(deviations(x), lags), clock, 3, reps, seed)
    sd, rate = fit_decay(deviations(clock), FIRST_LAG, LAST_LAG)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    columns = {
        "value": values,
        "ci_low": low,
        "ci_high": high,
        "fit": sd**2 * decay_curve(rate, lags, BUCKETS),
    }
    return pd.DataFrame({"days": lags / BUCKETS} | columns)


def session_autocovariance(session: Array, profile: Array, *, reps: int, seed: int) -> pd.DataFrame:
    """The same from one session [buckets] and the ``profile`` of its time of day, known from elsewhere.

    The session's own mean is taken out, so a level that lasts all day is not seen.

    Columns days, value, ci_low, ci_high for lags 1 to 12; blocks of about six pairs of buckets.
    """
    relative = session / profile
    x = relative / relative.mean() - 1
    rows = []
    for lag in range(1, 13):
        products = x[lag:] * x[:-lag]
        value, draws = _bootstrap(lambda p: np.array([p.mean()]), products, 6, reps, seed + lag)
        rows.append({"days": lag / BUCKETS} | vars(Estimate.of(value[0], draws)))
    return pd.DataFrame(rows)


def calibration_table(calibration: Calibration) -> pd.DataFrame:
    """One row per figure: value, ci_low, ci_high, indexed by name."""
    rows = {f.name: vars(getattr(calibration, f.name)) for f in fields(calibration)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("figure")
