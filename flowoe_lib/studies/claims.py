"""The paper's claims as hypotheses, each with the number of conditions in which it holds.

Comparisons are rows of :func:`flowoe_lib.evaluation.scorecard.score_condition`: a learner, all of its
training seeds together, against one reference in one condition. Verdicts on utility are those of
:mod:`flowoe_lib.evaluation.verdicts`; of mean, standard deviation and CVaR95, one counts as better where the
whole 95 % interval is on the better side of zero.
"""

from collections.abc import Mapping

import pandas as pd

from flowoe_lib.evaluation.verdicts import MATERIAL, VERDICTS, count_verdicts
from flowoe_lib.policies.ensemble import BENCHMARKS

__all__ = [
    "RIVALS",
    "Z_LIMIT",
    "across_worlds",
    "blocks",
    "evidence",
    "in_one_step",
    "in_short",
    "judge",
    "shares",
    "verdict",
]


Z_LIMIT = 4.0
"""Martingale z-score beyond which a policy is considered to look ahead."""


RIVALS = (*BENCHMARKS, "replanned", "mpc")
"""Policies over which higher profit and lower risk at once are tested."""


def in_one_step(comparisons: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Comparisons of a policy with one solver step."""
    rows: pd.DataFrame = comparisons[(comparisons["policy"] == policy) & (comparisons["solver_steps"] == 1)]
    return rows


def shares(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Difference in utility with its interval, as shares of the cost that defines a material difference."""
    ends = comparisons[["utility", "utility_ci_low", "utility_ci_high"]]
    return ends.div(comparisons["material_bps"] / MATERIAL, axis=0)


def verdict(won: int, total: int) -> str:
    """The verdict for a number of cases. Raises ValueError unless 0 <= won <= total and total > 0."""
    if not 0 <= won <= total or total == 0:
        raise ValueError(f"won = {won} of total = {total}: must be 0 <= won <= total and total > 0")
    word = {total: "holds: ", 0: "does not hold: "}.get(won, "")
    return f"{word}{won} of {total}"


def _best(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["is_best_opponent"]]


def _counted(rows: pd.DataFrame) -> str:
    counts = rows["verdict"].value_counts()
    return ", ".join(f"{name} in {counts.get(name, 0)}" for name in VERDICTS) + f" of {len(rows)}"


def _risks(rows: pd.DataFrame) -> pd.DataFrame:
    """Whether mean, standard deviation, both and CVaR95 are better than the reference's, CVaR95 worse."""
    mean, std = rows["mean_ci_low"] > 0, rows["std_ci_high"] < 0
    tails = {"better CVaR95": rows["cvar95_ci_low"] > 0, "worse CVaR95": rows["cvar95_ci_high"] < 0}
    return pd.DataFrame({"higher mean": mean, "lower std": std, "both": mean & std} | tails)


def across_worlds(refined: pd.DataFrame, scorecard: pd.DataFrame) -> pd.DataFrame:
    """One row per world: verdicts against the best opponent, size of the difference, capture, dominance.

    ``gain_*`` are mean, least and greatest difference in utility to the best opponent, as shares of its
    cost, ``mpc_*`` the same to model predictive control. Captures are averages over training seeds.
    ``dominates_*`` count conditions with a higher mean and a lower standard deviation at once.
    """
    by = refined["world"]
    table = count_verdicts(_best(refined)).set_index("world").rename(columns={"comparisons": "conditions"})
    for name, rows in {"gain": _best(refined), "mpc": refined[refined["reference"] == "mpc"]}.items():
        ends = shares(rows)["utility"].groupby(by, sort=False).agg(["mean", "min", "max"])
        table = table.join(ends.add_prefix(f"{name}_"))
    learned = scorecard[(scorecard["policy"] == "flow_refined") & (scorecard["solver_steps"] == 1)]
    capture = learned.groupby(["world", "condition"])["capture"].mean().groupby("world")
    table = table.join(capture.agg(["mean", "min"]).add_prefix("capture_"))
    both = _risks(refined)["both"]
    for name in RIVALS:
        table[f"dominates_{name}"] = both[refined["reference"] == name].groupby(by, sort=False).sum()
    return table.reset_index()


def _lifted(refined: pd.DataFrame, imitation: pd.DataFrame) -> pd.DataFrame:
    """Claim 5 by condition: verdicts on refinement, imitation alone and FlowOE, and whether it holds."""
    start = refined[refined["reference"] == "flow_imitation"].set_index("condition")
    table = pd.DataFrame(
        {
            "FlowOE over imitation": start["verdict"],
            "imitation over the best opponent": _best(imitation).set_index("condition")["verdict"],
            "FlowOE over the best opponent": _best(refined).set_index("condition")["verdict"],
        }
    )
    already = table["imitation over the best opponent"].isin(["better", "equal"])
    table["holds"] = (table.drop(columns=table.columns[1]) == "better").all(axis=1) & ~already
    return table


def judge(comparisons: pd.DataFrame, chosen: pd.DataFrame, selected: Mapping[str, bool]) -> pd.DataFrame:
    """Verdicts on the six claims: claim, verdict, evidence.

    Parameters
    ----------
    comparisons : pandas.DataFrame
        Comparisons of "flow_refined" in all worlds and of "flow_imitation" in the Heston world.
    chosen : pandas.DataFrame
        The table of :func:`flowoe_lib.evaluation.frontier.dominance`.
    selected : mapping of str to bool
        Whether imitation acts most like the best expert, by condition.
    """
    everywhere = in_one_step(comparisons, "flow_refined").reset_index(drop=True)
    refined = everywhere[everywhere["world"] == "heston"]
    best, best_everywhere = _best(refined), _best(everywhere)
    beaten = refined[refined["reference"].isin(BENCHMARKS)].groupby("condition")["verdict"]
    all_beaten = beaten.apply(lambda v: set(v) == {"better"})
    rivals = everywhere[everywhere["reference"].isin(RIVALS)]
    dominated, n = _risks(rivals), len(best_everywhere)
    at_once = dominated["both"].groupby([rivals["world"], rivals["condition"]]).all()
    by_rival = dominated["both"].groupby(rivals["reference"], sort=False).sum()
    static = rivals["reference"] == "static_optimal"
    fatter = dominated["worse CVaR95"][static].groupby(rivals["world"], sort=False).agg(["sum", "size"])
    tuned = _risks(chosen)["both"].groupby(chosen["reference"], sort=False).agg(["sum", "size"])
    lifted = _lifted(refined, in_one_step(comparisons, "flow_imitation"))
    over_start, start, over_best = (lifted[column].value_counts() for column in lifted.columns[:3])
    worlds = best_everywhere.groupby("world", sort=False)
    rows = [
        (
            "1. beats the expert calibrated to each condition",
            verdict(int((best["verdict"] == "better").sum()), len(best)),
            f"against the best opponent of each condition {_counted(best)}",
        ),
        (
            "2. beats the traditional benchmarks",
            verdict(int(all_beaten.sum()), len(all_beaten)),
            f"better than {', '.join(BENCHMARKS)} in {all_beaten.sum()} of {len(all_beaten)} conditions",
        ),
        (
            "3. higher profit and lower risk at once",
            verdict(int(at_once.sum()), n),
            f"over all six in {at_once.sum()} of {n} conditions; "
            + ", ".join(f"over {name} in {won}" for name, won in by_rival.items())
            + "; CVaR95 worse than the static optimum's: "
            + ", ".join(f"{world} {r['sum']} of {r['size']}" for world, r in fatter.iterrows())
            + "; in the liquidity world with risk aversion chosen on validation days: "
            + ", ".join(f"over {name} in {r['sum']} of {r['size']}" for name, r in tuned.iterrows()),
        ),
        (
            "4. selects the expert that suits the condition",
            verdict(sum(selected.values()), len(selected)),
            f"imitation acts most like the best expert in {sum(selected.values())} of {len(selected)} "
            "conditions",
        ),
        (
            "5. the refining loss is what lifts it above its experts",
            verdict(int(lifted["holds"].sum()), len(lifted)),
            f"of {len(lifted)} conditions, refinement improves imitation in {over_start.get('better', 0)}; "
            f"imitation alone is better than the best opponent in {start.get('better', 0)} and equal to it "
            f"in {start.get('equal', 0)}; the refined policy is better in {over_best.get('better', 0)} and "
            f"equal in {over_best.get('equal', 0)}",
        ),
        (
            "6. effective where conditions change during the day",
            verdict(int((best_everywhere["verdict"] == "better").sum()), n),
            "against the best opponent: " + "; ".join(f"{world} {_counted(rows)}" for world, rows in worlds),
        ),
    ]
    return pd.DataFrame(rows, columns=["claim", "verdict", "evidence"])


def in_short(
    comparisons: pd.DataFrame,
    scorecard: pd.DataFrame,
    parts: pd.DataFrame,
    milliseconds: Mapping[str, float],
) -> str:
    """The result in five sentences.

    ``parts`` are variants of the method: ablation, verdict and share, its difference in utility to FlowOE as
    a share of the cost, with its interval. ``milliseconds`` is the time of one decision, by policy.
    """
    refined = in_one_step(comparisons, "flow_refined").reset_index(drop=True)
    imitation, best = _best(in_one_step(comparisons, "flow_imitation")), _best(refined)
    mpc = refined[refined["reference"] == "mpc"]
    start, (low, high) = shares(imitation)["utility"], _extremes(mpc, 2)
    by_world = shares(best)["utility"].groupby(best["world"], sort=False).mean()
    sizes = ", ".join(f"{world} {mean:+.2%}" for world, mean in by_world.items())
    short = best[best["verdict"].isin(["worse", "open"])].groupby(["world", "verdict"], sort=False).size()
    missed = ", ".join("{} ({} in {})".format(*row) for row in short.reset_index().to_numpy()) or "no world"
    steps = scorecard[(scorecard["policy"] == "flow_refined") & (scorecard["world"] == "heston")]
    capture = steps.groupby(["training_seed", "solver_steps"])["capture"].mean().unstack()
    variants = "; ".join(
        f"{r.ablation} {r.verdict}, {r.share:+.3%} [{r.share_ci_low:+.3%}, {r.share_ci_high:+.3%}]"
        for r in parts.itertuples()
    )
    return (
        f"1. Against model predictive control (MPC), the strongest re-planning, FlowOE is {_counted(mpc)} "
        f"conditions: from {low} to {high}, in % of cost.\n"
        f"2. Against the best opponent of each condition it is {_counted(best)} conditions in "
        f"{refined['world'].nunique()} worlds; the mean difference is, in % of cost: {sizes}.\n"
        f"3. It is not shown to be equal or better in: {missed}.\n"
        f"4. Imitation alone is {_counted(imitation)} Heston conditions against the best opponent, "
        f"{start.mean():+.2%} of its cost on average; the refined network without one part of the method is, "
        f"against FlowOE: {variants}; one solver step and eight differ by at most "
        f"{(capture[1] - capture[8]).abs().max():.4f} in mean capture.\n"
        f"5. A decision takes {milliseconds['flow_refined']:.1g} ms on one processor core, one of MPC "
        f"{milliseconds['mpc']:.1g} ms."
    )


def _extremes(rows: pd.DataFrame, digits: int) -> list[str]:
    """Least and most favourable difference in utility with its interval, % of cost."""
    percent = 100 * shares(rows)

    def told(i: int) -> str:
        mean, low, high = (f"{x:+.{digits}f}" for x in percent.iloc[i])
        return f"{mean} [{low}, {high}] in {rows['world'].iloc[i]} {rows['condition'].iloc[i]}"

    return [told(int(i)) for i in (percent["utility"].argmin(), percent["utility"].argmax())]


Line = dict[str, str]


def _line(what: str, rows: pd.DataFrame) -> Line:
    """Counts of verdicts on utility, with the least and most favourable difference."""
    counts = count_verdicts(rows, ["policy"]).iloc[0]
    numbers = {name.replace("_", " "): f"{counts[name]} of {len(rows)}" for name in (*VERDICTS, "above_zero")}
    least, most = _extremes(rows, 3)
    return {"against": what} | numbers | {"least favourable, %": least, "most favourable, %": most}


def _risk_line(where: str, rows: pd.DataFrame) -> Line:
    won = _risks(rows).sum()
    return {"where": where} | {str(name): f"{count} of {len(rows)}" for name, count in won.items()}


def evidence(
    comparisons: pd.DataFrame, chosen: pd.DataFrame, selected: Mapping[str, bool]
) -> dict[str, pd.DataFrame]:
    """A table for each claim, by its number; the arguments are those of :func:`judge`."""
    everywhere = in_one_step(comparisons, "flow_refined").reset_index(drop=True)
    worlds = {str(world): rows for world, rows in everywhere.groupby("world", sort=False)}
    versus = {str(name): rows for name, rows in worlds["heston"].groupby("reference", sort=False)}
    best = _best(worlds["heston"])
    named = best.set_index("condition")["reference"]
    risks = [
        _risk_line(f"{world}, over {name}", rows[rows["reference"] == name])
        for world, rows in worlds.items()
        for name in RIVALS
    ]
    risks += [
        _risk_line(f"liquidity, risk aversion chosen, over {name}", rows)
        for name, rows in chosen.groupby("reference", sort=False)
    ]
    lifted = _lifted(worlds["heston"], in_one_step(comparisons, "flow_imitation"))
    tables: dict[str, list[Line]] = {
        "1": [_line("the best opponent", best), *(_line(name, rows) for name, rows in versus.items())],
        "2": [_line(name, versus[name]) for name in BENCHMARKS],
        "3": risks,
        "4": [
            {
                "condition": name,
                "best opponent": named[name],
                "imitation acts most like the best expert": said,
            }
            for name, alike in selected.items()
            for said in [("no", "yes")[alike]]
        ],
        "6": [_line(f"{world}: the best opponent", _best(rows)) for world, rows in worlds.items()],
    }
    told = lifted.replace({"holds": {True: "yes", False: "no"}}).reset_index()
    return {number: pd.DataFrame(lines) for number, lines in tables.items()} | {"5": told}


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
