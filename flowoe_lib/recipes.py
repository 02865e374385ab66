"""Recipes of stored results: the task, the content of every argument, and the sources that compute.

Equal recipes give equal results. A recipe includes the modules of the library that define the task and the
functions and classes among its arguments, and all modules that these import, directly or indirectly.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

LIBRARY = Path(__file__).parent


COMPUTING = ("arch", "numpy", "pandas", "scipy", "stable_baselines3", "statsmodels", "torch")
"""Packages whose version is part of a recipe if one of its modules imports them."""


installed = functools.cache(version)
"""Version of a package, cached: the look-up takes longer than the rest of a small recipe."""


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


class Source(NamedTuple):
    """A module's file as it was when the library was imported."""

    path: Path
    modified_ns: int
    sha256: str


def _source(path: Path) -> Source:
    return Source(path, path.stat().st_mtime_ns, sha256(path.read_bytes()))


def _module(path: Path) -> str:
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LOADED = {_module(path): _source(path) for path in sorted(LIBRARY.rglob("*.py"))}
"""The modules of the library by name, as imported: files on disk may change while the process runs."""


def check_unchanged(modules: Iterable[str]) -> None:
    """Raise RuntimeError naming the first of ``modules`` whose file was written since it was imported."""
    for name in modules:
        path, modified_ns, _ = LOADED[name]
        if not path.exists() or path.stat().st_mtime_ns != modified_ns:
            raise RuntimeError(
                f"{path} changed during the run, so its result would be stored with the wrong source code: "
                "restart the kernel (or the command) and run again"
            )


def library_digest() -> str:
    """Digest of the library's sources as this process imported them, and of the numerical packages."""
    sources = {name: source.sha256 for name, source in LOADED.items()}
    packages = {name: version(name) for name in COMPUTING if find_spec(name)}
    return _digest([sources, packages])


@functools.cache
def _imported_by(module: str) -> frozenset[str]:
    """``module`` and all that it imports, directly or indirectly, external packages included."""
    import grimp

    graph = grimp.build_graph(
        LIBRARY.name, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    return frozenset({module, *graph.find_upstream_modules(module)})


def with_imports(modules: Iterable[str]) -> frozenset[str]:
    """``modules`` and all that they import, directly or indirectly, external packages included."""
    return frozenset[str]().union(*map(_imported_by, modules))


def recipe(task: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The recipe of ``task(*args, **kwargs)``, as plain JSON.

    Parameters
    ----------
    task : callable
        A function of the library, at the top level of its module; its result depends on its arguments only.
    *args, **kwargs
        Numbers, strings, None, tensors, arrays, tables, networks, sequences and mappings, dataclasses of
        them, partial functions, and functions and classes of the library.

    Returns
    -------
    dict
        ``task``, ``arguments`` (digests of their content), ``sources`` and ``packages``.

    Raises
    ------
    TypeError
        If an argument is of another type, or the task does not accept it.
    ValueError
        If a number is not finite.
    """
    modules: set[str] = set()
    label = _name(task, modules)
    bound = inspect.signature(task).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = {name: _digest(content_of(value, modules)) for name, value in bound.arguments.items()}
    imported = with_imports(modules)
    return {
        "task": label,
        "arguments": arguments,
        "sources": {name: source.sha256 for name, source in LOADED.items() if name in imported},
        "packages": {name: installed(name) for name in COMPUTING if name in imported},
    }


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, allow_nan=False).encode())


def _name(value: Any, modules: set[str]) -> str:
    """Full name of a function or class, whose module is added to ``modules``."""
    module, name = value.__module__, value.__qualname__
    if module not in LOADED or "<" in name:
        raise TypeError(
            f"{module}.{name}: a recipe holds functions and classes that are found by name in "
            f"{LIBRARY.name}, because their source is part of it"
        )
    modules.add(module)
    return f"{module}.{name}"


def content_of(value: Any, modules: set[str]) -> Any:
    """``value`` as JSON, equal for equal content; modules of its functions are added to ``modules``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    import numpy as np
    import pandas as pd
    import torch

    content = functools.partial(content_of, modules=modules)
    match value:
        case np.generic():
            return value.item()
        case np.ndarray() if not value.dtype.hasobject:
            return ["array", str(value.dtype), list(value.shape), sha256(value.tobytes())]
        case torch.Tensor():
            return ["tensor", content(value.detach().cpu().numpy())]
        case pd.Series():
            return ["series", content(value.to_frame(str(value.name)))]
        case pd.DataFrame():
            return ["table", sha256(value.to_parquet())]
        case torch.nn.Module():
            return [_name(type(value), modules), content(value.state_dict())]
        case Mapping():
            # The order counts, since a task may draw random numbers in it.
            return ["mapping", [[content(key), content(item)] for key, item in value.items()]]
        case list() | tuple():
            return [content(item) for item in value]
        case functools.partial():
            return ["partial", content(value.func), content(value.args), content(value.keywords)]
        case type() | FunctionType():
            return _name(value, modules)
        case _ if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return [_name(type(value), modules), content(fields)]
    raise TypeError(
        f"a recipe cannot hold {type(value).__name__}: only numbers, strings, tensors, arrays, tables, "
        "networks, sequences, mappings, dataclasses of those, and functions of the library"
    )
