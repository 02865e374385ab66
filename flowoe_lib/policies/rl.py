"""Actors that are trained in one condition each, and those of reinforcement learning.

:mod:`flowoe_lib.training.reinforcement` trains the latter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flowoe_lib.execution.execution import ACTION_LIMIT, Observation, fraction_of_score
from flowoe_lib.execution.features import features

__all__ = ["Actors", "RLExpert", "SACExpert"]


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
        only = slice(condition, condition + 1)
        return type(self)(tuple((weight[only], bias[only]) for weight, bias in self.layers))

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
