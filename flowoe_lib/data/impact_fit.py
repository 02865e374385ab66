"""A desk's own impact coefficients, estimated from its past orders."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from arch.bootstrap import IIDBootstrap
from scipy.optimize import least_squares

from flowoe_lib.market.model import BPS, Impact

Array = npt.NDArray[np.float64]


POSITIVE = ("shares", "adv", "volatility", "duration")


ALLOWED = dict.fromkeys((*POSITIVE, "shares_outstanding"), "finite and > 0")
ALLOWED |= {"cost_bps": "a finite number", "side": "buy or sell"}


FEWEST = 30


PRECISION = 0.2
"""Half-width of an interval, as a share of the published value, for which ``orders_needed`` is computed."""


@dataclass(frozen=True)
class ImpactFit:
    """Impact coefficients of past orders."""

    orders: int
    """Number of orders."""
    table: pd.DataFrame
    """Rows eta, beta, gamma and drift (that of the market over the orders, bps per day); columns estimate,
    ci_low, ci_high (95 %), published, and orders_needed, about how many orders make the interval as narrow as
    20 % of the published value on either side."""

    @property
    def options(self) -> dict[str, float]:
        """The estimates as options of :class:`flowoe_lib.desk.ticket.Ticket`."""
        return {str(name): value for name, value in self.table["estimate"].drop("drift").items()}


def fit_impact(orders: pd.DataFrame, reps: int = 200, seed: int = 2025) -> ImpactFit:
    """Estimate temporary and permanent impact from past orders.

    The expected cost of an order of X shares, worked evenly over T days in a market of volume V and Theta
    shares outstanding, is

        sigma (eta (X / V T)^beta + gamma / 2 (X / V) (Theta / V)^(1/4)),

    and half the drift of the market over T is for or against it. An order's cost is uncertain by the price
    moves while it is worked, whose standard deviation is sigma sqrt(T / 3); it is weighted accordingly. The
    coefficients are those of non-linear least squares, their intervals those of the bootstrap over orders.

    Parameters
    ----------
    orders : DataFrame
        One row per order: side (buy or sell), shares, adv (shares), volatility (per square root of a day),
        duration (trading days), cost_bps (implementation shortfall against the arrival price, without fees),
        and shares_outstanding if known; by default they are those of a large stock.
    reps : int
        Resamples of the bootstrap, at least 100.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    flowoe_lib.data.impact_fit.ImpactFit
        Estimates with intervals, beside the published coefficients.

    Raises
    ------
    ValueError
        For fewer than 30 orders or 100 resamples, a missing column, a value that is not finite or not
        positive where it must be, or a side other than buy and sell.

    References
    ----------
    Almgren, Thum, Hauptmann, Li (2005), "Direct estimation of equity market impact", Risk 18.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> import numpy as np, pandas as pd
    >>> draws = np.random.default_rng(1)
    >>> orders = pd.DataFrame({"side": ["buy", "sell"] * 50, "shares": draws.uniform(1e4, 2e5, 100)})
    >>> orders = orders.assign(adv=1e6, volatility=0.02, duration=draws.uniform(0.05, 1, 100))
    >>> size, pace = orders["shares"] / 1e6, orders["shares"] / 1e6 / orders["duration"]
    >>> orders["cost_bps"] = 200 * (0.1 * pace**0.5 + 0.4 / 2 * size * 263**0.25)
    >>> fit = fo.fit_impact(orders, reps=100)
    >>> {name: round(value, 3) for name, value in fit.options.items()}
    {'eta': 0.1, 'beta': 0.5, 'gamma': 0.4}
    """
    if reps < 100:
        raise ValueError(f"reps = {reps}: must be at least 100")
    published = Impact()
    design = _design(orders, published.turnover_days.item())
    start = np.array([published.eta.item(), published.beta.item(), published.gamma.item(), 0.0])
    estimate = _fitted(design, start)
    bootstrap = IIDBootstrap(design, seed=seed)
    low, high = bootstrap.conf_int(lambda rows: _fitted(rows, estimate), reps, method="percentile")
    columns = {"estimate": estimate, "ci_low": low, "ci_high": high, "published": start}
    table = pd.DataFrame(columns, index=pd.Index(["eta", "beta", "gamma", "drift"], name="coefficient"))
    half_width = (table["ci_high"] - table["ci_low"]) / 2
    needed = len(design) * (half_width / (PRECISION * table["published"])) ** 2
    return ImpactFit(len(design), table.assign(orders_needed=needed.drop("drift")))


def _design(orders: pd.DataFrame, turnover_days: float) -> Array:
    """Columns of the regression, each over the standard deviation of cost, [orders, 5].

    Cost, volatility, volatility times the terms of permanent impact, half the duration with the sign of the
    order, and, not scaled, the log of the pace of trading.
    """
    if missing := [c for c in ("side", *POSITIVE, "cost_bps") if c not in orders]:
        raise ValueError(f"orders: missing column {', '.join(missing)}; found {', '.join(map(str, orders))}")
    if len(orders) < FEWEST:
        raise ValueError(f"orders: {len(orders)} rows; must be at least {FEWEST}")
    table = orders.assign(side=orders["side"].map({"buy": 1, "sell": -1}))
    if "shares_outstanding" not in table:
        table["shares_outstanding"] = turnover_days * pd.to_numeric(table["adv"], errors="coerce")
    columns = {}
    for name, allowed in ALLOWED.items():
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
        ok = np.isfinite(values) & ((values > 0) | (name in ("cost_bps", "side")))
        if not ok.all():
            row = int(ok.argmin())
            given = orders[name].iloc[row]
            raise ValueError(f"orders: {name}, row {row + 1}: is {given!r}; must be {allowed}")
        columns[name] = values
    shares, adv, volatility, duration, outstanding, cost, side = columns.values()
    sd = BPS * volatility * np.sqrt(duration / 3)
    permanent = shares / adv * (outstanding / adv) ** 0.25 / 2
    drift = side * duration / 2
    scaled = [cost, BPS * volatility, BPS * volatility * permanent, drift]
    return np.column_stack([*(x / sd for x in scaled), np.log(shares / adv / duration)])


def _fitted(design: Array, start: Array) -> Array:
    """The coefficients eta, beta, gamma and drift of least squares, beginning at ``start``."""
    cost, temporary, permanent, drift, log_pace = design.T

    def residuals(x: Array) -> Array:
        return np.asarray(x[0] * temporary * np.exp(x[1] * log_pace) + x[2] * permanent + x[3] * drift - cost)

    bounds = ([0.0, 1e-3, 0.0, -np.inf], [np.inf, 1.0, np.inf, np.inf])
    inside = np.clip(start, [1e-6, 2e-3, 1e-6, -np.inf], [np.inf, 0.999, np.inf, np.inf])
    solution = least_squares(residuals, inside, bounds=bounds, x_scale=[0.1, 0.5, 0.3, 10.0])
    return np.asarray(solution.x)
