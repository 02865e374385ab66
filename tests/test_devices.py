"""Streams and days on other devices than the CPU.

Without an accelerator the meta device stands in for one: its tensors have a shape and a device but no
values, and torch refuses to mix them with others of one dimension or more, as it does on an accelerator.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flowoe_lib.execution.execution import Execution, execute
from flowoe_lib.execution.information import exact
from flowoe_lib.market.batching import map_tensors
from flowoe_lib.market.model import Heston, Liquidity, Market, Order, Regimes, scalar
from flowoe_lib.market.ranges import TrainingRange
from flowoe_lib.market.simulator import MarketPaths, simulate
from flowoe_lib.policies.flow import EndpointField, FlowPolicy
from flowoe_lib.policies.replanning import replanned
from flowoe_lib.policies.schedules import twap, vwap
from flowoe_lib.randomness import generator
from flowoe_lib.training import refinement
from flowoe_lib.training.refinement import refine

N, PATHS = 6, 12
EVERYTHING = TrainingRange(
    kappa=(2.0, 8.0), rho=-0.6, depth_sd=(0.1, 0.5), profile_amplitude=(0.2, 1.0), drift=0.4
)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Elsewhere(torch.Generator):
    """A generator that says it is on the meta device, where none can be made."""

    device = torch.device("meta")


class WithoutValues(TorchFunctionMode):
    """Answers for tensors without values: every question yes, every number zero, every copy itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is Tensor.__bool__:
                return True
            if func in (Tensor.item, Tensor.__float__):
                return 0.0
            if func is Tensor.cpu:
                return args[0]
            if func is Tensor.nonzero:
                return torch.arange(len(args[0]), device="meta")[:, None]
            if func is Tensor.addcmul_ and args[1].device != args[0].device:
                raise RuntimeError("CUDA's addcmul takes a number on the CPU only as its last factor")
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["meta", pytest.param("cuda", marks=CUDA)])
def stream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.Generator]:
    """A stream on another device."""
    if request.param == "cuda":
        yield generator(1, "test", device="cuda")
        return
    draws = Elsewhere()
    monkeypatch.setattr(refinement, "generator", lambda seed, *name, device: draws)
    with WithoutValues():
        yield draws


def tensors_of(tree: Any) -> list[Tensor]:
    """Those with a dimension; numbers may stay on the CPU, torch takes them along."""
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        if value.dim():
            found.append(value)
        return value

    for f in dataclasses.fields(tree):
        if isinstance(part := getattr(tree, f.name), Tensor) or dataclasses.is_dataclass(part):
            map_tensors(note, part)
    return found


def all_on(device: torch.device, tree: Any) -> bool:
    found = tensors_of(tree)
    return len(found) > 1 and all(value.device.type == device.type for value in found)


def with_regimes(market: Market) -> Market:
    return dataclasses.replace(market, regimes=Regimes(scalar(2.0), scalar(3.0)))


@pytest.mark.parametrize("change", [lambda market: market, with_regimes], ids=["one regime", "two regimes"])
def test_days_and_orders_stay_on_the_device_of_their_stream(
    change: Callable[[Market], Market], stream: torch.Generator
) -> None:
    device = stream.device
    market, order = EVERYTHING.draw(PATHS, stream)
    assert all_on(device, market)
    assert all_on(device, order)
    market = change(market)
    paths = simulate(market, PATHS, N, stream)
    assert all_on(device, paths)
    known = exact(paths, market, stream)
    field = EndpointField(torch.Generator()).to(device)
    for policy in (twap, vwap, replanned, FlowPolicy(field, 2)):
        with torch.no_grad():
            done = execute(policy, paths, market, order, stream, known)
        assert all_on(device, done)
        assert done.utility_bps(order).device.type == device.type


def test_refinement_stays_on_its_device_and_starts_from_any(stream: torch.Generator) -> None:
    visited: list[MarketPaths | Execution] = []

    def earned(done: Execution, order: Order) -> Tensor:
        visited.append(done)
        return done.utility_bps(order)

    start = EndpointField(torch.Generator())
    learned = refine(start, EVERYTHING, N, 2, 1, paths=PATHS, earned=earned, device=stream.device.type)
    # TWAP on the validation days, the policy on the days of two iterations, and on the former before, between
    # and after these.
    assert len(visited) == 1 + 2 + 3
    assert all(all_on(stream.device, done) for done in visited)
    assert {p.device.type for p in start.parameters()} == {"cpu"}
    if stream.device.type == "cuda":
        assert {p.device.type for p in learned.field.parameters()} == {"cpu"}
        assert all(torch.isfinite(curve).all() for curve in learned.curves.values())


def test_days_of_a_single_condition_are_drawn_on_the_device_of_their_stream(stream: torch.Generator) -> None:
    heston = Heston(scalar(4e-4), scalar(5.0), scalar(0.8), scalar(-0.6))
    liquidity = Liquidity(depth_sd=scalar(0.3), profile_amplitude=scalar(0.8))
    for market in (Market(heston), Market(heston, liquidity=liquidity, drift_sd=scalar(9.0))):
        paths = simulate(market, PATHS, N, stream)
        assert all_on(stream.device, paths)


@CUDA
def test_days_on_cuda_have_the_moments_of_those_on_the_cpu() -> None:
    heston = Heston(*(torch.full((50_000,), x, device="cuda") for x in (4e-4, 5.0, 1.2, -0.6)))
    paths = simulate(Market(heston), 50_000, N, generator(2, "test", device="cuda"))
    day = paths.integrated_variance.sum(0).double().cpu() / 4e-4
    # The exact variance of the integral of a stationary square-root process.
    spread = 1.2 * (2 * (5 - 1 + torch.tensor(-5.0).exp()) / 25) ** 0.5
    assert abs(float(day.mean() - 1)) < 4.5 * float(spread) / 50_000**0.5


def test_stream_on_the_cpu_is_what_it_always_was() -> None:
    # Seeds and first draws as they were before streams had a device.
    pinned: list[tuple[int, tuple[str | int, ...], int, list[int]]] = [
        (0, ("market",), 2412604077665831756, [632170999, 1594111190]),
        (7, ("test", "calm/normal", 3), 1776717744044011721, [1244668718, 142913648]),
        (2**40, ("a", "b"), 2712382127466241274, [690954625, 995148116]),
    ]
    for seed, name, state, numbers in pinned:
        for draws in (generator(seed, *name), generator(seed, *name, device="cpu")):
            assert draws.device.type == "cpu"
            assert draws.initial_seed() == state
            assert torch.randint(2**31, (2,), generator=draws).tolist() == numbers
