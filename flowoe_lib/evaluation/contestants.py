"""The seed of the test days, made from everything that takes part in the test.

Test days are drawn from a digest of every contestant, so whoever changes a weight, a setting or the code of
one gets other days, and nobody can have chosen a contestant by how it does on them. Choices are made on
validation days, whose seed and random stream are their own.
"""

import dataclasses
import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

__all__ = ["contestants_digest", "seed_of_test_days"]


def contestants_digest(contestants: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Digest of all contestants by content, the same in whatever order they are named.

    Of a network count its weights; of a policy with fields, such as a schedule or a flow policy, its fields;
    of these and of functions also the source of the module that defines them. Where an object lies in memory,
    how a mapping is ordered and on which device tensors are does not count.

    Parameters
    ----------
    contestants : mapping of str to policy
        Everyone who is scored, opponents included: functions and classes that are found by name in their
        module, partial functions, networks, tensors, numbers, strings, and dataclasses, mappings and
        sequences of those.
    settings : mapping of str to value
        What else decides how they act, such as the conditions, the number of buckets and the solver steps.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits.

    Raises
    ------
    TypeError
        For something without a canonical content, such as a lambda or an open file; the message names it.
    ValueError
        Without a contestant, and for a number that is NaN or infinite.
    """
    if not contestants:
        raise ValueError("contestants: must be at least one")
    content = {
        kind: {name: _content(value, f"{kind}['{name}']") for name, value in named.items()}
        for kind, named in (("contestants", contestants), ("settings", settings))
    }
    return _sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def seed_of_test_days(digest: str) -> int:
    """Seed of the test days, the first 63 bits of a digest by :func:`contestants_digest`."""
    return int(digest[:16], 16) >> 1


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(value: Any, place: str) -> Any:
    """``value`` as JSON that is equal for equal content; ``place`` names it in errors."""

    def inside(name: object, item: Any) -> Any:
        return _content(item, f"{place}.{name}")

    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{place} = {value}: must be finite")
            return value
        case Tensor():
            array = value.detach().cpu().contiguous().numpy()
            return ["tensor", str(array.dtype), list(array.shape), _sha256(array.tobytes())]
        case torch.nn.Module():
            weights = {name: inside(name, weight) for name, weight in value.state_dict().items()}
            return ["network", _code(type(value), place), weights]
        case Mapping():
            return ["mapping", {_key(key, place): inside(key, item) for key, item in value.items()}]
        case list() | tuple():
            return ["sequence", [inside(i, item) for i, item in enumerate(value)]]
        case functools.partial():
            return ["partial", *(inside(part, getattr(value, part)) for part in ("func", "args", "keywords"))]
        case type() | FunctionType():
            return ["code", _code(value, place)]
        case _ if dataclasses.is_dataclass(value):
            fields = {f.name: inside(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)}
            return ["fields", _code(type(value), place), fields]
    raise TypeError(
        f"{place} is a {type(value).__name__}: must be a function, class, partial function, network, tensor, "
        "number, string, or a dataclass, mapping or sequence of those"
    )


def _key(key: object, place: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{place} has the key {key!r}: must be a string")
    return key


def _code(value: Callable[..., Any], place: str) -> list[str]:
    """Name of a function or class, and the digest of the module that defines it."""
    module, name = value.__module__, value.__qualname__
    source = getattr(sys.modules.get(module), "__file__", None)
    if "<" in name or source is None:
        raise TypeError(
            f"{place} is {module}.{name}: must be found by its name in a module with a source file"
        )
    return [f"{module}.{name}", _source_digest(source)]


@functools.cache
def _source_digest(source: str) -> str:
    """Of a file as it is when first asked for: later edits do not change the code that runs."""
    return _sha256(Path(source).read_bytes())
