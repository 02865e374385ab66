"""The store through which notebooks hand results on: named files, each beside the card of what made it.

An entry is current while its card carries the digest of the recipe asked for, which also covers the
library's sources, and its content is the content the card was written for. Anything else is made again.

The module starts without torch or pandas, because the driver reads digests on every run.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

__all__ = [
    "PROFILES",
    "SOURCES",
    "MissingArtifact",
    "Store",
    "Workspace",
    "atomic_write",
    "digest",
    "sha256",
    "sources_digest",
]


T = TypeVar("T")


class MissingArtifact(LookupError):
    """An entry that an earlier notebook should have made is not there, or is damaged."""


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


def sources_digest(package: Path) -> str:
    """Digest of the names and contents of every Python file under ``package``."""
    files = sorted(package.rglob("*.py"))
    return sha256("".join(f"{f.relative_to(package)} {sha256(f.read_bytes())}\n" for f in files).encode())


SOURCES = sources_digest(Path(__file__).parent)
"""The library as it was imported: a later edit must not pass for the code that is running."""


def _canonical(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "fields": fields}
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        f"a recipe cannot hold {type(value).__name__}: only numbers, strings, lists, mappings, "
        "tensors, arrays and dataclasses of those"
    )


def digest(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe in canonical JSON, of the library's sources and of the numerical packages.

    Raises TypeError or ValueError for a value without a canonical form (an object, a NaN).
    """
    packages = {name: version(name) for name in ("numpy", "scipy", "torch", "stable-baselines3")}
    whole = {"recipe": recipe, "sources": SOURCES, "packages": packages}
    return sha256(json.dumps(whole, sort_keys=True, allow_nan=False, default=_canonical).encode())


def atomic_write(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Format(Generic[T]):
    suffix: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


def _encode_tensors(tensors: "dict[str, Tensor]") -> bytes:
    from safetensors.torch import save

    # safetensors refuses views that share memory, and results often are slices of one tensor.
    return save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})


def _decode_tensors(content: bytes) -> "dict[str, Tensor]":
    from safetensors.torch import load

    return load(content)


def _encode_table(table: "pd.DataFrame") -> bytes:
    buffer = BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def _decode_table(content: bytes) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(BytesIO(content))


def _encode_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


_TENSORS = _Format(".safetensors", _encode_tensors, _decode_tensors)


_TABLE = _Format(".parquet", _encode_table, _decode_table)


_JSON: _Format[Any] = _Format(".json", _encode_json, json.loads)


@dataclass(frozen=True)
class Store:
    """Named entries in one folder; ``name.card.json`` says what made ``name.*`` and what it holds."""

    root: Path

    def tensors(
        self, name: str, recipe: Mapping[str, Any], make: "Callable[[], dict[str, Tensor]]"
    ) -> "dict[str, Tensor]":
        """The stored tensors if ``recipe`` made them, else those of ``make()``, stored."""
        return self._made(name, _TENSORS, recipe, make)

    def table(
        self, name: str, recipe: Mapping[str, Any], make: "Callable[[], pd.DataFrame]"
    ) -> "pd.DataFrame":
        """The stored table if ``recipe`` made it, else that of ``make()``, stored."""
        return self._made(name, _TABLE, recipe, make)

    def json(self, name: str, recipe: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The stored JSON value if ``recipe`` made it, else that of ``make()``, stored."""
        return self._made(name, _JSON, recipe, make)

    def read_tensors(self, name: str) -> "dict[str, Tensor]":
        """Tensors made by an earlier notebook. Raises MissingArtifact."""
        return _TENSORS.decode(self._read(name, _TENSORS.suffix))

    def read_table(self, name: str) -> "pd.DataFrame":
        """A table made by an earlier notebook. Raises MissingArtifact."""
        return _TABLE.decode(self._read(name, _TABLE.suffix))

    def read_json(self, name: str) -> Any:
        """A JSON value made by an earlier notebook. Raises MissingArtifact."""
        return _JSON.decode(self._read(name, _JSON.suffix))

    def fingerprint(self, name: str) -> str:
        """SHA-256 of an entry's content, for the recipes of what is made from it. Raises MissingArtifact."""
        return sha256(self._read(name))

    def _card(self, name: str) -> Path:
        if not name.isidentifier():
            raise ValueError(f"artifact name {name!r}: must be letters, digits and underscores")
        return self.root / f"{name}.card.json"

    def _intact(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """An entry's card and content; None if either is missing or they do not belong together."""
        try:
            card = json.loads(self._card(name).read_bytes())
            content = (self.root / card["file"]).read_bytes()
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        return (card, content) if sha256(content) == card["sha256"] else None

    def _read(self, name: str, suffix: str = "") -> bytes:
        entry = self._intact(name)
        if entry is None:
            state = "is damaged" if self._card(name).exists() else "is missing"
            raise MissingArtifact(
                f"artifact '{name}' {state} in {self.root}: an earlier notebook makes it. Run the notebooks "
                f"in order, or all of them with `make reproduce PROFILE={self.root.name}`"
            )
        if not entry[0]["file"].endswith(suffix):
            raise MissingArtifact(f"artifact '{name}' is stored as {entry[0]['file']}, not as *{suffix}")
        return entry[1]

    def _made(self, name: str, form: _Format[T], recipe: Mapping[str, Any], make: Callable[[], T]) -> T:
        key, file, card_file = digest(recipe), self.root / f"{name}{form.suffix}", self._card(name)
        entry = self._intact(name)
        if entry is not None and (entry[0]["digest"], entry[0]["file"]) == (key, file.name):
            # The driver credits a notebook with every entry that the run made or confirmed.
            os.utime(file)
            os.utime(card_file)
            return form.decode(entry[1])
        content = form.encode(make())
        card = {"file": file.name, "digest": key, "sha256": sha256(content), "recipe": recipe}
        # The card goes last: until it is there, the entry does not match and counts as absent.
        atomic_write(file, content)
        atomic_write(card_file, json.dumps(card, indent=1, default=_canonical).encode())
        return form.decode(content)


PROFILES = ("full", "quick")
"""``full`` makes the committed results, ``quick`` the same line at small scale."""


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile in one checkout; quick results never mix with full ones."""

    root: Path
    profile: str
    device: str = "cpu"
    """Where policies are refined."""

    @classmethod
    def open(cls, profile: str, device: str = "cpu") -> "Workspace":
        """The workspace of the checkout around the working directory, its folders made.

        Raises ValueError for an unknown profile, FileNotFoundError outside a checkout.
        """
        if profile not in PROFILES:
            raise ValueError(f"profile {profile!r}: must be one of {', '.join(PROFILES)}")
        here = Path.cwd()
        marks = ("pyproject.toml", "flowoe_lib", "notebooks")
        root = next((p for p in (here, *here.parents) if all((p / m).exists() for m in marks)), None)
        if root is None:
            raise FileNotFoundError(
                f"no folder with {', '.join(marks)} at {here} or above: run inside the checkout"
            )
        workspace = cls(root, profile, device)
        for folder in (workspace.store.root, workspace.figures, workspace.cache, workspace.build):
            folder.mkdir(parents=True, exist_ok=True)
        return workspace

    @property
    def store(self) -> Store:
        """Results that later notebooks read."""
        return Store(self.root / "artifacts" / self.profile)

    @property
    def figures(self) -> Path:
        """Figures and tables; FLOWOE_FIGURES diverts them, so that a test run leaves the published ones."""
        default = self.root / "figures" if self.profile == "full" else self.build / "figures"
        return Path(os.environ.get("FLOWOE_FIGURES") or default)

    @property
    def cache(self) -> Path:
        """Downloaded data, checked against a pinned hash by whoever reads it."""
        return self.root / ".cache"

    @property
    def build(self) -> Path:
        """Executed notebooks and the driver's records."""
        return self.root / "build" / self.profile
