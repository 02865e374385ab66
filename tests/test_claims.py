"""Verdicts on constructed comparisons with a known outcome."""

import pandas as pd
import pytest

from flowoe_lib.studies.claims import across_worlds, judge, judge_worlds, pooled, verdict, wins


def comparison(
    condition: str, reference: str, gain: float, std: float, best: bool = False
) -> dict[str, object]:
    row: dict[str, object] = {"condition": condition, "reference": reference, "is_best_expert": best}
    row["reference_bps"] = -10.0
    for name, value in {"utility": gain, "mean": gain / 2, "std": std}.items():
        row |= {name: value, f"{name}_ci_low": value - 0.1, f"{name}_ci_high": value + 0.1}
    return row


def test_a_win_needs_the_whole_interval() -> None:
    rows = pd.DataFrame(
        [comparison("a", "x", 1.0, -1), comparison("b", "x", 0.05, -1), comparison("a", "y", 1.0, -0.05)]
    )
    assert wins(rows, "utility").to_dict() == {"a": True, "b": False}
    assert wins(rows, "std").to_dict() == {"a": False, "b": True}


def test_pooled_interval_shrinks_with_independent_conditions() -> None:
    rows = pd.DataFrame([comparison(str(i), "x", 1.0, 0) for i in range(4)])
    assert pooled(rows, "utility") == "+1.000 [+0.950, +1.050]"


@pytest.mark.parametrize(
    ("won", "total", "words"), [(3, 3, "holds"), (1, 3, "holds in part"), (0, 3, "does not hold")]
)
def test_verdict(won: int, total: int, words: str) -> None:
    assert verdict(won, total) == words


@pytest.mark.parametrize(("won", "total"), [(4, 3), (-1, 3), (0, 0)])
def test_verdict_refuses_impossible_counts(won: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"won = {won} of total = {total}"):
        verdict(won, total)


def judged(gain: float, imitation_gain: float, std: float) -> dict[str, str]:
    references = ("twap", "almgren_chriss", "static_optimal", "flow_imitation")
    refined = pd.DataFrame(
        [comparison(c, r, gain, std, r == "static_optimal") for c in ("a", "b") for r in references]
    )
    imitation = pd.DataFrame([comparison(c, "static_optimal", imitation_gain, 0, True) for c in ("a", "b")])
    table = judge(
        refined,
        imitation,
        experts=["static_optimal", "almgren_chriss"],
        benchmarks=["twap", "almgren_chriss"],
        selected={"a": True, "b": False},
        cv={"a": 0.5, "b": 1.3},
    )
    assert len(table) == 6
    return dict(zip(table["claim"].str[0], table["verdict"], strict=True))


def test_claims_follow_the_comparisons() -> None:
    good = judged(gain=1.0, imitation_gain=-0.5, std=-1.0)
    assert [good[k] for k in "12345"] == ["holds", "holds", "holds", "holds in part", "holds"]
    assert good["6"] == "holds in part"
    bad = judged(gain=-1.0, imitation_gain=-0.5, std=1.0)
    assert [bad[k] for k in "12356"] == ["does not hold"] * 5
    assert judged(gain=1.0, imitation_gain=-0.5, std=1.0)["3"] == "does not hold"


def test_claim_5_fails_if_imitation_alone_beats_the_experts() -> None:
    assert judged(gain=1.0, imitation_gain=0.5, std=-1.0)["5"] == "does not hold"


def in_world(world: str, gains: dict[str, float], std: float) -> pd.DataFrame:
    """Two conditions, the gain over each reference, the last of which is the best expert."""
    rows = [
        comparison(c, r, gain, std, r == list(gains)[-1])
        | {"world": world, "solver_steps": 1, "training_seed": 0}
        for c in ("a", "b")
        for r, gain in gains.items()
    ]
    return pd.DataFrame(rows)


def test_each_world_is_summarised_separately() -> None:
    references = {"twap": 1.0, "almgren_chriss": 1.0, "static_optimal": 1.0}
    good, mixed = in_world("good", references, -1.0), in_world("mixed", references | {"rl": -1.0}, 1.0)
    scorecard = pd.DataFrame(
        [
            {"world": w, "policy": p, "solver_steps": k, "training_seed": s, "capture": c}
            for w in ("good", "mixed")
            for p, k, s, c in (
                ("flow_refined", 1, 0, 0.9),
                ("flow_refined", 1, 0, 0.7),
                ("flow_refined", 8, 0, 0.1),
                ("flow_refined", 1, 1, 0.2),
                ("oracle", None, None, 1.0),
            )
        ]
    )
    table = across_worlds(pd.concat([good, mixed]), scorecard).set_index("world")
    assert list(table.loc["good", ["conditions", "beats_all", "dominates_twap"]]) == [2, 2, 2]
    assert list(table.loc["mixed", ["conditions", "beats_all", "dominates_static_optimal"]]) == [2, 0, 0]
    assert table.loc["good", "capture_mean"] == pytest.approx(0.8)
    assert table.loc["good", "capture_worst"] == pytest.approx(0.7)
    assert table.loc["mixed", "gain_share"] == pytest.approx(-0.1)

    verdicts = judge_worlds(table.reset_index(), {"twap": 2, "static_optimal": 1}, 2)
    assert verdicts["verdict"].tolist() == ["holds in part", "holds in part"]
    assert "good 2/2, mixed 0/2" in verdicts["evidence"][1]
    only = judge_worlds(table.loc[["good"]].reset_index(), {"twap": 2}, 2)
    assert only["verdict"].tolist() == ["holds in part", "holds"]


def test_a_blind_optimum_is_a_reference_but_no_expert() -> None:
    experts = in_world("hidden", {"twap": 1.0, "static_optimal": 1.0, "almgren_chriss": 1.0}, 0.0)
    blind = in_world("hidden", {"blind_optimum": -1.0}, 0.0).assign(is_best_expert=False)
    rows = pd.concat([experts, blind])
    scorecard = pd.DataFrame(columns=["world", "policy", "solver_steps", "training_seed", "capture"])
    assert across_worlds(rows, scorecard)["beats_all"].tolist() == [2]
