"""The pretrained policy: it is read as it was written, and damaged files are refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from flowoe_lib.data.calibration import Calibration
from flowoe_lib.evaluation.extrapolation import violations
from flowoe_lib.evaluation.scorecard import Evaluation, score_condition
from flowoe_lib.execution.execution import Policy
from flowoe_lib.execution.features import FEATURES, MEMORY_FEATURES, SIGNAL_FEATURES
from flowoe_lib.market.model import Heston, Market, Order, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.policies.flow import EndpointField, TrainingRun, pack
from flowoe_lib.policies.schedules import twap
from flowoe_lib.randomness import generator
from flowoe_lib.recipes import sha256
from flowoe_lib.store import Store
from flowoe_lib.training.card import SHIPPED, TrainedPolicyError, sealed
from flowoe_lib.training.pretrained import load_pretrained, max_weight_difference, ship, ship_from
from flowoe_lib.training.universal import design

RANGE = TrainingRange(kappa=(1.0, 2.0), rho=-0.5, cv=(0.1, 0.2), drift=0.3)


CALIBRATION = {f.name: 0.5 for f in dataclasses.fields(Calibration)} | {"kappa": 2.0}


def shipped(folder: Path) -> EndpointField:
    field = EndpointField(generator(1, "test"), width=8)
    ship(field, RANGE, 13, CALIBRATION, {"seed": 4}, {"capture_mean": 0.5}, folder)
    return field


def test_the_shipped_policy_is_loaded(tmp_path: Path) -> None:
    field = shipped(tmp_path)
    found = load_pretrained(tmp_path)
    assert max_weight_difference(found.field, field) == 0
    assert found.conditions == RANGE
    assert (found.n_buckets, found.calibration, found.card["training"]) == (13, CALIBRATION, {"seed": 4})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["universal.json", "universal.safetensors"]


def test_what_the_notebook_made_is_shipped_with_its_card(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    fields = {seed: EndpointField(generator(seed, "test"), width=8) for seed in (3, 5)}
    runs = {seed: TrainingRun(field, {"utility": torch.zeros(2)}) for seed, field in fields.items()}
    store.write("universal_policies", pack(runs))
    card = {"range": dataclasses.asdict(RANGE), "n_buckets": 39, "training": {"seed": 3}}
    store.write("universal_card", card | {"scores": {"capture_mean": 0.9}})
    estimates = {name: {"value": value, "ci_low": 0.0, "ci_high": 4.0} for name, value in CALIBRATION.items()}
    store.write("calibration", estimates)
    (tmp_path / "scorecard.csv").write_text("world\n")
    ship_from(store, tmp_path / "scorecard.csv", tmp_path / "weights")
    found = load_pretrained(tmp_path / "weights")
    assert max_weight_difference(found.field, fields[3]) == 0
    assert (found.conditions, found.n_buckets, found.calibration) == (RANGE, 39, CALIBRATION)
    told = {"capture_mean": 0.9, "scorecard_sha256": sha256(b"world\n")}
    assert (found.card["scores"], found.card["training"]) == (told, {"seed": 3})


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Another card, with a checksum that fits it."""

    def spoil(folder: Path) -> None:
        card = json.loads((folder / "universal.json").read_text())
        change(card)
        (folder / "universal.json").write_bytes(sealed(card))

    return spoil


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Other weights under a card that vouches for them."""

    def spoil(folder: Path) -> None:
        tensors = safetensors.torch.load((folder / "universal.safetensors").read_bytes())
        change(tensors)
        content = safetensors.torch.save(tensors)
        (folder / "universal.safetensors").write_bytes(content)
        edited(lambda card: card.update(sha256=sha256(content)))(folder)

    return spoil


def folder_for_a_card(folder: Path) -> None:
    (folder / "universal.json").unlink()
    (folder / "universal.json").mkdir()


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no card": (lambda f: (f / "universal.json").unlink(), r"universal\.json: no such file"),
    "no weights": (lambda f: (f / "universal.safetensors").unlink(), r"universal\.safetensors: no such"),
    "cut card": (lambda f: (f / "universal.json").write_text('{"file": '), "is not JSON"),
    "card of a list": (lambda f: (f / "universal.json").write_text("[]"), "lacks sha256, shapes"),
    "card without ranges": (edited(lambda c: c.pop("range")), "lacks range"),
    "other range": (edited(lambda c: c["range"].update(size_max=1)), "does not describe a policy"),
    "range out of order": (
        edited(lambda c: c["range"].update(size=[0.2, 0.1])),
        r"range: size = \(0\.2, 0\.1\): must be finite, the lower bound first",
    ),
    "range of text": (edited(lambda c: c["range"].update(rho="-0.5")), "range: rho = -0.5: must be finite"),
    "range of one bound": (edited(lambda c: c["range"].update(cv=[0.1])), r"range: cv = \(0\.1,\): must be"),
    "range of a number": (edited(lambda c: c["range"].update(cv=0.1)), "does not describe a policy"),
    "part of a bucket": (edited(lambda c: c.update(n_buckets=13.5)), "n_buckets = 13.5: must be a whole"),
    "no bucket": (
        edited(lambda c: c.update(n_buckets=0)),
        "n_buckets = 0: must be a whole number of at least",
    ),
    "no calibration": (
        edited(lambda c: c.update(calibration={})),
        r"calibration = \{\}: must be finite numbers",
    ),
    "other calibration": (
        edited(lambda c: c["calibration"].update(skew=0.1)),
        "must be finite numbers named calm",
    ),
    "calibration of text": (edited(lambda c: c["calibration"].update(kappa="2")), "must be finite numbers"),
    "volatility below zero": (
        edited(lambda c: c["calibration"].update(calm=-0.01)),
        r"Heston\.theta = -0\.01: must be finite and > 0",
    ),
    "depth below zero": (edited(lambda c: c["range"].update(depth_sd=[-1, 1])), r"Liquidity\.depth_sd = -1"),
    "no window": (edited(lambda c: c["range"].update(window=0)), r"window within \(0, 1\]"),
    "folder for a card": (
        folder_for_a_card,
        r"universal\.json: cannot be read: Is a directory",
    ),
    "no features": (edited(lambda c: c.update(observes=5)), "observes what this library does not show"),
    "without a checksum": (
        lambda f: (f / "universal.json").write_text(
            json.dumps(json.loads((f / "universal.json").read_text()) | {"checksum": ""}, indent=1)
        ),
        "does not match its checksum",
    ),
    "written otherwise": (
        lambda f: (f / "universal.json").write_text((f / "universal.json").read_text() + "\n"),
        "does not match its checksum",
    ),
    "deeply nested": (lambda f: (f / "universal.json").write_text("[" * 100_000), "is not JSON"),
    "changed weights": (
        lambda f: (f / "universal.safetensors").write_bytes(b"x" * 100),
        "is not the file that universal.json was written for",
    ),
    "other features": (
        edited(lambda c: c["observes"].__setitem__(0, "tomorrow's close")),
        "observes what this library does not show: tomorrow's close",
    ),
    "features in another order": (edited(lambda c: c["observes"].reverse()), "their order"),
    "other shapes": (
        rewritten(lambda t: t.update({"out.weight": torch.zeros(1, 9)})),
        "not finite or not of the card's shapes",
    ),
    "not a number": (
        rewritten(lambda t: t["out.bias"].fill_(float("nan"))),
        "not finite or not of the card's shapes",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_weights_that_do_not_match_their_card_are_refused(case: str, tmp_path: Path) -> None:
    shipped(tmp_path)
    spoil, message = SPOILED[case]
    spoil(tmp_path)
    with pytest.raises(TrainedPolicyError, match=message):
        load_pretrained(tmp_path)


def test_a_flipped_bit_of_the_shipped_card_is_refused(tmp_path: Path) -> None:
    card = (SHIPPED / "universal.json").read_bytes()
    (tmp_path / "universal.safetensors").write_bytes((SHIPPED / "universal.safetensors").read_bytes())
    for place in range(0, 8 * len(card), 8 * len(card) // 300):
        flipped = bytearray(card)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / "universal.json").write_bytes(flipped)
        with pytest.raises(TrainedPolicyError):
            load_pretrained(tmp_path)


def test_a_card_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    field = EndpointField(generator(1, "test"), width=8)
    with pytest.raises(ValueError, match=r"calibration = \{\}"):
        ship(field, RANGE, 13, {}, {}, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_max_weight_difference_is_the_largest_difference_of_a_weight() -> None:
    one, other, wide = (EndpointField(generator(1, "test"), width=w) for w in (8, 8, 9))
    with torch.no_grad():
        other.get_parameter("hidden.1.weight")[3, 4] -= 0.25
    assert max_weight_difference(one, other) == pytest.approx(0.25)
    assert max_weight_difference(one, wide) == float("inf")


def test_the_policy_of_the_library_is_near_the_limit_in_its_own_range() -> None:
    trained = load_pretrained()
    assert trained.field.observe.in_features == len((*FEATURES, *MEMORY_FEATURES, *SIGNAL_FEATURES))
    for condition in design(trained.conditions, 8, 7)[4:]:
        days = Evaluation(n_paths=1000, n_buckets=trained.n_buckets, seed=1, chunk=1000)
        policies: dict[str, Policy] = {"twap": twap, "flow": trained.policy()}
        scored = score_condition(condition, policies, [], days).scorecard.query("policy == 'flow'")
        [capture] = scored["capture"]
        assert capture > 0.96
    whole = Market(Heston(scalar(4e-4), scalar(2.0), scalar(1.3), scalar(-0.8)))
    order = Order(scalar(0.1), scalar(5e-4))
    assert violations(trained.conditions, whole, order) == []
    tiny = dataclasses.replace(order, size=scalar(1e-9))
    assert [d.quantity for d in violations(trained.conditions, whole, tiny)] == ["urgency"]
