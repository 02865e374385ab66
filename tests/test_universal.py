"""The universal policy's design and training, at a scale of seconds."""

import pytest
import torch

from flowoe_lib.data.conditions import conditions_to_records
from flowoe_lib.evaluation.scorecard import Evaluation, score_condition
from flowoe_lib.execution.execution import Policy
from flowoe_lib.market.model import Condition
from flowoe_lib.market.pre_trade import PreTrade
from flowoe_lib.policies.flow import FlowPolicy
from flowoe_lib.policies.schedules import twap
from flowoe_lib.training.universal import design, train_universal, universal_range

RANGE = universal_range(-0.8)


def fields(conditions: list[Condition], part: str, name: str) -> torch.Tensor:
    owners = [c.order if part == "order" else getattr(c.market, part) for c in conditions]
    return torch.stack([getattr(owner, name) for owner in owners])


def test_design_fills_the_range_with_corners_and_switches() -> None:
    conditions = design(RANGE, 64, 3)
    size, aversion = fields(conditions, "order", "size"), fields(conditions, "order", "risk_aversion")
    corners = {(round(s.item(), 4), round(a.item(), 6)) for s, a in zip(size[:4], aversion[:4], strict=True)}
    assert corners == {(s, a) for s in (0.01, 0.25) for a in RANGE.risk_aversion}
    depth = fields(conditions, "liquidity", "depth_sd") > 0
    profile = fields(conditions, "liquidity", "profile_amplitude") > 0
    # Every combination of the switches, a quarter of the conditions each.
    assert [(depth & profile).sum(), (~depth & profile).sum(), (~depth & ~profile).sum()] == [16, 16, 16]
    shorter = (
        fields(conditions, "liquidity", "window_end") - fields(conditions, "liquidity", "window_start") < 1
    )
    assert (shorter & profile).sum() == 16
    # A stratified sequence: in each axis every quarter of the range has about a quarter of the points.
    for values, (low, high) in (
        (fields(conditions, "heston", "theta").sqrt().log(), torch.tensor(RANGE.volatility).log()),
        (fields(conditions, "heston", "cv"), torch.tensor(RANGE.cv)),
        (fields(conditions, "liquidity", "illiquidity"), torch.tensor(RANGE.illiquidity)),
        (fields(conditions, "heston", "kappa").log(), torch.tensor(RANGE.kappa).log()),
        (fields(conditions, "impact", "beta"), torch.tensor(RANGE.beta)),
    ):
        counts = torch.histc((values - low) / (high - low), 4, 0, 1)
        assert counts.sum() == 64
        assert counts.min() >= 13
    assert all(c.market.drift == 0 and c.market.drift_sd == 0 for c in conditions)
    assert len({c.name for c in conditions}) == 64
    again = conditions_to_records(design(RANGE, 64, 3))
    assert again == conditions_to_records(conditions)
    assert again != conditions_to_records(design(RANGE, 64, 4))


def test_training_is_reproducible() -> None:
    runs = [train_universal(RANGE, 12, 5, 5, 5, 5, seed)[0] for seed in (1, 1, 2)]
    weights = [torch.cat([p.flatten() for p in run.field.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_gains_over_twap() -> None:
    first, seconds = train_universal(RANGE, 12, 40, 60, 60, 20, seed=1)
    assert seconds > 0
    assert len(first.curves["gradient"]) == 20
    # Where the attainable gain is large, even this short training obtains most of it.
    worth = [c for c in design(RANGE, 16, 1) if PreTrade.of(c.market, c.order).attainable_gain > 0.1]
    assert len(worth) >= 4
    for c in worth[:4]:
        days = Evaluation(n_paths=500, n_buckets=12, seed=1, chunk=500)
        policies: dict[str, Policy] = {"twap": twap, "flow": FlowPolicy(first.field, 1)}
        scored = score_condition(c, policies, [], days).scorecard.query("policy == 'flow'")
        [capture] = scored["capture"]
        assert capture > 0.5


@pytest.mark.parametrize("n", [0, 2, 48])
def test_design_wants_a_power_of_two(n: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n}: must be a power of two, at least 4"):
        design(RANGE, n, 1)
