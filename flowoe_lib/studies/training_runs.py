"""Training of the universal policy from several seeds."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from flowoe_lib.policies.flow import TrainingRun, pack
from flowoe_lib.sweep import sweep
from flowoe_lib.training.universal import train_universal


class UniversalRuns(NamedTuple):
    """Universal policies, each of its own seed or number of iterations."""

    policies: dict[str, Tensor]
    """Packed by :func:`flowoe_lib.policies.flow.pack`."""
    seconds: list[float]
    """Processor seconds of each training."""


def universal_runs(seeds: Sequence[int], n_buckets: int, **options: Any) -> UniversalRuns:
    """Train in parallel; ``options`` are those of :func:`flowoe_lib.training.universal.train_universal`."""
    return _runs(
        {seed: partial(train_universal, n_buckets=n_buckets, seed=seed, **options) for seed in seeds}
    )


def longer_runs(
    seed: int,
    factors: Sequence[int],
    n_buckets: int,
    *,
    imitations: int,
    coarse: int,
    fine: int,
    **options: Any,
) -> UniversalRuns:
    """Train one seed with each of ``factors`` times the iterations of every stage, in parallel."""
    train = partial(train_universal, n_buckets=n_buckets, seed=seed, **options)
    return _runs(
        {n: partial(train, imitations=n * imitations, coarse=n * coarse, fine=n * fine) for n in factors}
    )


def _runs(trainings: Mapping[int, Callable[[], tuple[TrainingRun, float]]]) -> UniversalRuns:
    tasks = [(training,) for training in trainings.values()]
    runs, seconds = zip(*sweep(operator.call, tasks, "training"), strict=True)
    return UniversalRuns(pack(dict(zip(trainings, runs, strict=True))), list(seconds))
