"""The efficient frontier of a policy: mean against standard deviation of P&L as risk aversion varies.

Risk aversions are chosen on validation paths; the result of a choice is measured on test paths.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from flowoe_lib.evaluation.scorecard import Evaluation, PathResults, compare, evaluate
from flowoe_lib.execution.execution import Policies, Policy
from flowoe_lib.market.model import Condition, scalar

Calibrate = Callable[[Condition], Policies]
"""Makes the policies for a condition."""


def with_risk_aversion(condition: Condition, risk_aversion: float) -> Condition:
    """The same condition with another risk aversion, per bps; its simulated paths do not change."""
    return replace(condition, order=replace(condition.order, risk_aversion=scalar(risk_aversion)))


def frontier(
    calibrate: Calibrate, condition: Condition, aversions: Sequence[float], evaluation: Evaluation
) -> pd.DataFrame:
    """Frontiers of policies in one condition, all measured on the same days.

    ``calibrate`` makes the policies for the condition at each risk aversion; a policy that ignores risk
    aversion gives the same point every time. Columns condition, policy, risk_aversion, mean_bps, std_bps and
    cost95_bps, the 95 % quantile of cost.
    """
    rows = []
    for aversion in aversions:
        c = with_risk_aversion(condition, aversion)
        for name, o in evaluate(calibrate(c), c, evaluation, "frontier").items():
            worst = -o.pnl.quantile(0.05).item()
            mean, std = o.controlled_pnl.mean().item(), o.pnl.std().item()
            rows.append((c.name, name, aversion, mean, std, worst))
    columns = ["condition", "policy", "risk_aversion", "mean_bps", "std_bps", "cost95_bps"]
    return pd.DataFrame(rows, columns=columns)


def _margin(a: PathResults, b: PathResults) -> float:
    """The smaller of a's lead over b in mean and in standard deviation, in half-widths of the interval."""
    d = compare(a, b)
    mean, std = (d[q] / max(d[f"{q}_ci_high"] - d[q], 1e-9) for q in ("mean", "std"))
    return min(mean, -std)


def dominance(
    policy: Policy,
    calibrate: Calibrate,
    condition: Condition,
    aversions: Sequence[float],
    evaluation: Evaluation,
) -> pd.DataFrame:
    """Whether ``policy`` has, at some risk aversion, both a higher mean and a lower standard deviation.

    One row per benchmark that ``calibrate`` makes, at the condition's own risk aversion. The risk aversion of
    the policy is the one of ``aversions`` whose lead, in the weaker of the two measures, is clearest on
    validation days; the columns of :func:`flowoe_lib.evaluation.scorecard.compare` are measured on test days.
    """

    def at(aversion: float, evaluation: Evaluation, stream: str) -> PathResults:
        c = with_risk_aversion(condition, aversion)
        return evaluate({"policy": policy}, c, evaluation, stream)["policy"]

    benchmarks = calibrate(condition)
    standard = evaluate(benchmarks, condition, evaluation.validation, "validation")
    trial = {aversion: at(aversion, evaluation.validation, "validation") for aversion in aversions}
    chosen = {name: max(trial, key=lambda a: _margin(trial[a], b)) for name, b in standard.items()}
    tested = {aversion: at(aversion, evaluation, "test") for aversion in set(chosen.values())}
    rows = []
    for name, b in evaluate(benchmarks, condition, evaluation, "test").items():
        row: dict[str, object] = {"world": condition.world, "condition": condition.name, "reference": name}
        row |= {"risk_aversion": chosen[name], "reference_std_bps": b.pnl.std().item()}
        rows.append(row | compare(tested[chosen[name]], b))
    return pd.DataFrame(rows)
