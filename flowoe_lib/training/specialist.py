"""Training of specialists: one network per condition, trained only by the gradient through the simulator.

Like refinement, a specialist uses the simulator's gradient; unlike it, there is no noise, no flow, no
imitation and only one condition.
"""

import copy

from flowoe_lib.execution.information import Perceive, exact
from flowoe_lib.market.model import Condition
from flowoe_lib.policies.specialist import SpecialistNetwork, SpecialistPolicy
from flowoe_lib.randomness import generator
from flowoe_lib.training.plateau import Round, Score, until_plateau
from flowoe_lib.training.refinement import ascend

__all__ = ["train_specialist"]


def train_specialist(
    condition: Condition,
    n_buckets: int,
    seed: int,
    score: Score,
    *,
    patience: int = 3,
    tolerance: float = 2e-4,
    iterations: int = 100,
    paths: int = 576,
    learning_rate: float = 2e-2,
    perceive: Perceive = exact,
) -> list[Round[SpecialistPolicy]]:
    """Train the specialist of one condition until its validation score stops rising.

    Parameters
    ----------
    condition : Condition
        Market and order of all training days, fields of shape [].
    n_buckets : int
        Number of buckets N of a day.
    seed : int
        Seed of initial weights and training days.
    score : callable
        Validation score, such as :func:`flowoe_lib.training.plateau.validation_capture`.
    patience, tolerance : int, float
        The stopping rule of :func:`flowoe_lib.training.plateau.until_plateau`; the default tolerance is .02 %
        of capture.
    iterations : int
        Optimiser steps in a round; the learning rate runs through one cycle in each round.
    paths : int
        Simulated days in each step.
    learning_rate : float
        Peak learning rate of the first round.
    perceive : callable
        The specialist's information about the market.

    Returns
    -------
    list of flowoe_lib.training.plateau.Round
        All rounds; :func:`flowoe_lib.training.plateau.best_round` selects the specialist.
    """
    network = SpecialistNetwork(generator(seed, "specialist weights", condition.world, condition.name))
    draws = generator(seed, "specialist days", condition.world, condition.name)

    def train(share: float) -> tuple[SpecialistPolicy, int]:
        ascend(
            network,
            lambda times: SpecialistPolicy(network),
            lambda n, draws: (condition.market, condition.order),
            n_buckets,
            iterations,
            draws,
            paths,
            share * learning_rate,
            perceive,
        )
        return SpecialistPolicy(copy.deepcopy(network)), iterations * paths * (n_buckets - 1)

    return until_plateau(train, score, patience, tolerance)
