"""Training for the dynamic markets: the universal policy and RL experts."""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from flowoe_lib.policies.flow import pack
from flowoe_lib.studies.rl_experts import Run, expert_tensors, train_run
from flowoe_lib.sweep import sweep
from flowoe_lib.training.universal import train_universal

__all__ = ["universal_runs"]


class UniversalRuns(NamedTuple):
    """Trained policies for the dynamic markets, packed for the store."""

    policies: dict[str, Tensor]
    """The universal policy of each training seed, packed by :func:`flowoe_lib.policies.flow.pack`."""
    seconds: list[float]
    """Processor seconds of each of these trainings."""
    experts: dict[str, Tensor]
    """The RL experts, from :func:`flowoe_lib.studies.rl_experts.expert_tensors`."""


def universal_runs(
    seeds: Sequence[int], rl_runs: Sequence[Run], n_buckets: int, **options: Any
) -> UniversalRuns:
    """Train all in one parallel sweep, so that no core waits for the longest run.

    ``options`` are those of :func:`flowoe_lib.training.universal.train_universal`.
    """
    policies = [partial(train_universal, n_buckets=n_buckets, seed=seed, **options) for seed in seeds]
    experts = [partial(train_run, run, n_buckets) for run in rl_runs]
    made = sweep(operator.call, [(run,) for run in [*policies, *experts]], "training")
    runs, seconds = zip(*made[: len(seeds)], strict=True)
    trained = pack(dict(zip(seeds, runs, strict=True)))
    return UniversalRuns(trained, list(seconds), expert_tensors(rl_runs, made[len(seeds) :]))
