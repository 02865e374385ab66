"""What each verdict on a claim rests on: counts, and the conditions that speak most for it and against it.

Comparisons are those of :mod:`flowoe_lib.claims`, of the first training seed in one solver step. Where an
interval is shown it is the 95 % one, in bps.
"""

from collections.abc import Mapping

import pandas as pd

from flowoe_lib.claims import wins
from flowoe_lib.experts.ensemble import BENCHMARKS

__all__ = ["blocks", "evidence", "first_run"]

YARDSTICKS = ("flow_imitation", "blind_optimum")
"""References that are no experts."""
Line = dict[str, str]


def first_run(comparisons: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Comparisons of a policy's first training seed in one solver step."""
    rows = comparisons[(comparisons["policy"] == policy) & (comparisons["solver_steps"] == 1)]
    first: pd.DataFrame = rows[rows["training_seed"] == rows["training_seed"].min()]
    return first


def _told(row: pd.Series, quantity: str) -> str:
    low, high = row[f"{quantity}_ci_low"], row[f"{quantity}_ci_high"]
    return f"{row[quantity]:+.4f} [{low:+.4f}, {high:+.4f}] in {row['condition']}"


def _line(
    what: str, rows: pd.DataFrame, quantity: str = "utility", every: pd.DataFrame | None = None
) -> Line:
    """In how many conditions ``every`` comparison is won, and the two ends of ``rows``."""
    won = wins(rows if every is None else every, quantity)
    ends = rows.sort_values(quantity, ascending=quantity != "std")
    return {
        "comparison": what,
        "won": f"{won.sum()} of {len(won)}",
        "least favourable": _told(ends.iloc[0], quantity),
        "most favourable": _told(ends.iloc[-1], quantity),
    }


def _against_best(what: str, rows: pd.DataFrame) -> Line:
    """Won where it is above every expert; the ends are those of the comparison with the best one.

    Where the drift is hidden, the best one may be the optimum of who does not know of it.
    """
    experts = rows[~rows["reference"].isin(YARDSTICKS)]
    return _line(what, rows[rows["is_best_expert"]], every=experts)


def _both(where: str, rows: pd.DataFrame, reference: str) -> list[Line]:
    """Profit and risk against one reference, and in how many conditions both are better."""
    picked = rows[rows["reference"] == reference]
    both = wins(picked, "mean", "std")
    lines = [
        _line(f"{where}: mean P&L over {reference}", picked, "mean"),
        _line(f"{where}: standard deviation over {reference}", picked, "std"),
    ]
    return [line | {"both won": f"{both.sum()} of {len(both)}"} for line in lines]


def evidence(
    comparisons: pd.DataFrame, elsewhere: pd.DataFrame, turned: pd.DataFrame, selected: Mapping[str, bool]
) -> dict[str, pd.DataFrame]:
    """A table for each claim, by its number.

    ``comparisons`` are those of the Heston world, ``elsewhere`` those of the others, ``turned`` those of
    :func:`flowoe_lib.frontier.dominance`; ``selected`` says where imitation acts most like the best expert.
    """
    refined, imitation = (first_run(comparisons, name) for name in ("flow_refined", "flow_imitation"))
    everywhere = pd.concat([refined, first_run(elsewhere, "flow_refined")], ignore_index=True)
    worlds = {str(world): rows for world, rows in everywhere.groupby("world", sort=False)}
    versus = {str(name): rows for name, rows in refined.groupby("reference", sort=False)}
    experts = [name for name in versus if name not in YARDSTICKS]
    best = refined[refined["is_best_expert"]].set_index("condition")["reference"]
    dominated = [line for world, rows in worlds.items() for line in _both(world, rows, "static_optimal")]
    dominated += _both("heston", refined, "twap")
    for name in turned["reference"].unique():
        dominated += _both("liquidity, dial turned", turned, name)
    tables = {
        "1": [
            _against_best("the best expert of each condition", refined),
            *(_line(name, versus[name]) for name in experts),
        ],
        "2": [_line(name, versus[name]) for name in BENCHMARKS],
        "3": dominated,
        "4": [
            {
                "condition": name,
                "best expert": best[name],
                "imitation acts most like it": "yes" if alike else "no",
            }
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
        table = tables[number]
        cells = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
        lines = [f"| {' | '.join(line)} |" for line in cells]
        out[f"claim_{number}"] = "\n".join(
            [f"Verdict: **{row.verdict}**. In short: {row.evidence}.", "", *lines]
        )
    return out
