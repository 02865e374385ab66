"""The artifact store, which passes results between notebooks: named files, each with a card of its origin.

An entry is current if its card has the requested recipe (the task, the content of its arguments and the
sources that compute) and the checksum of its content. Otherwise the entry is computed again.

Importing the module does not import torch or pandas, because the driver needs it on every run.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from flowoe_lib.recipes import check_unchanged, recipe, sha256

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

P = ParamSpec("P")


T = TypeVar("T")


class MissingArtifact(LookupError):
    """An entry that an earlier notebook makes is missing or damaged."""


def _check_no_folder(path: Path) -> None:
    if path.is_dir():
        raise FileExistsError(f"{path}: is a folder in the place of a file; remove it")


def atomic_write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: after a crash the file has the new or the old content.

    Raises FileExistsError for a folder in its place.
    """
    _check_no_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


SUFFIXES = (".safetensors", ".parquet", ".json")
"""Suffixes of the files of tensors, of tables and of all other values."""


def _encoded(value: Any) -> tuple[str, bytes]:
    """The suffix of the file of a value, and its content."""
    if hasattr(value, "to_parquet"):
        return ".parquet", value.to_parquet()
    if isinstance(value, dict) and any(hasattr(item, "detach") for item in value.values()):
        from safetensors.torch import save

        # safetensors refuses views that share memory, and results often are slices of one tensor.
        return ".safetensors", save({k: v.detach().cpu().contiguous().clone() for k, v in value.items()})
    return ".json", json.dumps(value, indent=1, allow_nan=False).encode()


def _decoded(suffix: str, content: bytes) -> Any:
    """The value that :func:`_encoded` made this of."""
    if suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(BytesIO(content))
    if suffix == ".safetensors":
        from safetensors.torch import load

        # safetensors returns another order in each process, and it counts in the recipes of later results.
        return dict(sorted(load(content).items()))
    return json.loads(content)


LARGEST = 2_500_000
"""Bytes of the largest entry that is published; what is larger is quickly made."""


PROFILES = ("full", "quick")
"""``full`` makes the committed results, ``quick`` runs the same pipeline at small scale."""


@dataclass(frozen=True)
class Card:
    """Content of ``name.card.json``, which describes an entry."""

    name: str
    file: str
    sha256: str
    """Of the content."""
    recipe: dict[str, Any] | None
    """Recipe of the content; None for a value written without one."""


@dataclass(frozen=True)
class Store:
    """Named entries in one folder: a file of content, and a card with its recipe.

    The format follows from the value: a data frame is a table, a dictionary of tensors is stored as such,
    anything else as JSON.
    """

    root: Path
    sources: tuple["Store", ...] = ()
    """Other stores, whose current entries are copied instead of being computed."""

    def made(self, name: str, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The stored result of ``task(*args, **kwargs)``, computed if it is not current.

        If the annotated result is a named tuple, each field is an entry, named ``name_field``.

        Raises
        ------
        TypeError, ValueError
            If :func:`flowoe_lib.recipes.recipe` has no recipe for the task and its arguments.
        RuntimeError
            If a module of the recipe changed on disk since it was imported.
        FileExistsError
            If a folder is in the place of a stored file; nothing is computed then.
        """
        made_by = recipe(task, *args, **kwargs)
        kind: Any = inspect.signature(task).return_annotation
        fields = getattr(kind, "_fields", ())
        names = [f"{name}_{field}" for field in fields] or [name]
        current = next((s for s in (self, *self.sources) if s._current(names, made_by)), None)
        if current is not None:
            current.copy(names, self)
        else:
            check_unchanged(made_by["sources"])
            for place in (place for each in names for place in self.root.glob(f"{each}.*")):
                _check_no_folder(place)
            made: Any = task(*args, **kwargs)
            check_unchanged(made_by["sources"])
            for each, value in zip(names, made if fields else [made], strict=True):
                self.write(each, value, made_by)
        values = [self._confirmed(each) for each in names]
        result: T = kind(*values) if fields else values[0]
        return result

    def write(self, name: str, value: Any, made_by: dict[str, Any] | None = None) -> None:
        """Store a value, with its recipe or, if it is cheap to compute, without one."""
        suffix, content = _encoded(value)
        card = Card(name, f"{name}{suffix}", sha256(content), made_by)
        if self._entry(name) == (card, content):
            self._confirmed(name)
        else:
            self._put(card, content)

    def read_tensors(self, name: str) -> "dict[str, Tensor]":
        """Tensors made by an earlier notebook. Raises MissingArtifact."""
        tensors: dict[str, Tensor] = _decoded(".safetensors", self._read(name, ".safetensors")[1])
        return tensors

    def read_table(self, name: str) -> "pd.DataFrame":
        """A table made by an earlier notebook. Raises MissingArtifact."""
        table: pd.DataFrame = _decoded(".parquet", self._read(name, ".parquet")[1])
        return table

    def read_json(self, name: str) -> Any:
        """A JSON value made by an earlier notebook. Raises MissingArtifact."""
        return json.loads(self._read(name, ".json")[1])

    def results(self) -> list[Card]:
        """Cards of the entries of at most ``LARGEST`` bytes."""
        names = (path.name.removesuffix(".card.json") for path in sorted(self.root.glob("*.card.json")))
        entries = [entry for entry in map(self._entry, names) if entry]
        return [card for card, content in entries if len(content) <= LARGEST]

    def copy(self, names: Iterable[str], to: "Store") -> None:
        """Copy entries, with their recipes, to another store. Raises MissingArtifact."""
        if to.root == self.root:
            return
        for name in names:
            to._put(*self._read(name))

    def _put(self, card: Card, content: bytes) -> None:
        # The card is written last: until then card and content do not match, and the entry counts as absent.
        atomic_write(self.root / card.file, content)
        atomic_write(self._card(card.name), json.dumps(dataclasses.asdict(card), indent=1).encode())

    def _current(self, names: Iterable[str], made_by: dict[str, Any]) -> bool:
        """Whether all these entries have the recipe ``made_by``."""
        return all(entry and entry[0].recipe == made_by for entry in map(self._entry, names))

    def _card(self, name: str) -> Path:
        if not name.isidentifier():
            raise ValueError(f"artifact name {name!r}: must be letters, digits and underscores")
        return self.root / f"{name}.card.json"

    def _entry(self, name: str) -> tuple[Card, bytes] | None:
        """An entry's card and content; None if either is missing or they do not belong together."""
        path = self._card(name)
        try:
            card = Card(**json.loads(path.read_bytes()))
            if card.name != name or card.file not in [f"{name}{suffix}" for suffix in SUFFIXES]:
                return None
            content = (self.root / card.file).read_bytes()
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return (card, content) if sha256(content) == card.sha256 else None

    def _read(self, name: str, suffix: str = "") -> tuple[Card, bytes]:
        entry = self._entry(name)
        if entry is None:
            state = "is damaged" if self._card(name).exists() else "is missing"
            there = [profile for profile in PROFILES if Store(self.root.with_name(profile))._entry(name)]
            raise MissingArtifact(
                f"artifact '{name}' {state} in {self.root}: an earlier notebook makes it. Run the notebooks "
                f"in order, or all of them with `make reproduce PROFILE={self.root.name}`"
                + "".join(f'; or use what is there: PROFILE = "{p}" in the parameters cell' for p in there)
            )
        if not entry[0].file.endswith(suffix):
            raise MissingArtifact(f"artifact '{name}' is stored as {entry[0].file}, not as *{suffix}")
        return entry

    def _confirmed(self, name: str) -> Any:
        """An entry's value; its files get the current time, so the driver counts them as made by this run."""
        card, content = self._read(name)
        with contextlib.suppress(OSError):  # a store may be read-only
            for path in (self.root / card.file, self._card(name)):
                os.utime(path)
        return _decoded(Path(card.file).suffix, content)


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile in one checkout; quick and full results never mix.

    Parameters
    ----------
    root : Path
        Folder of the checkout.
    profile : str
        "full" or "quick".
    device : str
        Device on which policies are refined, such as "cuda".

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> from pathlib import Path
    >>> fo.Workspace(Path("checkout"), "quick").store.root.as_posix()
    'checkout/artifacts/quick'
    """

    root: Path
    profile: str
    device: str = "cpu"

    @classmethod
    def open(cls, profile: str, device: str = "cpu") -> "Workspace":
        """Open the workspace of the checkout around the working directory, and make its folders.

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
        for folder in (workspace.store.root, workspace.cache, workspace.build):
            folder.mkdir(parents=True, exist_ok=True)
        return workspace

    @property
    def store(self) -> Store:
        """Results that later notebooks read: in ``artifacts``, or where FLOWOE_STORE points.

        There, entries that ``artifacts`` or ``published`` has are copied instead of being computed. The tests
        of the notebooks use it, to compute nothing that is published already.
        """
        made = Store(self.root / "artifacts" / self.profile)
        apart = os.environ.get("FLOWOE_STORE")
        return Store(Path(apart) / self.profile, (made, self.published)) if apart else made

    @property
    def published(self) -> Store:
        """The weights and tables that the published notebooks made."""
        return Store(self.root / "notebooks" / "results")

    @property
    def figures(self) -> Path:
        """Figures and tables: where FLOWOE_FIGURES points, else a folder that git ignores.

        Only the driver's full run points it at the published figures, so that a notebook run by hand,
        perhaps on private data, leaves them as they are.
        """
        return Path(os.environ.get("FLOWOE_FIGURES") or self.root / "build" / "lab" / self.profile)

    @property
    def cache(self) -> Path:
        """Downloaded data, checked against a pinned hash when it is read."""
        return self.root / ".cache"

    @property
    def build(self) -> Path:
        """Executed notebooks and the driver's records."""
        return self.root / "build" / self.profile
