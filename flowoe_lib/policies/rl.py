"""Reinforcement-learning experts: the actors trained by :mod:`flowoe_lib.training.reinforcement`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowoe_lib.execution.execution import ACTION_LIMIT, Observation, fraction_of_score
from flowoe_lib.execution.features import features

__all__ = ["Layers", "RLExpert", "beside", "pack_layers", "unpack_layers"]


Layers = tuple[tuple[Tensor, Tensor], ...]
"""(weight [conditions, out, in], bias [conditions, 1, out]) of each layer of a network per condition."""


_PARTS = ("weight", "bias")


def beside(networks: Sequence[Layers]) -> Layers:
    """Combine the layers of networks of several conditions, in order."""
    return tuple(
        (torch.cat([w for w, _ in layer]), torch.cat([b for _, b in layer]))
        for layer in zip(*networks, strict=True)
    )


def pack_layers(layers: Layers) -> dict[str, Tensor]:
    """Tensors of the layers by name, for the artifact store."""
    return {f"{i}.{part}": t for i, pair in enumerate(layers) for part, t in zip(_PARTS, pair, strict=True)}


def unpack_layers(tensors: Mapping[str, Tensor]) -> Layers:
    """Inverse of :func:`pack_layers`. Raises KeyError where a layer lacks its bias."""
    count = sum(name.endswith(".weight") for name in tensors)
    return tuple((tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(count))


@dataclass(frozen=True)
class RLExpert:
    """The deterministic actions of trained actors, one actor for each condition of a batch.

    Two tanh layers, then the score of the trade. Paths are grouped by condition, with equal numbers of each.
    """

    layers: Layers
    squashed: bool
    """True for ``ACTION_LIMIT`` tanh(output), as in SAC; False for the clamped output, as in PPO."""

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]; ``noise`` is not used."""
        x = features(obs, self.layers[0][0].shape[-1]).unflatten(0, (len(self.layers[0][0]), -1))
        for weight, bias in self.layers[:-1]:
            x = torch.tanh(x @ weight.mT + bias)
        weight, bias = self.layers[-1]
        output = (x @ weight.mT + bias).flatten()
        limit = ACTION_LIMIT
        score = limit * torch.tanh(output) if self.squashed else output.clamp(-limit, limit)
        return fraction_of_score(score, obs.n_buckets - obs.k)

    @staticmethod
    def beside(experts: "Sequence[RLExpert]") -> "RLExpert":
        """Combine experts of several conditions, in order. Raises ValueError for different kinds."""
        if len({e.squashed for e in experts}) != 1:
            raise ValueError("experts: must be all squashed or all clamped")
        return RLExpert(beside([e.layers for e in experts]), experts[0].squashed)

    def to_tensors(self) -> dict[str, Tensor]:
        """Flatten into a dictionary of tensors for the artifact store."""
        return {"squashed": torch.tensor(self.squashed)} | pack_layers(self.layers)

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "RLExpert":
        """Inverse of :meth:`to_tensors`. Raises KeyError where a layer lacks its bias."""
        return RLExpert(unpack_layers(tensors), bool(tensors["squashed"]))
