"""A planned order worked live: each bucket takes what was seen and filled, and answers the next child order.

Variance and depth are estimated as in the market replay of notebook 17, by exponentially weighted averages of
past buckets; the return since arrival is the signal of a hidden drift. All that is known is one JSON file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ValidationError

from flowoe_lib.data.bars import Bars, load_bars
from flowoe_lib.data.estimators import garman_klass
from flowoe_lib.data.sessions import Array
from flowoe_lib.desk.market_estimates import expected_volume
from flowoe_lib.desk.planner import CONTROL, AnyPlan, Restricted, read_plan
from flowoe_lib.desk.ticket import OrderError, Ticket
from flowoe_lib.execution.execution import Observation, Policy
from flowoe_lib.market.impact import permanent_shift
from flowoe_lib.market.model import BPS, Condition, volume_profile
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.policies.replanning import mpc
from flowoe_lib.store import atomic_write
from flowoe_lib.training.pretrained import load_pretrained

HALF_LIFE = 6
"""Buckets in which the weight of a past bucket halves."""


DAY = pd.Timedelta(days=1)


def window_of(ticket: Ticket, timezone: str, time: pd.Timestamp) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Start and end of execution in the session to which ``time`` belongs."""
    clock = time.tz_convert(timezone).tz_localize(None)
    start, end = (clock.normalize() + pd.Timedelta(minutes=t) for t in ticket.window)
    if clock + DAY <= end:  # the night after
        start, end = start - DAY, end - DAY
    first, last = pd.DatetimeIndex([start, end]).tz_localize(timezone, nonexistent="shift_forward")
    return first, last


@dataclass(frozen=True)
class WorkingPlan:
    """What a plan says about how to work its order."""

    ticket: Ticket
    condition: Condition
    """Market and order, with the window as the day."""
    policy: Policy
    volume: Array
    """Volume expected in each bucket from the first whole one of the session to the end of the window."""
    timezone: str

    def expected(self, bucket: int) -> float:
        """Volume expected in a bucket, shares; NaN outside the session and after the window."""
        index = bucket + len(self.volume) - self.ticket.n_buckets
        return float(self.volume[index]) if 0 <= index < len(self.volume) else math.nan


class Child(NamedTuple):
    """The order to send for a bucket; it replaces the one of the bucket before."""

    bucket: int
    shares: float
    limit: float | None


class State(BaseModel, frozen=True):
    """All that is known of a live order."""

    plan: dict[str, Any]
    """Record of the plan."""
    shares: float
    """Present size of the order."""
    filled: float = 0.0
    sent: float = 0.0
    """Shares of the last child order."""
    bucket: int = -1
    """Bucket of the last child order: negative before the window, N or more after it."""
    time: str = ""
    """End of the last bar."""
    price: float = 0.0
    """Last price."""
    arrival: float = 0.0
    """Price when the order arrived; 0 before."""
    variance: list[float | None] = [1.0] * 60
    """Realised variance of past buckets over its mean, None where a bucket is missing; before the first bar
    its mean."""
    depth: list[float | None] = [0.0] * 60
    """Log depth of past buckets."""

    @property
    def left(self) -> float:
        """Shares to be traded."""
        return max(self.shares - self.filled, 0.0)


class LiveOrder:
    """An order that is being worked; :func:`work` begins one or takes it up again."""

    def __init__(self, plan: WorkingPlan, path: Path, state: State) -> None:
        self.plan, self.path, self.state = plan, path, state

    @property
    def child(self) -> Child:
        """The child order that is to be at work now."""
        return Child(self.state.bucket, min(self.state.sent, self.state.left), self.plan.ticket.limit)

    def summary(self) -> dict[str, str]:
        """What is filled and what to send now."""
        s, child, side = self.state, self.child, self.plan.ticket.side
        limit = "" if child.limit is None or child.shares == 0 else f" at {child.limit:,.10g} or better"
        done = f"{s.filled:,.10g} of {s.shares:,.10g} shares at {s.time}"
        over = ", because the window is over" * (s.bucket >= self.plan.ticket.n_buckets)
        early = ", because the window has not begun" * (s.bucket < 0)
        return {"filled": done, "now": f"{side} {child.shares:,.10g}{limit}{over}{early}"}

    def next(self, bar: Mapping[str, Any] | pd.DataFrame, filled: float = 0.0) -> Child:
        """The child order for the bucket that begins at the end of ``bar``.

        Parameters
        ----------
        bar : mapping or DataFrame
            What was seen in the bucket before: time (its end), price (the last one), volume, high and low,
            your own trades included; or all bars of the bucket, in the columns of
            :func:`flowoe_lib.data.bars.load_bars`. A price alone is a bucket without trades. Buckets may be
            missing; bars before the window improve the estimates.
        filled : float
            Shares of the order that have been filled so far, in all buckets.

        Returns
        -------
        flowoe_lib.desk.live.Child
            Bucket, shares and price limit. Another call within the same bucket changes nothing and answers
            the same.

        Raises
        ------
        BarsError
            For a bar that :func:`flowoe_lib.data.bars.load_bars` refuses.
        OrderError
            For a bar of another day or before the last one, and for fewer shares filled than before, or more
            than the order has. More than the last child order may be filled, for it is only advice.
        """
        s, ticket, bars = self.state, self.plan.ticket, self._checked(bar)
        time = bars.index[-1]
        start, end = window_of(ticket, self.plan.timezone, time)
        bucket = math.floor((time - start) / (end - start) * ticket.n_buckets + 1e-9)
        if s.time:
            last = pd.Timestamp(s.time)
            if time < last or start != window_of(ticket, self.plan.timezone, last)[0]:
                raise OrderError(f"time = {time}: must be on the day of {last} and not before it")
            if bucket == s.bucket:
                return self.child
        most = max(s.filled + s.sent, s.shares)
        if not s.filled <= filled <= most * (1 + 1e-9):
            raise OrderError(
                f"filled = {filled:,.10g}: must be from {s.filled:,.10g}, the shares filled before, to "
                f"{most:,.10g}, those of the order"
            )
        price = float(bars.frame["close"].iloc[-1])
        arrival = s.arrival or (price if bucket >= 0 else 0.0)
        seen = {"bucket": bucket, "time": str(time), "filled": float(filled), "price": price}
        seen |= {"arrival": arrival} | self._measured(bars, bucket, filled - s.filled)
        now = s.model_copy(update=seen)
        self._keep(now.model_copy(update={"sent": self._shares(now)}))
        return self.child

    def resize(self, shares: float) -> None:
        """Change the size of the order; down to the shares that are filled, it is cancelled.

        What the market fills of the last child order before the change reaches it is accepted. Raises
        OrderError for fewer shares than are filled.
        """
        if not shares >= (filled := self.state.filled):
            raise OrderError(f"shares = {shares:,.10g}: must be at least {filled:,.10g}, those filled")
        self._keep(self.state.model_copy(update={"shares": float(shares)}))

    def _keep(self, state: State) -> None:
        atomic_write(self.path, state.model_dump_json().encode())
        self.state = state

    def _checked(self, bar: Mapping[str, Any] | pd.DataFrame) -> Bars:
        if not isinstance(bar, pd.DataFrame):
            price = bar.get("price")
            bar = pd.DataFrame([{"close": price, "high": price, "low": price, "volume": 0} | dict(bar)])
            opened = pd.Series(self.state.price or price).clip(bar["low"], bar["high"])
            bar = bar.assign(open=bar.get("open", opened))
        return load_bars(bar, name="bar", timezone=self.plan.timezone, bars="end")

    def _measured(self, bars: Bars, bucket: int, own: float) -> dict[str, Any]:
        """Variance and depth by bucket up to ``bars``, which hold ``own`` trades and end where it begins."""
        s, n, market = self.state, self.plan.ticket.n_buckets, self.plan.condition.market
        volume, expected = float(bars.frame["volume"].sum()), self.plan.expected(bucket - 1)
        variance = depth = None
        if volume > 0 and expected > 0:
            variance = float(garman_klass(bars.frame).sum()) * n / market.heston.theta.item()
        if volume > own and expected > 0 and market.liquidity.depth_sd > 0:
            # Expected volume is a mean; depth is relative to its median.
            depth = math.log((volume - own) / expected) + market.liquidity.depth_sd.item() ** 2 / 2
        missing = [None] * (bucket - s.bucket - 1 if s.time else 0)
        return {"variance": [*s.variance, *missing, variance], "depth": [*s.depth, *missing, depth]}

    def _shares(self, now: State) -> float:
        """Shares of the child order, for what is known ``now``."""
        ticket, n = self.plan.ticket, self.plan.ticket.n_buckets
        beyond = now.price - (ticket.limit or now.price)
        if now.left == 0 or not 0 <= now.bucket < n or (beyond > 0 if ticket.side == "buy" else beyond < 0):
            return 0.0
        room, lot = ticket.room(self.plan.volume[-n:]), ticket.lot
        wanted, most = now.left, room[now.bucket]
        if now.bucket < n - 1:
            policy = Restricted(self.plan.policy, torch.from_numpy(room / now.shares).float())
            with torch.no_grad():
                wanted *= policy(self.observation(now), torch.zeros(1)).item()
            wanted = lot * round(wanted / lot) if lot else wanted
        if lot and most < wanted:
            most = lot * math.floor(most / lot + 1e-9)
        return float(min(wanted, most, now.left))

    def observation(self, now: State) -> Observation:
        """The observation of the policy at the start of the bucket of ``now``."""
        market, order, n = self.plan.condition.market, self.plan.condition.order, self.plan.ticket.n_buckets
        order = replace(order, size=order.size * now.shares / self.plan.ticket.shares)
        variance, depth = (
            torch.tensor([pd.Series(x, dtype=float).ewm(halflife=HALF_LIFE).mean().iloc[-1]]).float()
            for x in (now.variance, now.depth)
        )
        # The price without the order's own permanent impact.
        own = permanent_shift(market, order.size, torch.tensor([now.filled / now.shares]), 1 / n)
        return Observation(
            k=now.bucket,
            n_buckets=n,
            inventory=torch.tensor([now.left / now.shares]),
            return_bps=order.side * BPS * (now.price / now.arrival - 1) + own,
            variance=market.heston.theta * variance,
            log_depth=depth,
            volume=volume_profile(market.liquidity, n)[:, None],
            market=market,
            order=order,
            pre_trade=PreTrade.of(market, order),
        )


def work(plan: AnyPlan, state: str | Path = "live.json") -> LiveOrder:
    """Begin to work a planned order, or take it up again where ``state`` ends.

    Parameters
    ----------
    plan : Plan, mapping, str or Path
        A plan, its record, or the file plan.json that ``make order`` wrote.
    state : str or Path
        File of all that is known of the live order. It is written before each child order is answered, so
        after a crash the same call goes on.

    Returns
    -------
    flowoe_lib.desk.live.LiveOrder
        Its method ``next`` takes what was seen and filled in a bucket, and answers the next child order.

    Raises
    ------
    OrderError
        If the plan cannot be read, or the state is damaged or that of another plan.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> from tempfile import mkdtemp
    >>> ticket = fo.Ticket(side="sell", shares=2e8, start="10:00", end="15:00")
    >>> plan = fo.plan_order(fo.data.records.sp500_daily(), ticket, n_paths=200)
    >>> order = fo.work(plan, f"{mkdtemp()}/live.json")
    >>> child = order.next({"time": "2019-01-02 10:00", "price": 2500.0})
    >>> child.bucket, 0 < child.shares < 2e8
    (0, True)
    """
    ticket, market, condition, record = read_plan(plan)
    policy = mpc if record["policy"] == CONTROL else load_pretrained().policy()
    start, end = ticket.part
    before = math.floor(start / (end - start) * ticket.n_buckets + 1e-9)
    volume, path = expected_volume(ticket, market, before), Path(state)
    # As it is read back: JSON has no tuples.
    record = json.loads(json.dumps(record))
    known = State(plan=record, shares=ticket.shares)
    if path.exists():
        try:
            known = State.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise OrderError(f"{path}: is not the state of a live order: {error}") from None
        if known.plan != record:
            raise OrderError(f"{path}: is the state of another plan; remove it or name another (STATE)")
    return LiveOrder(WorkingPlan(ticket, condition, policy, volume, record["bars"]["timezone"]), path, known)


def follow(order: LiveOrder, bars: Bars, fills: pd.DataFrame | None = None) -> None:
    """Bring a live order up to the end of ``bars``, which may begin before its window.

    ``fills`` are those of :func:`read_fills`; by default all child orders are filled. Raises OrderError for
    bars longer than a bucket, and as :meth:`LiveOrder.next`.
    """
    plan = order.plan
    start, end = window_of(plan.ticket, plan.timezone, bars.index[-1])
    length = (end - start) / plan.ticket.n_buckets
    if (usual := bars.index.to_series().diff().median()) > length:
        raise OrderError(f"{bars.source}: bars of {usual} are longer than a bucket of the plan, {length}")
    recent = bars.frame[bars.index > start - DAY]
    ends = np.asarray((pd.DatetimeIndex(recent.index) - start) / length, dtype=float)
    buckets = np.ceil(ends - 1e-9).astype(int) - 1
    for bucket in np.unique(buckets):
        known, inside = order.state, recent[buckets == bucket]
        if bucket == 0 and not known.time:
            order.next({"time": start, "price": inside["open"].iloc[0]})
        over = bucket + 1 <= ends[-1] + 1e-9
        if over and not math.isnan(plan.expected(bucket)) and (not known.time or bucket >= known.bucket):
            filled = order.state.filled + order.child.shares
            if fills is not None:
                filled = float(fills["shares"][fills.index <= inside.index[-1]].sum())
            order.next(inside, filled)


def read_fills(path: str | Path, timezone: str) -> pd.DataFrame:
    """Read fills from a CSV file with columns time, shares and price, into a table by time in ``timezone``.

    Raises OrderError naming the file and what is wrong.
    """
    numbers = {"shares": float, "price": float}
    try:
        fills = pd.read_csv(path, usecols=["time", *numbers], dtype=numbers)
        times = pd.to_datetime(fills.pop("time").astype(str), format="ISO8601")
    except (ValueError, OSError) as error:
        raise OrderError(f"{path}: must hold time (ISO 8601), shares and price: {error}") from None
    if not (ok := (np.isfinite(fills) & (fills > 0)).all(axis=1)).all():
        raise OrderError(f"{path}: line {ok.argmin() + 2}: shares and price must be finite and > 0")
    index = pd.DatetimeIndex(times, name="time")
    index = index.tz_localize(timezone) if index.tz is None else index.tz_convert(timezone)
    return fills.set_axis(index, axis=0).sort_index(kind="stable")
