"""Experts that trade in clips, the fee that makes clips optimal, and the laws compared with theirs."""

import dataclasses

import pytest
import torch
from torch.distributions import Normal

from flowoe_lib.execution.execution import Observation, Policy, execute
from flowoe_lib.execution.features import FEATURES
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, unpack
from flowoe_lib.policies.schedules import expected_cost, expected_utility, twap
from flowoe_lib.randomness import generator
from flowoe_lib.studies.clips import (
    HEADS,
    LOT,
    ClipOrder,
    chance_of_waiting,
    gaussian_likelihood,
    measure_clips,
    train_heads,
)

N = 13
CONDITION = Condition(
    "heston",
    "test",
    Market(Heston(scalar(4e-4), scalar(2.0), scalar(0.5), scalar(-0.8))),
    Order(scalar(0.01), scalar(4e-5)),
)
ORDER = ClipOrder(CONDITION, N, clips=4)


pytestmark = pytest.mark.usefixtures("in_this_process")


def inventories(n_days: int) -> torch.Tensor:
    days = simulate(CONDITION.market, n_days, N, generator(2, "days"))
    expert = ORDER.expert(n_days, generator(3, "phases"))
    return execute(expert, days, CONDITION.market, CONDITION.order, generator(4, "n")).inventory


def test_experts_hold_whole_clips_and_on_average_the_schedule() -> None:
    n_days = 20_000
    held = inventories(n_days)
    clips = held * ORDER.clips
    torch.testing.assert_close(clips, clips.round(), atol=1e-4, rtol=0)
    # A clip either is or is not there: the variance of the mean is at most c^2 / 4 over the days.
    error = 1 / ORDER.clips / 2 / n_days**0.5
    assert (held.mean(1) - ORDER.expert(1, generator(1, "phase")).inventory).abs().max() < 5 * error


def test_chance_of_waiting_is_the_share_of_experts_that_wait() -> None:
    held, schedule = inventories(40_000), ORDER.expert(1, generator(1, "phase")).inventory
    for k in range(N - 1):
        for level in (held[k] * ORDER.clips).round().unique():
            here = (held[k] * ORDER.clips).round() == level
            if (n := int(here.sum())) < 200:
                continue
            waited = (held[k + 1, here] > held[k, here] - 1e-3).float().mean().item()
            chance = chance_of_waiting(schedule, 1 / ORDER.clips, k, level / ORDER.clips).item()
            assert waited == pytest.approx(chance, abs=4 * (0.25 / n) ** 0.5), (k, level)


@pytest.mark.parametrize("best", [2, 4, 7])
def test_the_fee_makes_this_number_of_clips_the_cheapest(best: int) -> None:
    order = ClipOrder(CONDITION, 13 * 12, best)

    def cost(n: int) -> float:
        """Temporary impact and fees of n equal trades in n of the buckets."""
        plan = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        markets = CONDITION.market, without_temporary_impact(CONDITION.market)
        even, permanent = (expected_cost(market, CONDITION.order, plan).item() for market in markets)
        # Impact is that of n buckets a day; in buckets of 1 / N the same trades are N / n times as fast.
        return float((even - permanent) * (order.n_buckets / n) ** 0.6 + n * order.fee_bps)

    costs = {n: cost(n) for n in range(1, 13)}
    assert min(costs, key=lambda n: costs[n]) == best


def without_temporary_impact(market: Market) -> Market:
    free = dataclasses.replace(market.liquidity, illiquidity=scalar(1e-12))
    return dataclasses.replace(market, liquidity=free)


def test_gaussian_likelihood_is_that_of_a_normal_law() -> None:
    g = generator(1, "samples")
    observed, x1 = torch.randn(64, len(FEATURES), generator=g), torch.randn(64, generator=g)
    field, zero = EndpointField(generator(1, "init")), torch.zeros(64)
    encoded = field.encode(observed)
    law = Normal(field(zero, zero, encoded), field(zero, zero + 1, encoded).exp())
    constant = torch.log(torch.tensor(2 * torch.pi)) / 2
    torch.testing.assert_close(
        gaussian_likelihood(field, observed, x1, zero, zero),
        -law.log_prob(x1) - constant,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def flow(in_this_process: None) -> dict[str, Policy]:
    runs = list(unpack(train_heads(ORDER, n_days=20, iterations=3, seeds=[0, 1], seed=1)).values())
    assert len(runs) == 2 * len(HEADS)
    assert list(HEADS)[-1] == "flow"
    return {f"flow | K = 8 | {seed}": FlowPolicy(run.field, 8) for seed, run in enumerate(runs[-2:])}


def test_only_trades_above_a_lot_pay_the_fee(flow: dict[str, Policy]) -> None:
    def trickle(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        return LOT * (1.01 if obs.k % 2 else 0.99) / obs.inventory.clamp_min(0.5)

    table = measure_clips({"trickle | one | 0": trickle, **flow}, ORDER, 20, 7).set_index("policy")
    # Every second bucket but the last, which trades the rest.
    assert table.loc["trickle, one", "fee_bps"] == pytest.approx((N // 2 + 1) * ORDER.fee_bps)


def test_fees_and_distances_of_known_policies(flow: dict[str, Policy]) -> None:
    policies: dict[str, Policy] = {"even | twap | 0": twap}
    table = measure_clips(policies | flow, ORDER, 200, 7).set_index("policy")
    assert table.loc["even, twap", "fee_bps"] == pytest.approx(N * ORDER.fee_bps)
    assert table.loc["experts, clips", "fee_bps"] == pytest.approx(ORDER.clips * ORDER.fee_bps)
    assert table.loc["even, twap", "zero_share"] == 0
    assert table.loc["experts, clips", "zero_share"] == pytest.approx(1 - ORDER.clips / N)
    assert table.loc["experts, clips", "distance"] == 0
    assert table.loc["flow, K = 8", "training_seeds"] == 2
    without_fee = expected_utility(CONDITION.market, CONDITION.order, torch.linspace(1, 0, N + 1)).item()
    assert table.loc["even, twap", "utility_bps"] == pytest.approx(without_fee - N * ORDER.fee_bps, rel=0.01)


def test_the_distance_of_a_policy_that_waits_is_the_chance_of_a_clip(flow: dict[str, Policy]) -> None:
    def wait(obs: Observation, noise: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(noise)

    table = measure_clips({"never | wait | 0": wait, **flow}, ORDER, 200, 7).set_index("policy")
    # An expert sends its last clip in the last bucket or before: the rest in N - 1 buckets.
    held = inventories(20_000)
    clips_before = (1 - held[-2].mean().item()) * ORDER.clips
    assert table.loc["never, wait", "distance"] == pytest.approx(clips_before / (N - 1), abs=1 / 32)
