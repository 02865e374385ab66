"""A worked order reviewed: what it cost, why, against which benchmark, and against its plan's forecast."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from flowoe_lib.data.bars import Bars
from flowoe_lib.data.sessions import Array
from flowoe_lib.desk.live import window_of
from flowoe_lib.desk.page import embedded, filled_page
from flowoe_lib.desk.planner import AnyPlan, read_plan
from flowoe_lib.desk.ticket import OrderError, Ticket
from flowoe_lib.market.model import BPS
from flowoe_lib.plotting import LOOKS, save, style
from flowoe_lib.store import atomic_write


@dataclass(frozen=True)
class Review:
    """The cost of a worked order; costs are positive, in currency and in bps of the order at arrival."""

    ticket: Ticket
    shares: float
    filled: float
    parts: pd.DataFrame
    """Rows delay, spread, temporary, permanent, timing, opportunity; columns currency, bps, meaning."""
    benchmarks: pd.DataFrame
    """Rows arrival, vwap, twap, close; columns price, bps (cost of the fills against it)."""
    cost_bps: float
    """Implementation shortfall against the arrival price."""
    forecast_bps: Array
    """Quantiles of that cost over the plan's simulated days, from 0 to 100 %, [101]."""

    @property
    def percentile(self) -> float:
        """Share of the plan's simulated days that cost less, %."""
        return float(np.interp(self.cost_bps, self.forecast_bps, np.arange(101)))

    def summary(self) -> dict[str, str]:
        """Order, cost, its largest part and the forecast, each in a line of text."""
        total, done = self.parts.sum(numeric_only=True), self.filled / self.shares
        vwap = self.benchmarks["bps"].loc["vwap"]
        largest = self.parts["bps"].abs().to_numpy().argmax()
        middle, high = self.forecast_bps[[50, 95]]
        return {
            "order": f"{self.ticket.side} {self.shares:,.10g} shares, of which {self.filled:,.10g} "
            f"({done:.2%}) are filled",
            "cost": f"{total['bps']:.1f} bps ({total['currency']:,.0f}) against the price of the plan; "
            f"{self.cost_bps:.1f} bps against the arrival price, {vwap:.1f} bps against VWAP",
            "mostly": f"{list(MEANING)[largest]}, {self.parts['bps'].iloc[largest]:.1f} bps",
            "plan": f"{self.percentile:.0f} of 100 simulated days cost less against the arrival price; "
            f"their median is {middle:.1f} bps, and 95 of 100 cost less than {high:.1f} bps",
        }


MEANING = {
    "delay": "price move from the plan to the arrival, on the whole order",
    "spread": "half the quoted spread",
    "temporary": "fill prices against the market price at their time, beyond the spread",
    "permanent": "the order's own permanent impact on its later trades, by the plan's model",
    "timing": "price moves during execution beyond that impact",
    "opportunity": "price move from the arrival to the end of the window, on what was not filled",
}


def review(
    plan: AnyPlan,
    fills: pd.DataFrame,
    bars: Bars,
    spread_bps: float = 0.0,
    shares: float | None = None,
) -> Review:
    """Split the implementation shortfall of an order into its parts, and compare it.

    Parameters
    ----------
    plan : Plan, mapping, str or Path
        The plan, its record or its file.
    fills : DataFrame
        The fills, as :func:`flowoe_lib.desk.live.read_fills` returns them.
    bars : Bars
        Intraday bars of the day.
    spread_bps : float
        Quoted spread.
    shares : float, optional
        Size of the order, if it was changed.

    Returns
    -------
    flowoe_lib.desk.review.Review
        The parts, which add up to the shortfall against the price of the plan; the benchmarks; the percentile
        of the shortfall against the arrival price among the plan's simulated days.

    Raises
    ------
    OrderError
        If the fills exceed the order, or the bars do not cover the window.

    References
    ----------
    Perold (1988), "The implementation shortfall", Journal of Portfolio Management 14; Kissell (2013), The
    Science of Algorithmic Trading and Portfolio Management, chapter 3, for the expanded shortfall.
    """
    ticket, known, condition, record = read_plan(plan)
    size, filled = shares or ticket.shares, float(fills["shares"].sum())
    if filled > size * (1 + 1e-9):
        raise OrderError(
            f"fills: {filled:,.10g} shares; must be at most the order, {size:,.10g} (shares, SHARES)"
        )
    last = fills.index[-1] if len(fills) else bars.index[-1]
    start, end = window_of(ticket, record["bars"]["timezone"], last)
    window = bars.frame[(bars.index > start) & (bars.index <= end)]
    if len(window) == 0:
        raise OrderError(f"{bars.source}: no bar ends within the window, {start} to {end}")
    arrival, final = window["open"].iloc[0], window["close"].iloc[-1]
    today = bars.frame[(bars.index > start) & (bars.index < start + pd.Timedelta(days=1))]
    x, price = fills["shares"].to_numpy(), fills["price"].to_numpy()
    market = _market_price(window, pd.DatetimeIndex(fills.index))
    side = 1 if ticket.side == "buy" else -1
    # Each fill meets the shift of all fills before it, and half its own.
    permanent_bps = condition.market.permanent_cost_bps(condition.order.size).item()
    shift = BPS**-1 * arrival * permanent_bps / ticket.shares
    parts = {
        "delay": side * size * (arrival - known.price.value),
        "spread": spread_bps / 2 / BPS * (x @ market),
        "temporary": side * (x @ (price - market)) - spread_bps / 2 / BPS * (x @ market),
        "permanent": shift * filled**2 / 2,
        "timing": side * (x @ (market - arrival)) - shift * filled**2 / 2,
        "opportunity": side * (size - filled) * (final - arrival),
    }
    table = pd.DataFrame({"currency": parts})
    table["bps"] = BPS * table["currency"] / (size * arrival)
    cost = float(table["bps"].drop("delay").sum())
    typical = window[["high", "low", "close"]].mean(axis=1)
    prices = {
        "arrival": arrival,
        "vwap": np.average(typical, weights=window["volume"]) if window["volume"].any() else np.nan,
        "twap": typical.mean(),
        "close": today["close"].iloc[-1],
    }
    benchmarks = pd.DataFrame({"price": prices})
    paid = (x @ price) / filled if filled else np.nan
    benchmarks["bps"] = BPS * side * (paid / benchmarks["price"] - 1)
    forecast = np.array(record["cost_quantiles_bps"])
    return Review(ticket, size, filled, table.assign(meaning=pd.Series(MEANING)), benchmarks, cost, forecast)


def _market_price(window: pd.DataFrame, times: pd.DatetimeIndex) -> Array:
    """Price of the market at ``times``, interpolated from the open to the close of their bars."""
    length = window.index.to_series().diff().median()
    times = times.as_unit("us")
    bar = window.iloc[window.index.searchsorted(times).clip(max=len(window) - 1)]
    passed = np.clip(1 - np.asarray((bar.index - times) / length, dtype=float), 0, 1)
    return np.asarray(bar["open"] + passed * (bar["close"] - bar["open"]))


def review_figure(result: Review) -> Figure:
    """The parts of the cost, and the cost among those of the plan's simulated days."""
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8))
        parts = result.parts["bps"].iloc[::-1]
        left.barh(parts.index, parts, color=LOOKS["flow_refined"].colour)
        left.set(xlabel="cost, bps of the order at arrival", title="Where the cost arose")
        right.plot(result.forecast_bps, np.arange(101), color=LOOKS["static_optimal"].colour)
        right.axvline(result.cost_bps, color=LOOKS["flow_refined"].colour, linestyle="--")
        right.set(xlabel="cost against arrival, bps", ylabel="simulated days below, %")
        right.set_title(f"This day: percentile {result.percentile:.0f}")
    return figure


def write_review(result: Review, folder: Path) -> Path:
    """Write review.html and its figure into ``folder``."""
    save(review_figure(result), folder, "review")
    total = result.parts.sum(numeric_only=True)
    parts = result.parts.copy()
    parts.loc["total"] = [*total, "implementation shortfall"]
    digits = {"currency": "{:,.0f}".format, "bps": "{:,.1f}".format, "price": "{:,.6g}".format}
    tables = {"parts": parts, "benchmarks": result.benchmarks.rename({"vwap": "VWAP", "twap": "TWAP"})}
    filled = {k: t.to_html(formatters=digits, classes="figures", border=0) for k, t in tables.items()}
    filled["review_figure"] = embedded(folder / "review.png")
    title = f"Review of an order to {result.ticket.side} {result.shares:,.10g} shares"
    atomic_write(folder / "review.html", filled_page("review", title, result.summary(), filled))
    return folder / "review.html"
