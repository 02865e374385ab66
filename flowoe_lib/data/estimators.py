"""Named estimators of what bars say about volatility, its motion, and volume.

Pure functions of tables: ranges to variances, days to a level, a session to equal buckets, and
autocovariances to the process behind noisy measurements.
"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from flowoe_lib.market.model import Liquidity, volume_profile

__all__ = [
    "autocovariance",
    "day_mean_share",
    "decay_curve",
    "fit_decay",
    "garman_klass",
    "log_to_profile",
    "profile_amplitude",
    "relative_to_profile",
    "volatility_level",
    "yang_zhang",
]


Array = NDArray[np.float64]


RATES = (0.2, 50.0)
"""Mean reversions looked for, per day."""


def garman_klass(bars: pd.DataFrame) -> pd.Series:
    """Variance of each bar, ln(H/L)^2 / 2 - (2 ln 2 - 1) ln(C/O)^2.

    Unbiased for a driftless Brownian path watched continuously, with a variance of .27 sigma^4
    against a squared return's 2. Source: Garman and Klass (1980), Journal of Business 53, eq. (20).
    """
    body, span = np.log(bars["close"] / bars["open"]), np.log(bars["high"] / bars["low"])
    return pd.Series(span**2 / 2 - (2 * np.log(2) - 1) * body**2)


def yang_zhang(bars: pd.DataFrame) -> float:
    """Mean variance of a day from close to close, robust to drift and overnight jumps.

    Source: Yang and Zhang (2000), Journal of Business 73, eq. (7)-(8): overnight variance plus k
    times the open-to-close variance plus 1 - k times the range variance of Rogers and Satchell (1991).
    """
    opened, high, low, close = (np.log(bars[c].to_numpy()) for c in ("open", "high", "low", "close"))
    night = opened[1:] - close[:-1]
    up, down, body = ((x - opened)[1:] for x in (high, low, close))
    n = len(body)
    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    range_variance = (up * (up - body) + down * (down - body)).mean()
    return float(night.var(ddof=1) + k * body.var(ddof=1) + (1 - k) * range_variance)


def volatility_level(variance: pd.Series) -> pd.Series:
    """Each day's variance as foreseen the evening before, in the units of ``variance``.

    A regression of log variance on the logarithms of yesterday's, last week's and last month's mean
    (heterogeneous autoregression), scaled to be unbiased; the first 22 days have no level.
    Source: Corsi (2009), Journal of Financial Econometrics 7.
    """
    past = pd.concat([variance.rolling(days).mean().shift() for days in (1, 5, 22)], axis=1).dropna()
    design = np.column_stack([np.ones(len(past)), np.log(past.to_numpy())])
    actual = variance.loc[past.index]
    weights = np.linalg.lstsq(design, np.log(actual), rcond=None)[0]
    level = pd.Series(np.exp(design @ weights), past.index)
    return pd.Series(level * (actual / level).mean())


def relative_to_profile(clock: Array) -> Array:
    """Deviation of each bucket from the mean of its time of day, as a share of it; shape [days, buckets]."""
    relative: Array = clock / clock.mean(axis=0) - 1
    return relative


def log_to_profile(clock: Array) -> Array:
    """Deviation of each bucket's logarithm from the mean of its time of day; shape [days, buckets]."""
    logs = np.log(clock)
    return np.asarray(logs - logs.mean(axis=0))


def autocovariance(deviations: Array, lags: Array) -> Array:
    """Covariance of buckets ``lags`` apart within a day, pooled over the day, shape [lags].

    ``deviations`` [days, buckets] have mean zero in each bucket, which takes one degree of freedom;
    a single day is taken to deviate from a mean known otherwise.
    """
    days, n = deviations.shape
    products = [(deviations[:, h:] * deviations[:, : n - h]).mean() for h in lags.astype(int)]
    scale = days / max(days - 1, 1)
    return np.array([scale * p for p in products])


def decay_curve(rate: Array | float, lags: Array, n_buckets: int) -> Array:
    """Correlation exp(-rate |t - s|) averaged over two buckets of 1/n_buckets days, ``lags`` >= 1 apart.

    ``rate`` (per day) broadcasts against ``lags``.
    """
    step = np.asarray(rate, dtype=float) / n_buckets
    return np.asarray(np.exp(-step * (lags - 1)) * np.square(np.expm1(-step) / step))


def fit_decay(deviations: Array, first_lag: int, last_lag: int) -> tuple[float, float]:
    """Standard deviation and mean reversion (per day) of the process behind noisy ``deviations``.

    Least squares of the autocovariance at lags first..last on sd^2 exp(-rate h), weighted by the
    number of pairs. Measurement noise, independent between buckets ``first_lag`` apart, drops out:
    sd is the autocovariance continued to lag zero, not the variance of what is seen.
    """
    n = deviations.shape[1]
    lags = np.arange(first_lag, last_lag + 1, dtype=float)
    seen, weight = autocovariance(deviations, lags), n - lags
    low, high = RATES
    # Four zooms of a grid find the global minimum over the rate to five digits; sd^2 is linear.
    for _ in range(4):
        rates = np.geomspace(low, high, 41)
        curves = decay_curve(rates[:, None], lags, n)
        variances = np.maximum(curves @ (weight * seen) / (curves**2 @ weight), 0)
        losses = (seen - variances[:, None] * curves) ** 2 @ weight
        best = int(np.argmin(losses))
        low, high = rates[max(best - 1, 0)], rates[min(best + 1, 40)]
    return float(np.sqrt(variances[best])), float(rates[best])


def profile_amplitude(volume: Array) -> float:
    """Amplitude A of u(t) = 1 + A P2(2t - 1) by least squares on the mean day's shares of volume."""
    shares = volume.mean(axis=0) / volume.mean()
    unit = Liquidity(profile_amplitude=torch.tensor(1.0, dtype=torch.float64))
    shape = volume_profile(unit, len(shares)).numpy() - 1
    return float(shape @ (shares - 1) / (shape @ shape))


def day_mean_share(rate: Array | float) -> Array:
    """Variance of the mean over a day of a process with correlation exp(-rate h), over its own variance."""
    return np.asarray(2 * (rate + np.expm1(-rate)) / np.square(rate))
