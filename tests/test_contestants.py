"""Test days follow from the content of every contestant, and from nothing else."""

import copy
import dataclasses
import importlib
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flowoe_lib.evaluation import contestants as module
from flowoe_lib.evaluation.contestants import contestants_digest, seed_of_test_days
from flowoe_lib.evaluation.scorecard import market_days
from flowoe_lib.market.model import Condition, Heston, Market, Order, scalar
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.schedules import Schedule, static_optimal, twap, vwap
from flowoe_lib.randomness import generator

CONDITION = Condition(
    "test",
    "one",
    Market(Heston(scalar(4e-4), scalar(5.0), scalar(0.8), scalar(-0.5))),
    Order(scalar(0.1), scalar(5e-4)),
)
SETTINGS: dict[str, Any] = {"buckets": 9, "conditions": [CONDITION]}
WRITTEN = "written_policy"


def everyone() -> dict[str, Any]:
    return {
        "twap": twap,
        "static": static_optimal,
        "planned": Schedule(torch.linspace(1, 0, 10)),
        "flow": FlowPolicy(EndpointField(generator(1, "weights")), steps=2),
        "tilted": partial(vwap, noise=scalar(0.5)),
    }


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on disk with one policy."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / f"{WRITTEN}.py"
    sys.modules.pop(WRITTEN, None)


def policy_of(path: Path, body: str) -> Any:
    path.write_text(f"def policy(obs, noise):\n    {body}\n")
    sys.modules.pop(WRITTEN, None)
    importlib.invalidate_caches()
    module._source_digest.cache_clear()
    loaded: ModuleType = importlib.import_module(WRITTEN)
    return loaded.policy


def test_equal_contestants_have_equal_days_in_whatever_order_they_are_named() -> None:
    digest = contestants_digest(everyone(), SETTINGS)
    again = contestants_digest(dict(reversed(everyone().items())), dict(reversed(SETTINGS.items())))
    assert digest == again
    assert len(digest) == 64
    assert 0 <= seed_of_test_days(digest) < 2**63
    assert seed_of_test_days(digest) == seed_of_test_days(again)


def nudged(policy: FlowPolicy) -> FlowPolicy:
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.field.out.bias.add_(1e-7)
    return other


def test_a_changed_weight_setting_or_name_gives_other_days() -> None:
    people = everyone()
    planned = people["planned"].inventory.clone()
    planned[3] += 1e-6
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (people | {"flow": nudged(people["flow"])}, SETTINGS),
        (people | {"flow": dataclasses.replace(people["flow"], steps=4)}, SETTINGS),
        (people | {"planned": Schedule(planned)}, SETTINGS),
        (people | {"planned": Schedule(people["planned"].inventory.double())}, SETTINGS),
        (people | {"tilted": partial(vwap, noise=scalar(0.6))}, SETTINGS),
        (people | {"twap": vwap}, SETTINGS),
        (people | {"another": twap}, SETTINGS),
        ({name: p for name, p in people.items() if name != "twap"}, SETTINGS),
        (people | {"twap": people["static"], "static": people["twap"]}, SETTINGS),
        (people, SETTINGS | {"buckets": 10}),
        (people, {"buckets": 9, "conditions": [dataclasses.replace(CONDITION, name="two")]}),
        (people, {"buckets": 9}),
    ]
    digests = {contestants_digest(*case) for case in [(people, SETTINGS), *changed]}
    assert len(digests) == len(changed) + 1
    assert len({seed_of_test_days(digest) for digest in digests}) == len(digests)


def test_a_changed_source_gives_other_days_and_the_same_source_the_same(written: Path) -> None:
    def digest(body: str) -> str:
        return contestants_digest({"written": policy_of(written, body)}, {})

    first = digest("return 0.5 * noise")
    assert digest("return 0.6 * noise") != first
    assert digest("return 0.5 * noise") == first


def test_a_policy_s_class_counts_by_its_source_too(monkeypatch: pytest.MonkeyPatch) -> None:
    people = {"planned": everyone()["planned"]}
    before = contestants_digest(people, {})
    monkeypatch.setattr(module, "_source_digest", lambda source: "edited")
    assert contestants_digest(people, {}) != before


def test_content_counts_not_identity_layout_or_device() -> None:
    grid = torch.arange(6.0).reshape(2, 3)
    assert contestants_digest({"a": grid.T.contiguous().T}, {}) == contestants_digest({"a": grid}, {})
    assert contestants_digest({"a": grid.T}, {}) != contestants_digest({"a": grid}, {})
    assert contestants_digest({"a": [1, 2]}, {}) != contestants_digest({"a": [2, 1]}, {})
    assert contestants_digest({"a": 1}, {}) != contestants_digest({"a": "1"}, {})
    weight = grid.clone().requires_grad_()
    assert contestants_digest({"a": weight}, {}) == contestants_digest({"a": grid}, {})


def test_test_days_differ_between_contestants_while_validation_days_stay() -> None:
    people = everyone()
    seeds = [
        seed_of_test_days(contestants_digest(some, SETTINGS)) for some in (people, {"twap": twap}, people)
    ]

    def first_day(seed: int, stream: str) -> torch.Tensor:
        return next(market_days(CONDITION, 10, 9, seed, stream)).variance

    one, other, again = (first_day(seed, "test") for seed in seeds)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # Even under one seed, the two streams share nothing.
    assert not torch.equal(one, first_day(seeds[0], "validation"))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (lambda obs, noise: noise, TypeError, r"contestants\['odd'\] is .*<lambda>"),
        (object(), TypeError, r"contestants\['odd'\] is a object"),
        (max, TypeError, r"is a builtin_function_or_method"),
        ({1: 2}, TypeError, "has the key 1: must be a string"),
        ({"rate": math.nan}, ValueError, r"contestants\['odd'\]\.rate = nan: must be finite"),
        ([math.inf], ValueError, r"contestants\['odd'\]\.0 = inf"),
    ],
)
def test_what_has_no_canonical_content_is_refused_by_name(
    value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        contestants_digest({"odd": value}, {})


def test_someone_must_take_part() -> None:
    with pytest.raises(ValueError, match="contestants: must be at least one"):
        contestants_digest({}, SETTINGS)
