"""The random policy: the floor of every table, below which nothing has been learned."""

import torch
from torch import Tensor

from flowoe_lib.execution.execution import ACTION_LIMIT, Observation, fraction_of_score

__all__ = ["uniform_scores"]


def uniform_scores(obs: Observation, noise: Tensor) -> Tensor:
    """Trade at random: the score is uniform over the whole range that reinforcement learners act in.

    The score is ``ACTION_LIMIT`` (2 Phi(noise) - 1), Phi the standard normal distribution function, drawn
    anew in each bucket; its median is zero, the pace of TWAP. What is observed beyond the clock does not
    matter.

    Parameters
    ----------
    obs : Observation
        Only the bucket and the number of buckets count.
    noise : Tensor
        Standard normal, [paths].

    Returns
    -------
    Tensor
        Fraction of the remaining inventory to trade, [paths].
    """
    return fraction_of_score(ACTION_LIMIT * torch.erf(noise / 2**0.5), obs.n_buckets - obs.k)
