"""The seed of the test days depends on the content of all contestants, and on nothing else."""

import copy
import dataclasses
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowoe_lib.evaluation.contestants import contestants_digest, seed_of_test_days
from flowoe_lib.evaluation.scorecard import Evaluation, market_days
from flowoe_lib.execution.information import CONSTANT_CV
from flowoe_lib.market.impact import with_half_life
from flowoe_lib.market.model import Condition, Heston, Market, Order, Regimes, scalar
from flowoe_lib.market.signal import with_signal
from flowoe_lib.policies.filtered import solve_filtered_regimes
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.oracle import solve_belief, solve_oracle
from flowoe_lib.policies.schedules import Schedule, static_optimal, twap, vwap
from flowoe_lib.policies.signal import solve_signal
from flowoe_lib.policies.unannounced import UnannouncedLevel, solve_level_belief
from flowoe_lib.randomness import generator
from flowoe_lib.recipes import LOADED

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"
CONDITION = Condition(
    "test",
    "one",
    Market(Heston(scalar(4e-4), scalar(5.0), scalar(0.8), scalar(-0.5))),
    Order(scalar(0.1), scalar(5e-4)),
)
SETTINGS: dict[str, Any] = {"buckets": 9, "conditions": [CONDITION]}


def everyone() -> dict[str, Any]:
    return {
        "twap": twap,
        "static": static_optimal,
        "planned": Schedule(torch.linspace(1, 0, 10)),
        "flow": FlowPolicy(EndpointField(generator(1, "weights")), steps=2),
        "tilted": partial(vwap, noise=scalar(0.5)),
    }


def test_the_digest_does_not_depend_on_the_order_of_contestants() -> None:
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


@pytest.mark.parametrize("defines", ["schedules", "flow"])
def test_a_changed_source_of_a_contestant_gives_other_days(
    defines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contestants_digest(everyone(), SETTINGS)
    name = f"flowoe_lib.policies.{defines}"
    monkeypatch.setitem(LOADED, name, LOADED[name]._replace(sha256="edited"))
    assert contestants_digest(everyone(), SETTINGS) != before


def test_the_source_of_other_modules_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contestants_digest({"twap": twap}, {})
    name = "flowoe_lib.policies.flow"
    monkeypatch.setitem(LOADED, name, LOADED[name]._replace(sha256="edited"))
    assert contestants_digest({"twap": twap}, {}) == before


def test_code_changed_on_disk_since_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "flowoe_lib.policies.schedules"
    monkeypatch.setitem(LOADED, name, LOADED[name]._replace(modified_ns=1))
    with pytest.raises(RuntimeError, match=r"schedules\.py changed"):
        contestants_digest({"twap": twap}, {})


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
        evaluation = Evaluation(n_paths=10, n_few=10, n_validation=10, n_buckets=9, seed=seed, chunk=10)
        return next(market_days(CONDITION, evaluation, stream)).variance

    one, other, again = (first_day(seed, "test") for seed in seeds)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # With the same seed the two streams differ.
    assert not torch.equal(one, first_day(seeds[0], "validation"))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (lambda obs, noise: noise, TypeError, r"contestant 'odd': .*<lambda>"),
        (object(), TypeError, "contestant 'odd': a recipe cannot hold object"),
        (max, TypeError, "cannot hold builtin_function_or_method"),
        ({"rate": math.nan}, ValueError, "contestant 'odd': "),
        ([math.inf], ValueError, "contestant 'odd': "),
    ],
)
def test_a_value_without_canonical_content_is_refused_by_name(
    value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        contestants_digest({"odd": value}, {})


def test_every_optimum_has_content() -> None:
    market, order = CONDITION.market, CONDITION.order
    constant = dataclasses.replace(market.heston, cv=scalar(CONSTANT_CV))
    hidden = dataclasses.replace(market, heston=constant, drift_sd=scalar(50.0))
    remembering = with_half_life(market, scalar(0.2))
    switching = dataclasses.replace(market, regimes=Regimes(scalar(2.0), scalar(3.0)))
    signalling = with_signal(dataclasses.replace(market, heston=constant), scalar(0.3), scalar(0.0))
    optima = {
        "oracle": solve_oracle(market, order, 5, inventory_nodes=5, variance_nodes=5, depth_nodes=5),
        "regimes": solve_oracle(switching, order, 5, inventory_nodes=5, variance_nodes=5),
        "filtered regimes": solve_filtered_regimes(
            switching, order, 5, inventory_nodes=5, variance_nodes=5, belief_nodes=5
        ),
        "belief": solve_belief(hidden, order, 5, inventory_nodes=5, belief_nodes=5),
        "memory": solve_oracle(remembering, order, 5, variance_nodes=5),
        "signal": solve_signal(signalling, order, 5, inventory_nodes=5, signal_nodes=5),
        "level": solve_level_belief(UnannouncedLevel(market, 3.0), order, 5),
    }
    assert len(contestants_digest(optima, SETTINGS)) == 64


SEEDS = """
from flowoe_lib.data.conditions import conditions_from_records
from flowoe_lib.evaluation.contestants import contestants_digest
from flowoe_lib.store import Store
from flowoe_lib.studies import comparison, worlds
from flowoe_lib.studies.demonstrations import Ensemble
from pathlib import Path

store = Store(Path({results!r}))
grid = conditions_from_records(store.read_json("conditions"))
day = worlds.liquid_day(store.read_json("calibration"))
every = [*worlds.dynamic_worlds(grid, day), worlds.transient_world(grid), worlds.signal_world(grid)]
every.append(worlds.full_world(grid, day))
settings = {{"conditions": [c for w in every for c in w.conditions]}}
settings["ensemble"] = Ensemble(grid, {{}}, 9, 1, 8, [], 4)
print(contestants_digest(comparison.contestants_in(every, {{}}, {{}}), settings))
"""


def test_the_seed_of_every_world_is_the_same_on_another_type_of_processor() -> None:
    """The types are simulated by the instructions that PyTorch and MKL may use."""
    script = SEEDS.format(results=str(RESULTS))
    digests = set()
    for torch_may, mkl_may in (("default", "COMPATIBLE"), ("avx2", "AVX2")):
        kind = {"ATEN_CPU_CAPABILITY": torch_may, "MKL_CBWR": mkl_may}
        run = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | kind, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1


def test_there_must_be_a_contestant() -> None:
    with pytest.raises(ValueError, match="contestants: must be at least one"):
        contestants_digest({}, SETTINGS)
