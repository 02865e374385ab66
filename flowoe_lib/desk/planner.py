"""The order planner: from market bars and a ticket to a schedule with its cost and risk.

The window in which the order is worked takes the place of the day: variance, drift and rates of mean
reversion are scaled by its length, and order size is measured against the expected volume of the window.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.data.bars import Bars
from flowoe_lib.desk.market_estimates import MarketEstimates, estimate
from flowoe_lib.desk.ticket import USUAL_AVERSION, OrderError, Ticket
from flowoe_lib.evaluation.frontier import frontier, with_risk_aversion
from flowoe_lib.evaluation.intervals import paired_interval
from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.execution.execution import Execution, Observation, Policy, execute
from flowoe_lib.market.impact import impact_in_window
from flowoe_lib.market.model import (
    BPS,
    Condition,
    Heston,
    Impact,
    Liquidity,
    Market,
    Order,
    scalar,
    volume_profile,
    volume_share,
)
from flowoe_lib.market.ranges import TESTED_LIMITS, RangeViolation
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.ensemble import BENCHMARKS, SCHEDULE_EXPERTS
from flowoe_lib.randomness import generator
from flowoe_lib.training.pretrained import PretrainedPolicy, load_pretrained

__all__ = ["Plan", "plan_order", "prepared"]


FLOW = "flow_refined"


AVERSIONS = tuple(float(x) for x in np.geomspace(4e-5, 4e-3, 13))
"""Risk aversions of the frontier, per bps, over the training range of the policy."""


@dataclass(frozen=True)
class ParticipationCap:
    """A policy limited to a share ``cap`` of the expected volume of each bucket.

    It trades earlier than the policy where the remaining order would otherwise exceed the cap later.
    """

    policy: Policy
    cap: float

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        room = self.cap * obs.volume / (obs.n_buckets * obs.order.size)
        left = obs.inventory.clamp_min(1e-30)
        traded = torch.minimum(self.policy(obs, noise) * left, room[obs.k])
        return (torch.maximum(traded, left - room[obs.k + 1 :].sum(0)) / left).clamp(0, 1)


@dataclass(frozen=True)
class Plan:
    """The plan of an order: schedule, costs and frontier; costs are in bps of the arrival price."""

    ticket: Ticket
    estimates: MarketEstimates
    condition: Condition
    """Market and order, with the window as the day."""
    flags: list[RangeViolation]
    """Quantities outside the training range of the policy but within its tested limits."""
    schedule: pd.DataFrame
    """One row per bucket, by its start: shares left at its end (low, median, high: 10, 50, 90 % quantile
    over days), shares traded (median), participation in expected volume (median, 90 % quantile, maximum), and
    shares left under each benchmark."""
    costs: pd.DataFrame
    """One row per policy: mean, standard deviation, CVaR95 and 95 % quantile of cost, bps; mean cost in
    currency; FlowOE's gain in utility over it, bps, with its 95 % interval."""
    frontier: pd.DataFrame
    """Columns policy, risk_aversion, std_bps, cost_bps, cost95_bps, over the days of ``costs``."""
    day: pd.DataFrame
    """One simulated day, one row per bucket: price_bps, volatility (root of variance over its mean), depth
    over its median, shares traded by FlowOE and by the static optimum, shares left."""


def _condition(ticket: Ticket, known: MarketEstimates) -> Condition:
    start, end = ticket.part
    length = end - start
    liquidity = Liquidity(
        illiquidity=scalar(ticket.illiquidity),
        depth_sd=scalar(known.depth_sd.value),
        depth_reversion=scalar(known.depth_reversion.value * length),
        profile_amplitude=scalar(known.profile_amplitude.value),
        window_start=scalar(start),
        window_end=scalar(end),
    )
    heston = Heston(
        theta=scalar(known.volatility.value**2 * length),
        kappa=scalar(known.kappa.value * length),
        cv=scalar(known.cv.value),
        rho=scalar(known.rho.value),
    )
    share = volume_share(liquidity)
    size = ticket.shares / (known.adv.value * float(share))
    impact = Impact(beta=scalar(ticket.beta))
    if ticket.shares_outstanding is not None:
        impact = replace(impact, turnover_days=scalar(ticket.shares_outstanding / known.adv.value))
    impact = impact_in_window(impact, scalar(length), share)
    market = Market(heston, impact, liquidity, scalar(ticket.drift_bps), drift_sd=scalar(ticket.drift_sd_bps))
    side = scalar(1.0 if ticket.side == "sell" else -1.0)
    order = Order(scalar(size), scalar(ticket.risk_aversion or USUAL_AVERSION), side)
    return Condition("order", "order", market, order)


def _checked(condition: Condition, ticket: Ticket, trained: PretrainedPolicy) -> list[RangeViolation]:
    """The quantities outside the training range. Raises OrderError if one is beyond the tested limits."""
    found = trained.conditions.violations(condition.market, condition.order)
    for d in found:
        # A combination outside the training range is flagged, not refused.
        if "beside" in d.quantity:
            continue
        low, high = TESTED_LIMITS.get(d.quantity, (d.low, d.high))
        tested = f", tested alone from {low:g} to {high:g}" if d.quantity in TESTED_LIMITS else ""
        if not low <= d.value <= high:
            raise OrderError(
                f"{d}{tested}; outside, the policy is untested (figures are per window; size is a share "
                "of the volume expected in it)"
            )
    cap, size = ticket.participation_cap, float(condition.order.size)
    if cap is not None and cap < size:
        raise OrderError(
            f"participation_cap = {cap:g}: must be at least {math.ceil(1e4 * size) / 1e4:g}, the order's "
            "share of the volume expected in its window"
        )
    return found


def prepared(bars: Bars, ticket: Ticket, trained: PretrainedPolicy) -> tuple[MarketEstimates, Condition]:
    """Estimate the market from ``bars`` and place the order in it. Raises as :func:`plan_order`."""
    known = estimate(bars, trained.calibration, trained.conditions, ticket.session, ticket.adv)
    try:
        condition = _condition(ticket, known)
    except ValueError as error:
        raise OrderError(f"the order cannot be worked in this market: {error}") from None
    _checked(condition, ticket, trained)
    return known, condition


def plan_order(
    bars: Bars,
    ticket: Ticket,
    trained: PretrainedPolicy | None = None,
    n_paths: int = 10_000,
    seed: int = 2025,
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

    Returns
    -------
    flowoe_lib.desk.planner.Plan
        Tables ``schedule`` (shares), ``costs`` and ``frontier`` (bps of the arrival price), ``day`` and
        ``estimates``.

    Raises
    ------
    OrderError
        If the order cannot be worked in this market, or lies outside the tested limits of the policy.
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
    known, condition = prepared(bars, ticket, trained)
    n = ticket.n_buckets

    def policies(c: Condition) -> dict[str, Policy]:
        everyone: dict[str, Policy] = {FLOW: trained.policy()}
        everyone |= {name: SCHEDULE_EXPERTS[name]([c], 1, n) for name in BENCHMARKS}
        cap = ticket.participation_cap
        return everyone if cap is None else {name: ParticipationCap(p, cap) for name, p in everyone.items()}

    evaluation = Evaluation(n_paths=n_paths, n_buckets=n, seed=seed)
    if ticket.cost_limit_bps is not None:
        fewer = replace(evaluation, n_paths=max(n_paths // 2, 100))
        own = frontier(lambda c: {FLOW: policies(c)[FLOW]}, condition, AVERSIONS, fewer)
        condition = with_risk_aversion(condition, _aversion_for(ticket.cost_limit_bps, own))
    # On the days of the costs, and through the risk aversion in use, so that costs lie on the curves.
    aversions = sorted({*AVERSIONS, condition.order.risk_aversion.item()})
    curve = frontier(policies, condition, aversions, evaluation, "test")
    flags, chosen = _checked(condition, ticket, trained), policies(condition)
    paths = simulate(condition.market, n_paths, n, generator(seed, "order"))
    return Plan(
        ticket=ticket,
        estimates=known,
        condition=condition,
        flags=flags,
        schedule=_schedule(chosen, condition, ticket, paths, seed),
        costs=_costs(chosen, condition, evaluation, ticket.shares * known.price.value),
        frontier=curve.assign(cost_bps=-curve["mean_bps"]).drop(columns=["condition", "mean_bps"]),
        day=_day(chosen, condition, ticket, seed),
    )


def _aversion_for(limit: float, curve: pd.DataFrame) -> float:
    """The lowest risk aversion at which the 95 % quantile of cost is ``limit``, by interpolation."""
    cost, log = curve["cost95_bps"].to_numpy(), np.log(curve["risk_aversion"].to_numpy())
    within = np.flatnonzero(cost <= limit)
    if len(within) == 0:
        raise OrderError(
            f"cost_limit_bps = {limit:g}: must be at least {math.ceil(10 * cost.min()) / 10:.1f}, the lowest "
            f"cost that 95 % of days stay below, at risk aversion {np.exp(log[cost.argmin()]):.1e}"
        )
    between = [within[0], max(within[0] - 1, 0)]
    return float(np.exp(np.interp(limit, cost[between], log[between])))


def _worked(policy: Policy, condition: Condition, paths: MarketPaths, seed: int) -> Execution:
    with torch.no_grad():
        return execute(
            policy, paths, condition.market, condition.order, generator(seed, "order", "policy noise")
        )


def _by_bucket(columns: Mapping[str, Tensor], ticket: Ticket) -> pd.DataFrame:
    """A table with one row per bucket, by its start."""
    start, end = ticket.window
    seconds = np.linspace(60 * start, 60 * end, ticket.n_buckets + 1)[:-1].round().astype(int)
    clock = [f"{t // 3600:02d}:{t // 60 % 60:02d}:{t % 60:02d}" for t in seconds]
    table = pd.DataFrame({name: value.double().numpy() for name, value in columns.items()})
    return table.set_axis(pd.Index(clock, name="start"), axis=0)


def _schedule(
    policies: Mapping[str, Policy], condition: Condition, ticket: Ticket, paths: MarketPaths, seed: int
) -> pd.DataFrame:
    held = ticket.shares * _worked(policies[FLOW], condition, paths, seed).inventory
    # Torch's quantile refuses more than 16 million entries.
    low, median, high = torch.from_numpy(np.quantile(held.numpy(), (0.1, 0.5, 0.9), axis=1))
    traded = -held.diff(dim=0)
    # The volume expected in the window, spread over its buckets.
    profile = volume_profile(condition.market.liquidity, paths.n_buckets) / paths.n_buckets
    share = traded / (ticket.shares / condition.order.size * profile)[:, None]
    columns = {
        "low": low[1:],
        "median": median[1:],
        "high": high[1:],
        "traded": traded.median(1).values,
        "participation": share.median(1).values,
        "participation_high": torch.from_numpy(np.quantile(share.numpy(), 0.9, axis=1)),
        "participation_max": share.amax(1),
    }
    for name in BENCHMARKS:
        columns[name] = ticket.shares * _worked(policies[name], condition, paths, seed).inventory[1:, 0]
    return _by_bucket(columns, ticket)


def _costs(
    policies: Mapping[str, Policy], condition: Condition, evaluation: Evaluation, notional: float
) -> pd.DataFrame:
    out = evaluate(policies, condition, evaluation, "test")
    rows = {}
    for name, o in out.items():
        cost = -o.controlled_pnl.double().mean().item()
        better = paired_interval(out[FLOW].utility - o.utility)
        rows[name] = {
            "cost_bps": cost,
            "std_bps": o.pnl.double().std().item(),
            "cvar95_bps": -o.cvar95,
            "cost95_bps": -o.pnl.quantile(0.05).item(),
            "cost_currency": cost / BPS * notional,
        } | dict(zip(("flow_gain_bps", "gain_ci_low", "gain_ci_high"), better, strict=True))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def _day(policies: Mapping[str, Policy], condition: Condition, ticket: Ticket, seed: int) -> pd.DataFrame:
    paths = simulate(condition.market, 1, ticket.n_buckets, generator(seed, "order", "one day"))
    held = {
        name: ticket.shares * _worked(policies[name], condition, paths, seed).inventory[:, 0]
        for name in (FLOW, "static_optimal")
    }
    moves = (paths.martingale_bps + paths.drift_bps)[:, 0]
    columns = {
        "price_bps": moves.cumsum(0) - moves,
        "volatility": (paths.variance[:, 0] / condition.market.heston.theta).sqrt(),
        "depth": paths.log_depth.expand_as(paths.variance)[:, 0].exp(),
        "traded": -held[FLOW].diff(),
        "static_traded": -held["static_optimal"].diff(),
        "left": held[FLOW][1:],
    }
    return _by_bucket(columns, ticket)
