"""Intervals over training seeds and days cover what they should, and verdicts follow from them and a size."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor

from flowoe_lib.evaluation.verdicts import (
    MATERIAL,
    QUANTITIES,
    VERDICTS,
    compare_learner,
    count_verdicts,
    hierarchical_interval,
    verdicts,
)
from flowoe_lib.randomness import generator


def normal(stream: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(5, stream))


def rows(*intervals: tuple[float, float], material: float = 1.0, **columns: Any) -> pd.DataFrame:
    ends = {
        "utility_ci_low": [low for low, _ in intervals],
        "utility_ci_high": [high for _, high in intervals],
    }
    return pd.DataFrame({**ends, "material_bps": material, **columns})


def test_without_training_seeds_the_interval_is_the_normal_one_over_days() -> None:
    a, b = normal("a", 1, 4_000), normal("b", 1, 4_000)
    mean, low, high = hierarchical_interval(a, b, seed=1, reps=4_000)
    d = (a - b).double()
    assert mean == pytest.approx(d.mean().item())
    half = norm.ppf(0.975) * d.std().item() / math.sqrt(4_000)
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.06)


def test_days_are_shared_by_both_sides_and_all_seeds() -> None:
    days = 100 * normal("days", 1, 500)
    apart = torch.tensor([[0.9], [1.0], [1.1]])
    mean, low, high = hierarchical_interval(days + apart, days, seed=1)
    assert mean == pytest.approx(1, abs=1e-4)
    assert high - low < 2  # 17 if the days did not cancel


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize("learner_first", [True, False])
def test_with_equal_days_the_interval_is_student_s_over_seeds(seeds: int, learner_first: bool) -> None:
    levels = normal("levels", seeds, 1).expand(-1, 50)
    zero = torch.zeros(1, 50)
    sides = (levels, zero) if learner_first else (zero, levels)
    mean, low, high = hierarchical_interval(*sides, seed=2, reps=20_000)
    error = levels[:, 0].double().std().item() / math.sqrt(seeds)
    half = student.ppf(0.975, seeds - 1) * error
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.02)


def test_many_quantities_have_the_interval_of_each() -> None:
    a, b = normal("a", 3, 300, 2), normal("b", 1, 300, 2)
    together = hierarchical_interval(a, b, seed=4)
    for i in range(2):
        alone = hierarchical_interval(a[..., i], b[..., i], seed=4)
        for end, single in zip(together, alone, strict=True):
            assert end[i].item() == pytest.approx(single.item())


def test_errors_of_both_sides_and_of_days_add_up() -> None:
    seeds, days = 40, 2_000

    def side(name: str) -> Tensor:
        return normal(f"{name} level", seeds, 1) + normal(f"{name} days", 1, days) * 5

    a, b = side("a"), side("b")
    _, low, high = hierarchical_interval(a, b, seed=3, reps=6_000)
    over_days = (a.mean(0) - b.mean(0)).double().var() / days
    error = math.sqrt(sum((x.double().mean(1).var() / seeds).item() for x in (a, b)) + over_days.item())
    assert high - low == pytest.approx(2 * student.ppf(0.975, 2 * seeds) * error, rel=0.05)


def test_the_interval_has_its_nominal_coverage() -> None:
    seeds, days, trials = 3, 60, 400
    draws = generator(7, "coverage")
    covered = 0
    for trial in range(trials):
        shared = torch.randn(1, days, generator=draws)
        level = 0.3 * torch.randn(seeds, 1, generator=draws)
        learner = shared + level + 0.5 * torch.randn(seeds, days, generator=draws)
        opponent = shared + torch.randn(1, days, generator=draws)
        _, low, high = hierarchical_interval(learner, opponent, seed=trial, reps=400)
        covered += int(low <= 0 <= high)
    # Within three standard errors of 95 %, and not so wide that it covers always.
    assert 0.92 < covered / trials < 0.99


def test_the_interval_is_determined_by_its_seed_and_antisymmetric() -> None:
    a, b = normal("a", 5, 200), normal("b", 4, 200)
    assert hierarchical_interval(a, b, seed=1) == hierarchical_interval(a, b, seed=1)
    assert hierarchical_interval(a, b, seed=1) != hierarchical_interval(a, b, seed=2)
    mean, low, high = hierarchical_interval(a, b, seed=1, reps=10_000)
    opposite, below, above = hierarchical_interval(b, a, seed=1, reps=10_000)
    assert mean == pytest.approx(-opposite)
    assert (low.item(), high.item()) == pytest.approx((-above.item(), -below.item()), abs=0.02)
    wide = hierarchical_interval(a, b, seed=1, level=0.99)
    assert wide[1] < low
    assert wide[2] > high


@pytest.mark.parametrize(
    ("learner", "opponent", "options", "message"),
    [
        (torch.zeros(5), torch.zeros(1, 5), {}, r"learner of shape \[5\]"),
        (torch.zeros(1, 5), torch.zeros(0, 5), {}, r"opponent of shape \[0, 5\]"),
        (torch.zeros(1, 1), torch.zeros(1, 1), {}, "two days or more"),
        (torch.zeros(1, 5), torch.zeros(1, 6), {}, "5 and 6 days"),
        (torch.full((1, 5), math.nan), torch.zeros(1, 5), {}, "learner: holds NaN"),
        (torch.zeros(1, 5), torch.full((1, 5), math.inf), {}, "opponent: holds NaN or infinity"),
        (torch.zeros(1, 5), torch.zeros(1, 5), {"reps": 99}, "reps = 99"),
        (torch.zeros(1, 5), torch.zeros(1, 5), {"level": 1.0}, "level = 1"),
    ],
)
def test_bad_utilities_and_settings_are_refused(
    learner: Tensor, opponent: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hierarchical_interval(learner, opponent, seed=1, **options)


def test_verdicts_follow_from_the_interval_and_the_material_size() -> None:
    cases = {
        (1.1, 2.0): "better",
        (1.0, 2.0): "open",  # touches the material size
        (0.2, 0.9): "equal",  # above zero, but by nothing that matters
        (-1.0, 1.0): "equal",
        (-1.01, 1.0): "open",
        (-3.0, -1.1): "worse",
        (-3.0, -1.0): "open",
        (-3.0, 3.0): "open",
    }
    table = rows(*cases)
    table.index = pd.Index(range(10, 10 + len(cases)))
    said = verdicts(table)
    assert list(said) == list(cases.values())
    assert said.index.equals(table.index)


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(0.1, 3))
def test_exactly_one_verdict_holds_and_exchanging_the_policies_reverses_it(
    low: float, width: float, material: float
) -> None:
    high = low + width
    said = verdicts(rows((low, high), material=material)).item()
    turned = verdicts(rows((-high, -low), material=material)).item()
    opposite = {"better": "worse", "worse": "better"}
    assert said in VERDICTS
    assert turned == opposite.get(said, said)


@pytest.mark.parametrize(
    ("interval", "material"),
    [((math.nan, 1), 1), ((0, math.inf), 1), ((2, 1), 1), ((0, 1), 0), ((0, 1), -1), ((0, 1), math.nan)],
)
def test_a_bad_interval_or_material_size_is_refused(interval: tuple[float, float], material: float) -> None:
    with pytest.raises(ValueError, match="in row 0"):
        verdicts(rows(interval, material=material))


def test_counts_are_by_group_and_add_up() -> None:
    table = rows((2, 3), (0.1, 0.2), (-3, -2), (-9, 9), (2, 3), world=["a", "a", "a", "b", "b"])
    counts = count_verdicts(table).set_index("world")
    assert list(counts.index) == ["a", "b"]
    assert counts.loc[["a"]].to_dict("records")[0] == {
        "comparisons": 3,
        "better": 1,
        "equal": 1,
        "worse": 1,
        "open": 0,
        "above_zero": 2,
    }
    assert counts[["better", "open", "above_zero"]].to_numpy()[1].tolist() == [1, 1, 1]
    assert (counts[list(VERDICTS)].sum(axis=1) == counts["comparisons"]).all()


def test_the_material_size_is_that_of_the_best_opponent() -> None:
    days = normal("days", 1, 1_000, 1).expand(-1, -1, len(QUANTITIES)).clone()
    levels = torch.tensor([-0.1, 0.1])[:, None, None]
    opponents = {"poor": days - 30, "best": days - 10, "learned": days - 20 + levels}
    learner = days - 9 + torch.zeros(3, 1, 1)
    learner[..., 3] += 7
    table = compare_learner(learner, opponents, seed=1)
    assert list(table["reference"]) == ["poor", "best", "learned"]
    best = -(days - 10)[..., 0].double().mean().item()
    np.testing.assert_allclose(table["material_bps"], MATERIAL * best, rtol=1e-6)
    np.testing.assert_allclose(table["utility"], [21, 1, 11], atol=1e-5)
    np.testing.assert_allclose(table["cvar95"], [28, 8, 18], atol=1e-5)
    # Only the learned opponent has an error over training seeds.
    width = (table["std_ci_high"] - table["std_ci_low"]).to_numpy()
    np.testing.assert_allclose(width, [0, 0, 2 * student.ppf(0.975, 1) * 0.1], rtol=0.05, atol=1e-5)
    assert list(table["verdict"]) == ["better"] * 3
    with pytest.raises(ValueError, match="opponents: must be at least one"):
        compare_learner(days, {}, seed=1)
