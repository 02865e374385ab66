"""Recorded sessions in place of simulated days: price, variance and volume are real, impact is modelled.

An order arrives at a bucket of a :class:`flowoe_lib.data.sessions.Tape` and is worked over the following
buckets, its day. Traders know only the past of the record: levels of variance and volume are averages over
the buckets before the arrival, current values are exponentially weighted averages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.data.sessions import Array, Places, Tape
from flowoe_lib.evaluation.statistics import block_intervals
from flowoe_lib.execution.execution import Execution, Policy, execute
from flowoe_lib.execution.information import Information
from flowoe_lib.market.batching import batch, map_tensors, one_by_one
from flowoe_lib.market.impact import impact_in_window
from flowoe_lib.market.model import (
    BPS,
    Condition,
    Heston,
    Liquidity,
    Market,
    Order,
    volume_profile,
    volume_share,
)
from flowoe_lib.market.simulator import MarketPaths, VarianceStep, simulate
from flowoe_lib.randomness import generator

__all__ = [
    "MEASURES",
    "expected_under_model",
    "outcome_table",
    "paired_differences",
    "replay",
    "run",
    "session_market",
]


MEASURES = ("utility", "without_price")
"""P&L less the charge for realised risk, with and without the price moves. Without them it is the mean over
selling and buying the same order."""


SESSION_HOURS = 6.5
"""Length of the session to which the suite's estimated rates refer."""


def session_market(
    estimates: Mapping[str, float], hours: float, amplitude: float = 0.0, window_end: float = 1.0
) -> Market:
    """The market of a session of ``hours`` by the suite's ``estimates``, before the record says its level.

    Rates are those of the suite's session per hour. The session has the volume profile of ``amplitude`` up
    to ``closes``. The variance is that of a calm day until :func:`replay` replaces it.
    """

    def number(name: str, factor: float = 1.0) -> Tensor:
        return torch.tensor(factor * estimates[name])

    days = hours / SESSION_HOURS
    heston = Heston(number("calm").square(), number("kappa", days), number("cv_month"), number("rho"))
    liquidity = Liquidity(
        depth_sd=number("depth_sd"),
        depth_reversion=number("depth_reversion", days),
        profile_amplitude=torch.tensor(amplitude),
        window_end=torch.tensor(window_end),
    )
    return Market(heston, liquidity=liquidity)


@dataclass(frozen=True)
class Replay:
    """Orders on recorded sessions, each with its own market."""

    times: pd.DatetimeIndex
    """Arrival of each order, [orders]."""
    paths: MarketPaths
    """The recorded days; depth is volume over its forecast, which traders do not observe."""
    information: Information
    """The information of traders from past buckets; market fields have shape [] or [orders]."""
    order: Order

    @property
    def conditions(self) -> list[Condition]:
        """Market and order of each, fields of shape []."""
        return one_by_one("replay", map(str, self.times), self.information.market, self.order)


def replay(
    tape: Tape,
    starts: Places,
    n_buckets: int,
    session: Market,
    order: Order,
    *,
    history: int,
    half_life: float,
    pattern: Array | None = None,
) -> Replay:
    """Orders that arrive at buckets ``starts`` and are worked over ``n_buckets``, their day.

    ``session`` has rates per session and its volume profile; ``pattern`` [buckets of a session] is
    what each bucket of a session adds to its variance, flat by default. Levels of variance and volume are
    averages over the ``history`` buckets before the arrival, of logarithms for volume; averages of the past
    halve a bucket's weight in ``half_life`` buckets. Raises ValueError for a start without that
    history, or too late for the order to end within its session.
    """
    if starts.min() < history:
        raise ValueError(f"starts: the first is {starts.min()}; {history} buckets are needed before it")
    sessions, length = tape.volume.shape
    if (starts % length + n_buckets).max() > length or starts.max() >= sessions * length:
        raise ValueError(f"starts: an order of {n_buckets} buckets must end within its session of {length}")
    share, place = n_buckets / length, starts % length / length
    liquidity = session.liquidity
    profile = volume_profile(map_tensors(Tensor.double, liquidity), length).numpy()
    usual = np.ones(length) if pattern is None else pattern / pattern.mean()
    variance = pd.Series((tape.variance / usual).ravel())
    log_volume = pd.Series(np.log(tape.volume / profile).ravel())
    now = [x.ewm(halflife=half_life).mean().shift().to_numpy() for x in (variance, log_volume)]
    level, volume = (x.rolling(history).mean().shift().to_numpy()[starts] for x in (variance, log_volume))

    at = starts + np.arange(n_buckets)[:, None]
    by_clock = np.tile(usual, sessions)[at] * n_buckets
    opened, closed = tape.price[:, :-1].ravel(), tape.price[:, 1:].ravel()
    span = liquidity.window_end - liquidity.window_start
    window_start = liquidity.window_start + span * _tensor(place)
    theta, kappa = _tensor(level * by_clock.mean(0)), session.heston.kappa * share
    heston = replace(session.heston, theta=theta, kappa=kappa)
    liquidity = replace(
        liquidity,
        depth_reversion=liquidity.depth_reversion * share,
        window_start=window_start,
        # The last order of a session ends with it, whatever rounding says.
        window_end=(window_start + span * share).clamp_max(1),
    )
    part = volume_share(liquidity) / volume_share(session.liquidity)
    impact = impact_in_window(session.impact, torch.tensor(share), part)
    market = replace(session, heston=heston, liquidity=liquidity, impact=impact)
    seen = _tensor(now[0][at] * by_clock)
    paths = MarketPaths(
        dt=1 / n_buckets,
        martingale_bps=_tensor(BPS * (closed - opened)[at] / opened[starts]),
        drift_bps=torch.zeros_like(seen),
        variance=seen,
        integrated_variance=_tensor(tape.variance.ravel()[at]),
        expected_variance=VarianceStep.over(heston, 1 / n_buckets).integral(seen),
        log_depth=_tensor(log_volume.to_numpy()[at] - volume),
        volume=volume_profile(liquidity, n_buckets),
        day_drift_bps=torch.zeros(len(starts)),
        stressed=torch.zeros(n_buckets, 1, dtype=torch.bool),
    )
    return Replay(tape.times[starts], paths, Information(market, seen, _tensor(now[1][at] - volume)), order)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def run(policies: Mapping[str, Policy], days: Replay, seed: int) -> dict[str, Execution]:
    """Execute the orders by each policy, with the same noise for all."""
    with torch.no_grad():
        market, order, information = days.information.market, days.order, days.information
        return {
            name: execute(policy, days.paths, market, order, generator(seed, "replay"), information)
            for name, policy in policies.items()
        }


def expected_under_model(policies: Mapping[str, Policy], days: Replay, each: int, seed: int) -> pd.DataFrame:
    """Expected utility of the same orders under the model with full information, bps, [orders, policies].

    The mean of control-variate utility over ``each`` simulated days an order, the same for all policies;
    these are made for the conditions of ``days`` with ``each`` paths.
    """
    market, order = batch(days.conditions, each)
    drawn = simulate(market, each * len(days.times), days.paths.n_buckets, generator(seed, "promise"))
    utility = {}
    for name, policy in policies.items():
        with torch.no_grad():
            done = execute(policy, drawn, market, order, generator(seed, "promise", "policy"))
        utility[name] = done.utility_bps(order).double().reshape(-1, each).mean(1).numpy()
    return pd.DataFrame(utility, index=days.times)


def outcome_table(runs: Mapping[str, Execution], days: Replay) -> pd.DataFrame:
    """One row per order and policy: time, policy, and shortfall, impact and both ``MEASURES`` in bps."""
    tables = []
    for name, done in runs.items():
        impact, risk = done.temporary_bps + done.permanent_bps, days.order.risk_aversion * done.risk
        columns = {
            "shortfall": -done.pnl_bps,
            "impact": impact,
            "utility": done.realised_utility_bps(days.order),
            "without_price": -impact - risk,
        }
        numbers = {k: v.double().numpy() for k, v in columns.items()}
        tables.append(pd.DataFrame({"time": days.times, "policy": name} | numbers))
    return pd.concat(tables, ignore_index=True)


def paired_differences(
    outcomes: pd.DataFrame, reference: str, block: int, reps: int, seed: int
) -> pd.DataFrame:
    """Paired differences of every other policy to ``reference``, bps, a row a measure and policy.

    From an :func:`outcome_table`: measure, policy, reference, mean, ci_low, ci_high as
    :func:`flowoe_lib.evaluation.statistics.block_intervals`, which says what it refuses, and sd of one
    order's.
    """
    wide = outcomes.pivot(index="time", columns="policy", values=list(MEASURES))
    gains = {m: wide[m].drop(columns=reference).sub(wide[m][reference], axis=0) for m in MEASURES}
    apart = pd.concat(gains, axis=1, names=["measure", "policy"])
    rows = block_intervals(apart, block, reps, seed).assign(sd=apart.std(), reference=reference)
    return rows.reset_index()
