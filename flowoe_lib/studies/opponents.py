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

from flowoe_lib.execution.execution import Policy
from flowoe_lib.market.model import Condition
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.specialist import Specialist
from flowoe_lib.studies.worlds import World
from flowoe_lib.sweep import sweep
from flowoe_lib.training.plateau import Round, Score, best_round, validation_captures
from flowoe_lib.training.reinforcement import train_ppo_to_plateau
from flowoe_lib.training.specialist import train_specialists

__all__ = ["Opponents", "spanning", "train_opponents", "unpack"]


KINDS: dict[str, Callable[[Mapping[str, Tensor]], Policy]] = {"rl": RLExpert.of, "specialist": Specialist.of}


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
    seed: int,
    spanned: int | None = None,
    rl: Mapping[str, Any] | None = None,
    specialist: Mapping[str, Any] | None = None,
) -> Opponents:
    """Train the opponents of every world in parallel.

    Parameters
    ----------
    worlds : sequence of World
        The worlds, whose information the opponents have in training and on validation days.
    seeds : sequence of int
        Training seeds of each RL expert, of which the best on validation days enters; specialists take the
        first.
    n_buckets : int
        Number of buckets N of a day.
    n_validation : int
        Number of validation days in each condition.
    seed : int
        Seed of the validation days.
    spanned : int, optional
        Number of conditions of each world with an RL expert (see :func:`spanning`); by default all.
    rl, specialist : mapping, optional
        Options of :func:`flowoe_lib.training.reinforcement.train_ppo_to_plateau` and of
        :func:`flowoe_lib.training.specialist.train_specialists`.
    """
    score = partial(_captures, n_validation, n_buckets, seed)
    stacks: list[Any] = [
        partial(_specialists, w, score, n_buckets, seeds[0], specialist or {}) for w in worlds
    ]
    experts: list[Any] = [
        partial(_rl_expert, w, c, score, n_buckets, seeds, rl or {})
        for w in worlds
        for c in spanning(w.conditions, spanned or len(w.conditions))
    ]
    made = sweep(operator.call, [(run,) for run in [*stacks, *experts]], "opponents")
    tensors = {key: tensor for policies, _ in made for key, tensor in policies.items()}
    return Opponents(tensors, pd.concat([table for _, table in made], ignore_index=True))


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Policy]]:
    """Opponents by condition, named ``world/condition``, and by kind, "rl" or "specialist"."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        where, kind, name = key.rsplit(":", 2)
        parts.setdefault((where, kind), {})[name] = tensor
    out: dict[str, dict[str, Policy]] = {}
    for (where, kind), part in parts.items():
        out.setdefault(where, {})[kind] = KINDS[kind](part)
    return out


def spanning(conditions: Sequence[Condition], n: int) -> list[Condition]:
    """``n`` of the conditions at equal distances from the first to the last, or all if there are fewer."""
    chosen = np.linspace(0, len(conditions) - 1, min(n, len(conditions))).round().astype(int)
    return [conditions[i] for i in chosen]


def _captures(
    n_validation: int, n_buckets: int, seed: int, world: World, conditions: Sequence[Condition]
) -> Score:
    """Captures of validation days; the limit observes all but a hidden drift, which it learns from prices."""
    limit = solve_belief if conditions[0].market.drift_sd > 0 else solve_oracle
    return validation_captures(conditions, n_validation, n_buckets, seed, world.perceive, limit)


Made = tuple[dict[str, Tensor], pd.DataFrame]


def _specialists(world: World, score: Any, n_buckets: int, seed: int, options: Mapping[str, Any]) -> Made:
    conditions = world.conditions
    options = dict(options) | {"perceive": world.perceive}
    rounds = train_specialists(conditions, n_buckets, seed, score(world, conditions), **options)
    tensors: dict[str, Tensor] = {}
    tables = []
    for i, condition in enumerate(conditions):
        best = best_round(rounds, i)
        tensors |= _named(condition, "specialist", best.policy.alone(i).to_tensors())
        tables.append(_table(condition, "specialist", seed, rounds, best, i, len(conditions)))
    return tensors, pd.concat(tables)


def _rl_expert(
    world: World,
    condition: Condition,
    score: Any,
    n_buckets: int,
    seeds: Sequence[int],
    options: Mapping[str, Any],
) -> Made:
    captures, options = score(world, [condition]), dict(options) | {"perceive": world.perceive}
    runs = {s: train_ppo_to_plateau(condition, n_buckets, s, captures, **options) for s in seeds}
    best = best_round([r for run in runs.values() for r in run])
    tables = [_table(condition, "rl", s, run, best, 0, 1) for s, run in runs.items()]
    return _named(condition, "rl", best.policy.to_tensors()), pd.concat(tables)


def _named(condition: Condition, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{condition.world}/{condition.name}:{kind}:{name}": t for name, t in tensors.items()}


def _table(
    condition: Condition,
    kind: str,
    seed: int,
    rounds: Sequence[Round[Any]],
    best: Round[Any],
    i: int,
    shared: int,
) -> pd.DataFrame:
    """The rounds of a training that ``shared`` conditions share, as seen by its condition ``i``."""
    who = (condition.world, condition.name, kind, seed)
    rows = [(*who, r.decisions // shared, r.seconds / shared, r.score[i].item(), r is best) for r in rounds]
    columns = ["world", "condition", "opponent", "seed", "decisions", "seconds", "capture", "chosen"]
    return pd.DataFrame(rows, columns=columns)
