"""Training of the universal policy from several seeds."""

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from flowoe_lib.policies.flow import pack
from flowoe_lib.sweep import sweep
from flowoe_lib.training.universal import train_universal


class UniversalRuns(NamedTuple):
    """Universal policies, each of its own seed or number of iterations."""

    policies: dict[str, Tensor]
    """Packed by :func:`flowoe_lib.policies.flow.pack`."""
    seconds: list[float]
    """Processor seconds of each training."""


def universal_runs(trainings: Mapping[int, Mapping[str, Any]], **options: Any) -> UniversalRuns:
    """Train in parallel with common ``options``, beside which each of ``trainings`` has its own.

    They are those of :func:`flowoe_lib.training.universal.train_universal`.
    """
    tasks = [(partial(train_universal, **{**options, **own}),) for own in trainings.values()]
    runs, seconds = zip(*sweep(operator.call, tasks, "training"), strict=True)
    return UniversalRuns(pack(dict(zip(trainings, runs, strict=True))), list(seconds))
