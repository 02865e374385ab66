"""Policies trained once for each training seed, side by side, as tensors for a store."""

import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.policies.flow import EndpointField, pack
from flowoe_lib.studies.rl_experts import Run, expert_tensors, train_run
from flowoe_lib.sweep import sweep
from flowoe_lib.training.imitation import Demonstrations, imitate
from flowoe_lib.training.refinement import refine
from flowoe_lib.training.universal import train_universal

__all__ = ["UniversalRuns", "imitation_runs", "refinement_runs", "universal_runs"]


def imitation_runs(
    demonstrations: Demonstrations, iterations: int, seeds: Sequence[int]
) -> dict[str, Tensor]:
    """Imitation of the same ``demonstrations`` from every seed."""
    runs = sweep(imitate, [(demonstrations, iterations, seed) for seed in seeds], "imitation")
    return pack(dict(zip(seeds, runs, strict=True)))


def refinement_runs(
    starts: Mapping[int, EndpointField],
    conditions: TrainingRange,
    n_buckets: int,
    iterations: int,
    device: str,
) -> dict[str, Tensor]:
    """Refinement of the field of every seed, which also draws its days."""
    tasks = [(field, conditions, n_buckets, iterations, seed) for seed, field in starts.items()]
    runs = sweep(partial(refine, device=device), tasks, "refinement")
    return pack(dict(zip(starts, runs, strict=True)))


class UniversalRuns(NamedTuple):
    """Everything that is trained for the dynamic markets."""

    policies: dict[str, Tensor]
    """The universal policy of each training seed."""
    seconds: list[float]
    """Processor seconds that each of them took."""
    experts: dict[str, Tensor]
    """The RL experts, as :func:`flowoe_lib.studies.rl_experts.expert_tensors`."""


def universal_runs(
    conditions: TrainingRange,
    n_buckets: int,
    demonstrated: int,
    iterations: Sequence[int],
    seeds: Sequence[int],
    device: str,
    rl_runs: Sequence[Run],
) -> UniversalRuns:
    """Train universal policies and RL experts in one sweep, so that no core waits for the longest run.

    ``iterations`` are those of imitation, refinement on coarse days, and refinement.
    """
    imitations, coarse, fine = iterations
    train = partial(train_universal, conditions, n_buckets, demonstrated, imitations, coarse, fine)
    policies = [partial(train, seed, device) for seed in seeds]
    experts = [partial(train_run, run, n_buckets) for run in rl_runs]
    made = sweep(operator.call, [(run,) for run in [*policies, *experts]], "training")
    universal = dict(zip(seeds, made, strict=False))
    return UniversalRuns(
        policies=pack({seed: run for seed, (run, _) in universal.items()}),
        seconds=[seconds for _, seconds in universal.values()],
        experts=expert_tensors(rl_runs, made[len(policies) :]),
    )
