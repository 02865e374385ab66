"""The trained policy that comes with the library, and the card that says what it was made for.

The card holds the ranges of its training, what it is told, how it was made and how it scored; weights
without a fitting card are refused, because a policy of unknown origin looks like any other.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from flowoe_lib.execution.features import FEATURES
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, unpack
from flowoe_lib.store import Store, atomic_write, sha256

__all__ = [
    "SHIPPED",
    "PretrainedPolicy",
    "TrainedPolicyError",
    "load_pretrained",
    "max_weight_difference",
    "ship",
    "ship_from",
]


SHIPPED = Path(__file__).parent / "weights"
"""Where the policy lies that comes with the library."""


CARD, WEIGHTS = "universal.json", "universal.safetensors"


class TrainedPolicyError(ValueError):
    """A policy that is missing or not what its card says; the message names the file and the fault."""


@dataclass(frozen=True)
class PretrainedPolicy:
    """A policy and what is known of it."""

    field: EndpointField
    conditions: TrainingRange
    """What it was trained for."""
    n_buckets: int
    """Into how many buckets its days were cut."""
    calibration: Mapping[str, float]
    """Estimates of the suite's own data, for what a user's bars do not tell."""
    card: Mapping[str, Any]

    def policy(self, steps: int = 1) -> FlowPolicy:
        """The policy, drawing each trade in ``steps`` solver steps."""
        return FlowPolicy(self.field, steps)


def ship(
    field: EndpointField,
    conditions: TrainingRange,
    n_buckets: int,
    calibration: Mapping[str, float],
    training: Mapping[str, Any],
    scores: Mapping[str, Any],
    folder: Path = SHIPPED,
) -> None:
    """Write a policy and its card into ``folder``, each whole.

    ``training`` says how it was made, ``scores`` how well it did; both are plain JSON values.
    """
    tensors = {name: value.contiguous() for name, value in field.state_dict().items()}
    content = safetensors.torch.save(tensors)
    card = {
        "file": WEIGHTS,
        "sha256": sha256(content),
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        "observes": list(FEATURES),
        "range": dataclasses.asdict(conditions),
        "n_buckets": n_buckets,
        "calibration": dict(calibration),
        "training": dict(training),
        "scores": dict(scores),
        "versions": {name: version(name) for name in ("flowoe", "numpy", "torch")},
    }
    text = json.dumps(card, indent=1, allow_nan=False)
    atomic_write(folder / WEIGHTS, content)
    atomic_write(folder / CARD, f"{text}\n".encode())


def ship_from(store: Store, scorecard: Path, folder: Path = SHIPPED) -> None:
    """Ship the first seed's policy of notebook 07 with the card that the notebook wrote.

    ``scorecard`` is the CSV whose digest goes with it. Raises MissingArtifact where the notebook was not run.
    """
    runs, card = unpack(store.read_tensors("universal")), store.read_json("universal_card")
    estimates = {name: figure["value"] for name, figure in store.read_json("calibration").items()}
    scores = card["scores"] | {"scorecard_sha256": sha256(scorecard.read_bytes())}
    ship(
        runs[min(runs)].field,
        TrainingRange(**{k: _pair(v) for k, v in card["range"].items()}),
        card["n_buckets"],
        estimates,
        card["training"],
        scores,
        folder,
    )


def load_pretrained(folder: Path = SHIPPED) -> PretrainedPolicy:
    """The policy in ``folder``.

    Raises TrainedPolicyError where a file is missing, the card cannot be read or lacks an entry, the
    weights are not those of the card, or were made to observe something else than this library shows.
    """
    place = folder / CARD
    try:
        card = json.loads(place.read_bytes())
        content = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise TrainedPolicyError(f"{error.filename}: no such file; `make notebooks` makes it") from None
    except ValueError as error:
        raise TrainedPolicyError(f"{place}: is not JSON: {error}") from None
    wanted = ("sha256", "shapes", "observes", "range", "n_buckets", "calibration", "training", "scores")
    missing = [name for name in wanted if not isinstance(card, dict) or name not in card]
    if missing:
        raise TrainedPolicyError(f"{place}: lacks {', '.join(missing)}")
    if sha256(content) != card["sha256"]:
        raise TrainedPolicyError(f"{folder / WEIGHTS}: is not the file that {CARD} was written for")
    if card["observes"] != list(FEATURES):
        odd = sorted({*map(str, card["observes"] or ())} ^ set(FEATURES)) or ["their order"]
        raise TrainedPolicyError(f"{place}: observes what this library does not show: {', '.join(odd)}")
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise TrainedPolicyError(f"{folder / WEIGHTS}: cannot be read: {error}") from None
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    if shapes != card["shapes"] or not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise TrainedPolicyError(f"{folder / WEIGHTS}: tensors are not finite or not of the card's shapes")
    try:
        field = EndpointField.of(tensors)
        conditions = TrainingRange(**{k: _pair(v) for k, v in card["range"].items()})
        estimates = {str(name): float(value) for name, value in card["calibration"].items()}
        return PretrainedPolicy(field, conditions, int(card["n_buckets"]), estimates, card)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainedPolicyError(f"{place}: does not describe a policy of this library: {error}") from None


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def max_weight_difference(one: EndpointField, other: EndpointField) -> float:
    """Largest difference of two policies' weights, zero where they are the same to the last bit.

    Infinite where they are not of the same shape.
    """
    a, b = one.state_dict(), other.state_dict()

    def apart(x: Tensor, y: Tensor) -> float:
        return float((x - y).abs().max()) if x.shape == y.shape else float("inf")

    if a.keys() != b.keys():
        return float("inf")
    return float(torch.tensor([apart(a[name], b[name]) for name in a]).max())
