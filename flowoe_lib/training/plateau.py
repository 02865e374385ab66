"""Training until the validation score stops rising, so that no fixed budget limits a learner.

Validation days have their own random stream, from which neither training nor the test draws.
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
"""Score of a policy on validation days: higher is better, and it is bounded above."""


@dataclass(frozen=True)
class Round(Generic[P]):
    """A policy after a round of training."""

    policy: P
    decisions: int
    """Training decisions so far."""
    seconds: float
    """Processor seconds of training so far, without validation."""
    score: float
    """Validation score."""


def until_plateau(
    train: Callable[[float], tuple[P, int]], score: Score, patience: int, tolerance: float
) -> list[Round[P]]:
    """Train in rounds until ``patience`` rounds in a row have not improved the validation score.

    A round is an improvement if its score exceeds that of the last improvement by more than ``tolerance``.
    After any other round the learning rate halves, because an apparent plateau may be the noise of too large
    a step.

    Parameters
    ----------
    train : callable
        Trains one more round at a fraction, in (0, 1], of the initial learning rate. Returns the policy and
        the number of decisions of the round.
    score : callable
        Validation score of a policy; it must be bounded above, or training may not end.
    patience : int
        Number of rounds in a row without improvement after which training ends.
    tolerance : float
        Smallest improvement that counts, in units of the score.

    Returns
    -------
    list of Round
        All rounds in order; :func:`best_round` selects the one to use.

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
    rate, best, stalled, decisions, seconds = 1.0, -math.inf, 0, 0, 0.0
    while stalled < patience:
        start = time.process_time()
        policy, new_decisions = train(rate)
        seconds += time.process_time() - start
        decisions += new_decisions
        reached = score(policy)
        if not math.isfinite(reached):
            raise ValueError(f"score = {reached} after round {len(rounds) + 1}: must be finite")
        rounds.append(Round(policy, decisions, seconds, reached))
        if reached > best + tolerance:
            best, stalled = reached, 0
        else:
            rate, stalled = rate / 2, stalled + 1
    return rounds


def best_round(rounds: list[Round[P]]) -> Round[P]:
    """The round with the highest validation score, of one seed or of several."""
    return max(rounds, key=lambda r: r.score)


def validation_capture(
    condition: Condition,
    n_days: int,
    n_buckets: int,
    seed: int,
    perceive: Perceive = exact,
    limit: Policy | None = None,
) -> Score:
    """The function from a policy to its capture (U_policy - U_TWAP) / (U_limit - U_TWAP) on validation days.

    The days are those of the stream "validation" in :mod:`flowoe_lib.evaluation.scorecard`, in one chunk.

    Parameters
    ----------
    condition : Condition
        Market and order, fields of shape [].
    n_days : int
        Number of validation days, the same for every policy.
    n_buckets : int
        Number of buckets N of a day.
    seed : int
        Seed of the days, of errors in the information, and of the policies' noise.
    perceive : callable, optional
        The information of TWAP and of scored policies about the market.
    limit : Policy, optional
        The policy with full information whose capture is one; by default the oracle.

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
