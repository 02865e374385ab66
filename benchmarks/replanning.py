"""How close re-planning without a search comes to model predictive control (MPC), and what a decision costs.

The re-planned expert carries Almgren and Chriss's closed form for linear impact over to concave impact. The
candidate here solves the concave problem itself, for constant forecasts: along the best schedule a known
quantity is constant (Almgren 2003), so one integral gives the first trade. Its forecasts are not plain means:
early times weigh more, because more is held then. Where impact has memory, inventory plus impact state takes
the place of inventory. Both are compared with MPC, which searches for all later trades, on the same days of
four worlds: there is random depth, a known drift, a signal, or memory of impact.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from _report import by_turns, report
from torch import Tensor

from flowoe_lib.data.conditions import conditions_from_records
from flowoe_lib.execution.execution import Observation, OrderSimulation, Policy, execute, score_of_fraction
from flowoe_lib.market.first_trade import first_trade, first_trade_with_memory, lasting_share
from flowoe_lib.market.model import Condition
from flowoe_lib.market.pre_trade import posterior_drift
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.randomness import generator
from flowoe_lib.store import Store
from flowoe_lib.studies.worlds import dynamic_worlds, liquid_day, signal_world, transient_world

N, DAYS, BATCH, REPETITIONS = 39, 500, 10_000, 10


def by_one_integral(obs: Observation, noise: Tensor) -> Tensor:
    """The candidate: trade by :func:`first_trade` of what is left, at the weighted forecasts."""
    market, left, n_left = obs.market, obs.time_left, obs.n_buckets - obs.k
    excess = (obs.variance / market.heston.theta - 1) * lasting_share(market.heston.kappa, left)
    lasting = posterior_drift(market, obs.order, obs.return_bps, obs.k / obs.n_buckets)
    drift = lasting + obs.signal * lasting_share(market.signal.reversion, left)
    held = obs.inventory.clamp_min(1e-3)
    scale = (left / held).pow(market.impact.beta) * left
    urgency = obs.pre_trade.urgency * (1 + excess) * scale * held
    waiting, impact = drift / obs.pre_trade.cost_bps * scale, market.impact
    if impact.has_memory:
        decay = torch.exp(-impact.resilience / obs.n_buckets)
        state, buckets = obs.impact / held, (n_left, obs.n_buckets)
        pace = first_trade_with_memory(urgency, waiting, impact.beta, decay, state, *buckets).clamp_min(0)
    else:
        pace = first_trade(urgency, waiting, impact.beta, n_left)
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


def times_over_mpc(c: Condition) -> dict[str, float]:
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
    times = times_over_mpc(worlds[0].conditions[0])
    report("replanning_time", ("re-planning by", "time over MPC's"), [list(row) for row in times.items()])


if __name__ == "__main__":
    main()
