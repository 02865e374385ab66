"""Recorded sessions in place of simulated days: price, variance and volume are real, impact is modelled.

An order arrives at a bucket of a :class:`flowoe_lib.data.sessions.Tape` and is worked over the following
buckets, its day. Traders know only the past of the record: levels of variance and volume are averages over
the buckets before the arrival, current values are exponentially weighted averages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from statsmodels.stats.power import normal_power
from torch import Tensor

from flowoe_lib.data.estimators import fit_decay, log_to_profile, profile_amplitude, relative_to_profile
from flowoe_lib.data.sessions import Array, Tape
from flowoe_lib.evaluation.intervals import Z95
from flowoe_lib.evaluation.statistics import block_intervals
from flowoe_lib.execution.execution import Execution, Policies, execute
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
    scalar,
    volume_profile,
    volume_share,
)
from flowoe_lib.market.simulator import MarketPaths, VarianceStep, simulate
from flowoe_lib.randomness import generator

MEASURES = ("utility", "without_price")
"""P&L less the charge for realised risk, with and without the price moves. Without them it is the mean over
selling and buying the same order."""


LAGS = 1, 6
"""First and last lag, in buckets, of the autocovariance to which mean reversion is fitted."""


RATES = 0.5, 12.0
"""Range of the estimated rates of mean reversion, per session."""


def session_market(variance: Array, volume: Array) -> Market:
    """The market estimated from past sessions, [sessions, buckets] each; its unit of time is a session.

    Moments of variance and depth are fitted by :func:`flowoe_lib.data.estimators.fit_decay`, with rates
    limited to ``RATES``. rho, which no policy observes, is zero.
    """
    cv, kappa = fit_decay(relative_to_profile(variance), *LAGS)
    depth_sd, reversion = fit_decay(log_to_profile(volume), *LAGS)
    kappa, reversion = np.clip((kappa, reversion), *RATES)
    heston = Heston(*map(scalar, (variance.sum(1).mean(), kappa, max(cv, 0.02), 0.0)))
    depth = {"depth_sd": depth_sd, "depth_reversion": reversion}
    depth["profile_amplitude"] = profile_amplitude(volume)
    return Market(heston, liquidity=Liquidity(**{name: scalar(value) for name, value in depth.items()}))


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
    starts: NDArray[np.intp],
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
    log_volume = np.log(tape.volume / profile).ravel()
    record = pd.DataFrame({"variance": (tape.variance / usual).ravel(), "log_volume": log_volume})
    variance_now, volume_now = record.ewm(halflife=half_life).mean().shift().to_numpy().T
    level, volume = record.rolling(history).mean().shift().to_numpy()[starts].T

    at = starts + np.arange(n_buckets)[:, None]
    by_clock = np.tile(usual, sessions)[at] * n_buckets
    opened, closed = tape.price[:, :-1].ravel(), tape.price[:, 1:].ravel()
    span = liquidity.window_end - liquidity.window_start
    window_start = liquidity.window_start + span * _tensor(place)
    theta = _tensor(level * by_clock.mean(0))
    heston = replace(session.heston, theta=theta, kappa=session.heston.kappa * share)
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
    seen = _tensor(variance_now[at] * by_clock)
    paths = MarketPaths(
        dt=1 / n_buckets,
        martingale_bps=_tensor(BPS * (closed - opened)[at] / opened[starts]),
        drift_bps=torch.zeros_like(seen),
        variance=seen,
        integrated_variance=_tensor(tape.variance.ravel()[at]),
        expected_variance=VarianceStep.over(heston, 1 / n_buckets).integral(seen),
        log_depth=_tensor(log_volume[at] - volume),
        volume=volume_profile(liquidity, n_buckets),
        day_drift_bps=torch.zeros(len(starts)),
        stressed=torch.zeros(n_buckets, 1, dtype=torch.bool),
    )
    known = Information(market, seen, _tensor(volume_now[at] - volume))
    return Replay(tape.times[starts], paths, known, order)


def walk_forward(tape: Tape, order: Order, *, calibration: int, level: int, half_life: float) -> list[Replay]:
    """Orders on whole sessions, a replay a month, each with estimates from the sessions before the month.

    Market and pattern of variance are estimated from the last ``calibration`` sessions before the month,
    levels are averages over the last ``level`` sessions before the order. Months without that history are
    left out; ValueError if all are.
    """
    length = tape.volume.shape[1]
    months = tape.times[::length].to_period("M")
    replays = []
    for month in months.unique():
        here = np.flatnonzero(months == month)
        if here[0] < max(calibration, level):
            continue
        past = slice(here[0] - calibration, here[0])
        variance, averages = tape.variance[past], {"history": level * length, "half_life": half_life}
        session, pattern = session_market(variance, tape.volume[past]), variance.mean(0)
        replays.append(replay(tape, here * length, length, session, order, pattern=pattern, **averages))
    if not replays:
        raise ValueError(
            f"calibration = {calibration}, level = {level}: no month has that many sessions before it"
        )
    return replays


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def run(policies: Policies, days: Replay, seed: int) -> dict[str, Execution]:
    """Execute the orders by each policy, with the same noise for all."""
    with torch.no_grad():
        market, order, information = days.information.market, days.order, days.information
        return {
            name: execute(policy, days.paths, market, order, generator(seed, "replay"), information)
            for name, policy in policies.items()
        }


def expected_under_model(policies: Policies, days: Replay, each: int, seed: int) -> pd.DataFrame:
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
    outcomes: pd.DataFrame, policy: str, block: int, reps: int, seed: int, measures: Sequence[str] = MEASURES
) -> pd.DataFrame:
    """Mean gains of ``policy`` over every other one on the same orders, bps, a row a measure and reference.

    ``outcomes`` are those of :func:`outcome_table`, with the columns ``measures``. Result: measure,
    reference, mean, ci_low and ci_high as :func:`flowoe_lib.evaluation.statistics.block_intervals`, which
    says what it refuses, error (half the width of the interval over 1.96) and p, two-sided, of no gain.
    """
    wide = outcomes.pivot(index="time", columns="policy", values=list(measures))
    gains = {m: wide[m].drop(columns=policy).rsub(wide[m][policy], axis=0) for m in measures}
    rows = block_intervals(pd.concat(gains, axis=1, names=["measure", "reference"]), block, reps, seed)
    error = (rows["ci_high"] - rows["ci_low"]) / (2 * Z95)
    return rows.assign(error=error, p=2 * norm.sf((rows["mean"] / error).abs())).reset_index()


def break_even_impact(outcomes: pd.DataFrame, policy: str, reference: str) -> float:
    """Multiple of the modelled impact at which the mean gain without price moves over ``reference`` vanishes.

    From an :func:`outcome_table`; trades stay those planned for the modelled impact. Above it the policy that
    pays less impact is ahead. Zero or less if one policy is ahead at every impact.
    """
    means = outcomes.groupby("policy")[["impact", "without_price"]].mean()
    paid, gained = (means.loc[policy] - means.loc[reference]).to_numpy(dtype=np.float64)
    return float(1 + gained / paid)


def prediction_test(seen: pd.DataFrame, predicted: pd.Series, level: float = 0.05) -> pd.DataFrame:
    """Two-sided test that gains are as predicted, with its power if there were no gain at all.

    ``seen`` has columns mean and error of :func:`paired_differences`; ``predicted`` are the expected gains
    under the model, bps, with the same index and negligible error. Adds predicted, p, power and verdict:
    "more" or "less" if the test rejects, otherwise "as predicted" if its power is at least .8, and "open" if
    not.
    """
    z = (seen["mean"] - predicted) / seen["error"]
    p = pd.Series(2 * norm.sf(z.abs()), seen.index)
    power = pd.Series(normal_power(predicted.abs() / seen["error"], 1, level), seen.index)
    rejected = np.where(z > 0, "more", "less")
    verdict = np.where(p < level, rejected, np.where(power >= 0.8, "as predicted", "open"))
    return seen.assign(predicted=predicted, p=p, power=power, verdict=verdict)
