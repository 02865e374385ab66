"""Training of specialists: one network per condition, trained only by the gradient through the simulator.

Like refinement, a specialist uses the simulator's gradient; unlike it, there is no noise, no flow, no
imitation and only one condition. Specialists of several conditions are trained side by side because that is
faster; their weights, days and steps are separate.

Where impact has memory, risk aversion rises to its true value over the first round (a homotopy). At the true
value from the start, a specialist may sell the whole order in the first bucket, a local optimum: later
decisions then have no inventory, hence no gradient. At a low risk aversion every bucket trades, so all
decisions are learned first.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowoe_lib.execution.features import feature_count
from flowoe_lib.execution.information import Perceive, exact
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Condition
from flowoe_lib.policies.rl import Specialist
from flowoe_lib.randomness import generator
from flowoe_lib.training.plateau import Days, Round, Score, until_plateau
from flowoe_lib.training.refinement import utility_scale


def train_specialists(
    conditions: Sequence[Condition],
    n_buckets: int,
    seed: int,
    score: Score,
    *,
    patience: int = 2,
    tolerance: float = 5e-4,
    iterations: int = 100,
    paths: int = 96,
    learning_rate: float = 4e-2,
    perceive: Perceive = exact,
) -> list[Round[Specialist]]:
    """Train the specialist of each condition until validation scores stop rising.

    The optimiser is that of refinement: Muon for the weight matrices of the hidden layers, Adam for the other
    weights. In each round the learning rate falls from its peak to zero along a cosine. Where
    impact has memory, risk aversion in step i of the first round is i / ``iterations`` of its true value.

    Parameters
    ----------
    conditions : sequence of Condition
        Market and order of all training days of each specialist, fields of shape [].
    n_buckets : int
        Number of buckets N of a day.
    seed : int
        Seed of initial weights and training days.
    score : callable
        Validation scores, such as :func:`flowoe_lib.training.plateau.validation_captures`.
    patience, tolerance : int, float
        The stopping rule of :func:`flowoe_lib.training.plateau.until_plateau`; the default tolerance is .05 %
        of capture.
    iterations : int
        Optimiser steps in a round.
    paths : int
        Simulated days of each condition in a step.
    learning_rate : float
        Peak learning rate of the first round.
    perceive : callable
        The specialists' information about the market.

    Returns
    -------
    list of flowoe_lib.training.plateau.Round
        All rounds; :func:`flowoe_lib.training.plateau.best_round` selects the specialist of a condition.
    """
    n = len(conditions)
    streams = [generator(seed, "specialist", c.world, c.name) for c in conditions]
    unused = generator(seed, "specialist", "unused")
    observed = max(feature_count(c.market) for c in conditions)
    drawn = Specialist.beside([Specialist.drawn(draws, observed) for draws in streams])
    # Muon takes matrices, so the hidden layers of each network are weights of their own.
    hidden = [[w.clone().requires_grad_() for w in weight] for weight, _ in drawn.layers[:-1]]
    rest = [bias.requires_grad_() for _, bias in drawn.layers] + [drawn.layers[-1][0].requires_grad_()]
    matrices = [weight for layer in hidden for weight in layer]
    steppers = [torch.optim.Muon(matrices, weight_decay=0.0), torch.optim.Adam(rest, fused=True)]
    scale = torch.stack([utility_scale(c.market, c.order) for c in conditions])
    rise = iterations if any(c.market.impact.has_memory for c in conditions) else 1
    steps = itertools.count(1)

    def current() -> Specialist:
        weights = [*map(torch.stack, hidden), rest[-1]]
        return Specialist(tuple(zip(weights, rest[:-1], strict=True)))

    def train(share: float) -> tuple[Specialist, int]:
        pairs = zip(conditions, streams, strict=True)
        drawn = [Days.draw(c, iterations * paths, n_buckets, perceive, draws) for c, draws in pairs]
        everything = Days.beside(drawn)
        for i in range(iterations):

            def of_step(x: Tensor, i: int = i) -> Tensor:
                return torch.flatten(x.unflatten(-1, (n, iterations, paths))[..., i, :], -2)

            days: Days = map_tensors(of_step, everything)
            aversion = days.order.risk_aversion * min(1, next(steps) / rise)
            days = replace(days, order=replace(days.order, risk_aversion=aversion))
            gain = days.utility(current(), unused).unflatten(0, (n, -1)).mean(1) / scale
            (-gain.sum()).backward()
            for stepper in steppers:
                fall = (1 + math.cos(math.pi * i / iterations)) / 2
                stepper.param_groups[0]["lr"] = share * learning_rate * min(1, (i + 1) / 10) * fall
                stepper.step()
                stepper.zero_grad()
        policy = Specialist(tuple((w.detach().clone(), b.detach().clone()) for w, b in current().layers))
        return policy, n * iterations * paths * (n_buckets - 1)

    return until_plateau(train, score, patience, tolerance)
