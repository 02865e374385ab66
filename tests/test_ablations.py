"""The variants that FlowOE is compared with are what their names say, and are compared on the same days."""

import dataclasses

import pytest
import torch

from flowoe_lib.evaluation.intervals import paired_interval
from flowoe_lib.evaluation.scorecard import Evaluation, evaluate
from flowoe_lib.execution.execution import execute
from flowoe_lib.execution.features import FEATURES
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, TrainingRun
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.studies.ablations import (
    REFINED,
    SAMPLING,
    NoiseFreePolicy,
    advantage_weighted,
    contestants,
    demonstration_sets,
    measure,
    regression,
    train_variant,
    variant_tasks,
)
from flowoe_lib.training.imitation import Demonstrations, demonstrate

N_BUCKETS = 8
CONDITION = Condition(
    "heston",
    "test",
    Market(Heston(scalar(1.6e-3), scalar(2.0), scalar(1.3), scalar(-0.8))),
    Order(scalar(0.1), scalar(5e-4)),
)
RANGE = TrainingRange(kappa=(2.0, 2.0), rho=-0.8)
EXPERTS = {name: SCHEDULE_EXPERTS[name] for name in ("twap", "static_optimal", "replanned")}


pytestmark = pytest.mark.usefixtures("in_this_process")


def samples(n: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = generator(1, "samples")
    return (
        torch.randn(n, len(FEATURES), generator=g),
        *torch.randn(2, n, generator=g),
        torch.rand(n, generator=g),
    )


def test_regression_ignores_noise_and_time() -> None:
    observed, x1, x0, t = samples()
    field = EndpointField(generator(1, "init"))
    torch.testing.assert_close(
        regression(field, observed, x1, x0, t), regression(field, observed, x1, 5 * x0, 1 - t)
    )


def test_a_noise_free_network_has_one_action_in_a_state() -> None:
    days = simulate(CONDITION.market, 50, N_BUCKETS, generator(2, "days"))
    field = EndpointField(generator(1, "init"))
    runs = [
        execute(policy, days, CONDITION.market, CONDITION.order, generator(seed, "n")).inventory
        for policy in (NoiseFreePolicy(field), FlowPolicy(field, 1))
        for seed in (1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[2], runs[3])


def test_advantage_weighting_improves_without_a_simulator_gradient() -> None:
    start = EndpointField(generator(3, "init"))
    better = advantage_weighted(start, RANGE, N_BUCKETS, 60, seed=0).field
    runs = evaluate(
        {"before": FlowPolicy(start, 1), "after": FlowPolicy(better, 1)},
        CONDITION,
        Evaluation(n_paths=2_000, n_buckets=N_BUCKETS, seed=1, chunk=2_000),
        "test",
    )
    assert paired_interval(runs["after"].utility - runs["before"].utility)[1] > 0


@pytest.fixture(scope="module")
def demonstrations() -> dict[str, Demonstrations]:
    shown = [demonstrate(EXPERTS, [CONDITION], days, N_BUCKETS, 1) for days in (8, 4)]
    shape = (len(EXPERTS), N_BUCKETS - 1, -1)
    parts = [Demonstrations(*(x.unflatten(0, shape) for x in vars(each).values())) for each in shown]
    return demonstration_sets(parts, 1, [4])


def test_sets_of_demonstrations_leave_out_an_expert_or_days(
    demonstrations: dict[str, Demonstrations],
) -> None:
    everyone, again, without, few = demonstrations.values()
    assert list(demonstrations)[2:] == ["imitation without mpc", "imitation of 9 days"]
    assert torch.equal(everyone.actions, again.actions)
    assert len(everyone.actions) == 3 * (N_BUCKETS - 1) * (8 + 4)
    assert len(few.actions) == 3 * (N_BUCKETS - 1) * (2 + 1)
    kept = {name: SCHEDULE_EXPERTS[name] for name in ("twap", "replanned")}
    alone = demonstrate(kept, [CONDITION], 8, N_BUCKETS, 1)
    torch.testing.assert_close(without.actions[:56], alone.actions[:56])
    assert without.weights[:112].mean().item() == pytest.approx(1)
    ratio = everyone.weights[0] / everyone.weights[2 * 56]
    torch.testing.assert_close(without.weights[0] / without.weights[56], ratio)


def trained(seed: int) -> TrainingRun:
    """A run of FlowOE with three iterations of imitation and two of refinement."""
    curves = {"loss": torch.zeros(3), "utility": torch.zeros(3), "gradient": torch.zeros(2)}
    return TrainingRun(EndpointField(generator(seed, "start")), curves)


def test_every_variant_is_trained_with_every_seed_and_trades(
    demonstrations: dict[str, Demonstrations],
) -> None:
    flowoe = {seed: trained(seed) for seed in (0, 1)}
    tasks = variant_tasks(demonstrations, flowoe, flowoe, RANGE, N_BUCKETS)
    assert {name.split(" | ")[0] for name in tasks} == {*demonstrations, *REFINED}
    runs = {name: train_variant(*task) for name, task in tasks.items() if name.endswith("0")}
    other = train_variant(*tasks["no imitation | 1"]).field.state_dict()
    assert not torch.equal(runs["no imitation | 0"].field.state_dict()["out.weight"], other["out.weight"])
    policies = contestants(runs, SAMPLING)
    assert len(policies) == len(demonstrations) - 1 + 2 * len(REFINED) - 2
    days = simulate(CONDITION.market, 10, N_BUCKETS, generator(2, "days"))
    for name, policy in policies.items():
        with torch.no_grad():
            done = execute(policy, days, CONDITION.market, CONDITION.order, generator(2, "n"))
        assert torch.equal(done.inventory[-1], torch.zeros(10)), name


def test_variants_start_from_what_their_names_say(demonstrations: dict[str, Demonstrations]) -> None:
    flowoe = {5: trained(5)}
    tasks = variant_tasks(demonstrations, flowoe, flowoe, RANGE, N_BUCKETS)
    for name in REFINED:
        task_name, shown, imitations, start, *_, refinements, seed = tasks[f"{name} | 5"]
        assert (task_name, imitations, refinements, seed) == (name, 3, 2, 5)
        assert (start is flowoe[5].field) == (not name.endswith("no imitation"))
        assert (shown is None) == (name != "noise-free network")


def test_the_table_measures_regret_as_a_share_of_the_cost() -> None:
    condition = dataclasses.replace(CONDITION, name="second", order=Order(scalar(0.05), scalar(5e-4)))
    grid = [CONDITION, condition]
    days = Evaluation(n_paths=400, n_buckets=N_BUCKETS, seed=3, chunk=400)
    policies = {
        "FlowOE | K = 1 | 0": SCHEDULE_EXPERTS["replanned"](grid, 1, N_BUCKETS),
        "twap | none | 0": twap,
    }
    own, other = measure(policies, grid, days).to_dict("records")
    shares, captures = [], []
    for c in grid:
        oracle = solve_oracle(c.market, c.order, N_BUCKETS)
        runs = evaluate({**policies, "oracle": oracle}, c, days, "test")
        mean = {name: run.utility.double().mean().item() for name, run in runs.items()}
        flow, floor = mean["FlowOE | K = 1 | 0"], mean["twap | none | 0"]
        # Linear permanent impact costs every policy half of its price move.
        sunk = 1e4 * 0.314 * 263**0.25 * c.market.heston.theta.sqrt().item() * c.order.size.item() / 2
        shares.append((floor - flow) / abs(flow + sunk))
        captures.append((flow - floor) / (mean["oracle"] - floor))
    assert other["share"] == pytest.approx(sum(shares) / 2, rel=1e-6)
    assert own["capture"] == pytest.approx(sum(captures) / 2, rel=1e-6)
    assert own["capture_worst"] == pytest.approx(min(captures), rel=1e-6)
    assert (other["capture"], own["share"]) == pytest.approx((0, 0), abs=1e-9)
    assert (own["verdict"], other["verdict"], own["equal"], other["worse"]) == ("equal", "worse", 2, 2)
