"""The flow-matching policy: it draws an action by transporting noise along a learned velocity field.

Training uses straight paths x_t = (1 - t) x_0 + t x_1 from Gaussian noise x_0 to an expert's action x_1,
coupled independently (Lipman et al. 2023, ICLR; Liu et al. 2023, ICLR). The network predicts the endpoint,
x1hat(x, t, observation) = E[x_1 | x_t = x], which gives the velocity (x1hat - x) / (1 - t). An action x
corrects the score of the re-planned schedule, :func:`flowoe_lib.execution.features.fraction_of_action`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowoe_lib.execution.execution import Observation
from flowoe_lib.execution.features import FEATURES, features, fraction_of_action


class EndpointField(nn.Module):
    """The network x1hat(x, t, observation): three SiLU layers of ``width``.

    The observation is projected separately, so that the projection is computed once per state for any number
    of solver steps. Initial weights are drawn from ``generator`` (He et al. 2015).
    """

    def __init__(self, generator: torch.Generator, n_features: int = len(FEATURES), width: int = 64) -> None:
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
        """Rebuild a field from its ``state_dict``. Raises RuntimeError where the tensors do not fit."""
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
        return torch.squeeze(self.out(h), -1)


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """The point of the straight path from ``x0`` to ``x1`` at time ``t`` in [0, 1]."""
    return (1 - t) * x0 + t * x1


def matching_loss(field: EndpointField, observed: Tensor, x1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Squared endpoint error per sample, [paths]: the flow-matching loss without its weight 1 / (1 - t)^2.

    Source: Lipman et al. (2023), eq. (9), in endpoint form.
    """
    return torch.square(field(interpolate(x0, x1, t), t, field.encode(observed)) - x1)


def sample(field: EndpointField, encoded: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Integrate the flow from ``noise`` [paths] in ``steps`` Euler steps.

    In endpoint form a step is x += (x1hat - x) / (steps - i), so the last step ends at x1hat.
    """
    x = noise
    for i in range(steps):
        t = torch.full_like(x, i / steps)
        x = x + (field(x, t, encoded) - x) / (steps - i)
    return x


@dataclass(frozen=True)
class FlowPolicy:
    """A policy that draws the action of each bucket from a flow.

    Calling it with an observation and standard normal noise [paths] gives the fraction of the remaining
    inventory to trade, [paths].

    Parameters
    ----------
    field : flowoe_lib.policies.flow.EndpointField
        The network that predicts the endpoint of the flow.
    steps : int
        Number of Euler steps K of the solver; one step evaluates the network once.

    References
    ----------
    Lipman, Chen, Ben-Hamu, Nickel, Le (2023), "Flow matching for generative modeling", ICLR.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> heston = fo.Heston(fo.scalar(4e-4), fo.scalar(4), fo.scalar(0.9), fo.scalar(-0.6))
    >>> market, order = fo.Market(heston), fo.Order(fo.scalar(0.1), fo.scalar(5e-4))
    >>> policy = fo.FlowPolicy(fo.load_pretrained().field, steps=2)
    >>> days = fo.simulate(market, 1_000, 39, fo.generator(1, "days"))
    >>> done = fo.execute(policy, days, market, order, fo.generator(1, "noise"))
    >>> round(done.utility_bps(order).mean().item(), 1)
    -24.3
    """

    field: EndpointField
    steps: int

    def __call__(self, obs: Observation, noise: Tensor) -> Tensor:
        """Fraction of the remaining inventory, [paths]."""
        encoded = self.field.encode(features(obs, self.field.observe.in_features))
        return fraction_of_action(obs, sample(self.field, encoded, noise, self.steps))


@dataclass(frozen=True)
class TrainingRun:
    """A trained field and its learning curves."""

    field: EndpointField
    curves: dict[str, Tensor]
    """Learning curves by name."""


def pack(runs: Mapping[int, TrainingRun]) -> dict[str, Tensor]:
    """Flatten training runs, by seed, into one dictionary of tensors for the artifact store."""
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
