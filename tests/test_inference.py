"""Inference against closed forms, the delta method and p-values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from flowoe_lib.evaluation.intervals import Z95, cvar95_influence
from flowoe_lib.evaluation.scorecard import PathResults, compare
from flowoe_lib.evaluation.statistics import (
    RESOLUTION,
    block_intervals,
    holm,
    model_confidence_set,
    required_paths,
    spa_pvalue,
)


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def comparisons(quantity: str, gains: list[float], error: float = 1.0) -> pd.DataFrame:
    gain = np.array(gains)
    return pd.DataFrame(
        {
            "condition": [str(i) for i in range(len(gains))],
            "policy": "flow",
            quantity: gain,
            f"{quantity}_ci_low": gain - Z95 * error,
            f"{quantity}_ci_high": gain + Z95 * error,
        }
    )


def of_p_values(*p: float) -> pd.DataFrame:
    return comparisons("utility", [float(norm.isf(x)) for x in p])


def outcome(pnl: Tensor) -> PathResults:
    return PathResults(pnl, pnl, pnl, pnl, -pnl, torch.zeros_like(pnl))


def test_holm_by_hand() -> None:
    table = holm(of_p_values(0.01, 0.04, 0.03, 0.8), "utility", ["policy"])
    assert list(table["p"]) == pytest.approx([0.01, 0.04, 0.03, 0.8], rel=1e-4)
    # Sorted: 4 x .01, 3 x .03, then 2 x .04 raised to the one before, then .8.
    assert list(table["p_holm"]) == pytest.approx([0.04, 0.09, 0.09, 0.8], rel=1e-4)


def test_holm_keeps_the_order_and_never_helps() -> None:
    p = torch.rand(40, generator=torch.Generator().manual_seed(1)).tolist()
    table = holm(of_p_values(*p), "utility", ["policy"]).sort_values("p")
    assert table["p_holm"].is_monotonic_increasing
    assert (table["p_holm"] >= table["p"]).all()
    assert (table["p_holm"] <= (40 * table["p"]).clip(upper=1) * (1 + 1e-12)).all()


def test_holm_corrects_within_families() -> None:
    alone, together = of_p_values(0.02), of_p_values(0.01, 0.03)
    # A missing training seed is a family like any other.
    both = pd.concat([alone.assign(training_seed=None), together.assign(training_seed=1)])
    table = holm(both, "utility", ["policy", "training_seed"])
    assert list(table["p_holm"]) == pytest.approx([0.02, 0.02, 0.03], rel=1e-4)
    assert "p" not in both


def test_less_std_is_better() -> None:
    less = holm(comparisons("std", [-2.0]), "std", ["policy"])["p"].item()
    more = holm(comparisons("std", [2.0]), "std", ["policy"])["p"].item()
    assert less == pytest.approx(norm.sf(2.0))
    assert more == pytest.approx(norm.cdf(2.0))


@pytest.mark.parametrize("quantity", ["utility", "mean", "std"])
def test_uncorrected_p_values_agree_with_intervals(quantity: str) -> None:
    rows = []
    for i, shift in enumerate((-0.2, 0.0, 0.05, 0.1, 0.2)):
        a, b = normals(2, 400, seed=i)
        rows.append(
            {"condition": str(i), "policy": "flow"} | compare(outcome((1 - shift) * a + shift), outcome(b))
        )
    table = holm(pd.DataFrame(rows), quantity, ["policy"])
    won = table["std_ci_high"] < 0 if quantity == "std" else table[f"{quantity}_ci_low"] > 0
    assert list(table["p"] < 0.025) == list(won)
    assert won.any()
    assert not won.all()


def test_p_values_stay_above_zero_and_in_order() -> None:
    table = holm(comparisons("utility", [30.0, 37.0, 100.0, -100.0]), "utility", ["policy"])
    assert (table["p"] > 0).all()
    assert table["p"].iloc[0] == pytest.approx(float(norm.sf(30.0)))
    assert table["p"].iloc[:3].is_monotonic_decreasing
    assert table["p_holm"].iloc[3] == 1


def test_a_policy_is_not_better_than_itself() -> None:
    table = holm(comparisons("utility", [0.0, -1.0, 1.0], error=0.0), "utility", ["policy"])
    assert list(table["p"].iloc[:2]) == [1, 1]
    assert 0 < table["p_holm"].iloc[2] < 1e-300


def test_holm_refuses_invalid_input() -> None:
    with pytest.raises(
        ValueError, match=r"quantity = 'mean': must be one with an interval, here \['utility'\]"
    ):
        holm(of_p_values(0.1), "mean", ["policy"])
    with pytest.raises(ValueError, match="utility or its interval is NaN or infinite"):
        holm(comparisons("utility", [1.0, math.nan]), "utility", ["policy"])


@pytest.mark.parametrize(("sd", "effect"), [(1.0, 0.1), (3.0, 0.02), (0.4, 0.5)])
@pytest.mark.parametrize(("level", "power"), [(0.05, 0.9), (0.001, 0.8)])
def test_required_paths_are_the_fewest_with_that_power(
    sd: float, effect: float, level: float, power: float
) -> None:
    n = required_paths(sd, effect, level, power)
    z = effect * np.sqrt(np.array([n - 1, n])) / sd
    fewer, enough = norm.sf(norm.isf(level / 2) - z)
    assert fewer < power <= enough


def test_required_paths_have_the_stated_power() -> None:
    n = required_paths(sd_bps=2.0, effect_bps=0.5)
    x = 2.0 * normals(3000, n, seed=2) + 0.5
    found = (x.mean(1) / (2.0 / n**0.5)).abs() > Z95
    # Binomial(3000, .9) has a standard deviation of .0055.
    assert found.double().mean().item() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "sd_bps = 0.0: must be positive"),
        ((-1.0, 1.0), "sd_bps = -1.0: must be positive"),
        ((1.0, -0.1), "effect_bps = -0.1: must be positive"),
        ((1.0, math.nan), "effect_bps = nan: must be positive and finite"),
        ((1.0, 1.0, 0.0), "level = 0.0, power = 0.9: must be 0 < level < power < 1"),
        ((1.0, 1.0, 0.05, 1.0), "level = 0.05, power = 1.0: must be 0 < level < power < 1"),
        ((1.0, 1.0, 0.05, 0.01), "level = 0.05, power = 0.01: must be 0 < level < power < 1"),
    ],
)
def test_required_paths_refuses(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        required_paths(*arguments)


@pytest.mark.parametrize("n", [3, 29, 30, 1001])
def test_influences_average_to_the_quantities(n: int) -> None:
    pnl = normals(n, seed=n)
    worst = max(1, round(0.05 * n))
    expected = (pnl.std().item(), np.sort(pnl.numpy())[:worst].mean())
    assert outcome(pnl).influences.mean(0)[2:].tolist() == pytest.approx(expected, abs=1e-6)


def test_delta_intervals_cover_the_normal_closed_form() -> None:
    cvar_of_normal = -float(norm.pdf(norm.ppf(0.05))) / 0.05
    covered = []
    for i in range(400):
        x, y = normals(2, 1000, seed=i)
        drawn = compare(outcome(x), outcome(1.2 * x + 0.5 * y))
        std = 1 - 1.3
        covered.append(
            [
                drawn["std_ci_low"] < std < drawn["std_ci_high"],
                drawn["cvar95_ci_low"] < std * cvar_of_normal < drawn["cvar95_ci_high"],
            ]
        )
    # Binomial(400, .95) has a standard deviation of .011.
    share = np.mean(covered, axis=0)
    assert (share > 0.91).all()
    assert (share < 0.985).all()


def test_delta_intervals_are_paired_and_antisymmetric() -> None:
    a = normals(500, seed=6)
    drawn, turned = compare(outcome(2 * a + 5), outcome(a)), compare(outcome(a), outcome(2 * a + 5))
    assert drawn["std"] == pytest.approx(a.std().item())
    assert drawn["cvar95"] == pytest.approx(cvar95_influence(a).mean().item() + 5)
    assert turned["std_ci_low"] == pytest.approx(-drawn["std_ci_high"])
    assert turned["cvar95_ci_high"] == pytest.approx(-drawn["cvar95_ci_low"])
    # What both share on a path cancels in the difference.
    shifted = compare(outcome(a + 3), outcome(a))
    assert shifted["std_ci_high"] - shifted["std_ci_low"] == pytest.approx(0, abs=1e-6)
    assert [shifted[f"cvar95{end}"] for end in ("", "_ci_low", "_ci_high")] == pytest.approx([3] * 3)


def test_two_policies_get_the_p_value_of_the_paired_test() -> None:
    noise = normals(1000, seed=8)
    a = normals(1000, seed=9)
    for z in (0.5, 1.5, 2.5):
        b = a + (noise - noise.mean()) / noise.std() + z / 1000**0.5
        table = model_confidence_set({"a": a, "b": b}, 2000, 1).set_index("policy")
        # The standard deviation of a share p of 2000 draws is below .012.
        assert table["p"]["a"] == pytest.approx(2 * norm.sf(z), abs=0.03)
        assert table["p"]["b"] == 1
        assert spa_pvalue(a, {"b": b}, 2000, 1) == pytest.approx(norm.sf(z), abs=0.03)
        assert spa_pvalue(b, {"a": a}, 2000, 1) == 1


def test_the_set_keeps_the_best_and_drops_the_clearly_worse() -> None:
    day = 20 * normals(1000, seed=10)
    best, close, worse = (day + shift + normals(1000, seed=s) for shift, s in ((0, 1), (-0.01, 2), (-1, 3)))
    table = model_confidence_set({"worse": worse, "best": best, "close": close}, 300, 1)
    assert list(table.columns) == ["policy", "p", "in_set"]
    assert list(table["policy"]) == ["worse", "best", "close"]
    assert list(table["in_set"]) == [False, True, True]
    assert table["p"].max() == 1
    pd.testing.assert_frame_equal(
        table, model_confidence_set({"worse": worse, "best": best, "close": close}, 300, 1)
    )
    p = table["p"][2]
    assert not model_confidence_set({"worse": worse, "best": best, "close": close}, 300, 1, level=p)[
        "in_set"
    ][2]


def test_the_set_contains_the_best_policy_at_the_nominal_rate() -> None:
    kept = []
    for i in range(100):
        x = normals(3, 300, seed=i)
        kept.append(model_confidence_set(dict(zip("abc", x, strict=True)), 100, i, level=0.2)["in_set"][0])
    # All are best here. Binomial(100, .8) has a standard deviation of .04.
    assert np.mean(kept) > 0.7


@pytest.mark.parametrize("apart", [0.0, RESOLUTION / 10])
def test_identical_policies_are_both_in_or_both_out_of_the_set(apart: float) -> None:
    a = normals(1000, seed=11)
    twin = a + apart * normals(1000, seed=12)
    assert list(model_confidence_set({"a": a, "twin": twin}, 100, 1)["p"]) == [1, 1]
    worse = a - 1 + normals(1000, seed=13)
    table = model_confidence_set({"worse": worse, "a": a, "twin": twin, "again": worse + apart}, 100, 1)
    assert list(table["in_set"]) == [False, True, True, False]
    assert spa_pvalue(a, {"twin": twin}, 100, 1) == 1
    better = normals(1000, seed=14) + 1
    assert spa_pvalue(a, {"twin": twin, "better": better}, 200, 1) == spa_pvalue(
        a, {"better": better}, 200, 1
    )


def test_constant_differences_have_no_sampling_error() -> None:
    flat = torch.full((50,), -3.0)
    ladder = {"low": flat - 2, "high": flat, "middle": flat - 1, "twin": flat.clone()}
    assert list(model_confidence_set(ladder, 100, 1)["p"]) == [0, 1, 0, 1]
    assert spa_pvalue(flat, {"middle": flat - 1}, 100, 1) == 1
    assert spa_pvalue(flat - 1, {"high": flat, "low": flat - 2}, 100, 1) == 0
    a = normals(500, seed=15)
    assert list(model_confidence_set({"a": a, "less": a - 1, "other": -a + 0.01}, 100, 1)["in_set"]) == [
        True,
        False,
        True,
    ]


def test_spa_pvalue_is_small_if_the_benchmark_is_clearly_beaten() -> None:
    day = 20 * normals(1000, seed=16)
    rivals = {str(i): day + normals(1000, seed=i) for i in range(3)}
    assert spa_pvalue(day - 0.5 + normals(1000, seed=17), rivals, 200, 1) < 0.01
    assert spa_pvalue(day + 0.5 + normals(1000, seed=17), rivals, 200, 1) == 1


def test_spa_pvalue_allows_for_the_number_of_policies() -> None:
    nothing = torch.zeros(2000)
    x = normals(2000, 4, seed=18)
    z = torch.tensor([1.9, 0.5, 0.3, 0.2])
    # The first has the largest z-score but the smallest mean: only a studentised test sees it.
    scale = torch.tensor([0.01, 1.0, 10.0, 100.0])
    gains = scale * ((x - x.mean(0)) / x.std(0) + z / 2000**0.5)
    p = spa_pvalue(nothing, {str(i): gain for i, gain in enumerate(gains.T)}, 3000, 1)
    assert p == pytest.approx(1 - norm.cdf(1.9) ** 4, abs=0.02)


@pytest.mark.parametrize(
    ("a", "b", "reps", "message"),
    [
        (torch.ones(5), torch.ones(4), 100, r"shape \[\[5\], \[4\]\]: must be two or more of \[paths\]"),
        (torch.ones(5, 1), torch.ones(5, 1), 100, r"shape \[\[5, 1\], \[5, 1\]\]: must be"),
        (torch.ones(2), torch.ones(2), 100, r"shape \[\[2\], \[2\]\]: must be .* the same three or more"),
        (torch.ones(5), torch.tensor([1.0, 2, 3, 4, math.nan]), 100, "NaN or infinity: must be finite"),
        (torch.ones(5), torch.ones(5), 99, "reps = 99: must be at least 100"),
    ],
)
def test_resampling_refuses(a: Tensor, b: Tensor, reps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_confidence_set({"a": a, "b": b}, reps, 1)
    with pytest.raises(ValueError, match=message):
        spa_pvalue(a, {"b": b}, reps, 1)


def test_one_policy_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="must be two or more"):
        model_confidence_set({"a": torch.ones(5)}, 100, 1)
    with pytest.raises(ValueError, match="must be two or more"):
        spa_pvalue(torch.ones(5), {}, 100, 1)


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_the_set_needs_a_level(level: float) -> None:
    with pytest.raises(ValueError, match=rf"level = {level}: must be in \(0, 1\)"):
        model_confidence_set({"a": torch.ones(5), "b": torch.zeros(5)}, 100, 1, level)


def overlapping(seed: int, n: int = 4000, span: int = 6) -> pd.DataFrame:
    """Moving sums over ``span`` independent draws: neighbours share all but one of them."""
    draws = np.random.default_rng(seed).standard_normal(n + span - 1)
    return pd.DataFrame({"gain": np.convolve(draws, np.ones(span), "valid")})


def test_blocks_preserve_the_dependence_of_neighbours() -> None:
    """The mean of moving sums over six has the error of six draws together, not its own sd over root n."""
    series = overlapping(3)
    row = block_intervals(series, 60, 2000, seed=1).loc["gain"]
    width = (row["ci_high"] - row["ci_low"]) / (2 * 1.96)
    assert width == pytest.approx(6 / np.sqrt(len(series)), rel=0.1)
    alone = block_intervals(series, 1, 2000, seed=1).loc["gain"]
    blind = (alone["ci_high"] - alone["ci_low"]) / (2 * 1.96)
    assert blind == pytest.approx(np.sqrt(6 / len(series)), rel=0.1)
    assert row["mean"] == alone["mean"] == series["gain"].mean()


@pytest.mark.parametrize(("block", "reps", "fault"), [(5, 99, "reps"), (0, 100, "block"), (4, 100, "block")])
def test_block_intervals_refuse_invalid_arguments(block: int, reps: int, fault: str) -> None:
    with pytest.raises(ValueError, match=f"{fault} = "):
        block_intervals(overlapping(0, 11), block, reps, seed=1)
