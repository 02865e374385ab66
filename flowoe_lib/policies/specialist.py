"""The specialist: a deterministic network from observation to action for one condition.

It has the features and the units of actions of the flow policy; :mod:`flowoe_lib.training.specialist` trains
it by the gradient through the simulator.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import silu

from flowoe_lib.execution.execution import Observation
from flowoe_lib.execution.features import FEATURES, fraction_of_action
from flowoe_lib.policies.rl import Actors

__all__ = ["Specialist"]


class Specialist(Actors):
    """The specialists of one or several conditions: two SiLU layers, then the action."""

    @staticmethod
    def drawn(generator: torch.Generator, n_features: int = len(FEATURES), width: int = 32) -> "Specialist":
        """An untrained specialist of one condition; weights are uniform as in torch, biases are zero."""
        layers = []
        for inputs, outputs in pairwise((n_features, width, width, 1)):
            bound = inputs**-0.5
            weight = torch.empty(1, outputs, inputs).uniform_(-bound, bound, generator=generator)
            layers.append((weight, torch.zeros(1, 1, outputs)))
        return Specialist(tuple(layers))

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, differentiable in the weights, [paths]."""
        return fraction_of_action(obs, self.output(obs, silu))
