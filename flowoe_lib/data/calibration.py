"""Calibration: from market bars to volatility levels, variance process, volume profile and depth.

The variance of a day is modelled as a level, forecast on the evening before, times an intraday process with
mean one. Twenty years of daily ranges give the levels, a month of intraday bars gives the process. Every
estimate has a bootstrap interval, :class:`Estimate`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from arch.bootstrap import StationaryBootstrap
from numpy.typing import NDArray

from flowoe_lib.data import estimators as est
from flowoe_lib.data.bars import Bars
from flowoe_lib.data.estimators import BUCKETS
from flowoe_lib.data.sessions import session_clocks

Array = NDArray[np.float64]


QUANTILES = (0.5, 0.975, 0.999)
"""Quantiles of the volatility level: exceeded on one day in two, in forty, and in a thousand."""


GK_NOISE = 0.27
"""Squared coefficient of variation of the daily Garman-Klass estimate; that of a squared return is 2."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % bootstrap percentile interval."""

    value: float
    ci_low: float
    ci_high: float

    @classmethod
    def of(cls, value: float, draws: Array) -> "Estimate":
        """The estimate ``value`` with the percentile interval of its bootstrap ``draws``."""
        low, high = np.quantile(draws, (0.025, 0.975))
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class Calibration:
    """The estimates from the data: volatilities per sqrt(day), rates per day, the others without unit."""

    calm: Estimate
    """Median volatility level."""
    stressed: Estimate
    """Volatility level exceeded on one day in forty."""
    crisis: Estimate
    """Volatility level exceeded on one day in a thousand."""
    vix_ratio: Estimate
    """Ratio of root mean squares: volatility level over VIX / sqrt(252)."""
    vix_correlation: Estimate
    """Correlation of log volatility level and log VIX."""
    rho: Estimate
    """Correlation of the index return with the change of log VIX: the leverage effect."""
    kappa: Estimate
    """Rate of mean reversion of intraday variance."""
    cv_month: Estimate
    """Coefficient of variation of intraday variance, from a month of intraday bars."""
    profile_amplitude: Estimate
    """Amplitude of the U-shaped volume profile."""
    depth_sd: Estimate
    """Standard deviation of the persistent part of log volume around its profile."""
    depth_reversion: Estimate
    """Rate of mean reversion of log volume around its profile."""
    cv_years: Estimate
    """Coefficient of variation of intraday variance, from twenty years of daily ranges over their levels."""


def calibrate(
    daily: Bars,
    vix: pd.Series,
    intraday: Bars,
    *,
    reps: int,
    seed: int,
    session: tuple[str, str] = ("08:30", "15:00"),
    levels: int = 3,
) -> Calibration:
    """Estimate the market's parameters, with intervals from the stationary bootstrap.

    Blocks are a year for the quantiles of the volatility level, a month for the other daily estimates and
    three days for the intraday ones. ``cv_years`` depends on the intraday ``kappa``; its interval includes
    the uncertainty of both.

    Parameters
    ----------
    daily : flowoe_lib.data.bars.Bars
        Daily bars, for the volatility levels; years of them, or a hundred days with fewer ``levels``.
    vix : Series
        Daily close of the VIX by date, annualised percent.
    intraday : flowoe_lib.data.bars.Bars
        Intraday bars that cover the session, for the intraday process.
    reps : int
        Number of bootstrap replicates.
    seed : int
        Seed of the bootstrap.
    session : tuple of str
        Open and close of the market in the time zone of ``intraday``.
    levels : int
        Number of volatility levels, from 1 (calm) to 3; the others are NaN. A level that is exceeded on one
        day in a thousand takes years of bars.

    Returns
    -------
    flowoe_lib.data.calibration.Calibration
        Estimates with their intervals; volatilities per sqrt(day), rates per day.

    Raises
    ------
    BarsError
        If no session is covered by ``intraday``.
    ValueError
        For another number of levels, or fewer than two days that ``daily`` and ``vix`` share.

    References
    ----------
    Politis, Romano (1994), "The stationary bootstrap", Journal of the American Statistical Association 89;
    Garman, Klass (1980), Journal of Business 53; Corsi (2009), Journal of Financial Econometrics 7.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> import numpy as np
    >>> import pandas as pd
    >>> times = pd.date_range("2015-01-05 00:05", "2015-02-07", freq="5min", tz="America/Chicago")
    >>> rng = np.random.default_rng(1)
    >>> x = np.exp(rng.normal(0, 3e-4, (len(times), 9)).cumsum(1))
    >>> prices = {"open": x[:, 0], "high": x.max(1), "low": x.min(1), "close": x[:, -1]}
    >>> frame = pd.DataFrame(prices | {"volume": rng.gamma(4, size=len(times))}, index=times)
    >>> intraday = fo.load_bars(frame, timezone="America/Chicago", minutes=5)
    >>> daily, vix = fo.data.records.sp500_daily(), fo.data.records.vix_daily()
    >>> calibration = fo.calibrate(daily, vix, intraday, reps=20, seed=1)
    >>> round(calibration.stressed.value, 3), round(calibration.rho.value, 1)
    (0.019, -0.8)
    """
    if levels not in range(1, len(QUANTILES) + 1):
        raise ValueError(f"levels = {levels!r}: must be from 1 to {len(QUANTILES)}")
    variance = est.garman_klass(daily.frame)
    level = est.volatility_level(variance)
    surprises = (variance.loc[level.index] / level).to_numpy()
    returns = np.log(daily.frame["close"]).diff()
    # The level is a forecast of the evening before, so it is compared with the VIX of that evening.
    implied = (vix / 100 / np.sqrt(252)).shift()
    joint = pd.concat([np.sqrt(level), implied, returns, np.log(vix).diff()], axis=1, join="inner").dropna()
    if len(joint) < 2:
        raise ValueError(f"vix: shares {len(joint)} days with {daily.source}; must share at least 2")
    clocks = np.stack([c.to_numpy() for c in session_clocks(intraday, BUCKETS, *session)], axis=1)

    usual, level_draws = _bootstrap(_levels, level.to_numpy(), min(252, len(level) // 4), reps, seed)
    usual[levels:] = level_draws[:, levels:] = np.nan
    against, against_draws = _bootstrap(_against_vix, joint.to_numpy(), 21, reps, seed + 1)
    within, within_draws = _bootstrap(est.within_day, clocks, 3, reps, seed + 2)
    dispersion, dispersion_draws = _bootstrap(_cv_of_day_means, surprises, 21, reps, seed + 3)
    # The mean of a day varies less than variance within the day; the ratio depends on kappa.
    years = dispersion[0] / np.sqrt(est.day_mean_share(within[0]))
    years_draws = dispersion_draws[:, 0] / np.sqrt(est.day_mean_share(within_draws[:, 0]))

    values = np.r_[usual, against, within, years]
    draws = np.column_stack([level_draws, against_draws, within_draws, years_draws])
    return Calibration(*(Estimate.of(v, d) for v, d in zip(values, draws.T, strict=True)))


def _levels(level: Array) -> Array:
    return np.asarray(np.sqrt(np.quantile(level, QUANTILES)))


def _against_vix(joint: Array) -> Array:
    level, implied, returns, shocks = joint.T
    ratio = np.sqrt((level**2).mean() / (implied**2).mean())
    correlations = np.corrcoef(np.log(level), np.log(implied)), np.corrcoef(returns, shocks)
    return np.array([ratio, *(matrix[0, 1] for matrix in correlations)])


def _cv_of_day_means(surprises: Array) -> Array:
    """Coefficient of variation of the daily mean variance, corrected for the noise of its estimate."""
    squares = (surprises**2).mean() / surprises.mean() ** 2
    return np.sqrt(np.maximum([squares / (1 + GK_NOISE) - 1], 0.0))


def _bootstrap(
    statistic: Callable[[Array], Array], data: Array, block: int, reps: int, seed: int
) -> tuple[Array, Array]:
    """``statistic`` [values] and its replicates [reps, values], with blocks of ``block`` rows on average."""
    bootstrap = StationaryBootstrap(block, data, seed=np.random.default_rng(seed))
    return statistic(data), np.asarray(bootstrap.apply(statistic, reps), dtype=float)


def autocovariance_table(
    clock: Array, deviations: Callable[[Array], Array], *, reps: int, seed: int
) -> pd.DataFrame:
    """Autocovariance by lag of the ``deviations`` of ``clock`` [days, buckets], with the fitted decay.

    Columns days (the lag), value, ci_low, ci_high, fit; one row per lag of the fit.
    """
    lags = np.arange(est.FIRST_LAG, est.LAST_LAG + 1, dtype=float)
    values, draws = _bootstrap(lambda x: est.autocovariance(deviations(x), lags), clock, 3, reps, seed)
    sd, rate = est.fit_decay(deviations(clock), est.FIRST_LAG, est.LAST_LAG)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    columns = {"days": lags / BUCKETS, "value": values, "ci_low": low, "ci_high": high}
    return pd.DataFrame(columns | {"fit": sd**2 * est.decay_curve(rate, lags, BUCKETS)})


def session_autocovariance(session: Array, profile: Array, *, reps: int, seed: int) -> pd.DataFrame:
    """Autocovariance by lag of a single ``session`` [buckets] relative to a given ``profile``.

    Demeaning one session removes any component that is constant over it. Columns days, value, ci_low, ci_high
    for lags 1 to 12; mean block length six pairs of buckets.
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
    """One row per estimate: value, ci_low, ci_high, indexed by name."""
    return pd.DataFrame.from_dict(asdict(calibration), orient="index").rename_axis("figure")
