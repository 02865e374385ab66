"""The paper's claims as hypotheses, each with the number of conditions in which it holds.

Comparisons are rows of :func:`flowoe_lib.evaluation.scorecard.score_condition`: a learner, all of its
training seeds together, against one reference in one condition. Verdicts on utility are those of
:mod:`flowoe_lib.evaluation.verdicts`; of mean, standard deviation and CVaR95, one counts as better where the
whole 95 % interval is on the better side of zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from flowoe_lib.evaluation.verdicts import MATERIAL, VERDICTS, count_verdicts
from flowoe_lib.plotting import LOOKS
from flowoe_lib.policies.ensemble import BENCHMARKS

Z_LIMIT = 4.0
"""Martingale z-score beyond which a policy is considered to look ahead."""


CHOICE = ("condition", "best expert imitated", "expert that imitation acts most like", "the same")
"""Columns of the table of claim 4."""


FLAT = 1e-3
"""Difference in utility of VWAP and TWAP, bps, below which volume is considered to have no profile."""


RIVALS = (*BENCHMARKS, "replanned", "mpc")
"""Policies over which higher profit and lower risk at once are tested."""


def without_flat_vwap(
    table: pd.DataFrame, column: str = "policy", value: str = "utility_bps"
) -> pd.DataFrame:
    """Rows without VWAP in conditions whose volume has no profile, where VWAP is TWAP.

    ``column`` names the policies and ``value`` their utility, by world and condition.
    """
    keys = ["world", "condition"]
    of = table.drop_duplicates([*keys, column]).pivot(index=keys, columns=column, values=value)
    flat = (of["vwap"] - of["twap"]).abs() < FLAT
    rows = pd.MultiIndex.from_frame(table[keys])
    return table[(table[column] != "vwap") | ~flat.reindex(rows).to_numpy()]


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


def percent(share: float) -> str:
    """A share in per cent with its sign, to about three digits, without the sign of per cent."""
    size = abs(100 * share)
    digits = 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 1e-3 else 4
    return f"{100 * share:+.{digits}f}" if size >= 5e-5 else "0"


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

    ``below_zero`` counts intervals of the difference to the best opponent that lie wholly below zero.
    ``gain_*`` are mean, least and greatest difference in utility to the best opponent, as shares of its
    cost, ``mpc_*`` the same to model predictive control. Captures are averages over training seeds.
    ``dominates_*`` count conditions with a higher mean and a lower standard deviation at once, missing for
    VWAP in worlds where it is TWAP.
    """
    by = refined["world"]
    table = count_verdicts(_best(refined)).set_index("world").rename(columns={"comparisons": "conditions"})
    table["below_zero"] = (_best(refined)["utility_ci_high"] < 0).groupby(by, sort=False).sum()
    for name, rows in {"gain": _best(refined), "mpc": refined[refined["reference"] == "mpc"]}.items():
        ends = shares(rows)["utility"].groupby(by, sort=False).agg(["mean", "min", "max"])
        table = table.join(ends.add_prefix(f"{name}_"))
    learned = in_one_step(scorecard, "flow_refined")
    capture = learned.groupby(["world", "condition"])["capture"].mean().groupby("world")
    table = table.join(capture.agg(["mean", "min"]).add_prefix("capture_"))
    rivals = without_flat_vwap(refined, "reference", "reference_utility_bps")
    both = _risks(rivals)["both"]
    for name in RIVALS:
        table[f"dominates_{name}"] = both[rivals["reference"] == name].groupby(rivals["world"]).sum()
    return table.reset_index()


def _room(best: pd.DataFrame, scorecard: pd.DataFrame) -> pd.Series:
    """Whether the optimum, or its upper bound, is materially above the best opponent, where it is known."""
    keys = ["world", "condition"]
    utility = scorecard.pivot_table("utility_bps", keys, "policy").reindex(columns=["limit", "oracle"])
    limit = utility["limit"].fillna(utility["oracle"])
    opponents = best.set_index(keys)
    gap = (limit - opponents["reference_utility_bps"]).dropna()
    return gap > opponents["material_bps"].reindex(gap.index)


def _lifted(refined: pd.DataFrame, imitation: pd.DataFrame) -> pd.DataFrame:
    """Claim 5 by condition: verdicts on refinement, imitation alone and FlowOE, and whether it holds."""
    compared = {
        "FlowOE over imitation": refined[refined["reference"] == "flow_imitation"],
        "imitation over the best opponent": _best(imitation),
        "FlowOE over the best opponent": _best(refined),
    }
    table = pd.DataFrame({name: rows.set_index("condition")["verdict"] for name, rows in compared.items()})
    lift, start, end = (table[name] for name in table)
    table["holds"] = (lift == "better") & ~start.isin(["better", "equal"]) & (end == "better")
    return table


def judge(
    comparisons: pd.DataFrame,
    scorecard: pd.DataFrame,
    chosen: pd.DataFrame,
    selected: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Verdicts on the six claims: claim, verdict, evidence (the size of the difference in one line).

    Parameters
    ----------
    comparisons : pandas.DataFrame
        Comparisons of "flow_refined" in all worlds and of "flow_imitation" at least in the Heston world.
    scorecard : pandas.DataFrame
        Utility of all policies in all worlds, the optimum included.
    chosen : pandas.DataFrame
        The table of :func:`flowoe_lib.evaluation.frontier.dominance`.
    selected : mapping of str to sequence of str
        The best of the imitated experts and the one that imitation acts most like, by condition.
    """
    everywhere = in_one_step(comparisons, "flow_refined").reset_index(drop=True)
    refined = _of_heston(comparisons, "flow_refined")
    imitation = _of_heston(comparisons, "flow_imitation")
    best, best_everywhere = _best(refined), _best(everywhere)
    everywhere = without_flat_vwap(everywhere, "reference", "reference_utility_bps")
    fixed = everywhere[everywhere["reference"].isin(BENCHMARKS)]
    beaten = fixed.groupby(["world", "condition"])["verdict"].apply(lambda v: set(v) == {"better"})
    benchmarks = fixed[fixed["world"] == "heston"]
    rivals = everywhere[everywhere["reference"].isin(RIVALS)]
    both = _risks(rivals)["both"]
    at_once = both.groupby([rivals["world"], rivals["condition"]]).all()
    tuned = _risks(chosen)["both"].groupby(chosen["reference"], sort=False).sum()
    by_rival = {name: f"{b.sum()} of {len(b)}" for name, b in both.groupby(rivals["reference"], sort=False)}
    sizes = {name: _size(rows) for name, rows in benchmarks.groupby("reference", sort=False)}
    lifted = _lifted(refined, imitation)
    gains = shares(best_everywhere)["utility"].groupby(best_everywhere["world"], sort=False).mean()
    alone = refined[refined["reference"] == "flow_imitation"]
    room = _room(best_everywhere, scorecard)
    choice = pd.DataFrame(selected, index=["best", "alike"]).T
    rows = {
        "1. beats the expert calibrated to each condition": (
            best["verdict"] == "better",
            f"equal in {(best['verdict'] == 'equal').sum()} of {len(best)}; the exact optimum is materially "
            f"above the best opponent in {room['heston'].sum()} of {len(room['heston'])}; mean (least to "
            f"greatest): {_size(best)} of the best opponent's cost",
        ),
        "2. beats the traditional benchmarks": (
            beaten["heston"],
            f"mean (least to greatest), shares of the best opponent's cost: {_listed(sizes, 'over ')}",
        ),
        "3. higher profit and lower risk at once": (
            at_once,
            f"conditions with both: over {_listed(by_rival)}; with its risk aversion chosen, of "
            f"{chosen['condition'].nunique()} in the liquidity world: over {_listed(tuned.to_dict())}",
        ),
        "4. selects the expert that suits the condition": (
            choice["best"] == choice["alike"],
            "conditions in which imitation acts most like the best expert, a weak test: the same expert is "
            f"the best in {choice['best'].value_counts().max()} of {len(choice)}, and where the claim fails "
            f"the two experts' utilities differ by at most {_apart(imitation, selected):.3f} % of cost",
        ),
        "5. the refining loss is what lifts it above its experts": (
            lifted["holds"],
            f"mean (least to greatest), FlowOE less imitation alone: {_size(alone)} of cost; imitation alone "
            f"less the best opponent: {_size(_best(imitation))}",
        ),
        "6. effective where conditions change during the day": (
            best_everywhere["verdict"] == "better",
            "the optimum, or an upper bound of it, is materially above the best opponent in "
            f"{room.sum()} of {len(room)}; FlowOE is better than all schedules fixed "
            f"before the open in {beaten.sum()} of {len(beaten)}; mean difference to the best opponent, % of "
            f"its cost: {', '.join(f'{world} {percent(mean)}' for world, mean in gains.items())}",
        ),
    }
    judged = [(claim, verdict(int(holds.sum()), len(holds)), size) for claim, (holds, size) in rows.items()]
    return pd.DataFrame(judged, columns=["claim", "verdict", "evidence"])


def _apart(imitation: pd.DataFrame, selected: Mapping[str, Sequence[str]]) -> float:
    """Greatest difference in utility of the two experts of ``selected``, % of the best opponent's cost."""
    utility = imitation.set_index(["condition", "reference"])["reference_utility_bps"].to_dict()
    cost = (_best(imitation).set_index("condition")["material_bps"] / MATERIAL).to_dict()
    return float(max(abs(utility[c, a] - utility[c, b]) / cost[c] for c, (a, b) in selected.items())) * 100


def _size(rows: pd.DataFrame) -> str:
    """Difference in utility as a share of the cost: mean, least and greatest over the conditions."""
    mean, low, high = map(percent, shares(rows)["utility"].agg(["mean", "min", "max"]))
    return f"{mean} % ({low} to {high})"


def _listed(told: Mapping[Any, object], before: str = "") -> str:
    """What is told of each policy, after its name."""
    return ", ".join(f"{before}{LOOKS[name].name} {what}" for name, what in told.items())


def _where(rows: pd.DataFrame, name: str) -> str:
    """How many comparisons have a verdict, and in which worlds."""
    return _counted(rows["verdict"] == name, rows["world"])


def _counted(has: pd.Series, worlds: pd.Series) -> str:
    """How many conditions have a property, and in which worlds."""
    by_world = has.groupby(worlds, sort=False).agg(["sum", "size"]).query("sum > 0")
    told = ", ".join(f"{world} {r['sum']} of {r['size']}" for world, r in by_world.iterrows())
    return f"{has.sum()} of {len(has)} conditions" + (f" ({told})" if told else "")


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
    against = refined.groupby("reference").get_group
    mpc, start, program = map(against, ("mpc", "replanned", "dynamic_program"))
    (low, high), lowest = _extremes(mpc), _extremes(best)[0]
    steps = scorecard[(scorecard["policy"] == "flow_refined") & (scorecard["world"] == "heston")]
    capture = steps.groupby(["training_seed", "solver_steps"])["capture"].mean().unstack()
    told = {
        str(name): "{} [{}, {}]".format(*map(percent, row))
        for name, *row in parts[["share", "share_ci_low", "share_ci_high"]].itertuples()
    }
    counts = ", ".join(f"{name} in {(program['verdict'] == name).sum()}" for name in VERDICTS)
    learned = in_one_step(scorecard, "flow_refined")
    first = learned[learned["training_seed"] == learned["training_seed"].min()]
    shipped = first.set_index(first["world"] + "/" + first["condition"])["utility_bps"]
    behind = shipped.reindex(program["condition"]) < program.set_index("condition")["reference_utility_bps"]
    return (
        "1. **Equal.** FlowOE equals model predictive control (MPC), which plans again in every bucket as if "
        f"its forecasts were certain, in {_where(mpc, 'equal')}: the 95 % interval of the difference lies "
        f"within {100 * MATERIAL:.2g} % of cost. In {(mpc['verdict'] == 'open').sum()} the verdict is open. "
        f"The whole interval is below zero in {(mpc['utility_ci_high'] < 0).sum()} conditions and above "
        f"zero in {(mpc['utility_ci_low'] > 0).sum()}.\n"
        f"2. **Better.** It is better than MPC in {_where(mpc, 'better')}, by up to {high}, in % of cost. "
        "Against the dynamic program of `full`, which allows for later signals, it is "
        f"{counts} of {len(program)} conditions: {_size(program)} of cost, mean (least to greatest). The "
        "network that comes with the library, one of those averaged, is below that program in "
        f"{behind.sum()} of them.\n"
        f"3. **Worse.** It is worse than MPC in {_where(mpc, 'worse')}, at worst by {low}, in % of cost. "
        "Against the best opponent of each condition, networks trained in it alone included, it is worse in "
        f"{_where(best, 'worse')}, at worst by {lowest}, and better in {_where(best, 'better')}; the "
        f"verdict is equal in {(best['verdict'] == 'equal').sum()}, and the whole interval is below zero in "
        f"{(best['utility_ci_high'] < 0).sum()}.\n"
        "4. **What the parts contribute.** In the Heston world utility changes, in % of cost, by "
        f"{told['imitation alone']} without refinement, by {told['no imitation']} without imitation, and by "
        f"{told['noise-free network']} with a plain network in place of the flow; mean capture with one "
        "solver step (evaluation of the network) and with eight differs by about "
        f"{(capture[1] - capture[8]).abs().max():.1g} at most. Compared with the re-planned "
        f"schedule, which its actions correct, FlowOE is better in {_where(start, 'better')} and equal in "
        f"{(start['verdict'] == 'equal').sum()}; the whole interval is below zero in "
        f"{(start['utility_ci_high'] < 0).sum()}.\n"
        "5. **Speed.** On one processor core, in a Heston market, a decision alone takes "
        f"{milliseconds['flow_refined']:.2g} ms, one of MPC {milliseconds['mpc']:.2g} ms, one of an RL "
        f"expert {milliseconds['rl']:.2g} ms, and a look-up in the table of the exact optimum, once solved, "
        f"{milliseconds['oracle']:.2g} ms."
    )


def tails(refined: pd.DataFrame) -> str:
    """A sentence that counts the conditions in which CVaR95 is worse than that of two opponents."""
    told = []
    for name in ("static_optimal", "mpc"):
        rows = refined[refined["reference"] == name]
        told.append(f"that of {LOOKS[name].name} in {_counted(_risks(rows)['worse CVaR95'], rows['world'])}")
    return (
        "**Tails.** Utility charges for variance only, so a policy with a higher utility may have fatter "
        "tails. The mean profit of the worst 5 % of days (CVaR95) is lower for FlowOE, with the whole 95 % "
        f"interval, than {' and than '.join(told)}."
    )


def _extremes(rows: pd.DataFrame) -> list[str]:
    """Least and most favourable difference in utility with its interval, % of cost."""
    size = shares(rows)
    return [
        "{} [{}, {}] in `{}`".format(*map(percent, size.iloc[i]), rows["condition"].iloc[i])
        for i in (size["utility"].argmin(), size["utility"].argmax())
    ]


def _line(what: str, rows: pd.DataFrame) -> dict[str, object]:
    """Counts of verdicts on utility, with the least and most favourable difference."""
    counts = {name: (rows["verdict"] == name).sum() for name in VERDICTS}
    counts |= {"below zero": (rows["utility_ci_high"] < 0).sum()}
    counts |= {"above zero": (rows["utility_ci_low"] > 0).sum()}
    least, most = _extremes(rows)
    return {"against": what, "conditions": len(rows)} | counts | {"least, %": least, "most, %": most}


def _risk_line(where: str, rows: pd.DataFrame) -> dict[str, object]:
    """Conditions with a higher mean and a lower standard deviation, and with a worse CVaR95, by rival."""
    won = _risks(rows).groupby(rows["reference"]).sum().astype(str)
    told = won["both"] + " (" + won["worse CVaR95"] + ")"
    cells = {LOOKS[name].name: told.get(name, "-") for name in RIVALS}
    return {"world": where, "conditions": rows["condition"].nunique()} | cells


def evidence(
    comparisons: pd.DataFrame, chosen: pd.DataFrame, selected: Mapping[str, Sequence[str]]
) -> dict[str, pd.DataFrame]:
    """A table for each claim, by its number; the arguments are those of :func:`judge`."""
    everywhere = in_one_step(comparisons, "flow_refined")
    everywhere = without_flat_vwap(everywhere, "reference", "reference_utility_bps")
    worlds = {str(world): rows for world, rows in everywhere.groupby("world", sort=False)}
    others = worlds["heston"].groupby("reference", sort=False)
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
