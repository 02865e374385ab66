"""The parts of an order's cost: they add up, and each is what it is by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flowoe_lib.data.bars import load_bars
from flowoe_lib.desk import commands
from flowoe_lib.desk.live import follow, read_fills, work
from flowoe_lib.desk.review import review
from flowoe_lib.desk.ticket import OrderError

ZONE = "America/New_York"
DECISION, SIZE = 50.0, 60_000


@pytest.fixture(params=["buy", "sell"])
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A plan for 10:00 to 15:00, whose simulated days cost 0 to 100 bps."""
    figures = {"price": DECISION, "adv": 1e6, "volatility": 0.02, "kappa": 4, "cv": 0.9, "rho": -0.6}
    figures |= {"depth_sd": 0.3, "depth_reversion": 5, "profile_amplitude": 0.5}
    return {
        "ticket": {"side": request.param, "shares": SIZE, "start": "10:00", "end": "15:00", "lot": 1},
        "bars": {"source": "bars", "timezone": ZONE},
        "estimates": {name: {"value": value, "source": "test"} for name, value in figures.items()},
        "breaks": [],
        "risk_aversion": 5e-4,
        "policy": "flow_refined",
        "cost_quantiles_bps": list(range(101)),
    }


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    """A day in bars of five minutes."""
    draws = np.random.default_rng(5)
    ends = pd.date_range("2024-02-14 09:35", "2024-02-14 16:00", freq="5min")
    close = 50.4 + 0.03 * draws.standard_normal(len(ends)).cumsum()
    opened = np.r_[50.4, close[:-1]]
    frame = {
        "open": opened,
        "high": np.maximum(opened, close) + 0.02,
        "low": np.minimum(opened, close) - 0.02,
    }
    return pd.DataFrame(
        {"time": ends} | frame | {"close": close, "volume": draws.uniform(1e4, 3e4, len(ends))}
    )


def fills(bars: pd.DataFrame, n: int = 40) -> pd.DataFrame:
    """Fills of 1,000 shares at random times of the window."""
    draws = np.random.default_rng(6)
    times = pd.Timestamp("2024-02-14 10:00", tz=ZONE) + pd.to_timedelta(
        np.sort(draws.uniform(0, 5, n)), unit="h"
    )
    price = 50.4 + 0.1 * draws.standard_normal(n)
    return pd.DataFrame({"shares": 1e3, "price": price}, pd.DatetimeIndex(times, name="time"))


def test_the_parts_add_up_to_the_paper_portfolio_less_the_real_one(
    record: dict[str, Any], bars: pd.DataFrame
) -> None:
    """Perold: what the order would have gained at the price of the plan, less what it did gain."""
    filled = fills(bars)
    result = review(record, filled, load_bars(bars), spread_bps=4)
    side = 1 if record["ticket"]["side"] == "buy" else -1
    end = bars.loc[bars["time"] == "2024-02-14 15:00", "close"].item()
    paper = side * SIZE * (end - DECISION)
    real = side * (filled["shares"] * (end - filled["price"])).sum()
    assert result.parts["currency"].sum() == pytest.approx(paper - real, rel=1e-12)
    arrival = bars.loc[bars["time"] == "2024-02-14 10:00", "close"].item()
    delay = side * SIZE * (arrival - DECISION)
    assert result.parts.loc["delay", "currency"] == pytest.approx(delay)
    assert result.cost_bps == pytest.approx(1e4 * (paper - real - delay) / (SIZE * arrival))
    assert result.parts.loc["opportunity", "currency"] == pytest.approx(side * 20_000 * (end - arrival))
    assert result.percentile == pytest.approx(np.clip(result.cost_bps, 0, 100))


def test_impact_and_timing_are_told_apart(record: dict[str, Any], bars: pd.DataFrame) -> None:
    """In a market that stays where it is but for the order's own impact there is no timing cost."""
    result = review(record, fills(bars), load_bars(bars))
    side = 1 if record["ticket"]["side"] == "buy" else -1
    # 1e4 gamma sigma (X / V) (Theta / V)^(1/4) per day; the volatility of the window in its place.
    sigma, adv = record["estimates"]["volatility"]["value"], record["estimates"]["adv"]["value"]
    move = 0.314 * sigma * SIZE / adv * 263**0.25 * result.benchmarks.loc["arrival", "price"]
    assert result.parts.loc["permanent", "currency"] == pytest.approx(move * 40_000**2 / 2 / SIZE, rel=1e-4)
    still = bars.assign(open=50.0, high=50.0, low=50.0, close=50.0)
    bought = fills(bars).assign(price=50.0 + side * 0.03)
    parts = review(record, bought, load_bars(still), spread_bps=2).parts["currency"]
    assert parts["spread"] == pytest.approx(40_000 * 50 * 1e-4)
    assert parts["temporary"] == pytest.approx(40_000 * 0.03 - parts["spread"])
    assert parts["timing"] == pytest.approx(-parts["permanent"])
    assert parts[["delay", "opportunity"]].abs().max() == 0


def test_benchmarks_are_those_of_the_window_and_the_day(record: dict[str, Any], bars: pd.DataFrame) -> None:
    filled = fills(bars)
    found = review(record, filled, load_bars(bars)).benchmarks
    window = bars[(bars["time"] > "2024-02-14 10:00") & (bars["time"] <= "2024-02-14 15:00")]
    typical = (window["high"] + window["low"] + window["close"]) / 3
    assert found.loc["vwap", "price"] == pytest.approx(
        (typical * window["volume"]).sum() / window["volume"].sum()
    )
    assert found.loc["twap", "price"] == pytest.approx(typical.mean())
    assert found.loc["close", "price"] == bars["close"].iloc[-1]
    side = 1 if record["ticket"]["side"] == "buy" else -1
    against = 1e4 * side * (filled["price"].mean() / found["price"] - 1)
    pd.testing.assert_series_equal(found["bps"], against, check_names=False)


def test_an_order_without_fills_is_all_opportunity(record: dict[str, Any], bars: pd.DataFrame) -> None:
    result = review(record, fills(bars, 0), load_bars(bars))
    assert (result.parts["currency"].drop(["delay", "opportunity"]) == 0).all()
    assert result.parts.loc["opportunity", "currency"] != 0


def test_what_does_not_fit_is_refused(record: dict[str, Any], bars: pd.DataFrame) -> None:
    with pytest.raises(OrderError, match=r"fills: 70,000 shares; must be at most the order, 60,000"):
        review(record, fills(bars, 70), load_bars(bars))
    assert review(record, fills(bars, 70), load_bars(bars), shares=80_000).shares == 80_000
    with pytest.raises(OrderError, match="no bar ends within the window, 2024-02-14 10:00"):
        review(record, fills(bars), load_bars(bars.iloc[:3]))


BAD = {
    "a column": ("time,shares\n2024-02-14 10:00,5\n", "price"),
    "a number": ("time,shares,price\n2024-02-14 10:00,5,x\n", "could not convert"),
    "a time": ("time,shares,price\n14/2/24,5,50\n", "14/2/24"),
    "a sign": ("time,shares,price\n2024-02-14 10:00,5,50\n2024-02-14 10:00,-5,50\n", "line 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_fills_are_refused(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    (tmp_path / "fills.csv").write_text(text)
    with pytest.raises(OrderError, match=message):
        read_fills(tmp_path / "fills.csv", ZONE)


def test_the_commands_work_an_order_and_review_it(
    record: dict[str, Any],
    bars: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The broker fills nine tenths of each child order a minute after it is sent, two cents away."""
    monkeypatch.chdir(tmp_path)
    Path("plan.json").write_text(json.dumps(record))
    bars.to_csv("today.csv", index=False)
    order, side = work(record, "live.json"), 1 if record["ticket"]["side"] == "buy" else -1
    done = pd.DataFrame({"shares": [], "price": []}, pd.DatetimeIndex([], tz=ZONE, name="time"))
    for i in range(6, 24, 2):
        follow(order, load_bars(bars.iloc[:i]), done)
        time = pd.Timestamp(order.state.time) + pd.Timedelta(minutes=1)
        done.loc[time] = [order.child.shares * 9 // 10, bars["close"][i - 1] + side * 0.02]
    done.to_csv("fills.csv")
    words = ["PLAN=plan.json", "BARS=today.csv", "FILLS=fills.csv"]
    assert commands.main(["work", *words]) == 0
    total = int(done["shares"].sum())
    assert 0 < total < SIZE
    said = capsys.readouterr().out
    assert said.startswith(f"filled  {total:,} of 60,000 shares at 2024-02-14 15:00")
    assert said.endswith(f"now     {record['ticket']['side']} 0, because the window is over\n")
    assert (
        commands.main(["review", "PLAN=plan.json", "BARS=today.csv", "FILLS=fills.csv", "SPREAD_BPS=2"]) == 0
    )
    assert f"60,000 shares, of which {total:,} (" in capsys.readouterr().out
    page = Path("build/review/review.html").read_text()
    assert page.count("<table") == 3
    assert "opportunity" in page
    assert commands.main(["review", "PLAN=plan.json", "BAR=today.csv"]) == 1
    assert "bar = 'today.csv': no such option; the nearest is bars" in capsys.readouterr().err
