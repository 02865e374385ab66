"""A recipe changes with every input of a result, and with nothing else."""

import dataclasses
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch

import flowoe_lib as fo
from flowoe_lib.data.bars import Bars, load_bars
from flowoe_lib.data.conditions import conditions_from_records
from flowoe_lib.execution.execution import Execution
from flowoe_lib.execution.information import Errors
from flowoe_lib.market.model import Impact, scalar
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.schedules import twap, vwap
from flowoe_lib.randomness import generator
from flowoe_lib.recipes import COMPUTING, LOADED, recipe


def content_of(value: Any) -> str:
    digest: str = recipe(conditions_from_records, value)["arguments"]["records"]
    return digest


def bars(**changes: float) -> Bars:
    row = {"open": 9.0, "high": 10.0, "low": 8.0, "close": 9.5, "volume": 5.0} | changes
    return load_bars(pd.DataFrame([row], index=pd.DatetimeIndex(["2024-01-02"], name="time")))


def field(nudge: float = 0.0) -> EndpointField:
    made = EndpointField(generator(1, "weights"))
    with torch.no_grad():
        next(made.parameters()).add_(nudge)
    return made


DIFFERENT: dict[str, tuple[Any, ...]] = {
    "numbers": (1, 1.0, True, "1", None, 2, -1, [1], [[1]], {}),
    "strings": ("", "a", "b", ["a"], ["a", "b"], ["b", "a"]),
    "mappings": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1}, [["a", 1]], {1: 1}, {"1": 1}),
    "arrays": (np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.float32), np.array([0.0, 0, 0, -0.0])),
    "tensors": (
        torch.zeros(2),
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([0, 1e-45]),
        torch.zeros(2, 1),
    ),
    "tables": (
        pd.DataFrame({"a": [1.0, np.nan]}),
        pd.DataFrame({"b": [1.0, np.nan]}),
        pd.DataFrame({"a": [1.0, 2.0]}),
        pd.DataFrame({"a": [1.0, np.nan]}, index=[1, 2]),
        pd.Series([1.0, np.nan], name="a"),
        pd.Series([1.0, np.nan], name="b"),
    ),
    "bars": (bars(), bars(close=9.25), bars(volume=6.0)),
    "networks": (field(), field(1e-6), FlowPolicy(field(), 1), FlowPolicy(field(), 2)),
    "dataclasses": (Impact(), Impact(beta=scalar(0.5)), Errors(), Errors(depth=0.0), Errors(returns=None)),
    "functions": (
        twap,
        vwap,
        functools.partial(twap),
        functools.partial(generator, seed=1),
        functools.partial(generator, 1),
        Execution.realised_utility_bps,
        FlowPolicy,
    ),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_different_content_gives_different_recipes(kind: str) -> None:
    values = DIFFERENT[kind]
    assert len({content_of(value) for value in values}) == len(values)


def test_equal_content_gives_equal_recipes() -> None:
    assert content_of((1, 2)) == content_of([1, np.int64(2)])
    assert content_of(Impact()) == content_of(Impact())
    assert content_of(field()) == content_of(field())
    assert content_of(torch.eye(3)) == content_of(torch.eye(3).T)
    assert content_of(bars()) == content_of(bars())
    assert recipe(generator, 1) == recipe(generator, seed=1)
    assert recipe(generator, 1) != recipe(generator, 1, "stream")


@dataclasses.dataclass
class Elsewhere:
    value: int = 1


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ({1}, TypeError),
        (Path("a"), TypeError),
        (np.array([None]), TypeError),
        (lambda: 1, TypeError),
        (content_of, TypeError),
        (Elsewhere(), TypeError),
        (torch.nn.Linear(1, 1), TypeError),
    ],
)
def test_values_without_canonical_content_are_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        content_of(value)
    with pytest.raises(error):
        content_of({"deep": [value]})


@pytest.mark.parametrize("task", [lambda: 1, content_of, len])
def test_a_task_is_a_named_function_of_the_library(task: Callable[..., Any]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        recipe(task, 1)


def test_arguments_that_the_task_does_not_take_are_refused() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument .seeds."):
        recipe(generator, seed=1, seeds=1)


def test_sources_are_those_of_the_task_and_of_its_arguments_with_all_that_they_import() -> None:
    alone = set(recipe(generator, 1)["sources"])
    assert alone == {"flowoe_lib.randomness"}
    with_policy = set(recipe(generator, twap)["sources"])
    assert {"flowoe_lib.policies.schedules", "flowoe_lib.market.model"} <= with_policy
    assert with_policy == alone | set(recipe(twap, obs=1, noise=1)["sources"])


def test_packages_are_those_that_the_sources_import() -> None:
    assert set(recipe(twap, obs=1, noise=1)["packages"]) < set(COMPUTING)
    assert {"torch", "numpy"} <= set(recipe(twap, obs=1, noise=1)["packages"])


def test_no_module_goes_through_the_front_door() -> None:
    """The graph of imports would end at the front door, and miss the modules behind it."""
    import grimp

    graph = grimp.build_graph("flowoe_lib", cache_dir=None)
    doors = [name for name, source in LOADED.items() if source.path.name == "__init__.py"]
    assert len(doors) > 5
    assert not set().union(*(graph.find_modules_that_directly_import(door) for door in doors))


def test_functions_that_use_the_front_door_reach_other_processes() -> None:
    restored = pickle.loads(cloudpickle.dumps(lambda: fo))
    assert restored() is fo
