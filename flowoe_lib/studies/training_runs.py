"""Training of the universal policy from several seeds."""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from flowoe_lib.policies.flow import pack
from flowoe_lib.sweep import sweep
from flowoe_lib.training.universal import train_universal

__all__ = ["universal_runs"]


class UniversalRuns(NamedTuple):
    """The universal policy of each training seed."""

    policies: dict[str, Tensor]
    """Packed by :func:`flowoe_lib.policies.flow.pack`."""
    seconds: list[float]
    """Processor seconds of each training."""


def universal_runs(seeds: Sequence[int], n_buckets: int, **options: Any) -> UniversalRuns:
    """Train in parallel; ``options`` are those of :func:`flowoe_lib.training.universal.train_universal`."""
    tasks = [(partial(train_universal, n_buckets=n_buckets, seed=seed, **options),) for seed in seeds]
    runs, seconds = zip(*sweep(operator.call, tasks, "training"), strict=True)
    return UniversalRuns(pack(dict(zip(seeds, runs, strict=True))), list(seconds))
