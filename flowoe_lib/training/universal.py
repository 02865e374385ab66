"""One policy for all worlds: imitation and refinement over the whole range of conditions.

Every quantity that the policy observes varies over the paths of training, risk aversion included. One
network therefore covers the whole efficient frontier, and risk aversion is an input.
"""

import time
from dataclasses import replace

import torch
from scipy.stats import qmc

from flowoe_lib.market.batching import one_by_one
from flowoe_lib.market.model import Condition
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.policies.ensemble import SCHEDULE_EXPERTS
from flowoe_lib.policies.flow import TrainingRun
from flowoe_lib.randomness import generator
from flowoe_lib.training.imitation import demonstrate, imitate
from flowoe_lib.training.refinement import refine

PATHS = 2304
"""Simulated days in each iteration. With fewer, the time of an iteration falls far less than their number."""


COARSE_RATE, FINE_RATE = 3e-2, 8e-3
"""Learning rates of the two refinements."""


COARSE = 3
"""Demonstrations and the first refinement have a third of the buckets, at a third of the computing time."""


DAYS_EACH = 6
"""Demonstrated days in each condition."""


def universal_range(rho: float) -> TrainingRange:
    """The training range of the universal policy: it contains all calibrated values with a margin."""
    return TrainingRange(
        kappa=(0.5, 12.0),
        rho=rho,
        cv=(0.02, 1.8),
        risk_aversion=(4e-5, 4e-3),
        depth_sd=(0.0, 1.0),
        depth_reversion=(0.5, 12.0),
        profile_amplitude=(0.0, 1.2),
        drift=0.5,
        regimes=0.12,
        beta=(0.45, 0.75),
        memory=0.3,
        signal=0.4,
        window=0.2,
    )


def train_universal(
    conditions: TrainingRange,
    n_buckets: int,
    demonstrated: int,
    imitations: int,
    coarse: int,
    fine: int,
    seed: int,
    device: str = "cpu",
) -> tuple[TrainingRun, float]:
    """Train the universal policy; returns the training run and its processor seconds.

    The stages are imitation of every schedule expert in ``demonstrated`` random conditions for
    ``imitations`` iterations and ``coarse`` iterations of refinement, both on days of a third of the buckets,
    and ``fine`` iterations on days of ``n_buckets``. The learning curves are those of the last stage.
    """
    start = time.process_time()
    drawn = replace(conditions, regimes=0.0).draw(demonstrated, generator(seed, "universal demonstrations"))
    sampled = one_by_one("universal", map(str, range(demonstrated)), *drawn)
    few = n_buckets // COARSE
    demonstrations = demonstrate(SCHEDULE_EXPERTS, sampled, DAYS_EACH, few, seed)
    field = imitate(demonstrations, imitations, seed).field
    rough = refine(field, conditions, few, coarse, seed, PATHS, COARSE_RATE, device=device).field
    learned = refine(rough, conditions, n_buckets, fine, seed + 1, PATHS, FINE_RATE, device=device)
    return learned, time.process_time() - start


def design(conditions: TrainingRange, n: int, seed: int) -> list[Condition]:
    """Space-filling design of ``n`` conditions without drift over the training range.

    A scrambled Sobol sequence (Owen 1998) over the axes of
    :meth:`flowoe_lib.market.ranges.TrainingRange.at`. The first four conditions are the corners of risk
    aversion and size. Random depth, volume profile and shorter windows are switched off by turns. Raises
    ValueError unless ``n`` is a power of two and at least four, as the sequence requires.
    """
    if n < 4 or n & (n - 1):
        raise ValueError(f"n = {n}: must be a power of two, at least 4")
    points = torch.from_numpy(qmc.Sobol(12, rng=seed).random(n)).float()
    points[:4, 3:5] = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    points[:, [10, 11, 8]] *= torch.arange(n)[:, None] // torch.tensor([1, 2, 4]) % 2
    return one_by_one("design", map(str, range(n)), *conditions.at(points))
