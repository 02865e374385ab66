"""Which expert a policy acts like: comparison of their actions in the states that the policy reaches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation, Policy, execute, score_of_fraction
from flowoe_lib.market.batching import batch
from flowoe_lib.market.model import Condition
from flowoe_lib.market.simulator import simulate
from flowoe_lib.policies.ensemble import Experts
from flowoe_lib.randomness import generator


@dataclass
class Compared:
    """A policy that records to which of ``experts`` each of its actions is nearest, as scores."""

    policy: Policy
    experts: Sequence[Policy]
    nearest: list[Tensor] = field(default_factory=list)
    """Index of the expert, [paths] of each bucket."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory by the policy, [paths]."""
        fractions = torch.stack([act(obs, noise) for act in (self.policy, *self.experts)])
        scores = score_of_fraction(fractions, obs.n_buckets - obs.k)
        self.nearest.append((scores[1:] - scores[0]).abs().argmin(0))
        return fractions[0]


def nearest_expert(
    policy: Policy,
    experts: Experts,
    conditions: Sequence[Condition],
    paths_each: int,
    n_buckets: int,
    seed: int,
) -> Tensor:
    """Share of a policy's decisions that are nearest to the decision of each expert, [conditions, experts].

    Decisions are compared as scores, in the states that the policy itself reaches.
    """
    draws = generator(seed, "nearest expert")
    market, order = batch(conditions, paths_each)
    paths = simulate(market, len(conditions) * paths_each, n_buckets, draws)
    ensemble = [calibrate(conditions, paths_each, n_buckets) for calibrate in experts.values()]
    compared = Compared(policy, ensemble)
    with torch.no_grad():
        execute(compared, paths, market, order, draws)
    chosen = torch.stack(compared.nearest).reshape(n_buckets - 1, len(conditions), paths_each, 1)
    return (chosen == torch.arange(len(ensemble))).float().mean((0, 2))
