"""The flow policy: an action is drawn by carrying noise along a learned conditional velocity field.

Straight probability paths x_t = (1 - t) x_0 + t x_1 from Gaussian noise x_0 to an expert's action x_1,
independently coupled (Lipman et al. 2023, ICLR; Liu et al. 2023, ICLR). The network predicts the
endpoint, x1hat(x, t, observation) = E[x_1 | x_t = x], which gives the velocity (x1hat - x) / (1 - t).
An action x is the score of a trade, see :func:`flowoe_lib.execution.execution.score_of_fraction`, in units of
what is at stake, :func:`flowoe_lib.execution.features.action_unit`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowoe_lib.execution.execution import Observation
from flowoe_lib.execution.features import FEATURES, features, fraction_of_action

__all__ = [
    "EndpointField",
    "FlowPolicy",
    "TrainingRun",
    "interpolate",
    "matching_loss",
    "pack",
    "sample",
    "unpack",
]


class EndpointField(nn.Module):
    """x1hat(x, t, observation): three SiLU layers of ``width``.

    The observation enters through a projection of its own, computed once per state however many
    steps the sampler takes. Weights are drawn from ``generator`` (He et al. 2015).
    """

    def __init__(self, generator: torch.Generator, n_features: int = len(FEATURES), width: int = 48) -> None:
        super().__init__()
        self.observe = nn.Linear(n_features, width)
        self.corrupt = nn.Linear(2, width, bias=False)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.out = nn.Linear(width, 1)
        for layer in (self.observe, self.corrupt, *self.hidden, self.out):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "EndpointField":
        """The field whose ``state_dict`` was ``tensors``. Raises RuntimeError where they do not fit."""
        width, n_features = tensors["observe.weight"].shape
        field = cls(torch.Generator(), n_features, width)
        field.load_state_dict(dict(tensors))
        return field

    def encode(self, observed: Tensor) -> Tensor:
        """Project features [paths, features] to [paths, width]."""
        encoded: Tensor = self.observe(observed)
        return encoded

    def forward(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        """Predicted endpoint [paths] for positions ``x`` [paths] at times ``t`` [paths]."""
        h = nn.functional.silu(encoded + self.corrupt(torch.stack((x, t), -1)))
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        endpoint: Tensor = self.out(h).squeeze(-1)
        return endpoint


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """Point of the straight path at time ``t`` in [0, 1]."""
    return (1 - t) * x0 + t * x1


def matching_loss(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Squared endpoint error per sample, [paths]: conditional flow matching up to a weight 1/(1 - t)^2.

    Source: Lipman et al. (2023), eq. (9), in endpoint form.
    """
    endpoint: Tensor = field(interpolate(x0, x1, t), t, field.encode(observed))
    return (endpoint - x1).square()


def sample(field: EndpointField, encoded: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Integrate the flow from ``noise`` [paths] in ``steps`` Euler steps.

    With the endpoint form a step is x += (x1hat - x) / (steps - i), so the last lands on x1hat.
    """
    x = noise
    for i in range(steps):
        t = torch.full_like(x, i / steps)
        x = x + (field(x, t, encoded) - x) / (steps - i)
    return x


@dataclass(frozen=True)
class FlowPolicy:
    """Draws the score of each trade from the flow in ``steps`` solver steps."""

    field: EndpointField
    steps: int

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        action = sample(self.field, self.field.encode(features(obs)), noise, self.steps)
        return fraction_of_action(obs, action)


@dataclass(frozen=True)
class TrainingRun:
    """A trained field and how it got there."""

    field: EndpointField
    curves: dict[str, Tensor]
    """Named quantities, one entry an iteration."""


def pack(runs: Mapping[int, TrainingRun]) -> dict[str, Tensor]:
    """Training runs by seed as one flat dictionary of tensors, for a store."""
    out: dict[str, Tensor] = {}
    for seed, run in runs.items():
        out |= {f"{seed}/field/{name}": value for name, value in run.field.state_dict().items()}
        out |= {f"{seed}/curve/{name}": value for name, value in run.curves.items()}
    return out


def unpack(tensors: Mapping[str, Tensor]) -> dict[int, TrainingRun]:
    """Inverse of :func:`pack`."""
    parts: dict[int, dict[str, dict[str, Tensor]]] = {}
    for key, value in tensors.items():
        seed, kind, name = key.split("/")
        parts.setdefault(int(seed), {"field": {}, "curve": {}})[kind][name] = value
    return {seed: TrainingRun(EndpointField.of(p["field"]), p["curve"]) for seed, p in sorted(parts.items())}
