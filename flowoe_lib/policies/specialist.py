"""The specialist: a deterministic network from observation to action for one condition.

It has the features and the units of actions of the flow policy; :mod:`flowoe_lib.training.specialist` trains
it by the gradient through the simulator.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from flowoe_lib.execution.execution import Observation
from flowoe_lib.execution.features import FEATURES, features, fraction_of_action

__all__ = ["SpecialistNetwork", "SpecialistPolicy"]


class SpecialistNetwork(nn.Sequential):
    """Features to action by three SiLU layers of ``width``; weights are drawn as in He et al. (2015)."""

    def __init__(self, generator: torch.Generator, width: int = 48) -> None:
        sizes = (len(FEATURES), width, width, width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        super().__init__(*layers, nn.Linear(width, 1), nn.Flatten(0))
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
                nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class SpecialistPolicy:
    """The policy of a network, a deterministic function of the observation."""

    network: nn.Module
    """Maps features [paths, features] to actions [paths]."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, differentiable in the weights, [paths]."""
        return fraction_of_action(obs, self.network(features(obs)))
