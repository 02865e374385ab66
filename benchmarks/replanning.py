"""How close re-planning without a search comes to model predictive control (MPC), and what a decision costs.

The re-planned expert carries Almgren and Chriss's closed form for linear impact over to concave impact. The
candidate here solves the concave problem itself, for constant forecasts: along the best schedule an energy is
constant (Almgren 2003), so one integral gives the first trade. Its forecasts are not plain means: early times
weigh more, because more is held then. Where impact has memory, inventory plus impact state takes the place of
inventory. Both are compared with MPC, which searches for all later trades, on the same days of four worlds:
variance moves in all but one, and there is random depth, a known drift, a signal, or memory of impact.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from _report import by_turns, report
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from flowoe_lib.data.conditions import conditions_from_records
from flowoe_lib.execution.execution import Observation, OrderSimulation, Policy, execute, score_of_fraction
from flowoe_lib.market.model import Condition
from flowoe_lib.market.pre_trade import posterior_drift
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.randomness import generator
from flowoe_lib.store import Store
from flowoe_lib.studies.worlds import dynamic_worlds, liquid_day, signal_world, transient_world

N, DAYS, BATCH, REPETITIONS = 39, 500, 10_000, 10
NODES, WEIGHTS = (torch.from_numpy(x)[:, None].float() / 2 for x in (leggauss(4)[0] + 1, leggauss(4)[1]))
LOG_LEAST = (-30.0, 12.0)
"""Bounds of the logarithm of beta w^(1 + beta) at the lowest pace w; at the lower one the order waits."""


def lasting_share(rate: Tensor, days: Tensor) -> Tensor:
    """Share that counts, over the next ``days``, of what reverts to its mean at ``rate``, [paths].

    It is the mean of exp(-rate s), weighted by the squared inventory of an even schedule: the exact weight of
    variance in that schedule's risk. A signal has nearly the same weight in the first trade.
    """
    weights = 3 * (1 - NODES).square() * WEIGHTS
    return (weights * torch.exp(-rate * days * NODES)).sum(0)


def first_trade(urgency: Tensor, drift: Tensor, beta: Tensor, n_buckets: int | Tensor) -> Tensor:
    """First trade of the best schedule under concave impact and constant forecasts, [paths].

    It is a multiple of TWAP's. With pace w relative to TWAP's and inventory u in shares of the order, the
    schedule minimises int w^(1 + beta) + urgency u^2 - drift u. Along it, beta w^(1 + beta) is urgency u^2 -
    drift u plus a constant, and the constant is such that the order ends at the close, int du / w(u) = 1.
    """
    urgency, power = urgency.clamp_min(1e-5), 1 / (1 + beta)
    # Inventory at which the pace is lowest; nodes of the integral cluster there, where it is almost singular.
    slowest = (drift / (2 * urgency)).clamp(0, 1)
    slope = 2 * urgency * slowest - drift
    above = torch.cat(((1 - slowest) * NODES.square(), -slowest * NODES.square()))
    lengths = torch.cat(((1 - slowest) * 2 * NODES * WEIGHTS, slowest * 2 * NODES * WEIGHTS))
    pull = above * (slope + urgency * above)

    # The slowest pace under linear impact, of urgency without drift times that of a constant pull.
    root = urgency.sqrt()
    start = root / torch.sinh(root.clamp_max(50)) * (1 - slope.abs() / 4)
    log_least = torch.log(beta) + (1 + beta) * start.clamp_min(1e-3).log()
    # Newton's method for the logarithm of the time that the schedule takes.
    for _ in range(3):
        times = lengths * ((pull + log_least.exp()) / beta).pow(-power)
        total, change = times.sum(0), (times / (pull + log_least.exp())).sum(0) * power * log_least.exp()
        log_least = (log_least + total * total.log() / change).clamp(*LOG_LEAST)

    def pace(held: Tensor | float) -> Tensor:
        over = held - slowest
        return (((over * (slope + urgency * over)).clamp_min(0) + log_least.exp()) / beta).pow(power)

    # Where the pace falls, it is nearly a power of the inventory; elsewhere this is the midpoint rule.
    opening = pace(1)
    exponent = ((2 * urgency - drift) * power / (beta * opening.pow(1 + beta))).clamp(0, 2)
    half = inventory_after(0.5 / n_buckets, opening, exponent).clamp_min(0.05)
    rate = pace(half) / half.pow(exponent)
    return n_buckets * (1 - inventory_after(1 / n_buckets, rate, exponent))


def inventory_after(days: float | Tensor, rate: Tensor, exponent: Tensor) -> Tensor:
    """Inventory u after ``days`` of u' = -rate u^exponent from one, [paths]."""
    x = (exponent - 1) * rate * days
    x = torch.where(x.abs() < 1e-3, 1e-3, x.clamp_min(-1 + 1e-6))
    return torch.exp(-rate * days * torch.log1p(x) / x)


def first_trade_with_memory(obs: Observation, urgency: Tensor, drift: Tensor) -> Tensor:
    """:func:`first_trade` where impact has memory, for the ``urgency`` and ``drift`` of impact without.

    Inventory plus impact state falls only as impact decays, and the impact state after the trade takes the
    place of the pace. The block at the close counts as further time. Without urgency and drift the result is
    exact: the state is constant until the last trade (Alfonsi, Fruth, Schied 2010, Quantitative Finance 10).
    """
    impact, n_left, n = obs.market.impact, obs.n_buckets - obs.k, obs.n_buckets
    beta, decay = impact.beta, torch.exp(-impact.resilience / n)
    state = obs.impact / obs.inventory.clamp_min(1e-3)
    fall, kept = 1 - decay, 1 - decay ** (1 + beta)
    last = (kept / fall) ** (1 / beta)
    # Inventory plus state over the constant state without urgency, and the cost of that schedule.
    level, whole = (n_left - 1) * fall + last, 1 + state
    cost = (whole * n_left / level) ** (1 + beta) * ((n_left - 1) * kept + last ** (1 + beta)) / n_left
    # Cost of an even schedule at the same slope of impact, over its cost without memory.
    states = [(1 - decay**k) / fall for k in (NODES * (n - 1) + 0.5, torch.full((1, 1), float(n)))]
    running, at_close = ((WEIGHTS * states[0] ** (1 + beta)).sum(0), states[1][0] ** (1 + beta))
    even = (running * kept * (n - 1) + at_close) / n
    longer = level / (n_left * fall)
    scale = longer * whole * even / cost
    urgent = urgency * scale * whole
    pace = first_trade(urgent, drift * scale, beta, n_left * longer)
    # The trade itself lowers the inventory at risk, which slows it: beta w^(1 + beta) + lowered w^2 is given.
    lowered, given = decay * urgent / level.square(), beta * pace ** (1 + beta)
    for _ in range(3):
        excess = beta * pace ** (1 + beta) + lowered * pace.square() - given
        pace = pace - excess / (beta * (1 + beta) * pace**beta + 2 * lowered * pace).clamp_min(1e-6)
        pace = pace.clamp_min(1e-6)
    return (n_left * (pace * whole / level - state)).clamp_min(0)


def by_one_integral(obs: Observation, noise: Tensor) -> Tensor:
    """The candidate: trade by :func:`first_trade` of what is left, at the weighted forecasts."""
    market, left, n_left = obs.market, obs.time_left, obs.n_buckets - obs.k
    excess = (obs.variance / market.heston.theta - 1) * lasting_share(market.heston.kappa, left)
    lasting = posterior_drift(market, obs.order, obs.return_bps, obs.k / obs.n_buckets)
    drift = lasting + obs.signal * lasting_share(market.signal.reversion, left)
    held = obs.inventory.clamp_min(1e-3)
    scale = (left / held).pow(market.impact.beta) * left
    urgency, waiting = (
        obs.pre_trade.urgency * (1 + excess) * scale * held,
        drift / obs.pre_trade.cost_bps * scale,
    )
    if market.impact.has_memory:
        pace = first_trade_with_memory(obs, urgency, waiting)
    else:
        pace = first_trade(urgency, waiting, market.impact.beta, n_left)
    fading = market.liquidity.depth_reversion * left
    depth = obs.log_depth * (1 + torch.expm1(-fading) / fading)
    volume = score_of_fraction(obs.volume_ratio / n_left, n_left)
    # Not limited as scores are, so that an order may wait.
    odds = (pace / (n_left - pace).clamp_min(1e-6)) * (depth + volume).exp()
    return (odds / (1 + odds)).expand_as(noise)


CANDIDATES: dict[str, Policy] = {"closed form of linear impact": replanned, "one integral": by_one_integral}


def behind(c: Condition) -> dict[str, float]:
    """Utility of each candidate less MPC's on the same days, % of MPC's temporary impact and risk."""
    days = simulate(c.market, DAYS, N, generator(1, "replanning", c.world, c.name))

    def run(policy: Policy) -> tuple[float, float]:
        done = execute(policy, days, c.market, c.order, generator(1, "unused"))
        cost = done.temporary_bps + c.order.risk_aversion * done.expected_risk
        return done.utility_bps(c.order).mean().item(), cost.mean().item()

    utility, cost = run(mpc)
    return {name: 100 * (run(policy)[0] - utility) / cost for name, policy in CANDIDATES.items()}


def microseconds(c: Condition) -> dict[str, float]:
    """Time of a decision of each policy over MPC's, in the middle of the day, many at once."""
    days = OrderSimulation(simulate(c.market, BATCH, N, generator(1, "states")), c.market, c.order)
    obs, noise = days.observe(N // 2, torch.full((BATCH,), 0.5)), torch.zeros(BATCH)

    def decide(policy: Policy) -> Callable[[], Tensor]:
        # A new observation each time, because an observation keeps what it has computed.
        return lambda: policy(Observation(**vars(obs)), noise)

    best = by_turns({name: decide(p) for name, p in (CANDIDATES | {"MPC": mpc}).items()}, REPETITIONS)
    return {name: seconds / best["MPC"] for name, seconds in best.items()}


def main() -> None:
    torch.set_num_threads(1)
    store = Store(Path(__file__).parents[1] / "notebooks" / "results")
    grid = conditions_from_records(store.read_json("conditions"))
    dynamic = dynamic_worlds(grid, liquid_day(store.read_json("calibration")))
    worlds = [w for w in dynamic if w.name in ("drift", "liquidity")]
    worlds += [signal_world(grid), transient_world(grid)]
    rows: list[list[object]] = []
    for world in worlds:
        found = [behind(c) for c in world.conditions]
        for name in CANDIDATES:
            shares = [of[name] for of in found]
            rows.append([world.name, name, sum(shares) / len(shares), min(shares), max(shares)])
    header = ("world", "re-planning by", "less MPC, %: mean", "least", "greatest")
    report("replanning", header, rows)
    times = microseconds(worlds[0].conditions[0])
    report("replanning_time", ("re-planning by", "time over MPC's"), [list(row) for row in times.items()])


if __name__ == "__main__":
    main()
