"""A desk's own order: from its bars to a schedule with its cost and risk.

The window in which the order is worked takes the place of the day: variance, drift and mean reversions
are scaled by its length, and the order is measured against the volume that falls into it.
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

__all__ = ["ParticipationCap", "Plan", "plan_order", "prepared"]


AVERSIONS = tuple(float(x) for x in np.geomspace(4e-5, 4e-3, 13))
"""Risk aversions of the frontier, per bps: the range that the policy is trained on."""


@dataclass(frozen=True)
class ParticipationCap:
    """A policy held to a share ``cap`` of the expected volume of each bucket.

    It trades earlier where waiting would leave more than the cap allows for the rest of the window.
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
    """What to do with an order, what it costs, and how that compares. Costs are bps of the arrival price."""

    ticket: Ticket
    estimates: MarketEstimates
    condition: Condition
    """The market and the order with the window as its day."""
    flags: list[RangeViolation]
    """What lies outside the policy's training, though within where it was tried."""
    schedule: pd.DataFrame
    """A row a bucket: start, shares left at its end (low, median, high: 10, 50, 90 % of days), shares
    traded (median), participation in expected volume (median, high: 90 % of days, max: of all days), and what
    the benchmarks have left."""
    costs: pd.DataFrame
    """A row a policy: expected cost, standard deviation, CVaR95 and 95 % quantile of cost, bps; expected
    cost in currency; utility of FlowOE over it, bps, with its 95 % interval."""
    frontier: pd.DataFrame
    """Columns policy, risk_aversion, std_bps, cost_bps, cost95_bps."""
    day: pd.DataFrame
    """One simulated day, a row a bucket: price_bps, volatility (root of variance over its mean), depth over
    its median, shares traded by FlowOE and by the static optimum, shares left."""


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
    impact = impact_in_window(Impact(beta=scalar(ticket.beta)), scalar(length), share)
    market = Market(heston, impact, liquidity, scalar(ticket.drift_bps), drift_sd=scalar(ticket.drift_sd_bps))
    side = scalar(1.0 if ticket.side == "sell" else -1.0)
    order = Order(scalar(size), scalar(ticket.risk_aversion or USUAL_AVERSION), side)
    return Condition("order", "order", market, order)


def _checked(condition: Condition, ticket: Ticket, trained: PretrainedPolicy) -> list[RangeViolation]:
    """What lies outside training. Raises OrderError where it is out of reach."""
    found = trained.conditions.violations(condition.market, condition.order)
    for d in found:
        # What is untried only in combination is flagged.
        if "beside" in d.quantity:
            continue
        low, high = TESTED_LIMITS.get(d.quantity, (d.low, d.high))
        tried = f", and tried alone from {low:g} to {high:g}" if d.quantity in TESTED_LIMITS else ""
        if not low <= d.value <= high:
            raise OrderError(
                f"{d}{tried}; further away nothing is known of the policy (per window, and size as a share "
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
    """The market of ``bars``, and what the order is in it. Raises as :func:`plan`."""
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
    """The plan for ``ticket`` in the market of ``bars`` by the trained policy, by default the library's.

    Costs and bands come from ``n_paths`` simulated days; risk aversion is solved for on others. Raises
    OrderError for an order that cannot be worked, and BarsError for bars that say too little.
    """
    if n_paths < 2:
        raise OrderError(f"n_paths = {n_paths}: must be at least 2")
    trained = trained or load_pretrained()
    known, condition = prepared(bars, ticket, trained)
    n = ticket.n_buckets

    def policies(c: Condition) -> dict[str, Policy]:
        everyone: dict[str, Policy] = {"flow_refined": trained.policy()}
        everyone |= {name: SCHEDULE_EXPERTS[name]([c], 1, n) for name in BENCHMARKS}
        cap = ticket.participation_cap
        return everyone if cap is None else {name: ParticipationCap(p, cap) for name, p in everyone.items()}

    evaluation = Evaluation(n_paths=n_paths, n_buckets=n, seed=seed)
    curve = frontier(policies, condition, AVERSIONS, replace(evaluation, n_paths=max(n_paths // 2, 100)))
    if ticket.cost_limit_bps is not None:
        condition = with_risk_aversion(condition, _aversion_for(ticket.cost_limit_bps, curve))
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
    """The lowest risk aversion that keeps 95 % of days below ``limit``, interpolated on FlowOE's frontier."""
    own = curve[curve["policy"] == "flow_refined"]
    cost, log = own["cost95_bps"].to_numpy(), np.log(own["risk_aversion"].to_numpy())
    kept = np.flatnonzero(cost <= limit)
    if len(kept) == 0:
        raise OrderError(
            f"cost_limit_bps = {limit:g}: must be at least {math.ceil(10 * cost.min()) / 10:g}, the lowest "
            f"cost that 95 % of days stay below, at risk aversion {np.exp(log[cost.argmin()]):.1e}"
        )
    first = int(kept[0])
    if first == 0:
        return float(np.exp(log[0]))
    share = (cost[first - 1] - limit) / (cost[first - 1] - cost[first])
    return float(np.exp(log[first - 1] + share * (log[first] - log[first - 1])))


def _worked(policy: Policy, condition: Condition, paths: MarketPaths, seed: int) -> Execution:
    with torch.no_grad():
        return execute(
            policy, paths, condition.market, condition.order, generator(seed, "order", "policy noise")
        )


def _clock(ticket: Ticket) -> list[str]:
    """Start of each bucket."""
    start, end = ticket.window
    seconds = np.linspace(60 * start, 60 * end, ticket.n_buckets + 1)[:-1].round().astype(int)
    return [f"{t // 3600:02d}:{t // 60 % 60:02d}:{t % 60:02d}" for t in seconds]


def _schedule(
    policies: Mapping[str, Policy], condition: Condition, ticket: Ticket, paths: MarketPaths, seed: int
) -> pd.DataFrame:
    held = ticket.shares * _worked(policies["flow_refined"], condition, paths, seed).inventory
    # Torch's quantile gives up beyond 16 million entries.
    low, median, high = torch.from_numpy(np.quantile(held.numpy(), (0.1, 0.5, 0.9), axis=1))
    traded = -held.diff(dim=0)
    expected = ticket.shares / condition.order.size * _volume(condition, paths.n_buckets)
    columns = {
        "low": low[1:],
        "median": median[1:],
        "high": high[1:],
        "traded": traded.median(1).values,
        "participation": (traded / expected[:, None]).median(1).values,
        "participation_high": torch.from_numpy(
            np.quantile((traded / expected[:, None]).numpy(), 0.9, axis=1)
        ),
        "participation_max": (traded / expected[:, None]).amax(1),
    }
    for name in BENCHMARKS:
        columns[name] = ticket.shares * _worked(policies[name], condition, paths, seed).inventory[1:, 0]
    table = pd.DataFrame({name: value.double().numpy() for name, value in columns.items()})
    return table.assign(start=_clock(ticket)).set_index("start")


def _volume(condition: Condition, n_buckets: int) -> Tensor:
    """Expected volume of each bucket over that of the window, [N]."""
    return volume_profile(condition.market.liquidity, n_buckets) / n_buckets


def _costs(
    policies: Mapping[str, Policy], condition: Condition, evaluation: Evaluation, notional: float
) -> pd.DataFrame:
    out = evaluate(policies, condition, evaluation, "test")
    rows = {}
    for name, o in out.items():
        cost = -o.controlled_pnl.double().mean().item()
        better = paired_interval(out["flow_refined"].utility - o.utility)
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
        for name in ("flow_refined", "static_optimal")
    }
    moves = (paths.martingale_bps + paths.drift_bps)[:, 0]
    columns: dict[str, Tensor] = {
        "price_bps": moves.cumsum(0) - moves,
        "volatility": (paths.variance[:, 0] / condition.market.heston.theta).sqrt(),
        "depth": paths.log_depth.expand_as(paths.variance)[:, 0].exp(),
        "traded": -held["flow_refined"].diff(),
        "static_traded": -held["static_optimal"].diff(),
        "left": held["flow_refined"][1:],
    }
    table = pd.DataFrame({name: value.double().numpy() for name, value in columns.items()})
    return table.assign(start=_clock(ticket)).set_index("start")
