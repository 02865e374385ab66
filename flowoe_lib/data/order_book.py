"""A limit order book rebuilt from order-by-order events: cost of walking it, its persistence, its refill.

An order rests from one of its events to the next. The cost of walking the book is the average price of taking
a size at once, against the mid. Sides are numbered 1 (asks, hit by buyers) and -1 (bids).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from arch.bootstrap import StationaryBootstrap
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


SIDES = {1: "ask", -1: "bid"}


TINY = np.finfo(float).tiny


def resting_orders(events: pd.DataFrame) -> pd.DataFrame:
    """Periods in which an order rests in the book unchanged: side, price, volume, start and end (s).

    ``events`` has columns id, time, price, volume, action and direction as in
    :func:`flowoe_lib.data.records.bitstamp_book`, in the order of time. An order without a later event rests
    until the end of the record; what lives for no time, such as a market order, is left out.

    Examples
    --------
    >>> import pandas as pd
    >>> events = {"id": [7, 7], "time": [0.0, 2.0], "price": 100.0, "volume": [3.0, 0.0]}
    >>> events |= {"action": ["created", "deleted"], "direction": "ask"}
    >>> resting_orders(pd.DataFrame(events)).to_dict("records")
    [{'side': 1, 'price': 100.0, 'volume': 3.0, 'start': 0.0, 'end': 2.0}]
    """
    end = events.groupby("id")["time"].shift(-1).fillna(events["time"].max())
    side = events["direction"].map({name: side for side, name in SIDES.items()})
    orders = events[["price", "volume"]].assign(side=side, start=events["time"], end=end)
    rests = (events["action"] != "deleted") & (end > events["time"])
    return orders.loc[rests, ["side", "price", "volume", "start", "end"]]


def purge_crossed(orders: pd.DataFrame) -> pd.DataFrame:
    """The orders without those that have left the book unrecorded.

    An order that stays until the record ends, although a later order of the other side rests at its price or
    through it, would have been executed by that order. It is removed from the start, because the time at
    which it left is unknown.
    """
    crossed = pd.Series(False, orders.index)
    for side in SIDES:
        # Prices times the side, so that a lower one is better for whoever hits this side.
        kept = orders[(orders["side"] == side) & (orders["end"] == orders["end"].max())]
        other = orders[orders["side"] == -side].sort_values("start")
        highest = (side * other["price"])[::-1].cummax()[::-1].to_numpy()
        later = np.searchsorted(other["start"].to_numpy(), kept["start"].to_numpy(), side="right")
        crossed[kept.index] = side * kept["price"] <= np.append(highest, -np.inf)[later]
    return orders[~crossed]


def walking_cost(orders: pd.DataFrame, times: ArrayLike, sizes: ArrayLike) -> tuple[Array, Array]:
    """Average cost of taking each of ``sizes`` at once, bps of the mid, and the best prices.

    The costs are [times, sides, sizes] and the prices [times, sides], asks first. A cost is NaN if the book
    holds less. Raises ValueError for a size that is not positive, or if a side of the book is empty.

    Examples
    --------
    >>> import pandas as pd
    >>> book = {"side": [1, 1, -1], "price": [101.0, 103.0, 99.0], "volume": 1.0, "start": 0.0, "end": 9.0}
    >>> walking_cost(pd.DataFrame(book), [5.0], [1.0, 2.0])[0].round().tolist()
    [[[100.0, 200.0], [100.0, nan]]]
    """
    times, sizes = np.asarray(times, dtype=float), np.asarray(sizes, dtype=float)
    if not (sizes > 0).all():
        raise ValueError(f"sizes = {sizes.tolist()}: must be > 0")
    best, paid = np.empty((len(times), 2)), np.empty((len(times), 2, len(sizes)))
    for j, (side, name) in enumerate(SIDES.items()):
        own = orders[orders["side"] == side].sort_values("price", ascending=side == 1)
        price, volume, start, end = own[["price", "volume", "start", "end"]].to_numpy(dtype=float).T.copy()
        for i, time in enumerate(times):
            rests = (start <= time) & (time < end)
            if not rests.any():
                raise ValueError(f"times[{i}] = {time:g} s: no {name} rests in the book")
            p, v = price[rests], volume[rests]
            amount, value = (np.cumsum(np.append(0, x)) for x in (v, p * v))
            best[i, j], paid[i, j] = p[0], np.interp(sizes, amount, value, right=np.nan) / sizes
    mid = best.mean(axis=1)[:, None, None]
    return 1e4 * np.abs(paid / mid - 1), best


def lagged_pairs(log_cost: Array, lag: int) -> Array:
    """Log costs now and ``lag`` rows later, [rows, 2, ...], which a bootstrap can resample together."""
    return np.stack([log_cost[:-lag], log_cost[lag:]], axis=1)


def depth_statistics(pairs: Array, lag_s: float, sizes: ArrayLike) -> Array:
    """Standard deviation, half-life (s) and exponent by size, and the exponent over all sizes.

    ``pairs`` are log costs [times, 2, sides, sizes] that are ``lag_s`` apart. Moments are those of each side
    on its own, averaged. The half-life is that of an exponential decay through the autocorrelation at the
    lag, next to zero where that is not positive; an exponent is the slope of the mean log cost in the log of
    the size. Returned in one row.
    """
    now, later = np.moveaxis(pairs - pairs.mean(axis=0), 1, 0)
    variance, covariance = (now**2 + later**2).mean(axis=(0, 1)) / 2, (now * later).mean(axis=(0, 1))
    decay = -np.log(np.clip(covariance / variance, TINY, 1 - 1e-6)) / lag_s
    level, x = pairs.mean(axis=(0, 1, 2)), np.log(np.asarray(sizes, dtype=float))
    slope = np.polyfit(x, level, 1)[0]
    return np.concatenate([np.sqrt(variance), np.log(2) / decay, np.gradient(level, x), [slope]])


def market_orders(trades: pd.DataFrame) -> pd.DataFrame:
    """Incoming orders by time: time (s), side of the book that they hit (1 or -1), amount, first price."""
    buys = trades["side"] == "buy"
    taker = trades["buy_order_id"].where(buys, trades["sell_order_id"])
    hits = trades.assign(side=np.where(buys, 1, -1)).groupby(taker)
    columns = {"time": "first", "side": "first", "amount": "sum", "price": "first"}
    return hits.agg(columns).sort_values("time")


def around_trades(
    orders: pd.DataFrame, hits: pd.DataFrame, lags: ArrayLike, sizes: ArrayLike
) -> tuple[Array, Array]:
    """Log cost [hits, lags, sizes] of the side hit, and the mid, signed by the trade, bps [hits, lags].

    ``lags`` are in seconds from each of :func:`market_orders`; the mid is relative to that at the first lag.
    """
    lags, side = np.asarray(lags, dtype=float), hits["side"].to_numpy()
    times = (hits["time"].to_numpy()[:, None] + lags).round(3)
    cost, best = walking_cost(orders, times.ravel(), sizes)
    own = np.log(cost).reshape(*times.shape, 2, -1)[np.arange(len(side)), :, np.where(side == 1, 0, 1)]
    mid = best.mean(axis=1).reshape(times.shape)
    return own, 1e4 * side[:, None] * (mid / mid[:, :1] - 1)


def refill_half_life(excess: Array, lags: ArrayLike) -> Array:
    """Lag (s) at which the mean excess log cost is first half of that at the first lag, by size.

    ``excess`` is [hits, lags, sizes]; linear between lags, infinite if it never falls to a half.
    """
    lags, mean = np.asarray(lags, dtype=float), excess.mean(axis=0)
    share, column = mean / mean[0], np.arange(mean.shape[1])
    k = np.argmax(share <= 0.5, axis=0)
    above, below = share[k - 1, column], share[k, column]
    fallen = lags[k - 1] + (lags[k] - lags[k - 1]) * (above - 0.5) / (above - below)
    return np.where((share <= 0.5).any(axis=0), fallen, np.inf)


def block_intervals(
    statistic: Callable[[Array], Array], rows: Array, block: int, reps: int, seed: int
) -> dict[str, Any]:
    """Estimates with 95 % intervals of the stationary bootstrap with blocks of ``block`` rows on average.

    Source: Politis, Romano (1994), Journal of the American Statistical Association 89.
    """
    bootstrap = StationaryBootstrap(block, rows, seed=np.random.default_rng(seed))
    low, high = bootstrap.conf_int(statistic, reps, method="percentile")
    return {"estimate": statistic(rows), "ci_low": low, "ci_high": high}
