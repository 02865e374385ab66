"""Entries of the notebooks: current until an input changes, and read only after they are stored."""

import ast
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from flowoe_lib import recipes
from flowoe_lib.recipes import LOADED, recipe
from flowoe_lib.reproduce import notebooks_in_order
from flowoe_lib.store import Store

NOTEBOOKS = notebooks_in_order(Path(__file__).parents[1] / "notebooks")
METHODS = ("made", "write", "read_table", "read_tensors", "read_json")


def code(path: Path) -> list[ast.Module]:
    """The code cells of a notebook, in their order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    python = TransformerManager()  # type: ignore[no-untyped-call]
    texts = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return [ast.parse(python.transform_cell(text)) for text in texts]


def imports(trees: Iterable[ast.Module]) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a notebook."""
    return [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a notebook that stores or reads an entry."""

    method: str
    node: ast.Call
    names: dict[str, Any]
    """What the notebook imports."""

    @property
    def entry(self) -> str:
        return str(ast.literal_eval(self.node.args[0]))

    def value(self, node: ast.expr) -> Any:
        """A function that the notebook imports; of anything else the text, as if it were the content."""
        try:
            return eval(ast.unparse(node), self.names)
        except NameError:
            return ast.unparse(node)

    @property
    def stored(self) -> set[str]:
        """The entries that it makes."""
        kind = inspect.signature(self.value(self.node.args[1])).return_annotation if self.made else None
        return {f"{self.entry}_{field}" for field in getattr(kind, "_fields", ())} or {self.entry}

    @property
    def made(self) -> bool:
        return self.method == "made"


def calls(path: Path) -> Iterator[Call]:
    """Calls of the store's methods in a notebook, in their order."""
    trees, names = code(path), dict[str, Any]()
    exec("\n".join(map(ast.unparse, imports(trees))), names)
    # Short names for what lies behind the front door, such as: frontier = fo.evaluation.frontier
    for line in trees[0].body:
        if isinstance(line, ast.Assign) and "fo." in ast.unparse(line):
            exec(ast.unparse(line), names)
    for tree in trees:
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        for node in sorted(found, key=lambda n: (n.lineno, n.col_offset)):
            # Other objects have such methods too: an order writes its plan.
            *_, receiver, method = ast.unparse(node.func).split(".")
            if receiver == "store" and method in METHODS:
                yield Call(method, node, names)


def unknown_entries(paths: Iterable[Path]) -> list[str]:
    """Entries that a notebook reads though neither it nor an earlier one stored them before."""
    stored, unknown = set[str](), []
    for path in paths:
        for call in calls(path):
            if call.method.startswith("read_"):
                unknown += [f"{path.stem}: {call.entry}"] if call.entry not in stored else []
            else:
                stored |= call.stored
    return unknown


def test_every_notebook_reads_only_what_an_earlier_one_stored() -> None:
    assert unknown_entries(NOTEBOOKS) == []


@pytest.mark.parametrize("left_out", ["01", "02", "03", "04", "05", "06", "07", "08", "10", "12", "13"])
def test_a_notebook_that_is_left_out_is_missed(left_out: str) -> None:
    assert unknown_entries(path for path in NOTEBOOKS if not path.stem.startswith(left_out))
    assert unknown_entries(reversed(NOTEBOOKS))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_the_front_door_and_the_studies_only(path: Path) -> None:
    found = [line for line in map(ast.unparse, imports(code(path))) if "flowoe_lib" in line]
    assert "import flowoe_lib as fo" in found
    others = [line for line in found if not line.startswith("from flowoe_lib.studies")]
    assert others == ["import flowoe_lib as fo"]


MADE = [call for path in NOTEBOOKS for call in calls(path) if call.made]


def stand_in(task: Callable[..., Any], computed: list[Any]) -> Callable[..., Any]:
    """A task with the name, parameters and kind of result of another, which computes nothing."""
    kind = inspect.signature(task).return_annotation
    result = kind(*range(len(kind._fields))) if hasattr(kind, "_fields") else 1

    @functools.wraps(task)
    def instead(*args: Any, **kwargs: Any) -> Any:
        computed.append(args)
        return result

    return instead


def test_the_notebooks_store_the_slow_results() -> None:
    assert len({call.entry for call in MADE}) == len(MADE) >= 10


@pytest.mark.parametrize("call", MADE, ids=lambda call: call.entry)
def test_every_entry_is_made_anew_when_an_input_changes_and_only_then(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, task, *args = map(call.value, call.node.args)
    kwargs = {str(keyword.arg): call.value(keyword.value) for keyword in call.node.keywords}
    store, computed = Store(tmp_path), list[Any]()
    instead = stand_in(task, computed)

    def again(args: list[Any] = args, kwargs: dict[str, Any] = kwargs) -> int:
        """How often the entry is computed for these arguments."""
        before = len(computed)
        store.made(call.entry, instead, *args, **kwargs)
        return len(computed) - before

    assert (again(), again()) == (1, 0)
    for i, arg in enumerate(args):
        altered = functools.partial(arg, altered=1) if callable(arg) else f"{arg} altered"
        assert again(args=[*args[:i], altered, *args[i + 1 :]]) == 1
        assert again() == 1
    for key, arg in kwargs.items():
        assert again(kwargs=kwargs | {key: f"{arg} altered"}) == 1
        assert again() == 1
    used = recipe(instead, *args, **kwargs)["sources"]
    computing = {"market.simulator", "execution.execution", "randomness"}
    assert {f"flowoe_lib.{module}" for module in computing} <= set(used)
    for module in used:
        with monkeypatch.context() as patch:
            patch.setitem(LOADED, module, LOADED[module]._replace(sha256="another"))
            assert again() == 1, module
    again()
    with monkeypatch.context() as patch:
        for module in LOADED.keys() - used.keys():
            patch.setitem(LOADED, module, LOADED[module]._replace(sha256="another"))
        assert again() == 0
    drawing = {name for name in LOADED if name.endswith(("plotting", "figures", "reproduce", "report"))}
    assert len(drawing) >= 5
    assert not drawing & set(used)
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "installed", lambda package: "another")
        assert again() == 1
