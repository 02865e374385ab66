"""The paper's claims as hypotheses, each with the number of conditions in which it holds.

Comparisons are rows of :func:`flowoe_lib.evaluation.scorecard.score_condition`: a learner, all of its
training seeds together, against one reference in one condition. Verdicts on utility are those of
:mod:`flowoe_lib.evaluation.verdicts`; of mean, standard deviation and CVaR95, one counts as better where the
whole 95 % interval is on the better side of zero.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from flowoe_lib.evaluation.verdicts import MATERIAL, VERDICTS, count_verdicts
from flowoe_lib.plotting import LOOKS
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


CLAIMS = (
    "1. beats the expert calibrated to each condition",
    "2. beats the traditional benchmarks",
    "3. higher profit and lower risk at once",
    "4. selects the expert that suits the condition",
    "5. the refining loss is what lifts it above its experts",
    "6. effective where conditions change during the day",
)


CHOICE = ("condition", "best expert imitated", "expert that imitation acts most like", "the same")
"""Columns of the table of claim 4."""


RIVALS = (*BENCHMARKS, "replanned", "mpc")
"""Policies over which higher profit and lower risk at once are tested."""


def in_one_step(comparisons: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Comparisons of a policy with one solver step."""
    rows: pd.DataFrame = comparisons[(comparisons["policy"] == policy) & (comparisons["solver_steps"] == 1)]
    return rows


def _of_heston(comparisons: pd.DataFrame, policy: str) -> pd.DataFrame:
    return in_one_step(comparisons[comparisons["world"] == "heston"], policy)


def shares(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Difference in utility with its interval, as shares of the cost that defines a material difference."""
    ends = comparisons[["utility", "utility_ci_low", "utility_ci_high"]]
    return ends.div(comparisons["material_bps"] / MATERIAL, axis=0)


def verdict(won: int, total: int) -> str:
    """The verdict for a number of cases. Raises ValueError unless 0 <= won <= total and total > 0."""
    if not 0 <= won <= total or total == 0:
        raise ValueError(f"won = {won} of total = {total}: must be 0 <= won <= total and total > 0")
    word = {total: "holds:", 0: "does not hold:"}.get(won, "holds in")
    return f"{word} {won} of {total}"


def _best(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["is_best_opponent"]]


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


def judge(
    comparisons: pd.DataFrame, chosen: pd.DataFrame, selected: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Verdicts on the six claims: claim, verdict, evidence (the size of the difference in one line).

    Parameters
    ----------
    comparisons : pandas.DataFrame
        Comparisons of "flow_refined" in all worlds and of "flow_imitation" at least in the Heston world.
    chosen : pandas.DataFrame
        The table of :func:`flowoe_lib.evaluation.frontier.dominance`.
    selected : mapping of str to sequence of str
        The best of the imitated experts and the one that imitation acts most like, by condition.
    """
    everywhere = in_one_step(comparisons, "flow_refined").reset_index(drop=True)
    refined = _of_heston(comparisons, "flow_refined")
    imitation = _of_heston(comparisons, "flow_imitation")
    best, best_everywhere = _best(refined), _best(everywhere)
    # Volume is flat in the Heston world, so that VWAP is TWAP.
    benchmarks = refined[refined["reference"].isin(BENCHMARKS) & (refined["reference"] != "vwap")]
    all_beaten = benchmarks.groupby("condition")["verdict"].apply(lambda v: set(v) == {"better"})
    rivals = everywhere[everywhere["reference"].isin(RIVALS)]
    both = _risks(rivals)["both"]
    at_once = both.groupby([rivals["world"], rivals["condition"]]).all()
    tuned = _risks(chosen)["both"].groupby(chosen["reference"], sort=False).sum()
    by_rival = both.groupby(rivals["reference"], sort=False).sum()
    lifted = _lifted(refined, imitation)
    gains = shares(best_everywhere)["utility"].groupby(best_everywhere["world"], sort=False).mean()
    alone = refined[refined["reference"] == "flow_imitation"]
    by_world = ", ".join(f"{world} {mean:+.3%}" for world, mean in gains.items())
    rows = [
        (best["verdict"] == "better", f"mean (least to greatest): {_size(best)} of the best opponent's cost"),
        (all_beaten, f"mean (least to greatest): {_size(benchmarks)} of the best opponent's cost"),
        (
            at_once,
            f"conditions with both, of {len(at_once)}: over {_listed(by_rival)}; with its risk aversion "
            f"chosen, of {chosen['condition'].nunique()} in the liquidity world: over {_listed(tuned)}",
        ),
        (
            pd.Series({name: first == alike for name, (first, alike) in selected.items()}),
            "conditions in which imitation acts most like the best expert",
        ),
        (
            lifted["holds"],
            f"mean (least to greatest), FlowOE less imitation alone: {_size(alone)} of cost; imitation alone "
            f"less the best opponent: {_size(_best(imitation))}",
        ),
        (best_everywhere["verdict"] == "better", f"mean difference to the best opponent: {by_world}"),
    ]
    judged = [
        (claim, verdict(int(holds.sum()), len(holds)), size)
        for claim, (holds, size) in zip(CLAIMS, rows, strict=True)
    ]
    return pd.DataFrame(judged, columns=["claim", "verdict", "evidence"])


def _size(rows: pd.DataFrame) -> str:
    """Difference in utility as a share of the cost: mean, least and greatest over the conditions."""
    ends = shares(rows)["utility"].agg(["mean", "min", "max"]).round(5) + 0.0
    mean, low, high = map("{:+.3%}".format, ends)
    return f"{mean} ({low} to {high})"


def _listed(counts: pd.Series) -> str:
    return ", ".join(f"{LOOKS[str(name)].name} {count}" for name, count in counts.items())


def _where(rows: pd.DataFrame, name: str) -> str:
    """How many comparisons have a verdict, and in which worlds."""
    has = rows["verdict"] == name
    by_world = has.groupby(rows["world"], sort=False).agg(["sum", "size"]).query("sum > 0")
    told = ", ".join(f"{world} {r['sum']} of {r['size']}" for world, r in by_world.iterrows())
    return f"{has.sum()} of {len(rows)} conditions" + (f" ({told})" if told else "")


def in_short(
    comparisons: pd.DataFrame,
    scorecard: pd.DataFrame,
    parts: pd.DataFrame,
    milliseconds: Mapping[str, float],
) -> str:
    """The result in five sentences, a numbered list in Markdown.

    ``parts``, by variant of the method, has columns share, share_ci_low and share_ci_high: its utility less
    that of FlowOE as a share of the cost. ``milliseconds`` is the time of one decision, by policy.
    """
    refined = in_one_step(comparisons, "flow_refined")
    refined = refined.assign(condition=refined["world"] + "/" + refined["condition"])
    best = _best(refined)
    mpc, program = (refined[refined["reference"] == name] for name in ("mpc", "dynamic_program"))
    (low, high), lowest = _extremes(mpc), _extremes(best)[0]
    steps = scorecard[(scorecard["policy"] == "flow_refined") & (scorecard["world"] == "heston")]
    capture = steps.groupby(["training_seed", "solver_steps"])["capture"].mean().unstack()
    changes = (100 * parts[["share", "share_ci_low", "share_ci_high"]]).round(3) + 0.0
    told = {name: "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row) for name, *row in changes.itertuples()}
    return (
        "1. **Equal.** FlowOE equals model predictive control (MPC), which plans again in every bucket as if "
        "its forecasts were certain, in "
        f"{_where(mpc, 'equal')}: the 95 % interval of the difference lies within {MATERIAL:.1%} "
        f"of the cost. In {(mpc['verdict'] == 'open').sum()} the verdict is open.\n"
        f"2. **Better.** It is better than MPC in {_where(mpc, 'better')}; the greatest difference is "
        f"{high}, in % of cost. Against the dynamic program of `full`, which allows for later signals, it is "
        f"better in {(program['verdict'] == 'better').sum()} of {len(program)} conditions and worse in "
        f"{(program['verdict'] == 'worse').sum()}, with a difference of {_size(program)} of cost.\n"
        f"3. **Worse.** It is worse than MPC in {_where(mpc, 'worse')}, at worst by {low}, in % of cost. "
        "Against the best opponent of each condition, networks trained in it alone included, it is worse in "
        f"{_where(best, 'worse')}, at worst by {lowest}, and better in {_where(best, 'better')}.\n"
        "4. **What the parts contribute.** In the Heston world utility changes, in % of cost, by "
        f"{told['imitation alone']} without refinement, by {told['no imitation']} without imitation, and by "
        f"{told['noise-free network']} with a plain network in place of the flow; mean capture with one "
        "solver step (evaluation of the network) and with eight differs by at most "
        f"{(capture[1] - capture[8]).abs().max():.4f}.\n"
        f"5. **Speed.** A decision takes {milliseconds['flow_refined']:.2g} ms on one processor core, one of "
        f"MPC {milliseconds['mpc']:.2g} ms, one of an RL expert {milliseconds['rl']:.2g} ms."
    )


def _extremes(rows: pd.DataFrame) -> list[str]:
    """Least and most favourable difference in utility with its interval, % of cost."""
    percent = (100 * shares(rows)).round(3) + 0.0
    ends = percent["utility"].argmin(), percent["utility"].argmax()
    return [
        "{:+.3f} [{:+.3f}, {:+.3f}] in `{}`".format(*percent.iloc[i], rows["condition"].iloc[i]) for i in ends
    ]


def _line(what: str, rows: pd.DataFrame) -> dict[str, object]:
    """Counts of verdicts on utility, with the least and most favourable difference."""
    counts = count_verdicts(rows, ["policy"]).iloc[0]
    numbers = {name: counts[name] for name in VERDICTS} | {"above zero": counts["above_zero"]}
    least, most = _extremes(rows)
    return {"against": what, "conditions": len(rows)} | numbers | {"least, %": least, "most, %": most}


def _risk_line(where: str, rows: pd.DataFrame) -> dict[str, object]:
    """Conditions with a higher mean and a lower standard deviation, and with a worse CVaR95, by rival."""
    won = _risks(rows).groupby(rows["reference"]).sum()
    counts = {name: list(won.loc[name, ["both", "worse CVaR95"]]) for name in RIVALS if name in won.index}
    told = {LOOKS[name].name: "{} ({})".format(*counts[name]) if name in counts else "-" for name in RIVALS}
    return {"world": where, "conditions": rows["condition"].nunique()} | told


def evidence(
    comparisons: pd.DataFrame, chosen: pd.DataFrame, selected: Mapping[str, Sequence[str]]
) -> dict[str, pd.DataFrame]:
    """A table for each claim, by its number; the arguments are those of :func:`judge`."""
    everywhere = in_one_step(comparisons, "flow_refined")
    worlds = {str(world): rows for world, rows in everywhere.groupby("world", sort=False)}
    # Volume is flat in the Heston world, so that VWAP is TWAP.
    others = worlds["heston"].query("reference != 'vwap'").groupby("reference", sort=False)
    versus = {str(name): _line(LOOKS[str(name)].name, rows) for name, rows in others}
    best = _best(worlds["heston"])
    lifted = _lifted(worlds["heston"], _of_heston(comparisons, "flow_imitation"))
    tables: dict[str, list[dict[str, object]]] = {
        "1": [_line("the best opponent", best), *versus.values()],
        "2": [line for name, line in versus.items() if name in BENCHMARKS],
        "3": [
            *(_risk_line(world, rows) for world, rows in worlds.items()),
            _risk_line("liquidity, risk aversion chosen", chosen),
        ],
        "4": [
            dict(zip(CHOICE, (name, LOOKS[a].name, LOOKS[b].name, ("no", "yes")[a == b]), strict=True))
            for name, (a, b) in selected.items()
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
        out[f"claim_{number}"] = f"**{row.verdict}**: {row.evidence}.\n\n{table}"
    return out
