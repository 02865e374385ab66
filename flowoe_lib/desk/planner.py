"""The order planner: from market bars and a ticket to a schedule with its cost and risk.

The window in which the order is worked takes the place of the day: variance, drift and rates of mean
reversion are scaled by its length, and order size is measured against the expected volume of the window.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.data.bars import Bars
from flowoe_lib.data.sessions import Array, session_flags
from flowoe_lib.desk.market_estimates import Estimated, MarketEstimates, expected_volume, prepared
from flowoe_lib.desk.ticket import USUAL_AVERSION, OrderError, Ticket
from flowoe_lib.evaluation.extrapolation import violations
from flowoe_lib.evaluation.frontier import with_risk_aversion
from flowoe_lib.evaluation.intervals import paired_interval, tail_size
from flowoe_lib.evaluation.tested import TESTED_LIMITS
from flowoe_lib.execution.execution import Execution, Observation, OrderSimulation, Policy, execute
from flowoe_lib.market.batching import tile
from flowoe_lib.market.impact import impact_in_window
from flowoe_lib.market.model import BPS, Condition, Heston, Impact, Liquidity, Market, Order, scalar
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.ensemble import BENCHMARKS, SCHEDULE_EXPERTS
from flowoe_lib.randomness import generator
from flowoe_lib.store import atomic_write
from flowoe_lib.training.pretrained import PretrainedPolicy, load_pretrained

FLOW, CONTROL = "flow_refined", "mpc"


AVERSIONS = tuple(float(x) for x in np.geomspace(4e-5, 4e-3, 13))
"""Risk aversions of the frontier, per bps, over the training range of the policy."""


@dataclass(frozen=True)
class Restricted:
    """A policy within the participation cap, the breaks and the price limit of a ticket.

    It trades earlier than the policy where the remaining order would otherwise exceed the cap later.
    """

    policy: Policy
    room: Tensor
    """Largest fraction of the order that may be traded in each bucket, [N]."""
    adverse_bps: float = float("inf")
    """Price move against the order beyond which nothing is traded."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        left = obs.inventory.clamp_min(1e-30)
        traded = (self.policy(obs, noise) * left).clamp_max(self.room[obs.k])
        traded = torch.maximum(traded, left - self.room[obs.k + 1 :].sum())
        return torch.where(obs.return_bps < -self.adverse_bps, 0, (traded / left).clamp(0, 1))


@dataclass(frozen=True)
class Plan:
    """The plan of an order: schedule, costs and frontier; costs are in bps of the arrival price."""

    ticket: Ticket
    """The order in shares, with its lot."""
    bars: Bars
    estimates: MarketEstimates
    condition: Condition
    """Market and order, with the window as the day."""
    policy: str
    """The policy that plans: "flow_refined", or "mpc" far outside the training range."""
    flags: list[str]
    """What looks wrong in the bars, and what lies outside the training range of the policy."""
    schedule: pd.DataFrame
    """One row per bucket, by its start: shares left at its end (low, median, high: 10, 50, 90 % quantile
    over days), shares traded so that the median is left, participation in expected volume (median, 90 %
    quantile, maximum), and shares left under each benchmark."""
    costs: pd.DataFrame
    """One row per policy: mean, standard deviation, CVaR95 and 95 % quantile of cost, bps; mean cost in
    currency; the plan's gain in utility over it, bps, with its 95 % interval."""
    frontier: pd.DataFrame
    """Columns policy, risk_aversion, std_bps, cost_bps, cost95_bps, over the days of ``costs``."""
    day: pd.DataFrame
    """One simulated day, one row per bucket: price_bps, volatility (root of variance over its mean), depth
    over its median, shares traded by the plan and by the static optimum, shares left."""
    quantiles: Array
    """Quantiles of the plan's cost over the simulated days, bps, from 0 to 100 % in steps of 1 %, [101]."""

    def record(self) -> dict[str, Any]:
        """The plan as plain JSON, from which :func:`read_plan` takes up the order."""
        return {
            "ticket": self.ticket.model_dump(mode="json", exclude_none=True),
            "bars": {"source": self.bars.source, "timezone": self.bars.timezone},
            "estimates": {k: vars(v) for k, v in self.estimates.figures().items()},
            "breaks": self.estimates.breaks,
            "risk_aversion": self.condition.order.risk_aversion.item(),
            "policy": self.policy,
            "flags": self.flags,
            "schedule": self.schedule.reset_index().to_dict("list"),
            "costs": self.costs.reset_index().to_dict("list"),
            "cost_quantiles_bps": self.quantiles.tolist(),
        }

    def write(self, path: Path) -> None:
        """Write :meth:`record` as JSON."""
        atomic_write(path, json.dumps(self.record(), indent=1).encode())


AnyPlan = Plan | Mapping[str, Any] | str | Path
"""A plan, its record, or the file plan.json that ``make order`` wrote."""


def read_plan(plan: AnyPlan) -> tuple[Ticket, MarketEstimates, Condition, dict[str, Any]]:
    """The order of a plan, its record or its file; its market, both as a condition, and the whole record.

    Raises OrderError for a file that is not a plan.
    """
    try:
        read = json.loads(Path(plan).read_bytes()) if isinstance(plan, str | Path) else plan
        record = read.record() if isinstance(read, Plan) else dict(read)
        ticket = Ticket(**record["ticket"])
        known = {k: Estimated(**v) for k, v in record["estimates"].items()}
        estimates = MarketEstimates(**known, breaks=tuple(map(tuple, record.get("breaks", ()))))
        condition = with_risk_aversion(condition_of(ticket, estimates), record["risk_aversion"])
    except OSError as error:
        raise OrderError(f"{plan}: cannot be read ({error.strerror}); `make order` writes a plan") from None
    except (ValueError, KeyError, TypeError) as error:
        raise OrderError(f"{plan}: is not a plan of `make order`: {error!r}") from None
    return ticket, estimates, condition, record


def condition_of(ticket: Ticket, known: MarketEstimates) -> Condition:
    """Market and order with the window in the place of the day; ``ticket`` is in shares.

    Raises OrderError for figures that no market can have.
    """
    start, end = ticket.part
    length, volume = end - start, expected_volume(ticket, known).sum()
    try:
        liquidity = Liquidity(
            illiquidity=scalar(ticket.illiquidity),
            depth_sd=scalar(known.depth_sd.value),
            depth_reversion=scalar(known.depth_reversion.value * length),
            profile_amplitude=scalar(known.profile_amplitude.value),
            window_start=scalar(start),
            window_end=scalar(end),
        )
        theta, kappa = known.volatility.value**2 * length, known.kappa.value * length
        heston = Heston(*map(scalar, (theta, kappa, known.cv.value, known.rho.value)))
        impact = Impact(scalar(ticket.eta), scalar(ticket.beta), scalar(ticket.gamma))
        if ticket.shares_outstanding is not None:
            impact = replace(impact, turnover_days=scalar(ticket.shares_outstanding / known.adv.value))
        impact = impact_in_window(impact, scalar(length), scalar(volume / known.adv.value))
        market = Market(heston, impact, liquidity, scalar(ticket.drift_bps), scalar(ticket.drift_sd_bps))
        side = scalar(1.0 if ticket.side == "sell" else -1.0)
        order = Order(scalar(ticket.shares / volume), scalar(ticket.risk_aversion or USUAL_AVERSION), side)
    except ValueError as error:
        raise OrderError(f"the order cannot be worked in this market: {error}") from None
    return Condition("order", "order", market, order)


def planning_policy(condition: Condition, trained: PretrainedPolicy) -> tuple[str, list[str]]:
    """Name of the policy that plans the order, and the quantities outside its training range.

    Model predictive control plans where a quantity is beyond the limits to which the pretrained policy was
    tested, or beyond its training range if there are none.
    """
    name, flags = FLOW, []
    for d in violations(trained.conditions, condition.market, condition.order):
        low, high = TESTED_LIMITS.get(d.quantity, (d.low, d.high))
        # A combination outside the training range is flagged only.
        far = not low <= d.value <= high and "beside" not in d.quantity
        flags.append(f"{d}{', so the order is planned by model predictive control' if far else ''}")
        name = CONTROL if far else name
    size, usual = condition.order.size.item(), trained.conditions.size[1]
    if size > usual:
        flags.append(
            f"the order is {size:.0%} of the volume expected in its window: above {usual:.0%} the published "
            "impact coefficients are untested"
        )
    return name, flags


def whole_lots(left: Array, ticket: Ticket, room: Array) -> Array:
    """Shares to trade in each bucket so that about ``left`` remain, [N], in lots and within ``room``, [N].

    They add up to the order; a rest smaller than a lot goes with the last trade.
    """
    if ticket.lot is None:
        return -np.diff(left, prepend=ticket.shares)
    total = np.floor(ticket.shares / ticket.lot + 1e-9)
    rest = max(ticket.shares - ticket.lot * total, 0.0)
    most = np.floor(np.append(room[:-1], room[-1] - rest) / ticket.lot + 1e-9)
    later, done, lots = np.append(np.cumsum(most[::-1])[-2::-1], 0), 0.0, []
    for k, planned in enumerate(left):
        wanted = np.rint((ticket.shares - planned) / ticket.lot) - done
        lots.append(min(max(wanted, total - done - later[k], 0), most[k], total - done))
        done += lots[-1]
    traded = ticket.lot * np.array(lots)
    traded[-1] += rest
    return traded


def plan_order(
    bars: Bars,
    ticket: Ticket,
    trained: PretrainedPolicy | None = None,
    n_paths: int = 10_000,
    seed: int = 2025,
    progress: Callable[[str], object] = lambda stage: None,
) -> Plan:
    """Plan an order with the pretrained policy, in the market estimated from bars.

    Parameters
    ----------
    bars : flowoe_lib.data.bars.Bars
        At least 21 daily bars, or five whole sessions of intraday bars.
    ticket : Ticket
        The order and its options.
    trained : flowoe_lib.training.pretrained.PretrainedPolicy, optional
        The policy; by default that of the library.
    n_paths : int
        Number of simulated days for costs, frontier and schedule. A risk aversion that meets a cost limit is
        found on other days.
    seed : int
        Seed of the simulated days.
    progress : callable
        Called with a few words as each stage begins.

    Returns
    -------
    flowoe_lib.desk.planner.Plan
        Tables ``schedule`` (shares), ``costs`` and ``frontier`` (bps of the arrival price), ``day`` and
        ``estimates``.

    Raises
    ------
    OrderError
        If the order exceeds the volume of its market or its own cap or limit of cost.
    BarsError
        If the bars are too few to estimate the market.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> ticket = fo.Ticket(side="sell", shares=2e8, start="10:00", end="15:00")
    >>> plan = fo.plan_order(fo.data.records.sp500_daily(), ticket, n_paths=200)
    >>> plan.schedule["median"].is_monotonic_decreasing, plan.costs.index[0]
    (True, 'flow_refined')
    """
    if n_paths < 2:
        raise OrderError(f"n_paths = {n_paths}: must be at least 2")
    trained = trained or load_pretrained()
    ticket, known = prepared(bars, ticket, trained.card)
    condition = condition_of(ticket, known)
    name, flags = planning_policy(condition, trained)
    progress("simulating days")
    days = simulate(condition.market, n_paths, ticket.n_buckets, generator(seed, "order"))
    desk = _Desk(ticket, known, trained, name, seed)
    if ticket.cost_limit_bps is not None:
        half, draws = max(n_paths // 2, 100), generator(seed, "order", "limit")
        others = simulate(condition.market, half, ticket.n_buckets, draws)
        own = desk.frontier(condition, others, [name], AVERSIONS)
        condition = with_risk_aversion(condition, _aversion_for(ticket.cost_limit_bps, own))
    done = desk.work([name, *BENCHMARKS], [condition], days)
    unfilled = done[name].inventory[-1]
    if ticket.limit is not None and bool((unfilled > 0).any()):
        flags.append(
            f"limit = {ticket.limit:g}: on {(unfilled > 0).double().mean().item():.0%} of the simulated days "
            f"part of the order is left, {unfilled.mean().item():.0%} of it on average over all days; it is "
            "valued at the price when the window ends"
        )
    own = _points([condition], done)
    aversions = [x for x in AVERSIONS[::2] if not math.isclose(x, own["risk_aversion"][0], rel_tol=1e-6)]
    progress("frontier")
    curve = desk.frontier(condition, days, [name, "almgren_chriss", "static_optimal"], aversions)
    return Plan(
        ticket=ticket,
        bars=bars,
        estimates=known,
        condition=condition,
        policy=name,
        flags=[*bars.flags, *session_flags(bars, *ticket.session), *flags],
        schedule=desk.schedule(done),
        costs=_costs(own, done, condition.order, ticket.shares * known.price.value),
        frontier=pd.concat([own, curve]).sort_values("risk_aversion", kind="stable", ignore_index=True),
        day=desk.day(condition),
        quantiles=np.quantile(-done[name].pnl_bps.double().numpy(), np.linspace(0, 1, 101)),
    )


def _aversion_for(limit: float, curve: pd.DataFrame) -> float:
    """The lowest risk aversion at which the 95 % quantile of cost is ``limit``, by interpolation."""
    cost, log = curve["cost95_bps"].to_numpy(), np.log(curve["risk_aversion"].to_numpy())
    within = np.flatnonzero(cost <= limit)
    if len(within) == 0:
        raise OrderError(
            f"cost_limit_bps = {limit:g}: must be at least {np.ceil(10 * cost.min()) / 10:.1f}, the lowest "
            f"cost that 95 % of days stay below, at risk aversion {np.exp(log[cost.argmin()]):.1e}"
        )
    between = [within[0], max(within[0] - 1, 0)]
    return float(np.exp(np.interp(limit, cost[between], log[between])))


@dataclass(frozen=True)
class _Desk:
    """Works the order of a ticket by several policies on the same simulated days."""

    ticket: Ticket
    known: MarketEstimates
    trained: PretrainedPolicy
    name: str
    seed: int

    @property
    def room(self) -> Array:
        """Shares that may be traded in each bucket, [N]."""
        return self.ticket.room(expected_volume(self.ticket, self.known))

    def work(
        self, names: Sequence[str], conditions: Sequence[Condition], days: MarketPaths
    ) -> dict[str, Execution]:
        """Work the order by each policy in conditions that differ in risk aversion only, in one batch.

        What a price limit leaves is valued at the end of the window.
        """
        n, c, adverse = days.n_paths, conditions[0], math.inf
        room = torch.from_numpy(self.room / self.ticket.shares).float()
        if self.ticket.limit is not None:
            adverse = -c.order.side.item() * BPS * (self.ticket.limit / self.known.price.value - 1)
        days = tile(days, len(conditions), n)
        aversions = torch.stack([x.order.risk_aversion for x in conditions]).repeat_interleave(n)
        order = replace(c.order, risk_aversion=aversions)
        learned: dict[str, Policy] = {FLOW: self.trained.policy()}
        done, simulation = {}, OrderSimulation(days, c.market, order)
        blocked = simulation.returns[days.n_buckets - 1] < -adverse
        for name in names:
            policy = learned.get(name) or SCHEDULE_EXPERTS[name](conditions, n, days.n_buckets)
            noise = generator(self.seed, "order", "policy noise")
            with torch.no_grad():
                e = execute(Restricted(policy, room, adverse), days, c.market, order, noise)
            if bool(blocked.any()):
                rest = e.inventory[-2] * blocked
                _, paid, shifted = simulation.fill(days.n_buckets - 1, rest, rest)
                inventory = torch.cat((e.inventory[:-1], rest[None]))
                e = simulation.book(0, inventory, e.temporary_bps - paid, e.permanent_bps - shifted)
            done[name] = e
        return done

    def frontier(
        self, c: Condition, days: MarketPaths, names: Sequence[str], aversions: Sequence[float]
    ) -> pd.DataFrame:
        """Points of the policies at each risk aversion."""
        each = [with_risk_aversion(c, aversion) for aversion in aversions]
        return _points(each, self.work(names, each, days))

    def lots(self, done: Execution) -> Array:
        """Shares traded in each bucket of the first day, in whole lots, [N]."""
        return whole_lots(self.ticket.shares * done.inventory[1:, 0].double().numpy(), self.ticket, self.room)

    def schedule(self, done: Mapping[str, Execution]) -> pd.DataFrame:
        """The table ``schedule`` of a plan."""
        ticket, inventory = self.ticket, done[self.name].inventory.double().numpy()
        low, median, high = ticket.shares * np.quantile(inventory[1:], (0.1, 0.5, 0.9), axis=1)
        share = -ticket.shares * np.diff(inventory, axis=0)
        share /= np.maximum(expected_volume(ticket, self.known), 1e-9)[:, None]
        low, high = (x if ticket.lot is None else ticket.lot * np.rint(x / ticket.lot) for x in (low, high))
        median[-1] = 0
        traded = whole_lots(median, ticket, self.room)
        columns = {
            "low": low,
            "median": ticket.shares - traded.cumsum(),
            "high": high,
            "traded": traded,
            "participation": np.median(share, axis=1),
            "participation_high": np.quantile(share, 0.9, axis=1),
            "participation_max": share.max(axis=1),
        }
        columns |= {name: ticket.shares - self.lots(done[name]).cumsum() for name in BENCHMARKS}
        return _by_bucket(columns, ticket)

    def day(self, c: Condition) -> pd.DataFrame:
        """The table ``day`` of a plan."""
        days = simulate(c.market, 1, self.ticket.n_buckets, generator(self.seed, "order", "one day"))
        flow, static = map(self.lots, self.work([self.name, "static_optimal"], [c], days).values())
        moves = (days.martingale_bps + days.drift_bps)[:, 0]
        columns = {
            "price_bps": (moves.cumsum(0) - moves).numpy(),
            "volatility": (days.variance[:, 0] / c.market.heston.theta).sqrt().numpy(),
            "depth": days.log_depth.expand_as(days.variance)[:, 0].exp().numpy(),
            "traded": flow,
            "static_traded": static,
            "left": self.ticket.shares - flow.cumsum(),
        }
        return _by_bucket(columns, self.ticket)


def _points(conditions: Sequence[Condition], done: Mapping[str, Execution]) -> pd.DataFrame:
    """Mean, standard deviation and 95 % quantile of cost, bps, by policy and condition of their batch."""
    rows = []
    for name, e in done.items():
        by_condition = (x.double().chunk(len(conditions)) for x in (e.pnl_bps, e.controlled_pnl_bps))
        for c, pnl, controlled in zip(conditions, *by_condition, strict=True):
            aversion, mean = c.order.risk_aversion.item(), controlled.mean().item()
            rows.append((name, aversion, -mean, pnl.std().item(), -pnl.quantile(0.05).item()))
    return pd.DataFrame(rows, columns=["policy", "risk_aversion", "cost_bps", "std_bps", "cost95_bps"])


def _costs(
    points: pd.DataFrame, done: Mapping[str, Execution], order: Order, notional: float
) -> pd.DataFrame:
    """The table ``costs`` of a plan; ``points`` are those of the same days."""
    costs = points.set_index("policy").drop(columns="risk_aversion")
    worst = [e.pnl_bps.double().sort().values[: tail_size(len(e.pnl_bps))] for e in done.values()]
    plan, *_ = utilities = [e.utility_bps(order) for e in done.values()]
    costs["cvar95_bps"] = [-x.mean().item() for x in worst]
    costs["cost_currency"] = costs["cost_bps"] / BPS * notional
    costs[["gain_bps", "gain_ci_low", "gain_ci_high"]] = [paired_interval(plan - x) for x in utilities]
    return costs


def _by_bucket(columns: Mapping[str, Array], ticket: Ticket) -> pd.DataFrame:
    """A table with one row per bucket, by its start."""
    start, end = ticket.window
    seconds = np.linspace(60 * start, 60 * end, ticket.n_buckets + 1)[:-1].round().astype(int)
    clock = [f"{t // 3600:02d}:{t // 60 % 60:02d}:{t % 60:02d}" for t in seconds]
    return pd.DataFrame(dict(columns), pd.Index(clock, name="start"))
