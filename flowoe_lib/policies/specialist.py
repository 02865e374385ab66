"""The specialist: a deterministic network from observation to action for one condition.

It has the features and the units of actions of the flow policy; :mod:`flowoe_lib.training.specialist` trains
it by the gradient through the simulator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flowoe_lib.execution.execution import Observation
from flowoe_lib.execution.features import FEATURES, features, fraction_of_action
from flowoe_lib.policies.rl import Layers, beside, pack_layers, unpack_layers

__all__ = ["Specialist"]


@dataclass(frozen=True)
class Specialist:
    """The specialists of one or several conditions; their networks share nothing.

    Two SiLU layers, then the action. Paths are grouped by condition, with equal numbers of each.
    """

    layers: Layers

    @staticmethod
    def drawn(generator: torch.Generator, n_features: int = len(FEATURES), width: int = 32) -> "Specialist":
        """An untrained specialist of one condition; weights are drawn as in LeCun et al., biases are zero."""
        layers = []
        for inputs, outputs in pairwise((n_features, width, width, 1)):
            bound = inputs**-0.5
            weight = torch.empty(1, outputs, inputs).uniform_(-bound, bound, generator=generator)
            layers.append((weight, torch.zeros(1, 1, outputs)))
        return Specialist(tuple(layers))

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, differentiable in the weights, [paths]."""
        x = features(obs, self.layers[0][0].shape[-1]).unflatten(0, (len(self.layers[0][0]), -1))
        for weight, bias in self.layers[:-1]:
            x = torch.nn.functional.silu(torch.baddbmm(bias, x, weight.mT))
        weight, bias = self.layers[-1]
        return fraction_of_action(obs, torch.baddbmm(bias, x, weight.mT).flatten())

    @staticmethod
    def beside(specialists: "Sequence[Specialist]") -> "Specialist":
        """Combine specialists of several conditions, in order."""
        return Specialist(beside([s.layers for s in specialists]))

    def alone(self, condition: int) -> "Specialist":
        """The specialist of one of the conditions."""
        only = slice(condition, condition + 1)
        return Specialist(tuple((weight[only], bias[only]) for weight, bias in self.layers))

    def to_tensors(self) -> dict[str, Tensor]:
        """Flatten into a dictionary of tensors for the artifact store."""
        return pack_layers(self.layers)

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "Specialist":
        """Inverse of :meth:`to_tensors`."""
        return Specialist(unpack_layers(tensors))
