"""A desk's order: estimates from its bars, the trading window, caps, limits and refusals."""

import math
import re
import runpy
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowoe_lib.data.bars import Bars, load_bars
from flowoe_lib.data.vendors import BarsError
from flowoe_lib.desk import commands, planner
from flowoe_lib.desk.figures import day_figure, order_frontier_figure, schedule_figure
from flowoe_lib.desk.market_estimates import Estimated, estimate, expected_volume
from flowoe_lib.desk.page import summary, tables, write_page
from flowoe_lib.desk.planner import (
    CONTROL,
    FLOW,
    Plan,
    Restricted,
    _Desk,
    plan_order,
    read_plan,
    whole_lots,
)
from flowoe_lib.desk.ticket import OrderError, Ticket, described_options
from flowoe_lib.evaluation.extrapolation import violations
from flowoe_lib.evaluation.tested import TESTED_LIMITS
from flowoe_lib.execution.execution import Observation, execute
from flowoe_lib.market.model import Heston, Liquidity, Market, Order, scalar
from flowoe_lib.market.pre_trade import urgency
from flowoe_lib.market.simulator import simulate
from flowoe_lib.plotting import LOOKS
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.randomness import generator
from flowoe_lib.store import Workspace
from flowoe_lib.training.pretrained import load_pretrained

TRAINED = load_pretrained()
SESSION = ("09:30", "16:00")
SIGMA, ADV = 0.02, 4e6


@pytest.fixture
def short_frontier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frontier has its two ends alone, for tests that look at the rest of a plan."""
    monkeypatch.setattr(planner, "AVERSIONS", planner.AVERSIONS[::6])


def daily(n: int = 40, sigma: float = SIGMA, volume: float = ADV, freq: str = "B") -> Bars:
    """Days whose Garman-Klass variance is sigma^2 each: the close is the open."""
    span = math.exp(math.sqrt(2) * sigma / 2)
    times = pd.date_range("2024-01-02", periods=n, freq=freq)
    frame = pd.DataFrame({"time": times, "open": 50.0, "high": 50 * span, "low": 50 / span})
    return load_bars(frame.assign(close=50.0, volume=volume))


def minutes(days: int, gap: bool = False) -> pd.DataFrame:
    """Random bars of five minutes from 9:30 to 16:00, each at its end."""
    draws = np.random.default_rng(3)
    blocks = []
    for day in pd.date_range("2024-01-02", periods=days, freq="B"):
        opens, closes = (day + pd.Timedelta(clock) for clock in ("9:30:00", "16:00:00"))
        ends = pd.date_range(opens, closes, freq="5min")[1:]
        opened = 100 * np.exp(np.r_[0, draws.normal(0, 1e-3, len(ends) - 1)].cumsum())
        closed = opened * np.exp(draws.normal(0, 8e-4, len(ends)))
        high = np.maximum(opened, closed) * np.exp(draws.exponential(5e-4, len(ends)))
        low = np.minimum(opened, closed) * np.exp(-draws.exponential(5e-4, len(ends)))
        time = (np.arange(len(ends)) + 0.5) / len(ends)
        volume = 1e4 * (1 + 0.6 * (6 * time**2 - 6 * time + 1)) * np.exp(draws.normal(0, 0.2, len(ends)))
        prices = {"open": opened, "high": high, "low": low, "close": closed}
        blocks.append(pd.DataFrame({"time": ends, "volume": volume} | prices))
    frame = pd.concat(blocks, ignore_index=True)
    return frame.drop(index=range(30, 60)) if gap else frame


def sources_of(found: Any) -> pd.Series:
    return pd.Series({name: figure.source for name, figure in found.figures().items()})


def known(bars: Bars) -> Any:
    return estimate(bars, TRAINED.calibration, TRAINED.card["range"], SESSION)


def test_daily_bars_give_volatility_and_volume_and_the_calibration_the_rest() -> None:
    found = known(daily())
    assert found.volatility.value == pytest.approx(SIGMA, rel=1e-9)
    assert (found.adv.value, found.price.value) == (ADV, 50.0)
    assert found.kappa.value == TRAINED.calibration["kappa"]
    assert found.cv.value == TRAINED.calibration["cv_years"]
    sources = sources_of(found)
    assert sources["volatility"] == "last 21 days"
    rest = ["kappa", "cv", "rho", "depth_sd", "depth_reversion", "profile_amplitude"]
    assert set(sources[rest]) == {"suite"}


def test_intraday_bars_are_added_up_to_sessions() -> None:
    frame = minutes(25)
    found = known(load_bars(frame, timezone="America/New_York"))
    body = np.log(frame["close"] / frame["open"])
    span = np.log(frame["high"] / frame["low"])
    variance = span**2 / 2 - (2 * math.log(2) - 1) * body**2
    by_day = pd.DataFrame({"v": variance, "volume": frame["volume"]}).groupby(frame["time"].dt.date).sum()
    last = by_day.iloc[-21:]
    assert found.volatility.value == pytest.approx(math.sqrt(last["v"].mean()), rel=1e-9)
    assert found.adv.value == pytest.approx(last["volume"].mean(), rel=1e-9)
    assert found.profile_amplitude.value == pytest.approx(0.6, abs=0.1)
    bounds = TRAINED.conditions
    for name in ("kappa", "cv", "depth_sd", "depth_reversion"):
        low, high = getattr(bounds, name)
        figure = getattr(found, name)
        assert low <= figure.value <= high
        assert figure.source.startswith("25 sessions")


def test_a_few_sessions_give_the_volume_profile_but_no_dynamics() -> None:
    sources = sources_of(known(load_bars(minutes(6), timezone="America/New_York")))
    assert sources["profile_amplitude"].startswith("6 sessions")
    assert sources["kappa"] == "suite"


def with_break(days: int, closes: str, start: str, end: str) -> pd.DataFrame:
    """Bars of five minutes, by their end, with a lunch break in which there are none."""
    frame = minutes(days)
    clock = frame["time"].dt.strftime("%H:%M")
    kept: pd.DataFrame = frame[(clock <= closes) & ((clock <= start) | (clock > end))]
    return kept


@pytest.mark.usefixtures("short_frontier")
@pytest.mark.parametrize(("start", "end"), [("11:30", "13:00"), ("12:00", "13:00")])
def test_nothing_is_planned_in_a_lunch_break(start: str, end: str) -> None:
    bars = load_bars(with_break(25, "15:00", start, end))
    made = plan_order(bars, Ticket("buy", 3e4, session=("09:30", "15:00")), TRAINED, n_paths=100)
    first, last = (int(clock[:2]) * 60 + int(clock[3:]) for clock in (start, end))
    assert made.estimates.breaks == ((first, last),)
    inside = (made.schedule.index >= start) & (made.schedule.index < end)
    assert (made.schedule["traded"][inside] == 0).all()
    assert (made.day["traded"][inside] == 0).all()
    assert (made.schedule["traded"][~inside] > 0).all()
    volume = expected_volume(made.ticket, made.estimates)
    assert volume.sum() == pytest.approx(made.estimates.adv.value)
    assert (volume[inside] == 0).all()
    by_day = bars.frame["volume"].groupby(bars.index.date).sum()
    assert made.estimates.adv.value == pytest.approx(by_day.iloc[-21:].mean())
    assert made.estimates.profile_amplitude.value == pytest.approx(0.6, abs=0.25)


@pytest.mark.usefixtures("short_frontier")
def test_what_looks_wrong_in_the_bars_is_told_with_the_plan_and_with_a_refusal() -> None:
    frame = daily().frame.reset_index()
    split = frame.assign(**{c: frame[c].where(frame.index < 30, frame[c] / 4) for c in ("open", "close")})
    split = split.assign(high=split["open"] * 1.01, low=split["open"] * 0.99)
    bars = load_bars(split)
    [told] = bars.flags
    assert told in plan_order(bars, Ticket("buy", 1e5), TRAINED, n_paths=50).flags
    with pytest.raises(OrderError, match=re.escape(told)):
        plan_order(bars, Ticket("buy", 1e9), TRAINED, n_paths=50)


def test_a_session_that_is_not_covered_is_refused_with_the_hours_that_are() -> None:
    early = minutes(6).assign(time=lambda f: f["time"] - pd.Timedelta(hours=1))
    with pytest.raises(BarsError, match=r"from 09:30 to 16:00 .* the bars cover 08:30 to 15:00 \(6 days\)"):
        known(load_bars(early))


TOO_LITTLE: dict[str, tuple[Any, str]] = {
    "few days": (lambda: daily(20), "covers 20 days; at least 21"),
    "few sessions": (lambda: load_bars(minutes(4), timezone="America/New_York"), "covers 4 whole sessions"),
    "a day with a hole": (
        lambda: load_bars(minutes(5, gap=True), timezone="America/New_York"),
        "covers 4 whole sessions from 09:30 to 16:00 America/New_York; at least 5",
    ),
    "nothing moved": (lambda: daily(sigma=0.0), "no price moved in the last 21 days"),
    "nothing traded": (lambda: daily(volume=0.0), "nothing was traded in the last 21 days; give"),
    "weekly": (lambda: daily(40, freq="W-FRI"), "bars are longer than a day"),
}


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_bars_with_too_little_data_are_refused(case: str) -> None:
    make, message = TOO_LITTLE[case]
    with pytest.raises(BarsError, match=message):
        known(make())


def test_rates_are_per_session_whatever_its_length() -> None:
    usual = known(daily())
    whole_day = estimate(daily(), TRAINED.calibration, TRAINED.card["range"], ("00:00", "26:00"))
    for name in ("kappa", "depth_reversion"):
        assert getattr(whole_day, name).value == pytest.approx(4 * getattr(usual, name).value)
    assert whole_day.volatility == usual.volatility


def test_long_bars_give_no_dynamics_within_the_day() -> None:
    frame = minutes(25).set_index("time")
    rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    half_hours: pd.DataFrame = frame.resample("30min", label="right", closed="right").agg(rules).dropna()
    sources = sources_of(known(load_bars(half_hours, timezone="America/New_York")))
    assert str(sources["profile_amplitude"]).startswith("25 sessions")
    assert sources["kappa"] == sources["depth_sd"] == "suite"


@pytest.mark.usefixtures("short_frontier")
def test_a_volume_given_is_the_one_used_and_shown() -> None:
    made = plan_order(daily(volume=0.0), Ticket("buy", 1e5, adv=1e6), n_paths=200)
    assert float(made.condition.order.size) == pytest.approx(0.1)
    assert made.estimates.adv == Estimated(1e6, "ticket")


@pytest.mark.usefixtures("short_frontier")
def test_a_hidden_drift_outside_the_training_range_is_flagged() -> None:
    unsure = Ticket("buy", 3e5, drift_bps=20, drift_sd_bps=30)
    assert [str(d) for d in plan_order(daily(), unsure, n_paths=200).flags] == [
        "cv beside a hidden drift = 1.303: trained on 0.02 to 0.02",
        "drift beside a hidden one = 3.277: trained on 0 to 0",
    ]


@pytest.mark.usefixtures("short_frontier")
@pytest.mark.parametrize(("start", "end"), [(None, None), ("10:00", "13:15")])
def test_the_window_takes_the_place_of_the_day(start: str | None, end: str | None) -> None:
    """Cost and risk of TWAP, in units of the day, from the formulas of the impact model."""
    ticket = Ticket("sell", 2e5, start=start, end=end, illiquidity=1.5, beta=0.5, shares_outstanding=30 * ADV)
    made = plan_order(daily(), ticket, n_paths=4000)
    opens, closes = (0.0, 1.0) if start is None else (30 / 390, 225 / 390)
    n = 39 if start is None else 20
    assert ticket.n_buckets == len(made.schedule) == n
    amplitude, sd = (TRAINED.calibration[name] for name in ("profile_amplitude", "depth_sd"))
    # Volume of each bucket by fine sums over the U.
    fine = opens + (closes - opens) * (np.arange(n * 400) + 0.5) / (n * 400)
    volume = (
        (1 + amplitude * (6 * fine**2 - 6 * fine + 1)).reshape(n, 400).mean(1) * ADV * (closes - opens) / n
    )
    rate = 2e5 / n / volume
    temporary = 1e4 * 0.142 * 1.5 * SIGMA * np.mean(rate**0.5) * math.exp(0.5**2 * sd**2 / 2)
    permanent = 1e4 * 0.314 * 30**0.25 * SIGMA * 2e5 / ADV / 2
    cost = made.costs.loc["twap"]
    assert cost["cost_bps"] == pytest.approx(temporary + permanent, rel=0.01)
    left = 1 - np.arange(1, n + 1) / n
    risk = 1e4 * SIGMA * math.sqrt((closes - opens) / n * np.sum(left**2))
    assert cost["std_bps"] == pytest.approx(risk, rel=0.06)
    assert cost["cost_currency"] == pytest.approx(cost["cost_bps"] / 1e4 * 2e5 * 50, rel=1e-9)
    assert float(made.condition.order.size) == pytest.approx(2e5 / volume.sum(), rel=1e-4)


def test_the_plan_trades_the_whole_order_and_beats_its_benchmarks() -> None:
    made = plan_order(daily(), Ticket("buy", 3e5), n_paths=4000)
    shares = made.schedule
    assert shares[["low", "median", "high", "twap", "static_optimal"]].iloc[-1].tolist() == [0.0] * 5
    assert (shares["low"] <= shares["median"]).all()
    assert (shares["median"] <= shares["high"]).all()
    assert shares["median"].is_monotonic_decreasing
    assert shares.index[0] == "09:30:00"
    assert shares.index[-1] == "15:50:00"
    lead = made.costs.drop("flow_refined")
    assert (lead["gain_ci_low"] > 0).all()
    assert made.costs.loc["flow_refined", "gain_bps"] == 0
    own = made.frontier[made.frontier["policy"] == "flow_refined"]
    assert own["std_bps"].is_monotonic_decreasing
    assert own["cost_bps"].is_monotonic_increasing
    assert made.flags == []
    assert made.day["traded"].sum() == pytest.approx(3e5, rel=1e-5)
    for figure in (
        schedule_figure(shares, 3e5),
        order_frontier_figure(made.frontier, made.costs),
        day_figure(made.day),
    ):
        assert all(axes.get_ylabel() for axes in figure.axes)


@pytest.fixture(scope="module")
def bought() -> Plan:
    """The plan of an order without options, which other plans are compared with."""
    torch.set_num_threads(1)
    return plan_order(daily(), Ticket("buy", 3e5), n_paths=1000)


@pytest.mark.usefixtures("short_frontier")
def test_a_buyer_is_a_mirrored_seller_until_prices_drift(bought: Plan) -> None:
    sold = plan_order(daily(), Ticket("sell", 3e5), n_paths=1000)
    pd.testing.assert_frame_equal(bought.schedule, sold.schedule)
    assert bought.costs["cost_bps"]["twap"] == pytest.approx(sold.costs["cost_bps"]["twap"], rel=1e-6)
    rising = {
        side: plan_order(daily(), Ticket(side, 3e5, drift_bps=60), n_paths=1000) for side in ("buy", "sell")
    }
    halfway = {side: made.schedule["median"].iloc[19] for side, made in rising.items()}
    assert halfway["buy"] < bought.schedule["median"].iloc[19] < halfway["sell"]


@pytest.mark.parametrize(
    "options", [{}, {"risk_aversion": 1e-3, "participation_cap": 0.2}, {"cost_limit_bps": 400}]
)
def test_the_marked_points_lie_on_their_curves(options: dict[str, Any]) -> None:
    made = plan_order(daily(), ticket(shares=3e5, **options), n_paths=500)
    aversion = made.condition.order.risk_aversion.item()
    curves = made.frontier[made.frontier["risk_aversion"] == aversion].set_index("policy")
    columns = ["std_bps", "cost_bps", "cost95_bps"]
    pd.testing.assert_frame_equal(made.costs[columns], curves[columns], rtol=1e-4)
    figure = order_frontier_figure(made.frontier, made.costs)
    drawn = [(line.get_label(), np.asarray(line.get_xydata(), dtype=float)) for line in figure.axes[0].lines]
    [curve] = [points for label, points in drawn if label == LOOKS[FLOW].name and len(points) > 1]
    mark = next(points for _, points in drawn if len(points) == 1)
    assert abs(curve / mark - 1).max(axis=1).min() < 1e-4


def test_a_cost_limit_is_kept_on_other_days_by_the_cheapest_risk_aversion() -> None:
    free = plan_order(daily(), Ticket("sell", 3e5, risk_aversion=4e-5), n_paths=2000).costs
    limit = 0.7 * free["cost95_bps"]["flow_refined"]
    made = plan_order(daily(), Ticket("sell", 3e5, cost_limit_bps=limit), n_paths=4000)
    assert made.costs.loc["flow_refined", "cost95_bps"] == pytest.approx(limit, rel=0.06)
    assert 4e-5 < float(made.condition.order.risk_aversion) < 4e-3
    assert made.costs.loc["flow_refined", "cost_bps"] > free["cost_bps"]["flow_refined"]
    # If every risk aversion meets the limit, the lowest is chosen.
    loose = plan_order(daily(), Ticket("sell", 3e5, cost_limit_bps=1e4), n_paths=200)
    assert float(loose.condition.order.risk_aversion) == pytest.approx(4e-5, rel=1e-5)
    with pytest.raises(OrderError, match=r"cost_limit_bps = 1: must be at least \d+(\.\d)?, the lowest cost"):
        plan_order(daily(), Ticket("sell", 3e5, cost_limit_bps=1), n_paths=200)


@pytest.mark.usefixtures("short_frontier")
def test_a_cap_is_kept_in_every_bucket_of_every_day(bought: Plan) -> None:
    made = plan_order(daily(), Ticket("buy", 3e5, participation_cap=0.09), n_paths=1000)
    assert made.schedule["participation_max"].max() <= 0.09 * (1 + 1e-4)
    assert made.schedule["high"].iloc[-1] == 0
    assert bought.schedule["participation_max"].max() > 0.2


@given(
    cap=st.floats(0.11, 1.0),
    amplitude=st.floats(-0.5, 1.5),
    wish=st.floats(0.0, 1.0),
)
def test_the_cap_binds_every_policy_and_the_order_is_completed(
    cap: float, amplitude: float, wish: float
) -> None:
    heston = Heston(scalar(4e-4), scalar(2.0), scalar(0.5), scalar(-0.5))
    market = Market(heston, liquidity=Liquidity(profile_amplitude=scalar(amplitude)))
    order, n = Order(scalar(0.1), scalar(5e-4)), 13

    def wishing(obs: Observation, noise: Tensor) -> Tensor:
        return torch.full_like(noise, wish)

    paths = simulate(market, 3, n, generator(1, "test"))
    room = cap * paths.volume[:, 0] / (0.1 * n)
    held = execute(Restricted(wishing, room), paths, market, order, generator(2, "test")).inventory
    share = -held.diff(dim=0) * 0.1 * n / paths.volume
    assert float(share.max()) <= cap * (1 + 1e-4)
    assert float(held[-1].abs().max()) == 0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "side": ({"side": "hold"}, "side = 'hold': Input should be 'buy' or 'sell'"),
    "no shares": ({"shares": 0}, "shares = 0: Input should be greater than 0"),
    "shares not a number": ({"shares": math.nan}, "shares = nan: Input should be a finite number"),
    "adv": ({"adv": -1.0}, "adv = -1.0: Input should be greater than 0"),
    "both": ({"risk_aversion": 1e-4, "cost_limit_bps": 9.0}, "only one of them"),
    "cap": ({"participation_cap": 1.5}, r"participation_cap = 1\.5: Input should be less than or equal to 1"),
    "beta": ({"beta": 0.0}, r"beta = 0\.0: Input should be greater than 0"),
    "drift": ({"drift_bps": math.inf}, "drift_bps = inf: Input should be a finite number"),
    "spread": ({"drift_sd_bps": -1.0}, "drift_sd_bps = -1.0: Input should be greater than or equal to 0"),
    "clock": (
        {"start": "ten"},
        "start = 'ten': must be a time such as 15:30 .*HH:MM",
    ),
    "minutes": ({"end": "09:75"}, "end = '09:75': .*time of day when execution ends, HH:MM"),
    "overnight": (
        {"session": ("18:00", "17:00")},
        "must close after it opens; 3:00 of the next",
    ),
    "one time": (
        {"session": ("18:00",)},
        r"session = \('18:00',\): .*open and close of the market.*HH:MM HH:MM",
    ),
    "yes is no number": ({"shares": True}, "shares = True: Input should be a valid number"),
    "text for a number": ({"beta": "0.6"}, "beta = '0.6': Input should be a valid number"),
    "no drift given": ({"drift_bps": None}, "drift_bps = None: Input should be a valid number"),
    "no session": ({"session": None}, "session = None: .*open and close of the market.*HH:MM HH:MM"),
    "four days": ({"session": ("09:30", "99:59")}, "session = 09:30 to 99:59: must be at most a day long"),
    "no shares given": ({"shares": None}, "shares and notional: one of them must be given"),
    "shares and value": ({"notional": 1e6}, "shares and notional: one of them must be given"),
    "yes of numpy is no number": (
        {"beta": np.True_},
        "beta = (np\\.)?True_?: Input should be a valid number",
    ),
    "annual risk aversion": (
        {"risk_aversion": 1e-6},
        "risk_aversion = 1e-06: Input should be greater than or equal to 0.00001 .*per bps",
    ),
    "before the open": (
        {"start": "09:00"},
        "start = 09:00, end = 16:00: must be in order",
    ),
    "unknown": (
        {"participation": 0.1},
        "participation = 0.1: no such option; the nearest is participation_cap. All: side, shares",
    ),
    "backwards": ({"start": "15:00", "end": "10:00"}, "start = 15:00, end = 10:00: must be in order"),
}


def ticket(**fields: Any) -> Ticket:
    whole: dict[str, Any] = {"side": "buy", "shares": 1e5}
    return Ticket(**whole | fields)


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_ticket_is_refused_by_name(case: str) -> None:
    fields, message = BAD[case]
    with pytest.raises(OrderError, match=message):
        ticket(**fields)


def test_numpy_numbers_and_lists_of_times_are_accepted() -> None:
    assert ticket(shares=np.int64(1000), illiquidity=np.float32(2)).shares == 1000
    assert ticket(session=["09:30", "16:00"]).n_buckets == 39


def test_paths_are_enough_for_a_deviation() -> None:
    with pytest.raises(OrderError, match="n_paths = 1: must be at least 2"):
        plan_order(daily(), ticket(), TRAINED, n_paths=1)


def test_only_more_than_the_volume_is_refused_and_what_would_be_accepted_is_said() -> None:
    for shares in (5e6, 1e300):
        with pytest.raises(OrderError, match=r"must be at most 4,000,000, the volume expected from 09:30 to"):
            plan_order(daily(), Ticket("buy", shares))
    with pytest.raises(OrderError, match=r"shares = 1,000,000: must be at most 3\d\d,\d{3}, .* to 10:30"):
        plan_order(daily(), Ticket("buy", 1e6, start="10:00", end="10:30"))
    with pytest.raises(OrderError, match=r"cap = 0\.05: must be at least 0\.075, .*at most 199,\d{3}"):
        plan_order(daily(), Ticket("buy", 3e5, participation_cap=0.05))
    with pytest.raises(OrderError, match=r"notional = 10: must be at least 50, a lot of 1 at 50"):
        plan_order(daily(), Ticket("buy", notional=10))


ANY_ORDER: dict[str, tuple[Any, dict[str, Any], str, list[str]]] = {
    "an index": (lambda: daily(volume=2e9), {"shares": 250_000}, CONTROL, ["urgency = "]),
    "as trained": (daily, {"shares": 3e5}, FLOW, []),
    "small": (daily, {"shares": 6000}, FLOW, []),
    "one share": (daily, {"shares": 1}, CONTROL, ["urgency = "]),
    "half of the volume": (daily, {"shares": 2e6}, FLOW, ["the order is 50% of the volume"]),
    "strong drift": (daily, {"shares": 2e5, "drift_bps": 900}, CONTROL, ["drift over cost = "]),
    "volatile": (lambda: daily(sigma=0.1), {"shares": 2e5}, FLOW, []),
    "an hour": (daily, {"shares": 2e4, "start": "10:00", "end": "11:00"}, FLOW, ["kappa = "]),
    "ten minutes": (daily, {"shares": 2e4, "start": "10:00", "end": "10:10"}, CONTROL, ["kappa = "]),
    "a coin": (lambda: daily(volume=825.7), {"shares": 0.75}, FLOW, []),
}


@pytest.mark.usefixtures("short_frontier")
@pytest.mark.parametrize("case", ANY_ORDER)
def test_any_order_is_planned_whole_and_the_flags_say_by_which_policy(case: str) -> None:
    bars, options, policy, flags = ANY_ORDER[case]
    made = plan_order(bars(), Ticket("buy", **options), TRAINED, n_paths=100)
    assert made.policy == made.costs.index[0] == policy
    assert all(any(flag.startswith(start) for flag in made.flags) for start in flags)
    assert len(made.flags) >= len(flags)
    assert any("planned by model predictive control" in flag for flag in made.flags) == (policy == CONTROL)
    assert made.schedule["traded"].sum() == pytest.approx(options["shares"], rel=1e-12)
    assert (made.schedule["traded"] >= 0).all()
    if options["shares"] >= 1:
        assert (made.schedule["traded"] % 1 == 0).all()


@given(
    shares=st.integers(1, 10**9),
    lot=st.sampled_from([1, 7, 100]),
    n=st.integers(1, 20),
    cap=st.floats(1.3, 4.0),
    seed=st.integers(0, 99),
)
def test_lots_add_up_and_keep_within_the_room(shares: int, lot: int, n: int, cap: float, seed: int) -> None:
    draws = np.random.default_rng(seed)
    left = shares * np.append(np.sort(draws.uniform(0, 1, n - 1))[::-1], 0.0)
    room = cap * shares * (w := draws.uniform(0.5, 1, n)) / w.sum() + lot
    traded = whole_lots(left, Ticket("buy", shares, lot=lot), room)
    assert traded.sum() == shares
    assert (traded >= 0).all()
    assert (traded <= room).all()
    assert (traded[:-1] % lot == 0).all()
    loose = whole_lots(left, Ticket("buy", shares, lot=lot), np.full(n, np.inf))
    assert np.abs(shares - loose.cumsum() - left)[:-1].max(initial=0) <= lot


@pytest.mark.usefixtures("short_frontier")
def test_a_value_is_bought_in_whole_lots() -> None:
    made = plan_order(daily(), Ticket("Buy", notional=5e6, lot=100), TRAINED, n_paths=100)
    assert made.ticket.shares == made.schedule["traded"].sum() == 100_000
    assert (made.schedule["traded"] % 100 == 0).all()
    assert made.costs["cost_currency"].iloc[0] == pytest.approx(made.costs["cost_bps"].iloc[0] / 1e4 * 5e6)


@pytest.mark.usefixtures("short_frontier")
@pytest.mark.parametrize(("side", "limit"), [("buy", 50.25), ("sell", 49.75)])
def test_nothing_is_traded_beyond_the_limit(side: str, limit: float) -> None:
    """Trades stop where the price is 50 bps worse, and the rest is valued at the close."""
    made = plan_order(daily(), Ticket(side, 3e5, limit=limit), TRAINED, n_paths=500)
    [flag] = made.flags
    assert flag.startswith(f"limit = {limit}: on ")
    assert made.schedule["high"].iloc[-1] > 0
    c, desk = made.condition, _Desk(made.ticket, made.estimates, TRAINED, FLOW, 1)
    days = simulate(c.market, 500, 39, generator(1, "limit"))
    done = desk.work([FLOW], [c], days)[FLOW]
    price = c.order.side * (days.martingale_bps + days.drift_bps)
    before = torch.cat((torch.zeros(1, 500), price.cumsum(0)[:-1]))
    traded = -done.inventory.diff(dim=0)
    assert (traded[before < -50.01] == 0).all()
    assert (traded[before > -49.99] > 0).any()
    # Independent account: each trade at the price of its moment, the rest at the last price.
    slope = c.market.temporary_cost_bps(c.order.size * 39 / days.volume) * torch.exp(-0.6 * days.log_depth)
    gamma = c.market.permanent_cost_bps(c.order.size)
    left = done.inventory[1:]
    own = (slope * traded**1.6 + gamma * traded * (left + traded / 2)).sum(0)
    pnl = (traded * before).sum(0) + left[-1] * price.sum(0) - own
    torch.testing.assert_close(done.pnl_bps, pnl, rtol=1e-3, atol=1e-2)


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = plan_order(daily(), Ticket("sell", 3e5, start="10:00", cost_limit_bps=400), TRAINED, n_paths=200)
    made.write(tmp_path / "plan.json")
    order, estimates, condition, record = read_plan(tmp_path / "plan.json")
    assert (order, estimates) == (made.ticket, made.estimates)
    assert condition == made.condition
    assert record["policy"] == made.policy
    assert record["cost_quantiles_bps"][95] == pytest.approx(made.costs["cost95_bps"].iloc[0], rel=1e-5)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(OrderError, match=r"plan\.json: is not a plan of `make order`"):
        read_plan(tmp_path / "plan.json")


def test_tested_limits_are_wider_than_the_training_range() -> None:
    heston = Heston(scalar(4e-4), scalar(2.0), scalar(1.3), scalar(-0.8))
    far = violations(TRAINED.conditions, Market(heston), Order(scalar(1e-9), scalar(5e-4)))
    trained = {d.quantity: (d.low, d.high) for d in far}
    for name, (low, high) in TESTED_LIMITS.items():
        trained_low, trained_high = trained.get(name) or getattr(TRAINED.conditions, name)
        assert low < trained_low
        assert high > trained_high


@pytest.mark.usefixtures("short_frontier")
@pytest.mark.parametrize("end", TESTED_LIMITS["urgency"])
def test_at_the_limits_of_urgency_the_policy_is_as_good_as_re_planning(end: float) -> None:
    made = plan_order(daily(), Ticket("buy", 3e5), TRAINED, n_paths=2)
    c = made.condition
    aversion = c.order.risk_aversion * end / urgency(c.market, c.order)
    order, days = replace(c.order, risk_aversion=aversion), simulate(c.market, 400, 39, generator(1, "d"))
    flow, control = (
        execute(policy, days, c.market, order, generator(1, "n")).utility_bps(order).mean().item()
        for policy in (TRAINED.policy(), mpc)
    )
    assert flow == pytest.approx(control, rel=0.002)


def test_the_page_opens_with_five_lines_and_holds_every_table(bought: Plan, tmp_path: Path) -> None:
    page = write_page(bought, tmp_path, 1000).read_text()
    lines = summary(bought)
    assert list(lines) == ["order", "market", "plan", "cost", "flags"]
    assert lines["order"] == (
        "buy 300,000 shares from 09:30 to 16:00, worth 15,000,000 at 50: 7.50% of the volume expected then"
    )
    assert lines["market"] == "4,000,000 shares a day (last 21 days), volatility 2.00% a day (last 21 days)"
    cost = bought.costs.loc[FLOW]
    money = f"{cost['cost_bps']:.2f} bps expected ({cost['cost_bps'] / 1e4 * 15e6:,.0f})"
    assert lines["cost"].startswith(money)
    lead = bought.costs.loc["twap", ["gain_bps", "gain_ci_low", "gain_ci_high"]]
    assert "TWAP {:+.2f} ({:+.2f} to {:+.2f})".format(*lead) in lines["cost"]
    assert lines["flags"] == "none"
    places = [page.index(text) for text in (*lines.values(), "<h2>Schedule</h2>", "<h2>Cost and risk</h2>")]
    assert places == sorted(places)
    for text in ("notebook", "In [", "import ", "PROFILE", "$", "nan", "e+0"):
        assert text not in re.sub(r'src="[^"]+"|<style>.*</style>', "", page, flags=re.DOTALL)
    shown = tables(bought)
    assert all(table.to_html(classes="figures", border=0) in page for table in shown.values())
    own = replace(bought, ticket=bought.ticket.model_copy(update={"eta": 0.1}))
    row = "temporary impact eta, daily volatilities"
    assert [list(tables(x)["market"].loc[row]) for x in (bought, own)] == [
        ["0.142", "published"],
        ["0.1", "order"],
    ]
    traded = shown["schedule"]["shares to trade"].str.replace(",", "").astype(float)
    assert traded.sum() == 3e5
    assert (
        shown["costs"].loc["TWAP", "expected cost, currency"]
        == f"{bought.costs['cost_currency']['twap']:,.0f}"
    )
    for name in ("schedule", "costs", "frontier", "day"):
        written = pd.read_csv(tmp_path / f"order_{name}.csv")
        assert len(written) == len(getattr(bought, name))
    assert read_plan(tmp_path / "plan.json")[0] == bought.ticket


def test_markup_in_names_is_shown_as_text(bought: Plan, tmp_path: Path) -> None:
    odd = replace(bought, flags=["<script>"], bars=replace(bought.bars, reading="a & <b>"))
    page = write_page(odd, tmp_path, 1000).read_text()
    assert "<script>" not in page
    assert "a &amp; &lt;b&gt;" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["order", "SIDE=hold", "SHARES=10"], "side = 'hold'"),
        (["order", "SIDE=buy", "SHARES=1e12"], "shares = 1e+12: must be at most 4,368,520,000"),
        (["order", "SIDE=buy", "SHARES=10", "DATA=nowhere.csv"], "nowhere.csv: no such file"),
        (["order", "--help"], "--help = ''"),
        (["SIDE=buy"], "'SIDE=buy': must be one of the commands order, work, review"),
        ([], "must be one of the commands order, work, review"),
    ],
)
def test_the_command_line_refuses_before_anything_runs(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(options) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert "Traceback" not in told


ROOT = Path(__file__).parents[1]


def words_of_make(*variables: str) -> list[str]:
    """What ``make order`` passes to the program, as the shell would split it."""
    make = ["make", "--dry-run", "--no-print-directory", "order", *variables]
    shown = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return shlex.split(shown.splitlines()[-1])[4:]


def test_make_passes_options_with_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARES", "1")
    given = ["DATA=my 'own'  \"bars\".csv", "SESSION=09:30 16:00", "DRIFT_BPS=-5", "PARTICIPATION=0.1"]
    assert sorted(words_of_make(*given, "PROFILE=quick", "PYTHON=python3")) == sorted(given)


def test_a_misspelt_option_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of_make("SIDE=buy", "SHARES=1e5", "PARTICIPATION=0.1")
    assert commands.main(["order", *words]) == 1
    assert (
        "participation = '0.1': no such option; the nearest is participation_cap" in capsys.readouterr().err
    )


def test_options_in_the_documents_are_those_of_the_ticket() -> None:
    page = (ROOT / "docs" / "order.md").read_text()
    for name, (meaning, unit, default) in described_options().items():
        assert f"| `{name}` | `{name.upper()}` | {meaning} | {unit} | {default} |\n" in page
        assert f"{name} : {unit or 'no unit'}, {default}\n        {meaning}\n" in str(Ticket.__doc__)


def own_bars(folder: Path) -> Path:
    frame = daily().frame.reset_index()
    frame.assign(time=frame["time"].dt.date).to_csv(folder / "my bars.csv", index=False)
    return folder / "my bars.csv"


def test_options_reach_the_plan_as_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two orders at once: each report is whole, and the later one stays."""
    (tmp_path / "build" / "order").mkdir(parents=True)
    (tmp_path / "build" / "order" / "order_costs.csv").write_text("of an earlier order")
    space = replace(Workspace.open("full"), root=tmp_path)
    monkeypatch.setattr(Workspace, "open", lambda profile: space)
    asked: list[tuple[Bars, Ticket]] = []

    def report(bars: Bars, order: Ticket, folder: Path) -> dict[str, str]:
        asked.append((bars, order))
        folder.mkdir()
        if len(asked) == 1:
            assert commands.main(["order", "SIDE=sell", "SHARES=2e8"]) == 0
        (folder / f"{order.side}.csv").write_text("")
        return {"order": order.side}

    monkeypatch.setattr(commands, "_report", report)
    given = [
        f"DATA={own_bars(tmp_path)}",
        "SIDE=Buy",
        "SHARES=1e5",
        "SESSION=09:30 15:30",
        "ADV=",
        "BETA=0.55",
    ]
    assert commands.main(["order", *given, "TIMEZONE=Europe/Paris"]) == 0
    (bars, order), (index, _) = asked
    assert order == Ticket("buy", 1e5, session=("09:30", "15:30"), beta=0.55)
    assert (bars.timezone, len(bars.frame)) == ("Europe/Paris", 40)
    assert index.source == "arch.data.sp500"
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == [".order.lock", "order"]
    assert [path.name for path in (tmp_path / "build" / "order").iterdir()] == ["buy.csv"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "report  build/order/report.html"
    assert "Europe/Paris" in shown[-2]


def test_a_small_order_is_reported_in_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = replace(Workspace.open("full"), root=tmp_path)
    monkeypatch.setattr(Workspace, "open", lambda profile: space)
    monkeypatch.setattr(commands, "N_PATHS", 200)
    assert commands.main(["order", f"DATA={own_bars(tmp_path)}", "SIDE=buy", "SHARES=1e5"]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["order", "market", "plan", "cost", "flags", "bars", "report"]
    assert (tmp_path / "build" / "order" / "report.html").exists()


def test_a_refusal_does_not_wait_for_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from flowoe_lib.desk.commands import main; code = main(sys.argv[1:]); "
        "sys.exit(code + 10 * bool({'torch', 'arch', 'matplotlib', 'papermill'} & set(sys.modules)))"
    )
    words = ["order", f"DATA={own_bars(tmp_path)}", "SIDE=buy", "SHARES=5e6"]
    run = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True)
    assert "shares = 5,000,000: must be at most 4,000,000" in run.stderr
    assert run.returncode == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_order_that_is_ended_leaves_nothing_behind(
    number: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ended(bars: Bars, order: Ticket, folder: Path) -> dict[str, str]:
        folder.mkdir()
        signal.raise_signal(number)
        return {}

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    # A shell that starts tests in the background has them ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    space = replace(Workspace.open("full"), root=tmp_path)
    monkeypatch.setattr(Workspace, "open", lambda profile: space)
    monkeypatch.setattr(commands, "_report", ended)
    monkeypatch.setattr(
        sys, "argv", ["desk", "order", f"DATA={own_bars(tmp_path)}", "SIDE=buy", "SHARES=1e5"]
    )
    try:
        with pytest.raises(SystemExit) as raised:
            runpy.run_module("flowoe_lib.desk", run_name="__main__")
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert raised.value.code == code
    assert list((tmp_path / "build").iterdir()) == []
    if number == signal.SIGINT:
        assert capsys.readouterr().err == "interrupted: no report was written\n"


def test_the_sample_is_what_its_script_makes() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "sample_bars.py"))["sample_bars"]()
    kept = pd.read_csv(ROOT / "docs" / "sample_bars.csv", index_col="time", parse_dates=True)
    # Rounding may differ on another processor by a cent and a share.
    pd.testing.assert_frame_equal(kept, made, atol=1.001, rtol=0, check_index_type=False)
    assert (kept - made).abs()[["open", "high", "low", "close"]].max(axis=None) < 0.011
