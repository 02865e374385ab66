"""Opponents that learn: reinforcement learning and specialists in the conditions of every world.

Both are trained until their score on validation days stops rising, with the information of their world.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from flowoe_lib.execution.environment import controlled_utility, realised_utility
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.information import Perceive
from flowoe_lib.market.model import Condition
from flowoe_lib.policies.rl import RLExpert, Specialist
from flowoe_lib.studies.worlds import World, limit_solver
from flowoe_lib.sweep import sweep
from flowoe_lib.training.plateau import Round, Score, best_round, validation_captures
from flowoe_lib.training.reinforcement import train_ppo, train_sac
from flowoe_lib.training.specialist import train_specialists

KINDS: dict[str, type[RLExpert] | type[Specialist]] = {"rl": RLExpert, "specialist": Specialist}


class Opponents(NamedTuple):
    """Trained opponents and the course of their training."""

    policies: dict[str, Tensor]
    """Tensors named ``world/condition:opponent:tensor``, for :func:`unpack`."""
    training: pd.DataFrame
    """One row per round: world, condition, opponent, seed, decisions, seconds, capture (on validation days),
    and whether the policy of this round is the opponent. Decisions and processor seconds are those of one
    condition so far."""


def train_opponents(
    worlds: Sequence[World],
    seeds: Sequence[int],
    n_buckets: int,
    n_validation: int,
    validation_seed: int,
    *,
    rl: Mapping[str, Any],
    specialist: Mapping[str, Any],
    spanned: int | None = None,
) -> Opponents:
    """Train the opponents of every world in parallel.

    Parameters
    ----------
    worlds : sequence of World
        The worlds, whose information the opponents have in training and on validation days.
    seeds : sequence of int
        Training seeds of each RL expert, of which the best on validation days enters. Specialists take the
        first.
    n_buckets : int
        Number of buckets N of a day.
    n_validation : int
        Number of validation days in each condition.
    validation_seed : int
        Seed of the validation days.
    rl, specialist : mapping
        Options of :func:`flowoe_lib.training.reinforcement.train_ppo` and of
        :func:`flowoe_lib.training.specialist.train_specialists`, such as their patience and tolerance.
    spanned : int, optional
        Number of conditions of each world with an RL expert (see :func:`spanning`); by default all.
    """
    validation = (n_buckets, n_validation, validation_seed)
    tasks: list[Any] = [partial(_specialists, w, seeds[0], validation, **specialist) for w in worlds]
    tasks += [
        partial(_rl_expert, c, w.perceive, seeds, validation, **rl)
        for w in worlds
        for c in spanning(w.conditions, spanned or len(w.conditions))
    ]
    return _joined(sweep(operator.call, [(task,) for task in tasks], "opponents"))


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Policy]]:
    """Opponents by condition, named ``world/condition``, and by kind, "rl" or "specialist"."""
    parts: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        where, kind, name = key.rsplit(":", 2)
        parts.setdefault(where, {}).setdefault(kind, {})[name] = tensor
    return {where: {kind: KINDS[kind].of(part) for kind, part in of.items()} for where, of in parts.items()}


def runs(training: pd.DataFrame) -> pd.DataFrame:
    """Each run of a training table: decisions and seconds until it ended, the best capture, and if chosen."""
    who = ["world", "condition", "opponent", "seed"]
    ends = {"decisions": "last", "seconds": "last", "capture": "max", "chosen": "any"}
    return training.groupby(who, sort=False).agg(ends).reset_index()


def compare_methods(
    condition: Condition,
    seed: int,
    n_buckets: int,
    n_validation: int,
    validation_seed: int,
    options: Mapping[str, Any],
) -> Opponents:
    """Train with other rewards, and with SAC, in one condition; the method stands for the opponent.

    Other rewards come with the longer look-ahead and the smaller steps and batches that suit them.
    """
    # With these rewards capture on validation days falls for several rounds before it rises.
    careful = partial(train_ppo, gae_lambda=0.9, clip_range=0.3, days=10, n_orders=256, least=10)
    methods: dict[str, Callable[..., list[Round[Any]]]] = {
        "PPO, utility as reward": partial(careful, reward=controlled_utility),
        "PPO, realised P&L and risk as reward": partial(careful, reward=realised_utility),
        "SAC": train_sac,
    }
    score = validation_captures([condition], n_validation, n_buckets, validation_seed)
    tasks = [(partial(train, condition, n_buckets, seed, score, **options),) for train in methods.values()]
    trained = zip(methods, sweep(operator.call, tasks, "RL methods"), strict=True)
    return _joined([_opponent(condition, name, {seed: rounds}) for name, rounds in trained])


def spanning(conditions: Sequence[Condition], n: int) -> list[Condition]:
    """``n`` of the conditions at equal distances from the first to the last, or all if there are fewer."""
    chosen = np.linspace(0, len(conditions) - 1, min(n, len(conditions))).round().astype(int)
    return [conditions[i] for i in chosen]


Validation = tuple[int, int, int]
"""Numbers of buckets and of validation days, and the seed of these days."""


def _captures(conditions: Sequence[Condition], perceive: Perceive, validation: Validation) -> Score:
    n_buckets, n_days, seed = validation
    limit = limit_solver(conditions[0].market)
    return validation_captures(conditions, n_days, n_buckets, seed, perceive, limit)


def _specialists(world: World, seed: int, validation: Validation, **options: Any) -> Opponents:
    conditions, perceive = world.conditions, world.perceive
    score = _captures(conditions, perceive, validation)
    rounds = train_specialists(conditions, validation[0], seed, score, perceive=perceive, **options)
    n = len(conditions)
    parts = []
    for i, condition in enumerate(conditions):
        own = [Round(r.policy.alone(i), r.decisions // n, r.seconds / n, r.score[i : i + 1]) for r in rounds]
        parts.append(_opponent(condition, "specialist", {seed: own}))
    return _joined(parts)


def _rl_expert(
    condition: Condition, perceive: Perceive, seeds: Sequence[int], validation: Validation, **options: Any
) -> Opponents:
    score = _captures([condition], perceive, validation)
    trained = {s: train_ppo(condition, validation[0], s, score, perceive=perceive, **options) for s in seeds}
    return _opponent(condition, "rl", trained)


def _opponent(condition: Condition, kind: str, trained: Mapping[int, Sequence[Round[Any]]]) -> Opponents:
    """The best opponent of one kind in a condition, of the rounds of each training seed."""
    best = best_round([r for rounds in trained.values() for r in rounds])
    named = {f"{condition.world}/{condition.name}:{kind}:{k}": t for k, t in best.policy.to_tensors().items()}
    rows = [
        (condition.world, condition.name, kind, seed, r.decisions, r.seconds, r.score.item(), r is best)
        for seed, rounds in trained.items()
        for r in rounds
    ]
    columns = ["world", "condition", "opponent", "seed", "decisions", "seconds", "capture", "chosen"]
    return Opponents(named, pd.DataFrame(rows, columns=columns))


def _joined(parts: Sequence[Opponents]) -> Opponents:
    tensors = {key: tensor for part in parts for key, tensor in part.policies.items()}
    return Opponents(tensors, pd.concat([part.training for part in parts], ignore_index=True))
