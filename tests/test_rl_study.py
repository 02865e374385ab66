"""The plan of the RL study: its runs, their progress and the experts it returns."""

import dataclasses

import pytest
import torch

from flowoe_lib.evaluation.scorecard import Evaluation
from flowoe_lib.execution.execution import execute
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import rl_experts
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.randomness import generator
from flowoe_lib.studies.rl_experts import expert_tensors, grid_runs, progress, train_run
from flowoe_lib.training.reinforcement import train_ppo, train_sac

N_BUCKETS = 5
GRID = [
    Condition(
        "heston",
        name,
        Market(Heston(scalar(vol**2), scalar(2.0), scalar(1.0), scalar(-0.8))),
        Order(scalar(0.1), scalar(5e-4)),
    )
    for name, vol in {"calm": 0.01, "crisis": 0.04}.items()
]


def test_each_condition_gets_an_expert_and_one_all_the_methods() -> None:
    runs = grid_runs(GRID, base=GRID[0], hard=GRID[1], seeds=[3, 4], steps=20_000)
    main = [(run.condition.name, run.seed) for run in runs if run.label == "PPO"]
    assert main == [("calm", 3), ("calm", 4), ("crisis", 3)]
    others = [run for run in runs if run.label != "PPO"]
    assert {run.condition.name for run in others} == {"crisis"}
    assert [getattr(run.train, "func", run.train) for run in others] == [train_ppo, train_ppo, train_sac]
    assert len({run.reward for run in runs}) == 3


def test_the_study_trains_experts_measures_them_and_returns_both() -> None:
    runs = grid_runs(GRID, base=GRID[0], hard=GRID[1], seeds=[0], steps=4_000)[:2]
    trained = [train_run(run, N_BUCKETS) for run in runs]
    table = progress(runs, trained, Evaluation(n_paths=500, n_buckets=N_BUCKETS, seed=1, chunk=500))
    assert list(table.columns) == ["run", "condition", "seed", "steps", "seconds", "capture"]
    assert len(table) == sum(len(taken) for taken in trained)
    by_run = table.groupby("condition")
    assert (by_run["steps"].diff().dropna() > 0).all()
    assert (by_run["seconds"].diff().dropna() >= 0).all()

    experts = RLExpert.unpack(expert_tensors(runs, trained))
    assert set(experts) == {"calm", "crisis"}
    beside = rl_experts(experts)(GRID, 3, N_BUCKETS)
    market, order = batch(GRID, 3)
    days = simulate(market, 6, N_BUCKETS, generator(1, "days"))
    together = execute(beside, days, market, order, generator(1, "n")).inventory
    for i, condition in enumerate(GRID):
        own = dataclasses.replace(
            days,
            **{
                f.name: getattr(days, f.name)[..., 3 * i : 3 * i + 3]
                for f in dataclasses.fields(days)
                if f.name != "dt" and getattr(days, f.name).shape[-1] == 6
            },
        )
        alone = execute(experts[condition.name], own, condition.market, condition.order, generator(1, "n"))
        torch.testing.assert_close(together[:, 3 * i : 3 * i + 3], alone.inventory)


def test_a_condition_without_an_expert_is_named() -> None:
    with pytest.raises(KeyError, match="crisis"):
        rl_experts({})(GRID[1:], 1, N_BUCKETS)
