"""Actors that are trained in one condition each: those of reinforcement learning, and specialists.

:mod:`flowoe_lib.training.reinforcement` trains the former, :mod:`flowoe_lib.training.specialist` the
latter, which have the features and the units of actions of the flow policy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import silu

from flowoe_lib.execution.execution import ACTION_LIMIT, Observation, fraction_of_score
from flowoe_lib.execution.features import FEATURES, features, fraction_of_action


@dataclass(frozen=True)
class Actors:
    """Networks of one or several conditions side by side, which share nothing.

    Paths are grouped by condition, with equal numbers of each.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    """(weight [conditions, out, in], bias [conditions, 1, out]) of each layer."""

    def output(self, obs: Observation, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Output of the networks, each for the paths of its condition, [paths]."""
        x = features(obs, self.layers[0][0].shape[-1]).unflatten(0, (len(self.layers[0][0]), -1))
        for weight, bias in self.layers[:-1]:
            x = activation(torch.baddbmm(bias, x, weight.mT))
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, x, weight.mT).flatten()

    @classmethod
    def beside(cls, actors: Sequence["Actors"]) -> Self:
        """Combine the actors of several conditions, in order."""
        layers = zip(*(a.layers for a in actors), strict=True)
        return cls(tuple((torch.cat([w for w, _ in of]), torch.cat([b for _, b in of])) for of in layers))

    def alone(self, condition: int) -> Self:
        """The actor of one of the conditions."""
        return type(self)(tuple((weight[[condition]], bias[[condition]]) for weight, bias in self.layers))

    def to_tensors(self) -> dict[str, Tensor]:
        """Flatten into a dictionary of tensors for the artifact store."""
        weights = {f"{i}.weight": weight for i, (weight, _) in enumerate(self.layers)}
        return weights | {f"{i}.bias": bias for i, (_, bias) in enumerate(self.layers)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`to_tensors`. Raises KeyError where a layer lacks its bias."""
        count = sum(name.endswith(".weight") for name in tensors)
        return cls(tuple((tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(count)))


class RLExpert(Actors):
    """The deterministic actions of actors trained by PPO: two tanh layers, then the score of the trade."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]; ``noise`` is not used."""
        score = self.output(obs, torch.tanh).clamp(-ACTION_LIMIT, ACTION_LIMIT)
        return fraction_of_score(score, obs.n_buckets - obs.k)


class SACExpert(Actors):
    """The same for SAC, whose scores are ``ACTION_LIMIT`` tanh(output)."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]; ``noise`` is not used."""
        score = ACTION_LIMIT * self.output(obs, torch.tanh).tanh()
        return fraction_of_score(score, obs.n_buckets - obs.k)


class Specialist(Actors):
    """The deterministic actions of specialists: two SiLU layers, then the action."""

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
