"""The opponents that learn: who is trained where, what the table says, and what the store returns."""

import dataclasses

import pytest
import torch
from safetensors.torch import load, save

from flowoe_lib.execution.execution import OrderSimulation
from flowoe_lib.execution.information import with_errors
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import rl_experts
from flowoe_lib.randomness import generator
from flowoe_lib.studies import opponents
from flowoe_lib.studies.opponents import Opponents, spanning, train_opponents, unpack
from flowoe_lib.studies.worlds import World

N = 5
GRID = [
    Condition(
        "heston",
        name,
        Market(Heston(scalar(vol**2), scalar(2.0), scalar(1.0), scalar(-0.8))),
        Order(scalar(0.1), scalar(5e-4)),
    )
    for name, vol in {"calm": 0.01, "stressed": 0.02, "crisis": 0.04}.items()
]
BLURRED = [dataclasses.replace(c, world="realistic") for c in GRID[:2]]


pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def trained() -> Opponents:
    worlds = [World("heston", GRID), World("realistic", BLURRED, with_errors)]
    rl = {"patience": 1, "tolerance": 0.1, "days": 2, "n_orders": 64}
    specialist = {"patience": 1, "tolerance": 0.1, "iterations": 4, "paths": 32}
    torch.set_num_threads(1)
    return train_opponents(worlds, [3, 4], N, 200, 1, rl=rl, specialist=specialist, spanned=2)


def test_every_condition_has_a_specialist_and_those_that_span_a_world_an_rl_expert(
    trained: Opponents,
) -> None:
    found = unpack(load(save(trained.policies)))
    assert {where: set(kinds) for where, kinds in found.items()} == {
        "heston/calm": {"rl", "specialist"},
        "heston/stressed": {"specialist"},
        "heston/crisis": {"rl", "specialist"},
        "realistic/calm": {"rl", "specialist"},
        "realistic/stressed": {"rl", "specialist"},
    }


def test_the_table_has_every_round_of_every_seed_and_marks_the_best(trained: Opponents) -> None:
    table = trained.training
    assert set(table.loc[table["opponent"] == "rl", "seed"]) == {3, 4}
    for _, rows in table.groupby(["world", "condition", "opponent"]):
        assert rows["chosen"].sum() == 1
        assert rows.loc[rows["chosen"], "capture"].item() == rows["capture"].max()
        for _, run in rows.groupby("seed"):
            assert (run["decisions"].diff().dropna() == run["decisions"].iloc[0]).all()
            assert (run["seconds"].diff().dropna() >= 0).all()
    rounds = table[table["opponent"] == "rl"].groupby(["world", "condition", "seed"])["decisions"].first()
    assert (rounds == 2 * 64 * (N - 1)).all()
    assert (table.loc[table["opponent"] == "specialist", "decisions"] % (4 * 32 * (N - 1)) == 0).all()


def test_a_run_is_summed_up_by_its_end_and_its_best_capture(trained: Opponents) -> None:
    table = opponents.runs(trained.training)
    assert len(table) == 4 * 2 + 5
    for row in table.to_dict("records"):
        rounds = trained.training
        for key in ("world", "condition", "opponent", "seed"):
            rounds = rounds[rounds[key] == row[key]]
        assert row["decisions"] == rounds["decisions"].max()
        assert row["seconds"] == rounds["seconds"].max()
        assert row["capture"] == rounds["capture"].max()
        assert row["chosen"] == rounds["chosen"].any()


def test_methods_are_compared_by_the_same_rounds() -> None:
    few = {"patience": 1, "tolerance": 10.0, "least": 0, "days": 1, "n_orders": 32}
    table = opponents.compare_methods(GRID[0], 0, N, 100, 1, few).training
    names = ["PPO, utility as reward", "PPO, realised P&L and risk as reward", "SAC"]
    assert table["opponent"].tolist() == [name for name in names for _ in range(2)]
    assert table["capture"].nunique() > 4


def test_spanning_conditions_run_from_the_first_to_the_last() -> None:
    many = [dataclasses.replace(GRID[0], name=str(i)) for i in range(8)]
    assert [c.name for c in spanning(many, 4)] == ["0", "2", "5", "7"]
    assert spanning(GRID, 7) == GRID


def test_rl_experts_side_by_side_trade_as_each_alone(trained: Opponents) -> None:
    found = unpack(trained.policies)
    conditions = [GRID[0], GRID[2]]
    experts = [found[f"heston/{c.name}"]["rl"] for c in conditions]
    together = rl_experts(found)(conditions, 3, N)
    market, order = batch(conditions, 3)
    days = simulate(market, 6, N, generator(1, "days"))
    obs = OrderSimulation(days, market, order).observe(2, torch.rand(6))
    fractions = together(obs, torch.zeros(6))
    for mine, expert in zip((slice(0, 3), slice(3, 6)), experts, strict=True):
        torch.testing.assert_close(fractions[mine], expert(obs, torch.zeros(6))[mine])


def test_a_condition_without_an_expert_is_named() -> None:
    with pytest.raises(KeyError, match="crisis"):
        rl_experts({})(GRID[2:], 1, N)
