"""The rebuilt book: small logs and laws in closed form, a brute-force search, and the recorded trades."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flowoe_lib.data import order_book as book
from flowoe_lib.data.records import bitstamp_book

CACHE = Path(__file__).parents[1] / ".cache"
COLUMNS = ["id", "time", "action", "direction", "price", "volume"]
LOG = pd.DataFrame(
    [
        (1, 0.0, "created", "ask", 101.0, 2.0),
        (2, 0.0, "created", "ask", 103.0, 4.0),
        (3, 0.0, "created", "bid", 99.0, 1.0),
        (4, 0.0, "created", "bid", 97.0, 5.0),
        (5, 1.0, "created", "bid", 101.0, 1.5),  # a buyer's market order for 1.5
        (1, 1.0, "changed", "ask", 101.0, 0.5),
        (5, 1.0, "deleted", "bid", 101.0, 0.0),
        (6, 1.2, "created", "ask", 101.0, 1.5),
        (1, 2.0, "deleted", "ask", 101.0, 0.5),
        (6, 2.0, "deleted", "ask", 101.0, 1.5),
        (7, 3.0, "created", "bid", 102.0, 1.0),
        (8, 3.0, "created", "ask", 104.0, 1.0),
        (7, 4.0, "deleted", "bid", 102.0, 1.0),
        *((i, 9.0, "deleted", "ask", 0.0, 0.0) for i in (2, 8)),
        *((i, 9.0, "deleted", "bid", 0.0, 0.0) for i in (3, 4)),
    ],
    columns=COLUMNS,
)
TRADE = pd.DataFrame(
    {"time": [1.0], "price": 101.0, "amount": 1.5, "side": "buy", "buy_order_id": 5, "sell_order_id": 1}
)


def test_a_small_log_becomes_the_book_that_its_events_say() -> None:
    orders = book.resting_orders(LOG)
    assert 5 not in LOG.loc[orders.index, "id"].to_numpy()
    cost, best = book.walking_cost(orders, [0.5, 1.0, 1.5, 2.5, 3.5], [1.0, 3.0, 6.0])
    assert best.tolist() == [[101, 99], [101, 99], [101, 99], [103, 99], [103, 102]]
    # Asks at 101 (2) and 103 (4), bids at 99 (1) and 97 (5), mid 100.
    paid = [[101, (2 * 101 + 103) / 3, (2 * 101 + 4 * 103) / 6], [99, (99 + 2 * 97) / 3, (99 + 5 * 97) / 6]]
    np.testing.assert_allclose(cost[0], 100 * np.abs(np.array(paid) - 100), rtol=1e-9)
    after = [102, (0.5 * 101 + 2.5 * 103) / 3, math.nan]
    np.testing.assert_allclose(cost[1, 0], 100 * (np.array(after) - 100), rtol=1e-9)
    np.testing.assert_allclose(cost[2], cost[0], rtol=1e-9)


def test_a_size_that_is_not_positive_and_an_empty_side_are_named() -> None:
    orders = book.resting_orders(LOG)
    with pytest.raises(ValueError, match=r"sizes = \[1.0, 0.0\]: must be > 0"):
        book.walking_cost(orders, [0.5], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"times\[1\] = 4 s: no bid rests"):
        book.walking_cost(orders[(orders["side"] == 1) | (orders["start"] == 3)], [3.5, 4.0], [1.0])


def test_an_order_whose_end_is_missing_rests_until_the_record_ends() -> None:
    orders = book.resting_orders(LOG[(LOG["id"] != 2) | (LOG["action"] == "created")])
    pd.testing.assert_frame_equal(orders, book.resting_orders(LOG))


@pytest.mark.parametrize("mirrored", [False, True])
def test_purged_are_those_that_a_later_order_must_have_executed(mirrored: bool) -> None:
    orders = pd.DataFrame(
        [
            (1, 101.0, 1.0, 0.0, 9.0),  # a bid at 102 comes later: left over
            (1, 102.0, 1.0, 0.0, 9.0),  # at the same price: left over
            (1, 103.0, 1.0, 0.0, 9.0),
            (1, 101.0, 1.0, 0.0, 4.0),  # its end is recorded
            (1, 101.0, 1.0, 6.0, 9.0),  # came after that bid
            (-1, 102.0, 1.0, 5.0, 7.0),
            (-1, 99.0, 1.0, 0.0, 9.0),
        ],
        columns=["side", "price", "volume", "start", "end"],
    )
    if mirrored:
        orders["side"], orders["price"] = -orders["side"], 200 - orders["price"]
    assert book.purge_crossed(orders).index.tolist() == [2, 3, 4, 5, 6]


def test_purging_agrees_with_a_search_over_all_pairs() -> None:
    draws = np.random.default_rng(1)
    n = 120
    orders = pd.DataFrame({"side": draws.choice([1, -1], n), "volume": 1.0, "start": draws.uniform(0, 9, n)})
    orders["price"] = 100 + orders["side"] + draws.normal(0, 1, n).round(1)
    orders["end"] = np.where(draws.random(n) < 0.4, 10.0, orders["start"] + draws.uniform(0, 1, n))
    left = []
    for i, order in orders.iterrows():
        others = orders[(orders["side"] == -order["side"]) & (orders["start"] > order["start"])]
        through = (others["price"] - order["price"]) * order["side"] >= 0
        left += [i] if order["end"] == 10 and through.any() else []
    purged = orders.index.difference(book.purge_crossed(orders).index)
    assert 10 < len(left) < 50
    assert purged.tolist() == left


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_walking_a_book_of_power_density_has_its_exponent(density: float) -> None:
    """Volume d^(1 + g) up to a distance d costs (1 + g) / (2 + g) Q^(1 / (1 + g)) on average."""
    edges, sizes = np.linspace(0, 10, 20_001), np.geomspace(1, 9, 4)
    levels = {"volume": np.diff(edges ** (1 + density)), "start": 0.0, "end": 1.0}
    middle = (edges[1:] + edges[:-1]) / 2
    book_of = [pd.DataFrame({"side": s, "price": 1e4 + s * middle} | levels) for s in (1, -1)]
    cost, _ = book.walking_cost(pd.concat(book_of), [0.5], sizes)
    power = 1 / (1 + density)
    expected = (1 + density) / (2 + density) * sizes**power
    np.testing.assert_allclose(cost[0], [expected, expected], rtol=1e-4)
    twice = np.log(np.concatenate([cost, 2 * cost, cost]))
    found = book.depth_statistics(book.lagged_pairs(twice, 1), 1.0, sizes)
    np.testing.assert_allclose(found[-5:], power, atol=1e-4)


def test_statistics_of_a_wave_are_known() -> None:
    """A wave of period P has sd A / sqrt 2 and autocorrelation cos(2 pi h / P), here 1 / sqrt 2."""
    period, lag = 16, 2
    wave = np.sin(2 * np.pi * np.arange(5 * period + lag) / period)
    logs = np.stack([[2 + a * wave, 5 - 2 * a * wave] for a in (0.3, 0.6)], axis=-1).transpose(1, 0, 2)
    found = book.depth_statistics(book.lagged_pairs(logs, lag), 4.0, [1.0, 2.0])
    sides = math.sqrt((1 + 4) / 2)
    np.testing.assert_allclose(found[:2], [0.3 * sides / math.sqrt(2), 0.6 * sides / math.sqrt(2)])
    np.testing.assert_allclose(found[2:4], 8.0)


def test_cost_and_mid_around_a_trade_follow_the_log() -> None:
    hits = book.market_orders(TRADE)
    assert hits[["time", "side", "amount", "price"]].to_numpy().tolist() == [[1.0, 1.0, 1.5, 101.0]]
    cost, mid = book.around_trades(book.resting_orders(LOG), hits, [-0.5, 0.0, 0.5, 1.5], [2.0])
    expected = [100, 100 * (0.5 + 1.5 * 3) / 2, 100, 1e4 * (103 / 101 - 1)]
    np.testing.assert_allclose(np.exp(cost[0, :, 0]), expected, rtol=1e-9)
    np.testing.assert_allclose(mid[0], [0, 0, 0, 100], atol=1e-9)


def test_a_trade_that_hits_the_bids_is_measured_there_with_the_opposite_sign() -> None:
    mirrored = LOG.assign(
        price=200 - LOG["price"], direction=LOG["direction"].map({"ask": "bid", "bid": "ask"})
    )
    sale = TRADE.assign(side="sell", sell_order_id=5, buy_order_id=1, price=99.0)
    cost, mid = book.around_trades(
        book.resting_orders(mirrored), book.market_orders(sale), [-0.5, 0.0, 1.5], [2.0]
    )
    np.testing.assert_allclose(np.exp(cost[0, :2, 0]), [100, 250], rtol=1e-9)
    np.testing.assert_allclose(mid[0], [0, 0, 100], atol=1e-9)


def test_the_half_life_of_refill_is_that_of_the_decay() -> None:
    lags = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    half_lives = np.array([0.5, 2.0, 3.0])
    excess = np.stack([scale * 0.5 ** (lags[:, None] / half_lives) for scale in (0.5, 1.5)])
    np.testing.assert_allclose(book.refill_half_life(excess, lags), half_lives)
    line = np.stack([1 - lags / 8, 1 - lags / 5, 1 - lags / 20], axis=-1)[None]
    np.testing.assert_allclose(book.refill_half_life(line, lags), [4.0, 2.5, np.inf])


def test_intervals_cover_the_dependence_of_the_rows() -> None:
    """The error of a mean of AR(1) rows is sqrt((1 + f) / (1 - f)) times that of independent ones."""
    draws, factor, n = np.random.default_rng(2), 0.8, 20_000
    rows, shocks = np.zeros((n, 1)), draws.normal(size=(n, 1))
    for i in range(1, n):
        rows[i] = factor * rows[i - 1] + shocks[i]
    found = book.block_intervals(lambda x: x.mean(axis=0), rows, 100, 400, 3)
    width = (found["ci_high"] - found["ci_low"]) / (2 * 1.96 * rows.std() / math.sqrt(n))
    assert found["estimate"] == rows.mean()
    assert width == pytest.approx(math.sqrt((1 + factor) / (1 - factor)), rel=0.15)


def test_the_recorded_trades_pay_the_prices_of_the_rebuilt_book() -> None:
    """A market order's average price is the cost of walking the book a millisecond before it."""
    events, trades = bitstamp_book(CACHE)
    # Numbers that the package publishes of its record.
    assert (len(events), len(trades)) == (314_057, 284)
    assert events["time"].max() == pytest.approx(1800, abs=0.1)
    all_orders = book.resting_orders(events)
    orders = book.purge_crossed(all_orders)
    assert len(all_orders) - len(orders) == 2
    hits = book.market_orders(trades)
    taker = trades[["buy_order_id", "sell_order_id"]].max(axis=1)
    paid = (trades["price"] * trades["amount"]).groupby(taker).sum() / hits["amount"]
    several = hits[(taker.value_counts() > 1).reindex(hits.index) & (hits["time"] > 5)]
    near = orders[(orders["price"] / 78_400 - 1).abs() < 0.01]
    walked = []
    for _, hit in several.iterrows():
        cost, best = book.walking_cost(near, [round(hit["time"] - 0.001, 3)], [hit["amount"]])
        walked.append(best.mean() * (1 + hit["side"] * cost[0, int(hit["side"] < 0), 0] / 1e4))
    assert len(several) > 30
    assert (paid[several.index] - walked).abs().lt(0.01).mean() > 0.9
    _, best = book.walking_cost(orders, np.arange(5.0, 1799.0, 10), [1.0])
    assert (best[:, 0] > best[:, 1]).all()
