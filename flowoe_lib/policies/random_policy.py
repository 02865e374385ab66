"""The random policy, the lowest benchmark: a policy that does not beat it has learned nothing."""

import torch
from torch import Tensor

from flowoe_lib.execution.execution import ACTION_LIMIT, Observation, fraction_of_score


def uniform_scores(obs: Observation, noise: Tensor) -> Tensor:
    """Trade at random: the score is uniform over the action range of reinforcement learners.

    The score is ``ACTION_LIMIT`` (2 Phi(noise) - 1), where Phi is the standard normal distribution function;
    its median is zero, the fraction of TWAP.

    Parameters
    ----------
    obs : Observation
        Only the bucket and the number of buckets are used.
    noise : Tensor
        Standard normal, [paths].

    Returns
    -------
    Tensor
        Fraction of the remaining inventory to trade, [paths].
    """
    return fraction_of_score(ACTION_LIMIT * torch.erf(noise / 2**0.5), obs.n_buckets - obs.k)
