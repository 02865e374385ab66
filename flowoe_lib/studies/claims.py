"""The paper's claims as hypotheses, each with a verdict from measured comparisons.

Comparisons are rows of :func:`flowoe_lib.evaluation.scorecard.score_condition` for one policy and one
reference in one condition. A comparison is won where the whole 95 % interval lies on the better side of zero.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from flowoe_lib.policies.ensemble import BENCHMARKS

__all__ = [
    "Z_LIMIT",
    "across_worlds",
    "blocks",
    "evidence",
    "judge",
    "judge_worlds",
    "pooled",
    "verdict",
    "wins",
]


Z_LIMIT = 4.0
"""Martingale z-score beyond which a policy is considered to look ahead."""


def wins(comparisons: pd.DataFrame, *quantities: str) -> pd.Series:
    """Per condition, whether every comparison is won in every quantity.

    Quantities are "utility" and "mean", of which higher is better, and "std", of which lower is better.
    """
    better = pd.Series(True, index=comparisons.index)
    for quantity in quantities:
        if quantity == "std":
            better &= comparisons["std_ci_high"] < 0
        else:
            better &= comparisons[f"{quantity}_ci_low"] > 0
    return better.groupby(comparisons["condition"], sort=False).all()


def pooled(comparisons: pd.DataFrame, quantity: str) -> str:
    """Average difference over conditions in bps with its 95 % interval; conditions are independent."""
    mean = comparisons[quantity].mean()
    reach = comparisons[f"{quantity}_ci_high"] - comparisons[quantity]
    half = float((reach**2).sum() ** 0.5) / len(comparisons)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def verdict(won: int, total: int) -> str:
    """The verdict for all, some or no cases. Raises ValueError unless 0 <= won <= total and total > 0."""
    if not 0 <= won <= total or total == 0:
        raise ValueError(f"won = {won} of total = {total}: must be 0 <= won <= total and total > 0")
    if won == total:
        return "holds"
    return "holds in part" if won else "does not hold"


def judge(
    refined: pd.DataFrame,
    imitation: pd.DataFrame,
    experts: Sequence[str],
    benchmarks: Sequence[str],
    selected: Mapping[str, bool],
    cv: Mapping[str, float],
) -> pd.DataFrame:
    """Verdicts on the six claims in one world: claim, verdict, evidence, effect on average (bps).

    ``refined`` and ``imitation`` hold the comparisons of one run of each policy; ``experts`` are those
    calibrated to the condition, ``benchmarks`` the traditional ones; ``selected`` says where imitation
    acts most like the expert that is best; ``cv`` is the vol of vol of each condition.
    """
    versus = dict(list(refined.groupby("reference")))
    best = refined[refined["is_best_expert"]]
    n = len(best)
    beaten = int(wins(refined[refined["reference"].isin(experts)], "utility").sum())
    traditional = refined[refined["reference"].isin(benchmarks)]
    beaten_benchmarks = int(wins(traditional, "utility").sum())
    dominated = {name: int(wins(versus[name], "mean", "std").sum()) for name in benchmarks}
    dominated_all = int(wins(traditional, "mean", "std").sum())
    at_once = (dominated_all, n) if dominated_all else (sum(dominated.values()), n * len(dominated))
    alike = sum(selected.values())
    lifted = int(wins(versus["flow_imitation"], "utility").sum())
    unrefined = int(wins(imitation[imitation["is_best_expert"]], "utility").sum())
    gain = best.set_index("condition")["utility"] / -best.set_index("condition")["reference_bps"]
    by_cv = gain.groupby(pd.Series(cv)).mean()
    rows = [
        (
            "1. beats the expert calibrated to each condition",
            verdict(beaten, n),
            f"above every expert in {beaten} of {n} conditions",
            f"utility against the best expert {pooled(best, 'utility')}",
        ),
        (
            "2. beats the traditional benchmarks",
            verdict(beaten_benchmarks, n),
            f"above {', '.join(benchmarks)} in {beaten_benchmarks} of {n} conditions",
            f"utility against almgren_chriss {pooled(versus['almgren_chriss'], 'utility')}",
        ),
        (
            "3. higher profit and lower risk at once",
            verdict(*at_once),
            "; ".join(f"over {name} in {won}" for name, won in dominated.items()) + f" of {n} conditions",
            f"mean against twap {pooled(versus['twap'], 'mean')}, std {pooled(versus['twap'], 'std')}",
        ),
        (
            "4. selects the expert that suits the condition",
            verdict(alike, n),
            f"imitation acts most like the best expert in {alike} of {n} conditions",
            "",
        ),
        (
            "5. the refining loss is what lifts it above its experts",
            "holds" if beaten == lifted == n and unrefined < n else "does not hold",
            f"refined above imitation in {lifted}, imitation above the best expert in {unrefined} of {n}",
            f"utility against imitation {pooled(versus['flow_imitation'], 'utility')}",
        ),
        (
            "6. effective where conditions change during the day",
            "holds in part" if beaten and by_cv.is_monotonic_increasing else "does not hold",
            "only variance moves in this world: " + ", ".join(f"cv {k:g} {v:.2%}" for k, v in by_cv.items()),
            "gain over the best expert, share of its cost",
        ),
    ]
    return pd.DataFrame(rows, columns=["claim", "verdict", "evidence", "on average, bps"])


def across_worlds(refined: pd.DataFrame, scorecard: pd.DataFrame) -> pd.DataFrame:
    """One row per world: the number of conditions in which each comparison is won.

    ``refined`` holds the comparisons of one run of the refined policy with every expert, ``scorecard`` the
    scores, from which the capture of the same run comes. ``gain_share`` is the gain over the best expert as a
    share of that expert's utility, both summed over conditions. Dominance is a higher mean and a lower
    standard deviation at the same risk aversion.
    """
    rows = []
    for world, rows_of in refined.groupby("world", sort=False):
        experts = rows_of[~rows_of["reference"].isin(NOT_EXPERTS)]
        best = rows_of[rows_of["is_best_expert"]]
        capture = first_run(scorecard[scorecard["world"] == world], "flow_refined")["capture"]
        dominated = {
            f"dominates_{name}": int(wins(experts[experts["reference"] == name], "mean", "std").sum())
            for name in ("twap", "almgren_chriss", "static_optimal")
        }
        row: dict[str, object] = {"world": world, "conditions": len(best)}
        row |= {"beats_all": int(wins(experts, "utility").sum()), "gain_bps": pooled(best, "utility")}
        row |= {"gain_share": float(best["utility"].sum() / best["reference_bps"].abs().sum())}
        row |= {"capture_mean": capture.mean(), "capture_worst": capture.min()}
        rows.append(row | dominated)
    return pd.DataFrame(rows)


def judge_worlds(summary: pd.DataFrame, chosen: Mapping[str, int], of: int) -> pd.DataFrame:
    """Verdicts on claims 3 and 6 over all worlds: claim, verdict, evidence.

    ``summary`` is that of :func:`across_worlds`, ``chosen`` in how many of ``of`` liquidity conditions each
    benchmark is dominated once risk aversion is chosen for it.
    """
    beaten = ", ".join(f"{r.world} {r.beats_all}/{r.conditions}" for r in summary.itertuples())
    static = ", ".join(f"{r.world} {r.dominates_static_optimal}/{r.conditions}" for r in summary.itertuples())
    dial = ", ".join(f"{name} {won}/{of}" for name, won in chosen.items())
    dominated = verdict(min(chosen.values()), of)
    rows = [
        (
            "3. higher profit and lower risk at once",
            "holds in part" if dominated == "holds" else dominated,
            f"over the static optimum at the same risk aversion: {static}; in the liquidity world with the "
            f"dial turned: {dial}",
        ),
        (
            "6. effective where conditions change during the day",
            verdict(int(summary["beats_all"].sum()), int(summary["conditions"].sum())),
            f"above every expert: {beaten}",
        ),
    ]
    return pd.DataFrame(rows, columns=["claim", "verdict", "evidence"])


NOT_EXPERTS = ("flow_imitation", "blind_optimum")
"""References other than experts."""


Line = dict[str, str]


def first_run(comparisons: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Comparisons of a policy's first training seed in one solver step."""
    rows = comparisons[(comparisons["policy"] == policy) & (comparisons["solver_steps"] == 1)]
    first: pd.DataFrame = rows[rows["training_seed"] == rows["training_seed"].min()]
    return first


def _with_interval(row: pd.Series, quantity: str) -> str:
    low, high = row[f"{quantity}_ci_low"], row[f"{quantity}_ci_high"]
    return f"{row[quantity]:+.4f} [{low:+.4f}, {high:+.4f}] in {row['condition']}"


def _line(
    what: str, rows: pd.DataFrame, quantity: str = "utility", every: pd.DataFrame | None = None
) -> Line:
    """Number of conditions in which ``every`` comparison is won, with the least and most favourable row."""
    won = wins(rows if every is None else every, quantity)
    ends = rows.sort_values(quantity, ascending=quantity != "std")
    return {
        "comparison": what,
        "won": f"{won.sum()} of {len(won)}",
        "least favourable": _with_interval(ends.iloc[0], quantity),
        "most favourable": _with_interval(ends.iloc[-1], quantity),
    }


def _against_best(what: str, rows: pd.DataFrame) -> Line:
    """Conditions with higher utility than every expert, with the extremes of the comparison to the best.

    With hidden drift the best one may be the optimal policy unaware of it.
    """
    experts = rows[~rows["reference"].isin(NOT_EXPERTS)]
    return _line(what, rows[rows["is_best_expert"]], every=experts)


def _both(where: str, rows: pd.DataFrame, reference: str) -> list[Line]:
    """Mean and standard deviation against one reference, and the number of conditions with both better."""
    picked = rows[rows["reference"] == reference]
    both = wins(picked, "mean", "std")
    lines = [
        _line(f"{where}: mean P&L over {reference}", picked, "mean"),
        _line(f"{where}: standard deviation over {reference}", picked, "std"),
    ]
    return [line | {"both won": f"{both.sum()} of {len(both)}"} for line in lines]


def evidence(
    comparisons: pd.DataFrame, elsewhere: pd.DataFrame, chosen: pd.DataFrame, selected: Mapping[str, bool]
) -> dict[str, pd.DataFrame]:
    """A table for each claim, by its number.

    ``comparisons`` are those of the Heston world, ``elsewhere`` those of the others, ``chosen`` those of
    :func:`flowoe_lib.evaluation.frontier.dominance`; ``selected`` says where imitation acts most like the
    best expert.
    """
    refined, imitation = (first_run(comparisons, name) for name in ("flow_refined", "flow_imitation"))
    everywhere = pd.concat([refined, first_run(elsewhere, "flow_refined")], ignore_index=True)
    worlds = {str(world): rows for world, rows in everywhere.groupby("world", sort=False)}
    versus = {str(name): rows for name, rows in refined.groupby("reference", sort=False)}
    experts = [name for name in versus if name not in NOT_EXPERTS]
    best = refined[refined["is_best_expert"]].set_index("condition")["reference"]
    dominated = [line for world, rows in worlds.items() for line in _both(world, rows, "static_optimal")]
    dominated += _both("heston", refined, "twap")
    for name in chosen["reference"].unique():
        dominated += _both("liquidity, dial turned", chosen, name)
    tables = {
        "1": [
            _against_best("the best expert of each condition", refined),
            *(_line(name, versus[name]) for name in experts),
        ],
        "2": [_line(name, versus[name]) for name in BENCHMARKS],
        "3": dominated,
        "4": [
            {"condition": name, "best expert": best[name]}
            | {"imitation acts most like it": "yes" if alike else "no"}
            for name, alike in selected.items()
        ],
        "5": [
            _line("FlowOE over imitation alone", versus["flow_imitation"]),
            _against_best("imitation alone over the best expert", imitation),
            _against_best("FlowOE over the best expert", refined),
        ],
        "6": [_against_best(f"{world}: over the best expert", rows) for world, rows in worlds.items()],
    }
    return {number: pd.DataFrame(lines) for number, lines in tables.items()}


def blocks(verdicts: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """The verdict and the table of each claim in Markdown, by the name of the block that shows them.

    ``verdicts`` has columns claim, which begins with its number, verdict and evidence.
    """
    out = {}
    for row in verdicts.itertuples():
        number = str(row.claim).split(".")[0]
        table = tables[number].to_markdown(index=False, tablefmt="github", disable_numparse=True)
        out[f"claim_{number}"] = f"Verdict: **{row.verdict}**. In short: {row.evidence}.\n\n{table}"
    return out
