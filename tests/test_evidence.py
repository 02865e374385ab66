"""The tables behind the verdicts, on constructed comparisons with a known outcome."""

import pandas as pd

from flowoe_lib.studies.claims import blocks, evidence, first_run

EXPERTS = ("twap", "vwap", "almgren_chriss", "static_optimal")


def row(
    world: str, condition: str, reference: str, gain: float, policy: str = "flow_refined", seed: int = 0
) -> dict[str, object]:
    """A comparison whose utility, mean and (less) standard deviation are better by ``gain``."""
    out: dict[str, object] = {"world": world, "condition": condition, "reference": reference}
    out |= {"policy": policy, "training_seed": seed, "solver_steps": 1}
    out |= {"is_best_expert": reference == "static_optimal"}
    for name, value in {"utility": gain, "mean": gain, "std": -gain}.items():
        out |= {name: value, f"{name}_ci_low": value - 0.1, f"{name}_ci_high": value + 0.1}
    return out


def tables() -> dict[str, pd.DataFrame]:
    """In the Heston world a is won, and b lost to the best expert alone; elsewhere every expert is beaten."""
    gains = {"a": 2.0, "b": -1.0}
    heston = [
        row("heston", c, name, gain if name == "static_optimal" else 3.0)
        for c, gain in gains.items()
        for name in EXPERTS
    ]
    heston += [row("heston", c, "flow_imitation", 0.05) for c in gains]
    heston += [row("heston", c, "static_optimal", -5.0, "flow_imitation") for c in gains]
    heston += [row("heston", c, "static_optimal", 99.0, seed=1) for c in gains]
    hidden = [row("hidden", "a", name, 1.0) for name in EXPERTS]
    hidden.append(row("hidden", "a", "blind_optimum", -1.0))
    turned = [row("liquidity", c, "twap", 1.0) for c in gains]
    selected = {"a": True, "b": False}
    return evidence(pd.DataFrame(heston), pd.DataFrame(hidden), pd.DataFrame(turned), selected)


def won(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["comparison"], table["won"], strict=True))


def test_first_run_is_that_of_the_first_seed_in_one_step() -> None:
    rows = pd.DataFrame([row("w", "a", "twap", float(seed), seed=seed) for seed in (2, 1, 3)])
    rows = pd.concat([rows, rows.assign(solver_steps=8, utility=7.0), rows.assign(policy="other")])
    assert first_run(rows, "flow_refined")["utility"].tolist() == [1.0]


def test_counts_and_ends_of_each_claim() -> None:
    told = tables()
    assert won(told["1"])["the best expert of each condition"] == "1 of 2"
    assert won(told["1"])["twap"] == "2 of 2"
    assert told["1"].iloc[0]["least favourable"] == "-1.0000 [-1.1000, -0.9000] in b"
    assert told["1"].iloc[0]["most favourable"] == "+2.0000 [+1.9000, +2.1000] in a"
    assert won(told["2"]) == dict(zip(EXPERTS, ("2 of 2", "2 of 2", "2 of 2", "1 of 2"), strict=True))
    assert list(won(told["5"]).values()) == ["0 of 2", "0 of 2", "1 of 2"]
    assert list(won(told["6"]).values()) == ["1 of 2", "1 of 1"]
    assert told["4"]["imitation acts most like it"].tolist() == ["yes", "no"]
    assert told["4"]["best expert"].tolist() == ["static_optimal"] * 2


def test_less_standard_deviation_is_favourable() -> None:
    told = tables()["3"].set_index("comparison")
    line = told.loc["heston: standard deviation over static_optimal"]
    assert line["most favourable"].startswith("-2.0000")
    assert line["least favourable"].startswith("+1.0000")
    assert (line["won"], line["both won"]) == ("1 of 2", "1 of 2")
    assert told.loc["liquidity, dial turned: mean P&L over twap", "both won"] == "2 of 2"


def test_a_block_holds_the_verdict_and_its_table() -> None:
    verdicts = pd.DataFrame(
        [("4. selects", "holds in part", "1 of 2")], columns=["claim", "verdict", "evidence"]
    )
    assert blocks(verdicts, tables()) == {
        "claim_4": "Verdict: **holds in part**. In short: 1 of 2.\n\n"
        "| condition   | best expert    | imitation acts most like it   |\n"
        "|-------------|----------------|-------------------------------|\n"
        "| a           | static_optimal | yes                           |\n"
        "| b           | static_optimal | no                            |"
    }
