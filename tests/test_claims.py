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
    percent,
    tails,
    verdict,
    without_flat_vwap,
)

CHOSEN = pd.DataFrame(
    [
        {"condition": c, "reference": "twap", "utility": 1, "mean_ci_low": mean, "std_ci_high": -1}
        | {"cvar95_ci_low": 1, "cvar95_ci_high": 2}
        for c, mean in {"a": 1, "b": -1}.items()
    ]
)
SELECTED = {"a": ["mpc", "mpc"], "b": ["mpc", "rl"]}


def row(
    world: str, condition: str, reference: str, gain: float, policy: str = "flow_refined", tail: float = 1.0
) -> dict[str, object]:
    """Utility and mean are better by ``gain``, standard deviation by 1, CVaR95 by ``tail``; cost is 100."""
    out: dict[str, object] = {"world": world, "condition": condition, "reference": reference}
    out |= {"policy": policy, "solver_steps": 1, "material_bps": 0.1}
    # VWAP is TWAP in the Heston world alone.
    levels = {"mpc": -99.0, "rl": -99.3, "vwap": -103.0 if world == "heston" else -102.0}
    out |= {"reference_utility_bps": levels.get(reference, -103.0)}
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
    rows += [row("heston", c, name, imitation, "flow_imitation") for c in gains for name in ("mpc", "rl")]
    # Claim 5 is about the Heston world alone.
    rows += [row("hidden", "h", "mpc", -9.0, "flow_imitation")]
    rows += [row("hidden", "h", "dynamic_program", 0.4)]
    rows += [row("hidden", "h", name, -0.2 if name == "mpc" else 1.0, tail=-1.0) for name in RIVALS]
    table = pd.DataFrame(rows)
    return table.assign(verdict=verdicts(table))


SCORECARD = pd.DataFrame(
    [
        {"world": w, "condition": c, "policy": p, "solver_steps": k, "training_seed": s, "capture": x}
        | {"utility_bps": u}
        for w, c, p, k, s, x, u in (
            ("heston", "a", "flow_refined", 1, 0, 0.8, -98.0),
            ("heston", "a", "flow_refined", 1, 1, 1.0, -98.0),
            ("heston", "b", "flow_refined", 1, 0, 0.7, -98.0),
            ("heston", "b", "flow_refined", 8, 0, 0.1, -98.0),
            ("hidden", "h", "flow_refined", 1, 0, 0.5, -103.5),
            ("heston", "a", "oracle", None, None, 1.0, -98.0),
            ("heston", "b", "oracle", None, None, 1.0, -98.95),
            ("hidden", "h", "oracle", None, None, 1.0, -90.0),
            ("hidden", "h", "limit", None, None, 1.0, -98.99),
        )
    ]
)


def test_vwap_is_left_out_where_it_is_twap() -> None:
    rows = in_one_step(tables(), "flow_refined")
    kept = without_flat_vwap(rows, "reference", "reference_utility_bps")
    assert list(kept.loc[kept["reference"] == "vwap", "world"]) == ["hidden"]
    assert len(rows) - len(kept) == 2


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.3081, "+30.8"), (-0.0275, "-2.75"), (0.00875, "+0.875"), (-2e-6, "-0.0002"), (-4e-7, "0")],
)
def test_percent_has_about_three_digits(share: float, words: str) -> None:
    assert percent(share) == words


def test_tails_are_counted_by_world() -> None:
    text = tails(in_one_step(tables(), "flow_refined"))
    assert text.endswith(
        "than that of Static optimum in 1 of 3 conditions (hidden 1 of 1) "
        "and than that of MPC in 1 of 3 conditions (hidden 1 of 1)."
    )


@pytest.mark.parametrize(
    ("won", "total", "words"),
    [(3, 3, "holds: 3 of 3"), (1, 3, "holds in 1 of 3"), (0, 3, "does not hold: 0 of 3")],
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
    assert list(table["below_zero"]) == [0, 1]
    assert pd.isna(heston["dominates_vwap"])
    assert hidden["dominates_vwap"] == 1


def judged(comparisons: pd.DataFrame) -> pd.DataFrame:
    table = judge(comparisons, SCORECARD, CHOSEN, SELECTED)
    return table.set_index(table["claim"].str[0])


def test_claims_are_counts_of_conditions() -> None:
    table = judged(tables())
    assert table["verdict"].to_dict() == {
        "1": "holds in 1 of 2",
        "2": "holds: 2 of 2",
        "3": "holds in 2 of 3",
        "4": "holds in 1 of 2",
        "5": "holds in 1 of 2",
        "6": "holds in 1 of 3",
    }
    said = table["evidence"]
    # The optimum is above MPC by 1 and .05 % of cost in the Heston world, where .1 % is material.
    assert said["1"] == (
        "equal in 1 of 2; the exact optimum is materially above the best opponent in 1 of 2; "
        "mean (least to greatest): +1.03 % (+0.050 to +2.00) of the best opponent's cost"
    )
    assert "over TWAP +3.00 % (+3.00 to +3.00), over Almgren-Chriss +3.00 %" in said["2"]
    assert "VWAP" not in said["2"]
    assert said["3"].startswith("conditions with both: over TWAP 3 of 3, Almgren-Chriss 3 of 3, ")
    assert "VWAP 1 of 1; with its risk aversion chosen, of 2 in the liquidity world: over TWAP 1" in said["3"]
    assert "the same expert is the best in 2 of 2, and where" in said["4"]
    assert said["4"].endswith("utilities differ by at most 0.300 % of cost")
    assert "FlowOE less imitation alone: +0.500 %" in said["5"]
    # The limit of the hidden world counts, not the optimum with full information.
    assert "materially above the best opponent in 1 of 3; FlowOE is better than all schedules" in said["6"]
    assert said["6"].endswith("heston +1.03, hidden -0.200")


@pytest.mark.parametrize("imitation", [0.05, 1.0])
def test_claim_5_fails_where_imitation_alone_is_already_there(imitation: float) -> None:
    assert judged(tables(imitation))["verdict"]["5"] == "does not hold: 0 of 2"


def test_tables_of_the_claims() -> None:
    told = evidence(tables(), CHOSEN, SELECTED)
    first = told["1"].set_index("against")
    counts = ["conditions", "better", "equal", "below zero", "above zero"]
    assert list(first.loc["the best opponent", counts]) == [2, 1, 1, 0, 2]
    assert first.loc["the best opponent", "least, %"] == "+0.050 [+0.040, +0.060] in `b`"
    assert first.loc["the best opponent", "most, %"] == "+2.00 [+1.99, +2.01] in `a`"
    assert list(told["2"]["against"]) == ["TWAP", "Almgren-Chriss", "Static optimum"]
    assert list(told["2"]["better"]) == [2] * 3
    risks = told["3"].set_index("world")
    assert list(risks.loc["hidden", ["conditions", "TWAP", "MPC"]]) == [1, "1 (1)", "0 (1)"]
    assert list(risks.loc["liquidity, risk aversion chosen", ["conditions", "TWAP", "MPC"]]) == [
        2,
        "1 (0)",
        "-",
    ]
    assert list(told["4"].iloc[1]) == ["b", "MPC", "RL expert", "no"]
    assert told["5"].to_numpy().tolist() == [
        ["a", "better", "worse", "better", "yes"],
        ["b", "better", "worse", "equal", "no"],
    ]
    assert list(told["6"]["worse"]) == [0, 1]
    text = blocks(judge(tables(), SCORECARD, CHOSEN, SELECTED), told)
    assert text["claim_4"].startswith("**holds in 1 of 2**: conditions in which imitation acts most like")
    assert len(text) == 6
    assert all("|---" in block for block in text.values())


PARTS = pd.DataFrame(
    {"share": [-0.01, 0.0001, 0.0], "share_ci_low": -0.02, "share_ci_high": 0.03},
    ["imitation alone", "no imitation", "noise-free network"],
)


MILLISECONDS = {"flow_refined": 0.42, "mpc": 3.1, "rl": 0.3, "oracle": 0.2}


def test_the_result_in_five_sentences() -> None:
    text = in_short(tables(), SCORECARD, PARTS, MILLISECONDS)
    lines = text.splitlines()
    assert [line[:3] for line in lines] == [f"{i}. " for i in range(1, 6)]
    assert "in 1 of 3 conditions (heston 1 of 2): the 95 % interval of the difference" in lines[0]
    assert lines[0].endswith("The whole interval is below zero in 1 conditions and above zero in 2.")
    assert "in 1 of 3 conditions (heston 1 of 2)" in lines[1]
    assert "by up to +2.00 [+1.99, +2.01] in `heston/a`" in lines[1]
    assert "better in 1, equal in 0, worse in 0, open in 0 of 1 conditions: +0.400 % (" in lines[1]
    # The first training seed earns less than the dynamic program.
    assert lines[1].endswith("is below that program in 1 of them.")
    assert "in 1 of 3 conditions (hidden 1 of 1), at worst by -0.200 [-0.210, -0.190] in" in lines[2]
    assert "the verdict is equal in 1, and the whole interval is below zero in 1." in lines[2]
    assert "-1.00 [-2.00, +3.00] without refinement, by +0.010 [" in lines[3]
    assert "with eight differs by about 0.7 at most." in lines[3]
    assert "is better in 3 of 3 conditions (heston 2 of 2, hidden 1 of 1) and equal in 0; " in lines[3]
    assert lines[3].endswith("the whole interval is below zero in 0.")
    assert "one of MPC 3.1 ms, one of an RL expert 0.3 ms, and a look-up" in lines[4]


def test_a_verdict_that_no_comparison_has_is_told_without_worlds() -> None:
    even = tables().assign(verdict="equal")
    text = in_short(even, SCORECARD, PARTS, MILLISECONDS)
    assert "better than MPC in 0 of 3 conditions, by up to" in text
