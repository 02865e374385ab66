"""An order worked live trades as in the market replay, and survives what a day brings."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch

from flowoe_lib.data.bars import Bars, load_bars
from flowoe_lib.data.sessions import lay_out
from flowoe_lib.data.vendors import BarsError
from flowoe_lib.desk import commands
from flowoe_lib.desk.live import HALF_LIFE, Child, LiveOrder, State, WorkingPlan, follow, work
from flowoe_lib.desk.ticket import OrderError, Ticket
from flowoe_lib.execution.execution import Policy
from flowoe_lib.market.model import Heston, Liquidity, Market, Order, scalar
from flowoe_lib.policies.schedules import twap
from flowoe_lib.store import atomic_write
from flowoe_lib.studies.replay import Replay, replay, run
from flowoe_lib.training.pretrained import load_pretrained

SHARES, LENGTH, N, START, HISTORY = 1_000_000, 40, 20, 10, 8
MARKET = Market(
    Heston(scalar(1e-4), scalar(2), scalar(0.5), scalar(-0.8)),
    liquidity=Liquidity(depth_sd=scalar(0.3), depth_reversion=scalar(2), profile_amplitude=scalar(0.5)),
    drift_sd=scalar(60),
)
SESSION = ("09:00", "15:40")


def recorded() -> Bars:
    """Three sessions in bars of ten minutes."""
    draws, frames = np.random.default_rng(3), []
    for day in ("2024-01-02", "2024-01-03", "2024-01-04"):
        ends = pd.date_range(f"{day} 09:10", periods=LENGTH, freq="10min")
        close = 100 * np.exp(0.001 * draws.standard_normal(LENGTH).cumsum())
        opened = np.r_[100.0, close[:-1]]
        reach = 0.05 * draws.exponential(size=(2, LENGTH))
        frame = {"open": opened, "high": np.maximum(opened, close) + reach[0], "close": close}
        frame |= {"low": np.minimum(opened, close) - reach[1], "volume": draws.uniform(5e4, 2e5, LENGTH)}
        frames.append(pd.DataFrame({"time": ends} | frame))
    return load_bars(pd.concat(frames), minutes=10)


BARS = recorded()
TAPE = lay_out(BARS, LENGTH, *SESSION)


def median_action(policy: Policy) -> Policy:
    return lambda obs, noise: policy(obs, torch.zeros_like(noise))


def replayed(side: float) -> Replay:
    order = Order(scalar(0.1), scalar(2e-3), scalar(side))
    starts = np.array([LENGTH + START])
    return replay(TAPE, starts, N, MARKET, order, history=HISTORY, half_life=HALF_LIFE)


def begun(days: Replay, policy: Policy, warm_up: int, path: Path) -> LiveOrder:
    """The replayed order, which knows the record up to ``warm_up`` buckets before its start."""
    known, at = days.conditions[0], LENGTH + START
    profile = 1 + 0.5 * np.diff((e := np.linspace(-1, 1, LENGTH + 1)) ** 3 - e) * LENGTH / 4
    logs = np.log(TAPE.volume / profile).ravel()
    usual = logs[at - HISTORY : at].mean()
    variance = TAPE.variance.ravel()[: at - warm_up] * N / known.market.heston.theta.item()
    # Expected volume is a mean, the usual one of the replay a median.
    volume = profile[: START + N] * np.exp(usual + known.market.liquidity.depth_sd.item() ** 2 / 2)
    side = "sell" if known.order.side > 0 else "buy"
    ticket = Ticket(side=side, shares=SHARES, start="10:40", end="14:00", session=SESSION, lot=1.0)
    plan = WorkingPlan(ticket, known, policy, volume, BARS.timezone)
    depth = (logs[: at - warm_up] - usual).tolist()
    return LiveOrder(plan, path, State(plan={}, shares=SHARES, variance=variance.tolist(), depth=depth))


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("warm_up", [1, 4])
def test_a_recorded_day_is_traded_as_in_the_market_replay(side: float, warm_up: int, tmp_path: Path) -> None:
    """The live order meets the record as its own trades would have changed it."""
    days, policy = replayed(side), median_action(load_pretrained().policy())
    held = run({"flow": policy}, days, seed=1)["flow"].inventory[:, 0].double().numpy()
    order = begun(days, policy, warm_up, tmp_path / "live.json")
    market, arrival = days.conditions[0].market, BARS.frame["close"].iloc[LENGTH + START - 1]
    shift = 1e-4 * arrival * market.permanent_cost_bps(scalar(0.1)).item() / SHARES
    filled, sent, children = 0.0, 0.0, []
    for i in range(LENGTH + START - warm_up, LENGTH + START + N):
        bar = BARS.frame.iloc[[i]].copy()
        # The whole bar is rescaled, so that its variance is that of the record.
        factor = 1 - side * shift * filled / bar["close"]
        prices = ["open", "high", "low", "close"]
        bar[prices] = bar[prices].mul(factor, axis=0)
        child = order.next(bar.assign(volume=bar["volume"] + sent), filled)
        children.append(child.shares)
        filled, sent = filled + child.shares, child.shares
    assert children[: warm_up - 1] == [0] * (warm_up - 1)
    np.testing.assert_allclose(children[warm_up - 1 : -1], -SHARES * np.diff(held), atol=1.5)
    assert sum(children) == SHARES
    assert children[-1] == 0


CONDITION = replayed(-1.0).conditions[0]
DAY = BARS.frame.iloc[LENGTH + START - 1 : LENGTH + START + N]
"""The bars that end at the start of the window and of each bucket, and at its end."""


def bought(path: Path, policy: Policy = twap, **options: Any) -> LiveOrder:
    """An order to buy a million shares, by default as TWAP."""
    ticket = Ticket("buy", SHARES, **{"start": "10:40", "end": "14:00", "session": SESSION} | options)
    volume = np.full(START + N, 1e5)
    plan = WorkingPlan(ticket.sized(100.0), CONDITION, policy, volume, BARS.timezone)
    return LiveOrder(plan, path / "live.json", State(plan={}, shares=SHARES))


def worked(
    order: LiveOrder, bars: pd.DataFrame = DAY, share: Callable[[Child], float] = lambda child: 1.0
) -> list[Child]:
    """Feed bars one by one, and fill a share of each child order."""
    children, filled = [], order.state.filled
    for i in range(len(bars)):
        child = order.next(bars.iloc[[i]], filled)
        filled += math.floor(child.shares * share(child))
        children.append(child)
    return children


def shares(children: Sequence[Child]) -> list[float]:
    return [child.shares for child in children]


def test_more_than_the_child_order_may_be_filled(tmp_path: Path) -> None:
    order = bought(tmp_path)
    child = order.next(DAY.iloc[[0]])
    after = order.next(DAY.iloc[[1]], child.shares + 1_000)
    assert order.state.filled == child.shares + 1_000
    assert after.shares == round((SHARES - child.shares - 1_000) / (N - 1))


def test_what_is_not_filled_is_carried_to_the_end_of_the_window(tmp_path: Path) -> None:
    order = bought(tmp_path)
    children = worked(order, share=lambda child: 0.5 if child.bucket < 5 else 0.0)
    left, expected = SHARES, []
    for k in range(N):
        expected.append(round(left / (N - k)))
        left -= expected[-1] // 2 if k < 5 else 0
    assert shares(children) == [*expected, 0]
    assert (order.state.filled, order.state.left) == (SHARES - left, left)
    assert [child.bucket for child in children] == list(range(N + 1))


def test_children_keep_the_cap_the_lot_and_the_whole_order(tmp_path: Path) -> None:
    """A cap of 60 % of 100,000 shares a bucket; nothing can be bought in the first half of the window."""
    order = bought(tmp_path, participation_cap=0.6, lot=300.0)
    children = worked(order, share=lambda child: child.bucket >= N // 2)
    # What is left exceeds what the cap allows later, so each bucket trades what it allows.
    assert set(shares(children[4:-1])) == {60_000}
    assert order.state.left == SHARES - 60_000 * N // 2
    free = shares(worked(bought(tmp_path / "free", lot=300.0)))
    assert all(x % 300 == 0 for x in free[:-2])
    assert (sum(free), free[-2] % 300) == (SHARES, SHARES % 300)


def test_nothing_is_traded_outside_the_price_limit(tmp_path: Path) -> None:
    limit = float(DAY["close"].median())
    children = worked(bought(tmp_path, limit=limit))
    inside = (DAY["close"] <= limit).to_numpy()[:N]
    assert [x > 0 for x in shares(children[:N])] == inside.tolist()
    assert {child.limit for child in children} == {limit}


def test_a_halt_and_missed_bars_leave_the_estimates_as_they_were(tmp_path: Path) -> None:
    order = bought(tmp_path)
    worked(order, DAY.iloc[:5])
    before = order.state
    halted = DAY.iloc[[4]].assign(volume=0.0)
    for bar in (halted.shift(freq="10min"), halted.shift(freq="20min")):
        child = order.next(bar, before.filled)
    now = order.state
    assert child.shares == round(now.left / (N - 6))
    assert (now.variance, now.depth) == ([*before.variance, None, None], [*before.depth, None, None])
    # The next bar comes five buckets late; only its own bucket is measured.
    child = order.next(DAY.iloc[[12]], before.filled)
    assert (child.bucket, child.shares) == (12, round(now.left / (N - 12)))
    depth = math.log(DAY["volume"].iloc[12] / 1e5) + CONDITION.market.liquidity.depth_sd.item() ** 2 / 2
    assert order.state.depth == [*now.depth, *[None] * 5, pytest.approx(depth)]
    # A bucket's weight halves in each half-life, whether there were bars or not.
    weights = [(0.5 ** (k / HALF_LIFE), x) for k, x in enumerate(order.state.depth[::-1]) if x is not None]
    expected = sum(w * x for w, x in weights) / sum(w for w, _ in weights)
    assert order.observation(order.state).log_depth.item() == pytest.approx(expected, rel=1e-5)


def test_a_changed_size_is_worked_from_the_next_bucket_on(tmp_path: Path) -> None:
    order = bought(tmp_path)
    worked(order, DAY.iloc[:5])
    filled = order.state.filled
    order.resize(2 * SHARES)
    child = order.next(DAY.iloc[[5]], filled)
    assert child.shares == round((2 * SHARES - filled) / (N - 5))
    order.resize(filled)
    assert order.child.shares == 0
    # The market was faster than the cancellation.
    assert order.next(DAY.iloc[[6]], filled + 700).shares == 0
    assert (order.state.filled, order.state.left) == (filled + 700, 0)
    with pytest.raises(OrderError, match=r"shares = 10: must be at least"):
        order.resize(10)


def test_a_policy_sees_the_order_at_its_changed_size(tmp_path: Path) -> None:
    """An order doubled before it begins is that of twice the size."""
    order, double = bought(tmp_path, load_pretrained().policy()), bought(tmp_path / "double")
    order.resize(2 * SHARES)
    size = replace(CONDITION.order, size=2 * CONDITION.order.size)
    plan = replace(order.plan, condition=replace(CONDITION, order=size))
    double.plan = replace(plan, ticket=plan.ticket.model_copy(update={"shares": 2 * SHARES}))
    double.state = State(plan={}, shares=2 * SHARES)
    assert shares(worked(order)) == shares(worked(double))


REFUSED: dict[str, tuple[Callable[[LiveOrder], Any], str]] = {
    "more filled than ordered": (lambda o: o.next(DAY.iloc[[2]], SHARES + 1), "must be from 50,000"),
    "less filled than before": (
        lambda o: o.next(DAY.iloc[[2]], 49_999),
        "filled = 49,999: must be from",
    ),
    "fills that are no number": (lambda o: o.next(DAY.iloc[[2]], math.nan), "filled = nan"),
    "another day": (lambda o: o.next(DAY.iloc[[2]].shift(freq="24h")), "must be on the day of 2024-01-03"),
    "an earlier bar": (lambda o: o.next(DAY.iloc[[0]]), "and not before it"),
    "no price": (lambda o: o.next({"time": "2024-01-03 11:00"}), "is missing; must be a finite number"),
    "no time": (lambda o: o.next({"price": 100.0}), "missing column time"),
    "a price outside the range": (
        lambda o: o.next({"time": "2024-01-03 11:00", "price": 9, "high": 8, "low": 7, "volume": 1}),
        "'close', row 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_changes_nothing(case: str, tmp_path: Path) -> None:
    order = bought(tmp_path)
    worked(order, DAY.iloc[:2])
    before, (act, message) = order.path.read_bytes(), REFUSED[case]
    with pytest.raises((OrderError, BarsError), match=message):
        act(order)
    assert order.path.read_bytes() == before


def test_a_session_past_midnight_is_one_day(tmp_path: Path) -> None:
    order = bought(tmp_path, session=("18:00", "27:00"), start="22:40", end="26:00")
    late = DAY.set_axis(pd.date_range("2024-01-03 22:40", periods=N + 1, freq="10min", tz=BARS.timezone))
    assert [child.bucket for child in worked(order, late.rename_axis("time"))] == list(range(N + 1))


FIGURES = {"price": 100.0, "adv": 5e6, "volatility": 0.02, "kappa": 4, "cv": 0.9, "rho": -0.6}
FIGURES |= {"depth_sd": 0.3, "depth_reversion": 5, "profile_amplitude": 0.5}
WINDOW = {"start": "10:40", "end": "14:00", "session": SESSION, "participation_cap": 0.3}
RECORD = {
    "ticket": {"side": "buy", "shares": 400_000, "lot": 1} | WINDOW,
    "bars": {"source": "bars", "timezone": BARS.timezone},
    "estimates": {name: {"value": value, "source": "test"} for name, value in FIGURES.items()},
    "breaks": [],
    "risk_aversion": 5e-4,
    "policy": "flow_refined",
}
PLAN = json.loads(json.dumps(RECORD))
"""The record of a plan, as it is written and read."""


class Killed(Exception):
    pass


def test_an_order_killed_around_every_write_trades_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write fails once before it reaches the disk and once after; each time a new process goes on."""
    bars = DAY.iloc[:7]
    straight = shares(worked(work(PLAN, tmp_path / "straight.json"), bars))
    path, written = tmp_path / "live.json", list[bytes]()

    def dying(target: Path, content: bytes) -> None:
        written.append(content)
        if len(written) % 2 == 0:
            atomic_write(target, content)
        raise Killed

    monkeypatch.setattr("flowoe_lib.desk.live.atomic_write", dying)
    children, filled = [], 0.0
    for i in range(len(bars)):
        for _ in range(2):
            with pytest.raises(Killed):
                work(PLAN, path).next(bars.iloc[[i]], filled)
        order = work(PLAN, path)
        child = order.child
        assert child == order.next(bars.iloc[[i]], filled)
        children.append(child.shares)
        filled += child.shares
    assert len(written) == 2 * len(bars)
    assert children == straight


def test_a_state_of_another_order_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    worked(work(PLAN, path), DAY.iloc[:1])
    other = PLAN | {"risk_aversion": 1e-3}
    with pytest.raises(OrderError, match="is the state of another plan"):
        work(other, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(OrderError, match="is not the state of a live order"):
        work(PLAN, path)
    with pytest.raises(OrderError, match="is not a plan"):
        work(path, tmp_path / "new.json")


@pytest.mark.parametrize("stamp", ["start", "end"])
def test_make_work_follows_a_growing_file(
    stamp: Literal["start", "end"], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file begins before the window, grows by one or more bars, and is read anew each time."""
    saved, bars, state = (tmp_path / name for name in ("plan.json", "today.csv", "live.json"))
    saved.write_text(json.dumps(PLAN))
    day = BARS.frame.iloc[LENGTH : 2 * LENGTH].tz_localize(None)
    day = day.shift(freq="-10min") if stamp == "start" else day
    words = ["work", f"PLAN={saved}", f"BARS={bars}", f"STATE={state}"]
    for rows in (3, 10, 11, 15, 40):
        day.iloc[:rows].to_csv(bars)
        assert commands.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].endswith(" of 400,000 shares at 2024-01-03 10:50:00-05:00")
    assert lines[-2:] == [
        "filled  400,000 of 400,000 shares at 2024-01-03 14:00:00-05:00",
        "now     buy 0, because the window is over",
    ]
    whole = work(PLAN, tmp_path / "whole.json")
    follow(whole, load_bars(bars, timezone=BARS.timezone, bars=stamp))
    assert whole.state == work(PLAN, state).state
