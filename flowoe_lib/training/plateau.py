"""Training that goes on until a validation score stops rising.

So no budget decides how strong a learner is. Validation days have a random stream of their own: neither
training nor the test draws from it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from flowoe_lib.execution.execution import Policy, execute
from flowoe_lib.execution.information import Information, Perceive, exact
from flowoe_lib.market.model import Condition
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator

__all__ = ["Round", "Score", "best_round", "until_plateau", "validation_capture"]


P = TypeVar("P", bound=Policy)


Score = Callable[[Policy], float]
"""What a policy achieves on validation days; more is better, and it is bounded above."""


@dataclass(frozen=True)
class Round(Generic[P]):
    """A policy after a round of training."""

    policy: P
    decisions: int
    """Decisions that it learned from since the first round."""
    seconds: float
    """Processor seconds spent on training since the first round, validation not counted."""
    score: float
    """On validation days."""


def until_plateau(
    train: Callable[[float], tuple[P, int]], score: Score, patience: int, tolerance: float
) -> list[Round[P]]:
    """Train in rounds until ``patience`` of them in a row did not raise the validation score.

    A round counts as a rise if its score exceeds that of the last rise by more than ``tolerance``, so a slow
    climb adds up to one. After each round that is none the learning rate halves, because what looks like a
    plateau may be the noise of too large a step.

    Parameters
    ----------
    train : callable
        From a share of the initial learning rate, in (0, 1], to the policy after one more round and the
        number of decisions that the round learned from.
    score : callable
        Validation score of a policy, bounded above: otherwise training need not end.
    patience : int
        Rounds in a row without a rise after which training ends.
    tolerance : float
        Least rise that counts, in units of the score.

    Returns
    -------
    list of Round
        Every round in order; :func:`best_round` is the one to use.

    Raises
    ------
    ValueError
        If ``patience`` is below one, ``tolerance`` is not finite and positive, or a score is not finite.
    """
    if patience < 1:
        raise ValueError(f"patience = {patience}: must be at least 1")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance = {tolerance:g}: must be finite and > 0")
    rounds: list[Round[P]] = []
    share, risen, without, decisions, seconds = 1.0, -math.inf, 0, 0, 0.0
    while without < patience:
        start = time.process_time()
        policy, learned_from = train(share)
        seconds += time.process_time() - start
        decisions += learned_from
        reached = score(policy)
        if not math.isfinite(reached):
            raise ValueError(f"score = {reached} after round {len(rounds) + 1}: must be finite")
        rounds.append(Round(policy, decisions, seconds, reached))
        if reached > risen + tolerance:
            risen, without = reached, 0
        else:
            share, without = share / 2, without + 1
    return rounds


def best_round(rounds: list[Round[P]]) -> Round[P]:
    """The round with the highest validation score; of one seed, or of several put together."""
    return max(rounds, key=lambda r: r.score)


def validation_capture(
    condition: Condition,
    n_days: int,
    n_buckets: int,
    seed: int,
    perceive: Perceive = exact,
    limit: Policy | None = None,
) -> Score:
    """Capture on validation days, (U_policy - U_TWAP) / (U_limit - U_TWAP), as a function of the policy.

    Days are those of the stream "validation" of :mod:`flowoe_lib.evaluation.scorecard`, in one chunk.

    Parameters
    ----------
    condition : Condition
        The one condition of all days, fields of shape [].
    n_days : int
        Number of validation days; every policy gets the same.
    n_buckets : int
        Number of buckets in a day.
    seed : int
        Of the days, of the errors of perception and of the policies' own noise.
    perceive : callable, optional
        What a scored policy knows of the market.
    limit : Policy, optional
        The policy whose capture is one, which knows everything but the future. By default the oracle of the
        condition.

    Raises
    ------
    ValueError
        If ``limit`` does not beat TWAP on these days.
    """
    where = (condition.world, condition.name, 0)
    market, order = condition.market, condition.order
    days = simulate(market, n_days, n_buckets, generator(seed, "validation", *where))
    known = perceive(days, market, generator(seed, "validation", "perception", *where))

    def utility(policy: Policy, known: Information | None) -> float:
        noise = generator(seed, "validation", "policy noise", *where)
        with torch.no_grad():
            done = execute(policy, days, market, order, noise, known)
        return done.utility_bps(order).double().mean().item()

    floor = utility(twap, known)
    gap = utility(limit or solve_oracle(market, order, n_buckets), None) - floor
    if not gap > 0:
        raise ValueError(f"limit - TWAP = {gap:g} bps in {condition.name}: must be > 0")
    return lambda policy: (utility(policy, known) - floor) / gap
