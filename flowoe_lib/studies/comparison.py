"""Comparisons of all policies in every world, and the analyses that belong to a single world."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from flowoe_lib.evaluation.intervals import capture_interval, paired_interval
from flowoe_lib.evaluation.scorecard import (
    Contender,
    Evaluation,
    Scores,
    evaluate,
    market_days,
    score_condition,
)
from flowoe_lib.evaluation.statistics import bootstrap_intervals, model_confidence_set, spa_pvalue
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.information import Errors, Perceive, exact, regimes_as_depth
from flowoe_lib.market.model import Condition, scalar
from flowoe_lib.market.pre_trade import moment_matched
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS, from_estimates
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.schedules import twap
from flowoe_lib.studies.worlds import World

__all__ = [
    "error_costs",
    "hidden_gain",
    "multiple_comparison",
    "on_frontier",
    "score_in_world",
    "share_of_informed_gain",
    "whole_range",
]


def experts_in(
    perceive: Perceive, condition: Condition, n_buckets: int, rl: Mapping[str, RLExpert]
) -> dict[str, Policy]:
    """The experts of a condition, calibrated to the information there, with the RL expert if it has one."""
    if isinstance(perceive, Errors):
        return from_estimates(condition, n_buckets)
    market = condition.market
    believed = moment_matched(market) if market.regimes.present else market
    calibrated = [replace(condition, market=believed)]
    experts = {name: make(calibrated, 1, n_buckets) for name, make in SCHEDULE_EXPERTS.items()}
    trained = {"rl": rl[condition.name]} if condition.name in rl else {}
    return experts | trained


def _blind(condition: Condition, n_buckets: int) -> Policy:
    """Optimal policy of a trader unaware of the hidden drift."""
    return solve_oracle(replace(condition.market, drift_sd=scalar(0.0)), condition.order, n_buckets)


def score_in_world(
    perceive: Perceive,
    condition: Condition,
    fields: Mapping[int, EndpointField],
    rl: Mapping[str, RLExpert],
    evaluation: Evaluation,
) -> Scores:
    """:func:`flowoe_lib.evaluation.scorecard.score_condition` of the universal policy and the experts of a
    world.

    The first of the ``fields`` runs on all days with one solver step; its other numbers of steps and the
    other training seeds run on the first ``n_few``. Where information is incomplete, "flow_informed" is the
    same policy with full information. The oracle observes regimes; for a hidden drift it is the belief-state
    optimum.
    """
    first_seed, n_buckets = min(fields), evaluation.n_buckets
    few = min(evaluation.n_few, evaluation.n_paths)
    contenders = [
        Contender(FlowPolicy(fields[first_seed], k), "flow_refined", k, first_seed, few) for k in (2, 4, 8)
    ]
    contenders += [
        Contender(FlowPolicy(field, 1), "flow_refined", 1, s, None if s == first_seed else few)
        for s, field in fields.items()
    ]
    experts, informed = experts_in(perceive, condition, n_buckets, rl), []
    if condition.market.drift_sd > 0:
        experts["blind_optimum"] = _blind(condition, n_buckets)
        informed.append(Contender(solve_belief(condition.market, condition.order, n_buckets), "oracle"))
    if perceive is not exact:
        knowing = FlowPolicy(fields[first_seed], 1)
        informed.append(Contender(knowing, "flow_informed", 1, first_seed, perceive=regimes_as_depth))
    return score_condition(condition, experts, contenders, evaluation, perceive, informed)


def whole_range(
    fields: Mapping[int, EndpointField], condition: Condition, evaluation: Evaluation
) -> pd.DataFrame:
    """Capture of the universal policy in a condition, and its regret as a share of the oracle's cost.

    One row per training seed with one solver step, and one for the first seed with eight.
    """
    first_seed = min(fields)
    entries = [(s, 1) for s in fields] + [(first_seed, 8)]
    policies: dict[str, Policy] = {f"{s}/{k}": FlowPolicy(fields[s], k) for s, k in entries}
    policies["twap"] = twap
    policies["oracle"] = solve_oracle(condition.market, condition.order, evaluation.n_buckets)
    out = evaluate(policies, condition, evaluation, "design")
    best, rows = out["oracle"].utility, []
    for trained, steps in entries:
        utility = out[f"{trained}/{steps}"].utility
        capture = capture_interval(utility, out["twap"].utility, best)
        regret = float((best - utility).double().mean() / best.double().mean().abs())
        rows.append((condition.name, trained, steps, *capture, regret))
    columns = ["condition", "training_seed", "solver_steps", "capture", "ci_low", "ci_high", "regret"]
    return pd.DataFrame(rows, columns=columns)


def hidden_gain(field: EndpointField, condition: Condition, evaluation: Evaluation) -> pd.DataFrame:
    """Gain from learning about a hidden drift, over the optimal policy unaware of it.

    One row: the policy's share of the gain of the belief-state optimum, with its interval, and the
    realised gain in the lowest, middle and highest third of days by their actual drift, bps.
    """
    policies: dict[str, Policy] = {
        "flow": FlowPolicy(field, 1),
        "blind": _blind(condition, evaluation.n_buckets),
        "belief": solve_belief(condition.market, condition.order, evaluation.n_buckets),
    }
    out = evaluate(policies, condition, evaluation, "test")
    utilities = [out[name].utility for name in ("flow", "blind", "belief")]
    share = capture_interval(*utilities)
    days = market_days(condition, evaluation, "test")
    drift = torch.cat([paths.day_drift_bps for paths in days])[: evaluation.n_paths]
    # Conditional on the drift the martingale term has a nonzero mean, so gains are those of P&L.
    gain = out["flow"].martingale - out["blind"].martingale + utilities[0] - utilities[1]
    thirds = gain[drift.argsort()].tensor_split(3)
    worth = float((utilities[2] - utilities[1]).mean())
    row = (condition.name, worth, *share, *(float(t.mean()) for t in thirds))
    columns = ["condition", "worth_bps", "share", "ci_low", "ci_high", "falling", "flat", "rising"]
    return pd.DataFrame([row], columns=columns)


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
    rl: Mapping[str, RLExpert],
    reps: int,
    evaluation: Evaluation,
) -> pd.DataFrame:
    """Statistical tests in one condition: model confidence set, Hansen's test, and bootstrap intervals.

    ``spa_p`` is the p-value of the hypothesis that no other policy is better than FlowOE; ``best_set`` names
    the policies of the 95 % model confidence set; differences in std and CVaR95 are to the static optimum.
    """
    policies = experts_in(world.perceive, condition, evaluation.n_buckets, rl)
    policies["flow_refined"] = FlowPolicy(field, 1)
    out, seed = evaluate(policies, condition, evaluation, "test", world.perceive), evaluation.seed
    utilities: dict[str, Tensor] = {name: o.utility for name, o in out.items()}
    ranked = model_confidence_set(utilities, reps, seed)
    kept: Sequence[str] = ranked.loc[ranked["in_set"], "policy"].tolist()
    others = {name: u for name, u in utilities.items() if name != "flow_refined"}
    p = spa_pvalue(utilities["flow_refined"], others, reps, seed)
    gaps = bootstrap_intervals(out["flow_refined"].pnl, out["static_optimal"].pnl, reps, seed)
    row: dict[str, object] = {"world": world.name, "condition": condition.name}
    return pd.DataFrame([row | {"best_set": ", ".join(kept), "spa_p": p} | gaps])


def on_frontier(
    condition: Condition,
    *,
    flow: Policy,
    rl: Mapping[str, RLExpert],
    n_buckets: int,
    nodes: Mapping[str, int],
) -> dict[str, Policy]:
    """The policies of a frontier, calibrated to a condition; ``nodes`` are those of the oracle's grid."""
    names = ("almgren_chriss", "static_optimal", "replanned")
    policies = {name: SCHEDULE_EXPERTS[name]([condition], 1, n_buckets) for name in names}
    policies |= {"rl": rl[condition.name], "flow_refined": flow}
    return policies | {"oracle": solve_oracle(condition.market, condition.order, n_buckets, **nodes)}
