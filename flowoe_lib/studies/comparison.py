"""Comparisons of all policies in every world, and the analyses that belong to a single world."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from flowoe_lib.evaluation.intervals import capture_interval, paired_interval
from flowoe_lib.evaluation.scorecard import Contender, Evaluation, Scores, evaluate, score_condition
from flowoe_lib.evaluation.statistics import model_confidence_set, spa_pvalue
from flowoe_lib.execution.execution import Policies, Policy
from flowoe_lib.execution.information import (
    Errors,
    Information,
    Perceive,
    exact,
    regimes_as_depth,
    variance_revealed,
)
from flowoe_lib.market.impact import with_half_life
from flowoe_lib.market.model import Condition, Market, scalar
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.market.simulator import MarketPaths
from flowoe_lib.policies.alfonsi_fruth_schied import alfonsi_fruth_schied
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS, from_estimates
from flowoe_lib.policies.filtered import solve_filtered_depth, solve_filtered_regimes
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.random_policy import uniform_scores
from flowoe_lib.policies.replanning import mpc, replanned
from flowoe_lib.policies.schedules import static_optimal, twap
from flowoe_lib.policies.signal import solve_linear_quadratic, solve_on_estimates
from flowoe_lib.studies.worlds import World, limit_solver

Trained = Mapping[str, Policies]
"""Policies trained for one condition, by "world/condition" and name, such as "rl" and "specialist"."""


Fields = Mapping[int, EndpointField]
"""Universal policies by training seed."""


def opponents_in(
    perceive: Perceive, condition: Condition, n_buckets: int, trained: Trained
) -> dict[str, Policy]:
    """The opponents in a condition, all with the information of its world.

    They are the experts calibrated to that information, a random policy, the policies trained for the
    condition, and what suits its market: with a hidden drift the optimal policy of a trader unaware of it
    ("blind_optimum"), where impact has memory the closed form and the static optimum unaware of memory, with
    a signal the closed form under linearised impact, and with memory and a signal at once the dynamic program
    of :func:`flowoe_lib.policies.signal.solve_on_estimates`.
    """
    market, problem = condition.market, (condition.market, condition.order, n_buckets)
    if isinstance(perceive, Errors):
        experts = from_estimates(condition, n_buckets)
    else:
        believed = moment_matched(market) if market.regimes.present else market
        calibrated = [replace(condition, market=believed)]
        experts = {name: make(calibrated, 1, n_buckets) for name, make in SCHEDULE_EXPERTS.items()}
    if market.drift_sd > 0:
        unaware = replace(market, drift_sd=scalar(0.0))
        experts["blind_optimum"] = solve_oracle(unaware, condition.order, n_buckets)
    if market.impact.has_memory and perceive is exact:
        experts["static_unaware"] = static_optimal(with_half_life(market, scalar(0.0)), *problem[1:])
        experts["alfonsi_fruth_schied"] = alfonsi_fruth_schied(*problem)
    if market.signal.present and perceive is exact:
        experts["linear_quadratic"] = solve_linear_quadratic(*problem)
    if market.signal.present and market.impact.has_memory:
        experts["dynamic_program"] = solve_on_estimates(*problem)
    return {"random": uniform_scores} | experts | dict(trained.get(f"{condition.world}/{condition.name}", {}))


def optima_in(
    perceive: Perceive, condition: Condition, n_buckets: int, opponents: Policies
) -> list[Contender]:
    """The optimum with the information of a world ("limit"), and with full information ("oracle").

    With full information the two are the same, and a hidden drift has no oracle. Under hidden regimes the
    limit observes the variance of the calm regime; under errors it knows the parameters and observes
    variance. There it is an upper bound, which is exact where variance is constant. With memory and a signal
    at once no optimum of the whole state can be computed; the yardstick is the best plan that is known, the
    dynamic program among the ``opponents`` with full information, and beside it MPC.
    """
    market, problem = condition.market, (condition.market, condition.order, n_buckets)
    if market.impact.has_memory and market.signal.present:
        return [Contender(opponents[name], f"{name}_informed") for name in ("dynamic_program", "mpc")]
    best = limit_solver(market)(*problem)
    if market.signal.present or market.drift_sd > 0 or (market.impact.has_memory and perceive is exact):
        return [Contender(best, "limit")]
    oracle = Contender(best, "oracle")
    if isinstance(perceive, Errors):
        seen = replace(perceive, volatility=0.0, illiquidity=0.0, returns=None)
        return [Contender(solve_filtered_depth(*problem), "limit", perceive=seen), oracle]
    if market.regimes.present:
        bound = solve_filtered_regimes(*problem)
        return [Contender(bound, "limit", perceive=variance_revealed), oracle]
    return [oracle]


def contestants_in(worlds: Sequence[World], learned: Policies, trained: Trained) -> dict[str, Any]:
    """All contestants of the worlds, for :func:`flowoe_lib.evaluation.contestants.contestants_digest`.

    They are the ``learned`` policies, those trained for one condition, and the functions that make all
    others.
    """
    planners = {f"{w.name}/planners": partial(opponents_in, w.perceive) for w in worlds}
    names = [f"{w.name}/{c.name}" for w in worlds for c in w.conditions]
    return {**learned, **planners, **{name: trained[name] for name in names if name in trained}}


def score_learned(
    condition: Condition, trained: Trained, contenders: Sequence[Contender], evaluation: Evaluation
) -> Scores:
    """Score ``contenders`` with full information against all opponents of a condition."""
    opponents = opponents_in(exact, condition, evaluation.n_buckets, trained)
    return score_condition(condition, opponents, contenders, evaluation)


def score_in_world(
    perceive: Perceive, condition: Condition, fields: Fields, trained: Trained, evaluation: Evaluation
) -> Scores:
    """:func:`flowoe_lib.evaluation.scorecard.score_condition` of the universal policy in a world.

    All training seeds run on all days with one solver step; further numbers of steps of the first seed run on
    the first ``n_few``. Where information is incomplete, "flow_informed" is the same policy with full
    information; where impact has memory, "flow_unaware" and "mpc_unaware" trade as if it had none.
    """
    first_seed, n_buckets, memory = min(fields), evaluation.n_buckets, condition.market.impact.has_memory
    few = min(evaluation.n_few, evaluation.n_paths)
    contenders = [Contender(FlowPolicy(field, 1), "flow_refined", 1, seed) for seed, field in fields.items()]
    contenders += [
        Contender(FlowPolicy(fields[first_seed], k), "flow_refined", k, first_seed, few) for k in (2, 4, 8)
    ]
    opponents = opponents_in(perceive, condition, n_buckets, trained)
    informed = optima_in(perceive, condition, n_buckets, opponents)
    first = FlowPolicy(fields[first_seed], 1)
    if perceive is not exact:
        informed.append(Contender(first, "flow_informed", 1, first_seed, perceive=regimes_as_depth))
    elif memory:
        informed.append(Contender(first, "flow_unaware", 1, first_seed, perceive=unaware_of_memory))
        informed.append(Contender(mpc, "mpc_unaware", perceive=unaware_of_memory))
    return score_condition(condition, opponents, contenders, evaluation, perceive, informed)


def unaware_of_memory(paths: MarketPaths, market: Market, draws: torch.Generator) -> Information:
    """Full information, except that the trader believes impact to be gone by the next bucket."""
    return exact(paths, with_half_life(market, scalar(0.0)), draws)


def whole_range(fields: Fields, condition: Condition, evaluation: Evaluation) -> pd.DataFrame:
    """Capture of the universal policy in a condition, and its regret as a share of the oracle's cost.

    The cost is temporary impact and the charge for risk, without permanent impact.

    One row per training seed with one solver step, and one for the first seed with eight. The column
    "replanned" is the capture of the re-planned schedule in the same condition.
    """
    first_seed = min(fields)
    entries = [(s, 1) for s in fields] + [(first_seed, 8)]
    policies: dict[str, Policy] = {f"{s}/{k}": FlowPolicy(fields[s], k) for s, k in entries}
    oracle = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
    others: dict[str, Policy] = {"replanned": replanned, "twap": twap, "oracle": oracle}
    out = evaluate(policies | others, condition, evaluation, "design")
    best, floor, rows = out["oracle"].utility, out["twap"].utility, []
    alone = capture_interval(out["replanned"].utility, floor, best)[0]
    for trained, steps in entries:
        utility = out[f"{trained}/{steps}"].utility
        capture = capture_interval(utility, floor, best)
        regret = float((best - utility).double().mean() / out["oracle"].cost.double().mean())
        rows.append((condition.name, trained, steps, *capture, regret, alone))
    columns = ["condition", "training_seed", "solver_steps", "capture", "ci_low", "ci_high", "regret"]
    return pd.DataFrame(rows, columns=[*columns, "replanned"])


def gains(
    policies: Policies,
    trained: Trained,
    condition: Condition,
    evaluation: Evaluation,
    stream: str,
    references: Collection[str],
) -> pd.DataFrame:
    """Utility of each of ``policies`` and of all opponents, with full information, bps.

    The gain is over the best of ``references``, with its 95 % interval; ``cost_bps`` is the cost of that one.
    """
    opponents = opponents_in(exact, condition, evaluation.n_buckets, trained)
    runs = evaluate({**opponents, **policies}, condition, evaluation, stream)
    best = max(references, key=lambda name: runs[name].utility.mean().item())
    cost = runs[best].cost.double().mean().item()
    rows = []
    for name, run in runs.items():
        gain = paired_interval(run.utility - runs[best].utility)
        rows.append((condition.name, name, best, run.utility.double().mean().item(), cost, *gain))
    columns = ["condition", "policy", "reference", "utility_bps", "cost_bps", "gain_bps", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def share_of_value(scorecard: pd.DataFrame) -> pd.Series:
    """Share of a signal's value that each row earns, (U - U_blind) / (U_limit - U_blind).

    U_blind is the utility of the static optimum, the best policy that does not observe the signal.
    """
    utility = scorecard.pivot_table("utility_bps", "condition", "policy")
    blind, limit = (scorecard["condition"].map(utility[name]) for name in ("static_optimal", "limit"))
    return (scorecard["utility_bps"] - blind) / (limit - blind)


def share_of_informed_gain(scorecard: pd.DataFrame) -> pd.Series:
    """Ratio of the policy's gain to that of the same policy with full information, by condition.

    ``scorecard`` holds one world; both gains are over the static optimum of that world's information.
    """
    rows = scorecard[scorecard["solver_steps"].isna() | (scorecard["solver_steps"] == 1)]
    rows = rows[rows["training_seed"].isna() | (rows["training_seed"] == rows["training_seed"].min())]
    utility = rows.pivot(index="condition", columns="policy", values="utility_bps")
    floor = utility["static_optimal"]
    ratio: pd.Series = (utility["flow_refined"] - floor) / (utility["flow_informed"] - floor)
    return ratio


def error_costs(field: EndpointField, condition: Condition, evaluation: Evaluation) -> pd.DataFrame:
    """Utility regained when each perception error is removed, bps, with its 95 % interval.

    Columns condition, healed, regained_bps, ci_low, ci_high. One error is removed at a time, and then
    all; the single gains need not add up.
    """
    healed: dict[str, Perceive] = {
        "nothing": Errors(),
        "parameters": Errors(volatility=0.0, illiquidity=0.0),
        "variance": Errors(returns=None),
        "depth": Errors(depth=0.0),
        "all": exact,
    }
    policy = {"flow": FlowPolicy(field, 1)}
    utility = {
        name: evaluate(policy, condition, evaluation, "test", perceive)["flow"].utility
        for name, perceive in healed.items()
    }
    before = utility.pop("nothing")
    rows = [(condition.name, name, *paired_interval(u - before)) for name, u in utility.items()]
    return pd.DataFrame(rows, columns=["condition", "healed", "regained_bps", "ci_low", "ci_high"])


def multiple_comparison(
    world: World,
    condition: Condition,
    field: EndpointField,
    trained: Trained,
    reps: int,
    evaluation: Evaluation,
) -> pd.DataFrame:
    """Statistical tests of all policies in one condition: model confidence set and Hansen's test.

    ``spa_p`` is the p-value of the hypothesis that no other policy is better than FlowOE; ``best_set`` names
    the policies of the 95 % model confidence set.
    """
    policies = opponents_in(world.perceive, condition, evaluation.n_buckets, trained)
    policies["flow_refined"] = FlowPolicy(field, 1)
    runs = evaluate(policies, condition, evaluation, "test", world.perceive)
    utilities = {name: run.utility for name, run in runs.items()}
    ranked = model_confidence_set(utilities, reps, evaluation.seed)
    best = ", ".join(ranked.loc[ranked["in_set"], "policy"])
    p = spa_pvalue(utilities.pop("flow_refined"), utilities, reps, evaluation.seed)
    return pd.DataFrame([{"world": world.name, "condition": condition.name, "best_set": best, "spa_p": p}])


def rivals_in(
    condition: Condition, *, perceive: Perceive, names: Sequence[str], n_buckets: int
) -> dict[str, Policy]:
    """The opponents of these names."""
    made = opponents_in(perceive, condition, n_buckets, {})
    return {name: made[name] for name in names}


def on_frontier(
    condition: Condition, *, flow: Policy, trained: Trained, n_buckets: int, nodes: Mapping[str, int]
) -> dict[str, Policy]:
    """The policies of a frontier, calibrated to a condition; ``nodes`` are those of the oracle's grid."""
    names = ("almgren_chriss", "static_optimal", "replanned")
    policies = {name: SCHEDULE_EXPERTS[name]([condition], 1, n_buckets) for name in names}
    policies |= {**trained.get(f"{condition.world}/{condition.name}", {}), "flow_refined": flow}
    return policies | {"oracle": solve_oracle(condition.market, condition.order, n_buckets, **nodes)}
