"""Training until the validation score stops rising, so that no fixed budget limits a learner.

Validation days have their own random stream, from which neither training nor the test draws.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from flowoe_lib.execution.environment import advantage_over_twap, check_sizes
from flowoe_lib.execution.execution import Execution, OrderSimulation, Policy, execute
from flowoe_lib.execution.information import Information, Perceive, exact
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Condition, Market, Order
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.oracle import solve_oracle
from flowoe_lib.randomness import generator

P = TypeVar("P", bound=Policy)


Score = Callable[[Policy], Tensor]
"""Scores of a policy on validation days, [conditions]: higher is better, and they are bounded above."""


@dataclass(frozen=True)
class Days:
    """Simulated days, and what traders know of them."""

    paths: MarketPaths
    market: Market
    order: Order
    known: Information

    @staticmethod
    def draw(
        condition: Condition,
        n_days: int,
        n_buckets: int,
        perceive: Perceive,
        draws: torch.Generator,
        errors: torch.Generator | None = None,
    ) -> "Days":
        """Simulate days of one condition; ``errors`` draws what traders get wrong, by default ``draws``."""
        paths = simulate(condition.market, n_days, n_buckets, draws)
        known = perceive(paths, condition.market, errors or draws)
        return Days(paths, condition.market, condition.order, known)

    @staticmethod
    def beside(parts: "Sequence[Days]") -> "Days":
        """The days of several conditions side by side; all conditions have the same number of days."""

        def join(*fields: Tensor) -> Tensor:
            return torch.cat([f.expand(*f.shape[:-1], parts[0].paths.n_paths) for f in fields], -1)

        joined: Days = map_tensors(join, *parts)
        return joined

    def execute(self, policy: Policy, draws: torch.Generator) -> Execution:
        """Execute the order by a policy on each day; ``draws`` is its noise."""
        return execute(policy, self.paths, self.market, self.order, draws, self.known)

    def utility(self, policy: Policy, draws: torch.Generator) -> Tensor:
        """Control-variate utility of a policy on each day, bps, [paths]; ``draws`` is its noise."""
        return self.execute(policy, draws).utility_bps(self.order)

    def gain_over_twap(self, policy: Policy, draws: torch.Generator) -> Tensor:
        """Sum of a policy's advantages over TWAP on each day, bps, [paths].

        Its expectation is U - U_TWAP, and it has less noise than the difference of the two utilities.
        """
        simulation = OrderSimulation(self.paths, self.market, self.order)
        done = self.execute(policy, draws)
        total = torch.zeros_like(done.drift_bps)
        for k in range(self.paths.n_buckets):
            inventory, impact = done.inventory[k : k + 2], done.impact[k : k + 2]
            _, paid, shifted = simulation.fill(k, inventory[0], inventory[0] - inventory[1], impact[0])
            total += advantage_over_twap(simulation, k, simulation.book(k, inventory, paid, shifted, impact))
        return total


@dataclass(frozen=True)
class Round(Generic[P]):
    """A policy after a round of training."""

    policy: P
    decisions: int
    """Training decisions so far."""
    seconds: float
    """Processor seconds of training so far, without validation."""
    score: Tensor
    """Validation score, [conditions]."""


def until_plateau(
    train: Callable[[float], tuple[P, int]], score: Score, patience: int, tolerance: float, least: int = 0
) -> list[Round[P]]:
    """Train in rounds until ``patience`` rounds in a row have not improved the validation score.

    A round is an improvement if in any condition its score exceeds that of the last improvement there by more
    than ``tolerance``. After n rounds without improvement the learning rate is 1/(n + 1) of the initial one,
    because an apparent plateau may be the noise of too large a step.

    Parameters
    ----------
    train : callable
        Trains one more round at a fraction, in (0, 1], of the initial learning rate. Returns the policy and
        the number of decisions of the round.
    score : callable
        Validation scores of a policy; they must be bounded above, or training may not end.
    patience : int
        Number of rounds in a row without improvement after which training ends.
    tolerance : float
        Smallest improvement that counts, in units of the score.
    least : int
        Number of first rounds that never count as without improvement, for learners that get worse before
        they get better.

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
    best = torch.tensor(-math.inf)
    stalled, decisions, seconds = 0, 0, 0.0
    while stalled < patience:
        start = time.process_time()
        policy, new_decisions = train(1 / (1 + stalled))
        seconds += time.process_time() - start
        decisions += new_decisions
        reached = score(policy)
        if not bool(reached.isfinite().all()):
            raise ValueError(f"score = {reached.tolist()} after round {len(rounds) + 1}: must be finite")
        rounds.append(Round(policy, decisions, seconds, reached))
        higher = reached > best + tolerance
        best = torch.where(higher, reached, best)
        stalled = 0 if bool(higher.any()) or len(rounds) <= least else stalled + 1
    return rounds


def best_round(rounds: Sequence[Round[P]], condition: int = 0) -> Round[P]:
    """The round with the highest validation score in one of the conditions."""
    return max(rounds, key=lambda r: r.score[condition].item())


def validation_captures(
    conditions: Sequence[Condition],
    n_days: int,
    n_buckets: int,
    seed: int,
    perceive: Perceive = exact,
    limit: Callable[[Market, Order, int], Policy] = solve_oracle,
) -> Score:
    """The function from a policy to its captures (U_policy - U_TWAP) / (U_limit - U_TWAP) on validation days.

    The days are those of the stream "validation" in :mod:`flowoe_lib.evaluation.scorecard`, in one chunk.
    Both gains over TWAP are sums of advantages, which have less noise than differences of utilities.

    Parameters
    ----------
    conditions : sequence of Condition
        The conditions, fields of shape []. Scored policies trade them side by side, grouped by condition.
    n_days : int
        Number of validation days in each condition, the same for every policy.
    n_buckets : int
        Number of buckets N of a day.
    seed : int
        Seed of the days, of errors in the information, and of the policies' noise.
    perceive : callable, optional
        The information of scored policies about the market.
    limit : callable, optional
        Solves for the policy with full information whose capture is one; by default the oracle.

    Raises
    ------
    ValueError
        If the ``limit`` does not beat TWAP on these days, or TWAP's value has no closed form.
    """
    parts, gaps = [], []
    for condition in conditions:
        check_sizes(n_buckets, condition.market, condition.order, n_days)
        named = partial(generator, seed, "validation")
        where = (condition.world, condition.name, 0)
        part = Days.draw(condition, n_days, n_buckets, perceive, named(*where), named("perception", *where))
        informed = replace(part, known=exact(part.paths, part.market, named("unused")))
        best = limit(part.market, part.order, n_buckets)
        gaps.append(informed.gain_over_twap(best, named("policy noise", *where)).double().mean())
        if not gaps[-1] > 0:
            raise ValueError(f"limit - TWAP = {gaps[-1]:g} bps in {condition.name}: must be > 0")
        parts.append(part)
    days, gap = Days.beside(parts), torch.stack(gaps)

    def score(policy: Policy) -> Tensor:
        with torch.no_grad():
            gain = days.gain_over_twap(policy, generator(seed, "validation", "policy noise"))
        return gain.double().reshape(len(conditions), -1).mean(1) / gap

    return score
