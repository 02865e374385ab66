"""Estimators of volatility, variance process and volume profile from market bars.

Pure functions of tables: variance from ranges, a volatility forecast from days, and the parameters of a
mean-reverting process from the autocovariance of noisy measurements.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowoe_lib.market.volume import traded_by

Array = NDArray[np.float64]


BUCKETS = 39
"""Ten-minute buckets of the session."""


FIRST_LAG, LAST_LAG = 3, 24
"""Lags of the fit, in buckets. From half an hour on, no bar overlaps both buckets; the last is four hours."""


RATES = (0.2, 50.0)
"""Range of the fitted rate of mean reversion, per day."""


def garman_klass(bars: pd.DataFrame) -> pd.Series:
    """Variance of each bar, ln(H/L)^2 / 2 - (2 ln 2 - 1) ln(C/O)^2.

    Unbiased for a driftless Brownian path observed continuously; its variance is .27 sigma^4, that of a
    squared return 2 sigma^4. Source: Garman and Klass (1980), Journal of Business 53, eq. (20).
    """
    body, span = np.log(bars["close"] / bars["open"]), np.log(bars["high"] / bars["low"])
    return pd.Series(span**2 / 2 - (2 * np.log(2) - 1) * body**2)


def yang_zhang(bars: pd.DataFrame) -> float:
    """Mean daily variance from close to close, robust to drift and overnight jumps.

    It is the overnight variance plus k times the open-to-close variance plus 1 - k times the range variance
    of Rogers and Satchell (1991). Source: Yang and Zhang (2000), Journal of Business 73, eq. (7)-(8).
    """
    opened, high, low, close = (np.log(bars[c].to_numpy()) for c in ("open", "high", "low", "close"))
    night = opened[1:] - close[:-1]
    up, down, body = ((x - opened)[1:] for x in (high, low, close))
    n = len(body)
    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    range_variance = (up * (up - body) + down * (down - body)).mean()
    return float(night.var(ddof=1) + k * body.var(ddof=1) + (1 - k) * range_variance)


def volatility_level(variance: pd.Series) -> pd.Series:
    """Forecast of each day's variance on the evening before, in the units of ``variance``.

    A heterogeneous autoregression: log variance is regressed on the logarithms of yesterday's variance and of
    the means over the last week and month; the forecast is scaled to be unbiased. The first 22 days have
    none. Source: Corsi (2009), Journal of Financial Econometrics 7.
    """
    past = pd.concat([variance.rolling(days).mean().shift() for days in (1, 5, 22)], axis=1).dropna()
    design = np.column_stack([np.ones(len(past)), np.log(past.to_numpy())])
    actual = variance.loc[past.index]
    weights = np.linalg.lstsq(design, np.log(actual), rcond=None)[0]
    level = pd.Series(np.exp(design @ weights), past.index)
    return pd.Series(level * (actual / level).mean())


def relative_to_profile(clock: Array) -> Array:
    """Relative deviation of each bucket from the mean over days of that bucket, [days, buckets]."""
    return np.asarray(clock / clock.mean(axis=0) - 1)


def log_to_profile(clock: Array) -> Array:
    """Deviation of the log of each bucket from the mean over days of that log, [days, buckets]."""
    logs = np.log(clock)
    return np.asarray(logs - logs.mean(axis=0))


def autocovariance(deviations: Array, lags: Array) -> Array:
    """Covariance of buckets ``lags`` apart within a day, pooled over the day, [lags].

    ``deviations`` [days, buckets] have mean zero in each bucket, for which one degree of freedom is
    subtracted; the deviations of a single day are taken from a known mean.
    """
    days, n = deviations.shape
    products = [(deviations[:, h:] * deviations[:, : n - h]).mean() for h in lags.astype(int)]
    return np.asarray(days / max(days - 1, 1) * np.array(products))


def decay_curve(rate: Array | float, lags: Array, n_buckets: int) -> Array:
    """Correlation exp(-rate |t - s|) averaged over two buckets of 1 / n_buckets days, ``lags`` >= 1 apart.

    ``rate`` (per day) broadcasts against ``lags``.
    """
    step = np.asarray(rate, dtype=float) / n_buckets
    return np.asarray(np.exp(-step * (lags - 1)) * np.square(np.expm1(-step) / step))


def fit_decay(deviations: Array, first_lag: int, last_lag: int) -> tuple[float, float]:
    """Fit standard deviation and rate of mean reversion (per day) of a process observed with noise.

    The autocovariance of ``deviations`` at lags ``first_lag`` to ``last_lag`` is fitted by sd^2 exp(-rate h),
    by least squares weighted with the number of pairs. Noise that is independent between buckets
    ``first_lag`` apart does not enter: sd^2 is the autocovariance extrapolated to lag zero, not the variance
    of the measurements.
    """
    n = deviations.shape[1]
    lags = np.arange(first_lag, last_lag + 1, dtype=float)
    measured, weight = autocovariance(deviations, lags), n - lags
    low, high = RATES
    # The loss is quadratic in sd^2; four refinements of a grid give the best rate to five digits.
    for _ in range(4):
        rates = np.geomspace(low, high, 41)
        curves = decay_curve(rates[:, None], lags, n)
        variances = np.maximum(curves @ (weight * measured) / (curves**2 @ weight), 0)
        losses = (measured - variances[:, None] * curves) ** 2 @ weight
        best = int(np.argmin(losses))
        low, high = rates[max(best - 1, 0)], rates[min(best + 1, 40)]
    return float(np.sqrt(variances[best])), float(rates[best])


def profile_amplitude(volume: Array) -> float:
    """Fit the amplitude A of u(t) = 1 + A P2(2t - 1) to mean volume by bucket, by least squares.

    Buckets in which nothing is ever traded, those of a lunch break, do not count.
    """
    usual = volume.mean(axis=0)
    shape = np.diff(traded_by(1.0, np.linspace(0, 1, len(usual) + 1))) * len(usual) - 1
    slope, level = np.polyfit(shape[usual > 0], usual[usual > 0], 1)
    return float(slope / level)


def within_day(clocks: Array) -> Array:
    """Kappa, cv, amplitude, depth sd and reversion from ``clocks`` [days, (variance, volume), buckets]."""
    variance, volume = clocks[:, 0], clocks[:, 1]
    cv, kappa = fit_decay(relative_to_profile(variance), FIRST_LAG, LAST_LAG)
    depth_sd, depth_reversion = fit_decay(log_to_profile(volume), FIRST_LAG, LAST_LAG)
    return np.array([kappa, cv, profile_amplitude(volume), depth_sd, depth_reversion])


def day_mean_share(rate: Array | float) -> Array:
    """Variance of the daily mean of a process with correlation exp(-rate h), over the process's variance."""
    return np.asarray(2 * (rate + np.expm1(-rate)) / np.square(rate))
