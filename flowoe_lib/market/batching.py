"""Batches of markets and orders: dataclasses whose tensors have one entry per path."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from flowoe_lib.market.model import Condition, Market, Order

T = TypeVar("T")


def map_tensors(fn: Callable[..., Tensor], first: Any, *rest: Any) -> Any:
    """Apply ``fn`` to the corresponding tensors of nested dataclasses of one type."""
    if isinstance(first, Tensor):
        return fn(first, *rest)
    if not dataclasses.is_dataclass(first):
        return first
    changes = {
        f.name: map_tensors(fn, getattr(first, f.name), *(getattr(r, f.name) for r in rest))
        for f in dataclasses.fields(first)
    }
    return replace(first, **changes)  # type: ignore[type-var]


def align(market: Market, order: Order, shape: tuple[int, ...] = ()) -> tuple[Market, Order]:
    """Convert both to float64 and expand every field to the common shape of all fields and ``shape``."""
    shapes = [torch.Size(shape)]

    def note(value: Tensor) -> Tensor:
        shapes.append(value.shape)
        return value.double()

    wide = map_tensors(note, market), map_tensors(note, order)
    common = np.broadcast_shapes(*shapes)
    first, second = (map_tensors(lambda value: value.expand(common), part) for part in wide)
    return first, second


def batch(conditions: Sequence[Condition], paths_each: int) -> tuple[Market, Order]:
    """Concatenate conditions, ``paths_each`` paths of each: fields of [conditions * paths_each]."""

    def stack(*fields: Tensor) -> Tensor:
        return torch.stack(fields).repeat_interleave(paths_each)

    stacked: Condition = map_tensors(stack, *conditions)
    return stacked.market, stacked.order


def one_by_one(world: str, names: Iterable[str], market: Market, order: Order) -> list[Condition]:
    """Conditions with fields of shape [] from a batch with fields of shape [] or [conditions]."""

    def nth(i: int, part: T) -> T:
        single: T = map_tensors(lambda field: field[i] if field.dim() else field, part)
        return single

    return [Condition(world, name, nth(i, market), nth(i, order)) for i, name in enumerate(names)]


def tile(tree: T, copies: int, n_paths: int) -> T:
    """Repeat the paths of every tensor whose last dimension has ``n_paths``; all others stay."""

    def repeat(value: Tensor) -> Tensor:
        by_path = value.dim() > 0 and value.shape[-1] == n_paths
        return value.repeat(*[1] * (value.dim() - 1), copies) if by_path else value

    tiled: T = map_tensors(repeat, tree)
    return tiled
