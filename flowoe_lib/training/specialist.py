"""Training of specialists, one per condition, by the gradient through the simulator alone.

A specialist is the opponent that has what refinement has, the simulator's gradient, and none of the rest: no
noise, no flow, no imitation and no other condition to serve.
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
    """Train a specialist of one condition until its validation score stops rising.

    Parameters
    ----------
    condition : Condition
        Of every day of training, fields of shape [].
    n_buckets : int
        Buckets in a day.
    seed : int
        Of the first weights and of the days of training.
    score : callable
        Validation score, see :func:`flowoe_lib.training.plateau.validation_capture`.
    patience, tolerance : int, float
        When training ends, see :func:`flowoe_lib.training.plateau.until_plateau`; the tolerance is in units
        of the score, by default .02 % of capture.
    iterations : int
        Gradient steps in a round, each round a cycle of the learning rate of its own.
    paths : int
        Days in a gradient step.
    learning_rate : float
        At the top of the first cycle.
    perceive : callable
        What the specialist knows of the market, in training as on validation days.

    Returns
    -------
    list of Round
        Every round of training; :func:`flowoe_lib.training.plateau.best_round` is the specialist.
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
