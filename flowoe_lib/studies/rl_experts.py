"""Training of reinforcement-learning experts over a grid of conditions, and their learning curves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from flowoe_lib.evaluation.scorecard import Evaluation, captures
from flowoe_lib.execution.environment import Reward, advantage_over_twap, controlled_utility, realised_utility
from flowoe_lib.market.model import Condition
from flowoe_lib.studies.worlds import World
from flowoe_lib.sweep import sweep
from flowoe_lib.training.reinforcement import Snapshot, train_ppo, train_sac

__all__ = ["Run", "expert_runs", "expert_tensors", "grid_runs", "progress", "train_run", "world_runs"]


MAIN = "PPO"
"""Label of the method and reward that train the experts."""


@dataclass(frozen=True)
class Run:
    """The training of one expert."""

    label: str
    train: Callable[..., list[Snapshot]]
    reward: Reward
    condition: Condition
    seed: int
    steps: int


def grid_runs(
    grid: Sequence[Condition], base: Condition, hard: Condition, seeds: Sequence[int], steps: int
) -> list[Run]:
    """One run per condition, one per seed in ``base``, and runs with other rewards and SAC in ``hard``.

    Other rewards come with the longer look ahead and the smaller steps that suit them. SAC learns many times
    from each decision and is slow: it gets a fifth of the ``steps``.
    """
    careful = partial(train_ppo, gae_lambda=0.9, clip_range=0.3)
    runs = [
        Run(MAIN, train_ppo, advantage_over_twap, c, seed, steps)
        for c in grid
        for seed in (seeds if c is base else seeds[:1])
    ]
    return [
        *runs,
        Run("PPO, utility as reward", careful, controlled_utility, hard, seeds[0], steps),
        Run("PPO, realised P&L and risk as reward", careful, realised_utility, hard, seeds[0], steps),
        Run("SAC", train_sac, advantage_over_twap, hard, seeds[0], max(steps // 5, 10_000)),
    ]


def world_runs(worlds: Sequence[World], steps: int) -> list[Run]:
    """One run per condition of the worlds, with the main method and reward."""
    return [Run(MAIN, train_ppo, advantage_over_twap, c, 0, steps) for w in worlds for c in w.conditions]


def train_run(run: Run, n_buckets: int) -> list[Snapshot]:
    """Snapshots of one run; the last is its result."""
    return run.train(run.condition, n_buckets, run.steps, run.seed, run.reward)


def expert_tensors(runs: Sequence[Run], trained: Sequence[list[Snapshot]]) -> dict[str, Tensor]:
    """The finished experts of the first seed, named ``condition:tensor``, for a store."""
    experts = {
        run.condition.name: taken[-1].expert
        for run, taken in zip(runs, trained, strict=True)
        if run.label == MAIN and run.seed == runs[0].seed
    }
    return {f"{name}:{key}": t for name, expert in experts.items() for key, t in expert.to_tensors().items()}


def progress(runs: Sequence[Run], trained: Sequence[list[Snapshot]], evaluation: Evaluation) -> pd.DataFrame:
    """Capture at every snapshot: columns run, condition, seed, steps, seconds, capture."""
    tasks = [
        ({str(i): s.expert for i, s in enumerate(taken)}, run.condition, evaluation, "RL progress")
        for run, taken in zip(runs, trained, strict=True)
    ]
    rows = [
        (run.label, run.condition.name, run.seed, snapshot.steps, snapshot.seconds, capture)
        for run, taken, table in zip(runs, trained, sweep(captures, tasks, "RL progress"), strict=True)
        for snapshot, capture in zip(taken, table["capture"], strict=True)
    ]
    return pd.DataFrame(rows, columns=["run", "condition", "seed", "steps", "seconds", "capture"])


class ExpertRuns(NamedTuple):
    """Trained experts and the progress of their training."""

    experts: dict[str, Tensor]
    """As :func:`expert_tensors`."""
    training: pd.DataFrame
    """As :func:`progress`."""


def expert_runs(runs: Sequence[Run], n_buckets: int, evaluation: Evaluation) -> ExpertRuns:
    """Train all ``runs`` in parallel and measure their progress."""
    trained = sweep(train_run, [(run, n_buckets) for run in runs], "RL experts")
    return ExpertRuns(expert_tensors(runs, trained), progress(runs, trained, evaluation))
