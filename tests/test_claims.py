"""Verdicts on the claims and their tables, on constructed comparisons with a known outcome."""

import pandas as pd
import pytest

from flowoe_lib.evaluation.verdicts import verdicts
from flowoe_lib.studies.claims import (
    RIVALS,
    across_worlds,
    blocks,
    evidence,
    in_one_step,
    in_short,
    judge,
    verdict,
)

CHOSEN = pd.DataFrame(
    [
        {"condition": c, "reference": "twap", "utility": 1, "mean_ci_low": mean, "std_ci_high": -1}
        | {"cvar95_ci_low": 1, "cvar95_ci_high": 2}
        for c, mean in {"a": 1, "b": -1}.items()
    ]
)
SELECTED = {"a": True, "b": False}


def row(
    world: str, condition: str, reference: str, gain: float, policy: str = "flow_refined", tail: float = 1.0
) -> dict[str, object]:
    """Utility and mean are better by ``gain``, standard deviation by 1, CVaR95 by ``tail``; cost is 100."""
    out: dict[str, object] = {"world": world, "condition": condition, "reference": reference}
    out |= {"policy": policy, "solver_steps": 1, "material_bps": 0.1}
    out |= {"is_best_opponent": reference == "mpc"}
    for name, value in {"utility": gain, "mean": gain, "std": -1.0, "cvar95": tail}.items():
        out |= {name: value, f"{name}_ci_low": value - 0.01, f"{name}_ci_high": value + 0.01}
    return out


def tables(imitation: float = -5.0) -> pd.DataFrame:
    """In the Heston world MPC is beaten in a and equalled in b; in the other it is better by .2 %."""
    gains = {"a": 2.0, "b": 0.05}
    rows = [
        row("heston", c, name, gain if name == "mpc" else 3.0) for c, gain in gains.items() for name in RIVALS
    ]
    rows += [row("heston", c, "flow_imitation", 0.5) for c in gains]
    rows += [row("heston", c, "mpc", imitation, "flow_imitation") for c in gains]
    rows += [row("hidden", "h", name, -0.2 if name == "mpc" else 1.0, tail=-1.0) for name in RIVALS]
    table = pd.DataFrame(rows)
    return table.assign(verdict=verdicts(table))


SCORECARD = pd.DataFrame(
    [
        {"world": w, "condition": c, "policy": p, "solver_steps": k, "training_seed": s, "capture": x}
        for w, c, p, k, s, x in (
            ("heston", "a", "flow_refined", 1, 0, 0.8),
            ("heston", "a", "flow_refined", 1, 1, 1.0),
            ("heston", "b", "flow_refined", 1, 0, 0.7),
            ("heston", "b", "flow_refined", 8, 0, 0.1),
            ("hidden", "h", "flow_refined", 1, 0, 0.5),
            ("heston", "a", "oracle", None, None, 1.0),
        )
    ]
)


@pytest.mark.parametrize(
    ("won", "total", "words"), [(3, 3, "holds: 3 of 3"), (1, 3, "1 of 3"), (0, 3, "does not hold: 0 of 3")]
)
def test_verdict(won: int, total: int, words: str) -> None:
    assert verdict(won, total) == words


@pytest.mark.parametrize(("won", "total"), [(4, 3), (-1, 3), (0, 0)])
def test_verdict_refuses_impossible_counts(won: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"won = {won} of total = {total}"):
        verdict(won, total)


def test_one_step_leaves_other_policies_and_steps_out() -> None:
    rows = tables()
    more = pd.concat([rows, rows.assign(solver_steps=8), rows.assign(policy="other")])
    assert len(in_one_step(more, "flow_refined")) == (rows["policy"] == "flow_refined").sum()


def test_each_world_is_summarised_separately() -> None:
    table = across_worlds(in_one_step(tables(), "flow_refined"), SCORECARD).set_index("world")
    heston, hidden = table.loc["heston"], table.loc["hidden"]
    counts = ["conditions", "better", "equal", "worse", "open", "above_zero"]
    assert list(heston[counts]) == [2, 1, 1, 0, 0, 2]
    assert list(hidden[counts]) == [1, 0, 0, 1, 0, 0]
    assert list(heston[["gain_mean", "gain_min", "gain_max"]]) == pytest.approx([0.01025, 0.0005, 0.02])
    assert hidden["mpc_max"] == pytest.approx(-0.002)
    # Captures are averaged over training seeds with one solver step before the worst is taken.
    assert list(heston[["capture_mean", "capture_min"]]) == pytest.approx([0.8, 0.7])
    assert list(table["dominates_mpc"]) == [2, 0]
    assert list(table["dominates_vwap"]) == [2, 1]


def judged(comparisons: pd.DataFrame) -> pd.DataFrame:
    table = judge(comparisons, CHOSEN, SELECTED)
    return table.set_index(table["claim"].str[0])


def test_claims_are_counts_of_conditions() -> None:
    table = judged(tables())
    assert table["verdict"].to_dict() == {
        "1": "1 of 2",
        "2": "holds: 2 of 2",
        "3": "2 of 3",
        "4": "1 of 2",
        "5": "1 of 2",
        "6": "1 of 3",
    }
    said = table["evidence"]
    assert said["1"].endswith("better in 1, equal in 1, worse in 0, open in 0 of 2")
    assert "over mpc in 2" in said["3"]
    assert "over vwap in 3" in said["3"]
    assert "CVaR95 worse than the static optimum's: heston 0 of 2, hidden 1 of 1" in said["3"]
    assert said["3"].endswith("over twap in 1 of 2")
    assert "hidden better in 0, equal in 0, worse in 1" in said["6"]


@pytest.mark.parametrize("imitation", [0.05, 1.0])
def test_claim_5_fails_where_imitation_alone_is_already_there(imitation: float) -> None:
    assert judged(tables(imitation))["verdict"]["5"] == "does not hold: 0 of 2"


def test_tables_of_the_claims() -> None:
    told = evidence(tables(), CHOSEN, SELECTED)
    first = told["1"].set_index("against")
    assert list(first.loc["the best opponent", ["better", "equal", "above zero"]]) == ["1 of 2"] * 2 + [
        "2 of 2"
    ]
    assert first.loc["the best opponent", "least favourable, %"] == "+0.050 [+0.040, +0.060] in heston b"
    assert first.loc["the best opponent", "most favourable, %"] == "+2.000 [+1.990, +2.010] in heston a"
    assert list(told["2"]["better"]) == ["2 of 2"] * 4
    risks = told["3"].set_index("where")
    assert list(risks.loc["hidden, over mpc"]) == ["0 of 1", "1 of 1", "0 of 1", "0 of 1", "1 of 1"]
    assert risks.loc["liquidity, risk aversion chosen, over twap", "both"] == "1 of 2"
    assert list(told["4"].iloc[1]) == ["b", "mpc", "no"]
    assert told["5"].to_numpy().tolist() == [
        ["a", "better", "worse", "better", "yes"],
        ["b", "better", "worse", "equal", "no"],
    ]
    assert list(told["6"]["worse"]) == ["0 of 2", "1 of 1"]
    text = blocks(judge(tables(), CHOSEN, SELECTED), told)
    assert text["claim_4"].startswith("Verdict: **1 of 2**. In short: imitation acts most like")
    assert len(text) == 6
    assert all("|---" in block for block in text.values())


def test_the_result_in_five_sentences() -> None:
    variant = {"ablation": ["no imitation"], "verdict": ["equal"]}
    ends = {"share": [0.0001], "share_ci_low": [-0.0002], "share_ci_high": [0.0004]}
    text = in_short(tables(), SCORECARD, pd.DataFrame(variant | ends), {"flow_refined": 0.42, "mpc": 3.1})
    lines = text.splitlines()
    assert [line[:3] for line in lines] == [f"{i}. " for i in range(1, 6)]
    assert (
        "from -0.20 [-0.21, -0.19] in hidden h to +2.00 [+1.99, +2.01] in heston a, in % of cost" in lines[0]
    )
    assert "better in 1, equal in 1, worse in 1, open in 0 of 3 conditions in 2 worlds" in lines[1]
    assert lines[1].endswith("heston +1.03%, hidden -0.20%.")
    assert lines[2].endswith("in: hidden (worse in 1).")
    assert (
        "worse in 2, open in 0 of 2 Heston conditions against the best opponent, -5.00% of its cost" in text
    )
    assert "no imitation equal, +0.010% [-0.020%, +0.040%];" in lines[3]
    assert "takes 0.4 ms on one processor core, one of MPC 3 ms" in lines[4]
