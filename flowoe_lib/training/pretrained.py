"""The pretrained policy of the library, and the card that describes it.

The card holds the training range, the features, the training settings and the scores of the policy.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from flowoe_lib.data.calibration import Calibration
from flowoe_lib.execution.features import FEATURES, MEMORY_FEATURES, SIGNAL_FEATURES
from flowoe_lib.market.model import Heston, Liquidity, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.policies.flow import EndpointField, FlowPolicy, unpack
from flowoe_lib.recipes import sha256
from flowoe_lib.store import Store, atomic_write
from flowoe_lib.training.card import CARD, SHIPPED, WEIGHTS, TrainedPolicyError, read_card, sealed

OBSERVED = [*FEATURES, *MEMORY_FEATURES, *SIGNAL_FEATURES]
"""What a network can observe; each observes the first of them, as many as it has inputs."""


@dataclass(frozen=True)
class PretrainedPolicy:
    """A trained policy with its training range, calibration and card."""

    field: EndpointField
    conditions: TrainingRange
    """The training range."""
    n_buckets: int
    """Number of buckets of its training days."""
    calibration: Mapping[str, float]
    """Estimates from the suite's own data, used where a user's bars give none."""
    card: Mapping[str, Any]

    def policy(self, steps: int = 1) -> FlowPolicy:
        """The policy with ``steps`` solver steps."""
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
    """Write a policy and its card into ``folder``, each file completely or not at all.

    ``training`` describes how it was trained and ``scores`` how it performed, both as JSON values. Raises
    ValueError for a range, a number of buckets or a calibration that could not be loaded again.
    """
    tensors = {name: value.contiguous() for name, value in field.state_dict().items()}
    content = safetensors.torch.save(tensors)
    card = {
        "file": WEIGHTS,
        "sha256": sha256(content),
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        "observes": OBSERVED[: field.observe.in_features],
        "range": dataclasses.asdict(conditions),
        "n_buckets": n_buckets,
        "calibration": dict(calibration),
        "training": dict(training),
        "scores": dict(scores),
        "versions": {name: version(name) for name in ("flowoe", "numpy", "torch")},
    }
    _described(field, card)
    atomic_write(folder / WEIGHTS, content)
    atomic_write(folder / CARD, sealed(card))


def ship_from(store: Store, scorecard: Path, folder: Path) -> None:
    """Make the policy of notebook 07, first seed, the pretrained policy, with the card of that notebook.

    The card records the digest of the CSV file ``scorecard``. Raises MissingArtifact if the notebook was not
    run.
    """
    runs, card = unpack(store.read_tensors("universal_policies")), store.read_json("universal_card")
    estimates = {name: figure["value"] for name, figure in store.read_json("calibration").items()}
    scores = card["scores"] | {"scorecard_sha256": sha256(scorecard.read_bytes())}
    trained = runs[min(runs)].field, _training_range(card["range"]), card["n_buckets"]
    ship(*trained, estimates, card["training"], scores, folder)


def load_pretrained(folder: Path | None = None) -> PretrainedPolicy:
    """Load the pretrained policy, after checking it against its card.

    Parameters
    ----------
    folder : Path, optional
        Folder of weights and card; by default that of the library.

    Returns
    -------
    flowoe_lib.training.pretrained.PretrainedPolicy
        The network, its training range, its calibration and its card.

    Raises
    ------
    TrainedPolicyError
        If a file is missing, the card is unreadable, incomplete or not byte for byte the one that was
        written, an entry is out of its range, the weights do not match the card, or the policy was trained
        on other features than those of this library.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> trained = fo.load_pretrained()
    >>> trained.n_buckets, trained.conditions.size
    (39, (0.01, 0.25))
    """
    folder = folder or SHIPPED
    card, content = read_card(folder)
    place = folder / CARD
    observed = card["observes"] if isinstance(card["observes"], list) else []
    if not observed or observed != OBSERVED[: len(observed)]:
        odd = sorted({*map(str, observed)} - set(OBSERVED)) or ["their order"]
        raise TrainedPolicyError(f"{place}: observes what this library does not show: {', '.join(odd)}")
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise TrainedPolicyError(f"{folder / WEIGHTS}: cannot be read: {error}") from None
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    if shapes != card["shapes"] or not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise TrainedPolicyError(f"{folder / WEIGHTS}: tensors are not finite or not of the card's shapes")
    try:
        return _described(EndpointField.of(tensors), card)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainedPolicyError(f"{place}: does not describe a policy of this library: {error}") from None


def _described(field: EndpointField, card: Mapping[str, Any]) -> PretrainedPolicy:
    """The policy that ``card`` describes. Raises ValueError or TypeError for an entry out of its range."""
    if type(card["n_buckets"]) is not int or card["n_buckets"] < 1:
        raise ValueError(f"n_buckets = {card['n_buckets']!r}: must be a whole number of at least 1")
    calibration, names = card["calibration"], [f.name for f in dataclasses.fields(Calibration)]
    if sorted(calibration) != sorted(names) or not all(map(_is_finite, calibration.values())):
        raise ValueError(f"calibration = {calibration}: must be finite numbers named {', '.join(names)}")
    found = _training_range(card["range"])
    # The model refuses what no market can have.
    found.at(torch.tensor([[0.0], [1.0]]).expand(2, 12))
    known = {name: scalar(value) for name, value in calibration.items()}
    Heston(known["calm"], known["kappa"], known["cv_years"], known["rho"])
    Liquidity(scalar(1), *(known[k] for k in ("depth_sd", "depth_reversion", "profile_amplitude")))
    return PretrainedPolicy(field, found, card["n_buckets"], calibration, card)


def _training_range(entries: Mapping[str, Any]) -> TrainingRange:
    """The range with bounds from JSON. Raises ValueError for bounds that are not finite and in order."""
    bounds: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}
    found = TrainingRange(**bounds)
    for f in dataclasses.fields(TrainingRange):
        value = getattr(found, f.name)
        ends = (value, value) if f.type is float else value
        if not (len(ends) == 2 and all(map(_is_finite, ends)) and ends[0] <= ends[1]):
            raise ValueError(f"range: {f.name} = {value}: must be finite, the lower bound first")
    shares = found.regimes, found.memory
    if not (min(found.drift, found.signal, *shares) >= 0 and max(shares) <= 1 and 0 < found.window <= 1):
        allowed = "drift and signal must be >= 0, regimes and memory within [0, 1], window within (0, 1]"
        raise ValueError(f"range: {allowed}")
    return found


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def max_weight_difference(one: EndpointField, other: EndpointField) -> float:
    """Largest absolute difference between the weights of two networks; infinite if their shapes differ."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() if a.shape == b.shape else math.inf for a, b in pairs)
