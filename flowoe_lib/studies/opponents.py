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
from flowoe_lib.market.model import Condition, Market, Order
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.rl import RLExpert
from flowoe_lib.policies.signal import solve_on_estimates, solve_signal
from flowoe_lib.policies.specialist import Specialist
from flowoe_lib.policies.transient import solve_transient
from flowoe_lib.studies.worlds import World
from flowoe_lib.sweep import sweep
from flowoe_lib.training.plateau import Round, Score, best_round, validation_captures
from flowoe_lib.training.reinforcement import train_ppo, train_sac
from flowoe_lib.training.specialist import train_specialists

__all__ = ["Opponents", "compare_methods", "runs", "spanning", "train_opponents", "unpack"]


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
    days = (n_buckets, n_validation, validation_seed)
    tasks: list[Any] = [partial(_specialists, w, seeds[0], *days, **specialist) for w in worlds]
    tasks += [
        partial(_rl_expert, c, w.perceive, seeds, *days, **rl)
        for w in worlds
        for c in spanning(w.conditions, spanned or len(w.conditions))
    ]
    made = sweep(operator.call, [(task,) for task in tasks], "opponents")
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
        out.setdefault(where, {})[kind] = KINDS[kind].of(part)
    return out


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
    tensors: dict[str, Tensor] = {}
    tables = []
    for name, rounds in zip(methods, sweep(operator.call, tasks, "RL methods"), strict=True):
        best = best_round(rounds)
        tensors |= _named(condition, name, best.policy.to_tensors())
        tables.append(_table(condition, name, seed, rounds, best))
    return Opponents(tensors, pd.concat(tables, ignore_index=True))


def spanning(conditions: Sequence[Condition], n: int) -> list[Condition]:
    """``n`` of the conditions at equal distances from the first to the last, or all if there are fewer."""
    chosen = np.linspace(0, len(conditions) - 1, min(n, len(conditions))).round().astype(int)
    return [conditions[i] for i in chosen]


def _captures(
    conditions: Sequence[Condition], n_days: int, n_buckets: int, seed: int, perceive: Perceive
) -> Score:
    """Captures of validation days; the limit observes all but a hidden drift, which it learns from prices.

    With memory of impact and a signal at once the limit is not known, and the best known plan stands for it.
    """
    market = conditions[0].market
    solvers: list[tuple[bool, Callable[[Market, Order, int], Policy]]] = [
        (market.signal.present and market.impact.has_memory, solve_on_estimates),
        (market.signal.present, solve_signal),
        (market.impact.has_memory, solve_transient),
        (bool(market.drift_sd > 0), solve_belief),
        (True, solve_oracle),
    ]
    limit = next(solve for applies, solve in solvers if applies)
    return validation_captures(conditions, n_days, n_buckets, seed, perceive, limit)


Made = tuple[dict[str, Tensor], pd.DataFrame]
"""Tensors and training table, as in :class:`Opponents`."""


def _specialists(
    world: World, seed: int, n_buckets: int, n_days: int, validation_seed: int, **options: Any
) -> Made:
    conditions, perceive = world.conditions, world.perceive
    score = _captures(conditions, n_days, n_buckets, validation_seed, perceive)
    rounds = train_specialists(conditions, n_buckets, seed, score, perceive=perceive, **options)
    tensors: dict[str, Tensor] = {}
    tables = []
    for i, condition in enumerate(conditions):
        best = best_round(rounds, i)
        tensors |= _named(condition, "specialist", best.policy.alone(i).to_tensors())
        tables.append(_table(condition, "specialist", seed, rounds, best, i, len(conditions)))
    return tensors, pd.concat(tables)


def _rl_expert(
    condition: Condition,
    perceive: Perceive,
    seeds: Sequence[int],
    n_buckets: int,
    n_days: int,
    validation_seed: int,
    **options: Any,
) -> Made:
    score = _captures([condition], n_days, n_buckets, validation_seed, perceive)
    trained = {s: train_ppo(condition, n_buckets, s, score, perceive=perceive, **options) for s in seeds}
    best = best_round([r for rounds in trained.values() for r in rounds])
    tables = [_table(condition, "rl", s, rounds, best) for s, rounds in trained.items()]
    return _named(condition, "rl", best.policy.to_tensors()), pd.concat(tables)


def _named(condition: Condition, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{condition.world}/{condition.name}:{kind}:{name}": t for name, t in tensors.items()}


def _table(
    condition: Condition,
    kind: str,
    seed: int,
    rounds: Sequence[Round[Any]],
    best: Round[Any],
    i: int = 0,
    shared: int = 1,
) -> pd.DataFrame:
    """The rounds of a training that ``shared`` conditions share, for its condition ``i``."""
    who = (condition.world, condition.name, kind, seed)
    rows = [(*who, r.decisions // shared, r.seconds / shared, r.score[i].item(), r is best) for r in rounds]
    columns = ["world", "condition", "opponent", "seed", "decisions", "seconds", "capture", "chosen"]
    return pd.DataFrame(rows, columns=columns)
