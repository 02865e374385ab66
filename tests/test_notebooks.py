"""The committed notebooks are complete and tidy, and their checked cells would catch a changed result."""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROOF = "01_environment_calibration"
"""The notebook that the mutation proof runs: cheap, with a checked table of estimates."""
CONSTANT = ("data/calibration.py", "QUANTILES = (0.5, 0.975, 0.999)", "QUANTILES = (0.5, 0.95, 0.999)")
"""The library constant that the proof alters: how rare a stressed day is."""
ALTERED = "altered"
"""Id of the cell with an altered output."""
CHECKED, CHECKED_TAG = "# NBVAL_CHECK_OUTPUT", "nbval-check-output"

Json = dict[str, Any]


def read(path: Path) -> Json:
    notebook: Json = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def tags(cell: Mapping[str, Any]) -> list[str]:
    found: list[str] = cell["metadata"].get("tags", [])
    return found


def checked(cell: Mapping[str, Any]) -> bool:
    return source(cell).startswith(CHECKED) or CHECKED_TAG in tags(cell)


def texts(cell: Mapping[str, Any]) -> Iterator[tuple[Json, str]]:
    """Where a cell's outputs hold text that nbval compares: (container, key)."""
    for output in cell["outputs"]:
        holder, key = (output, "text") if "text" in output else (output.get("data", {}), "text/plain")
        if "".join(holder.get(key, "")).strip():
            yield holder, key


def output(cell: Mapping[str, Any]) -> str:
    """The text that nbval compares."""
    return "".join("".join(holder[key]) for holder, key in texts(cell))


def tables(cell: Mapping[str, Any]) -> str:
    """The HTML of a cell's outputs."""
    return "".join("".join(o.get("data", {}).get("text/html", "")) for o in cell["outputs"])


def problems(notebook: Json) -> list[str]:
    """What is wrong with a notebook that is to be committed, one line each."""
    code = [c for c in notebook["cells"] if c["cell_type"] == "code" and source(c).strip()]
    counts = [c["execution_count"] for c in code]
    run = [n for n in counts if n is not None]
    parameters = [source(c) for c in code if "parameters" in tags(c)]
    full = [re.search(r'^PROFILE = "full"(\s*#.*)?$', text, re.MULTILINE) for text in parameters]
    metadata = json.dumps([notebook["metadata"], *(c["metadata"] for c in notebook["cells"])])
    found = [
        (len(parameters) != 1, "has no single cell tagged 'parameters'"),
        (not all(full), "is not PROFILE full"),
        (None in counts, "has a cell that was never run"),
        (any(a >= b for a, b in pairwise(run)), "was run out of order"),
        (any(o["output_type"] == "error" for c in code for o in c["outputs"]), "holds an error"),
        (any(o.get("name") == "stderr" for c in code for o in c["outputs"]), "holds a warning"),
        ("papermill" in metadata, "names papermill"),
        ("injected-parameters" in metadata, "holds injected parameters"),
        (not any(checked(c) and any(texts(c)) for c in code), "has no checked cell with text output"),
    ]
    untidy = [what for c in code for what in (*_untidy(source(c)), *_unreadable(tables(c)))]
    return [what for wrong, what in found if wrong] + untidy


def _length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _unreadable(html: str) -> Iterator[str]:
    """Names of code and negative zeros in the cells of a table."""
    for text in re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", html):
        if re.search(r"[a-z]_[a-z]", text) or re.fullmatch(r"-0(\.0*)?\s*%?", text.strip()):
            yield f"has a table with '{text}'"


def _untidy(text: str) -> Iterator[str]:
    if (lines := sum(1 for line in text.splitlines() if line.strip())) > 20:
        yield f"has a cell of {lines} lines"
    python = TransformerManager().transform_cell(text)  # type: ignore[no-untyped-call]
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.FunctionDef) and (lines := _length(node)) > 8:
            yield f"defines {node.name} in {lines} lines"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_is_complete_and_tidy(path: Path) -> None:
    assert problems(read(path)) == []


@pytest.mark.parametrize("number", ["02", "03", "05", "10", "12"])
def test_no_table_shows_vwap_where_volume_is_flat(number: str) -> None:
    path = next(path for path in NOTEBOOKS if path.stem.startswith(number))
    html = "".join(tables(c) for c in read(path)["cells"] if c["cell_type"] == "code")
    assert "TWAP" in html
    assert "VWAP" not in html


def test_quick_profile_names_the_committed_notebooks() -> None:
    assert NOTEBOOKS, "no notebooks are committed"
    assert list(read(ROOT / "notebooks" / "quick.json")) == [path.stem for path in NOTEBOOKS]


def cell(number: int | None, text: str, *outputs: Json, tag: str | None = None) -> Json:
    head = {"cell_type": "code", "id": f"cell-{number}", "execution_count": number, "source": text}
    return head | {"metadata": {"tags": [tag]} if tag else {}, "outputs": list(outputs)}


def printed(text: str) -> Json:
    return {"output_type": "stream", "name": "stdout", "text": text}


def sample() -> Json:
    """A notebook without problems; its one checked cell prints a constant of the library."""
    cells = [
        cell(1, 'PROFILE = "full"', tag="parameters"),
        cell(2, "%time from flowoe_lib.data.calibration import QUANTILES"),
        cell(3, f"{CHECKED}\nprint(QUANTILES)", printed("(0.5, 0.975, 0.999)\n")),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


def table(cell: str) -> Json:
    html = f"<table><tr><td id='a'>{cell}</td></tr></table>"
    return {"output_type": "display_data", "data": {"text/html": html}, "metadata": {}}


WARNING = {"output_type": "stream", "name": "stderr", "text": "a warning"}
ERROR = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
LONG_FUNCTION = "def late():" + "\n    x = 1" * 8


@pytest.mark.parametrize(
    ("number", "change", "problem"),
    [
        (0, {"metadata": {}}, "has no single cell tagged 'parameters'"),
        (0, {"source": 'PROFILE = "quick"'}, "is not PROFILE full"),
        (1, {"execution_count": None}, "has a cell that was never run"),
        (1, {"execution_count": 3}, "was run out of order"),
        (1, {"execution_count": 1}, "was run out of order"),
        (1, {"outputs": [ERROR]}, "holds an error"),
        (1, {"outputs": [WARNING]}, "holds a warning"),
        (1, {"metadata": {"papermill": {}}}, "names papermill"),
        (1, {"metadata": {"tags": ["injected-parameters"]}}, "holds injected parameters"),
        (2, {"outputs": []}, "has no checked cell with text output"),
        (2, {"source": "print(1)"}, "has no checked cell with text output"),
        (1, {"source": "x = 1\n\n" * 21}, "has a cell of 21 lines"),
        (1, {"outputs": [table("training_seed")]}, "has a table with 'training_seed'"),
        (1, {"outputs": [table("-0.00 %")]}, "has a table with '-0.00 %'"),
        (1, {"source": LONG_FUNCTION}, "defines late in 9 lines"),
    ],
)
def test_each_problem_is_found(number: int, change: Json, problem: str) -> None:
    notebook = sample()
    assert problems(notebook) == []
    notebook["cells"][number] |= change
    assert problems(notebook) == [problem]


def alterable(cell: Mapping[str, Any]) -> bool:
    return cell["cell_type"] == "code" and checked(cell) and re.search(r"\d", output(cell)) is not None


@dataclass(frozen=True)
class Copy:
    """A checkout of its own in which notebooks and library can be altered."""

    root: Path

    def notebook(self, stem: str) -> Path:
        return self.root / "notebooks" / f"{stem}.ipynb"

    def failures(self, stem: str) -> tuple[set[int], str]:
        """Which code cells nbval finds to come out otherwise than stored, and its report."""
        options = [
            "--nbval-lax",
            "--nbval-current-env",
            "--nbval-cell-timeout=1200",
            "--color=no",
            "-p",
            "no:xdist",
        ]
        environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "FLOWOE_FIGURES")}
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(self.notebook(stem))],
            cwd=self.root,
            env=environment | {"PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        failed = re.findall(rf"^FAILED .*{stem}\.ipynb::Cell (\d+)", result.stdout, flags=re.MULTILINE)
        assert result.returncode == bool(failed), result.stdout
        return {int(cell) for cell in failed}, result.stdout.partition("short test summary info")[0]

    def alter_output(self, stem: str, shows: str) -> None:
        """Put after the first checked cell without ``shows`` a copy in whose output one digit is another."""
        notebook = read(self.notebook(stem))
        cells = notebook["cells"]
        place = next(i for i, c in enumerate(cells) if alterable(c) and not re.search(shows, output(c)))
        holder, key = next(texts(twin := copy.deepcopy(cells[place])))
        text = "".join(holder[key])
        holder[key] = re.sub(r"\d", lambda m: str((int(m[0]) + 1) % 10), text, count=1)
        cells.insert(place + 1, twin | {"id": ALTERED})
        self.notebook(stem).write_text(json.dumps(notebook), encoding="utf-8")

    def alter_constant(self) -> None:
        """Change one constant of the library."""
        file, old, new = CONSTANT
        path = self.root / "flowoe_lib" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")


def copy_checkout(root: Path) -> Copy:
    """The library and its configuration, without notebooks."""
    (root / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "flowoe_lib", root / "flowoe_lib", ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copy(ROOT / "pyproject.toml", root)
    # jsonschema does without this package, whose import takes a second.
    (root / "rfc3987_syntax.py").write_text("raise ImportError")
    return Copy(root)


@pytest.fixture
def tiny(tmp_path: Path) -> Copy:
    """A checkout in which the sample notebook and a sum come out as stored."""
    checkout, notebook = copy_checkout(tmp_path), sample()
    notebook["cells"].append(cell(4, f"{CHECKED}\nprint(7 + 7)", printed("14\n")))
    checkout.notebook("sample").write_text(json.dumps(notebook))
    failed, report = checkout.failures("sample")
    assert failed == set(), report
    return checkout


@pytest.fixture
def committed(tmp_path: Path) -> Copy:
    """A checkout with the committed notebook of the proof, which needs no earlier one."""
    checkout = copy_checkout(tmp_path)
    shutil.copy(ROOT / "notebooks" / f"{PROOF}.ipynb", checkout.root / "notebooks")
    (ROOT / ".cache").mkdir(exist_ok=True)
    (checkout.root / ".cache").symlink_to(ROOT / ".cache")
    return checkout


@pytest.mark.parametrize(
    ("checkout", "stem", "shows"),
    [("tiny", "sample", r"0\.975"), ("committed", PROOF, "vix_ratio")],
)
def test_checked_cells_catch_a_changed_result(
    checkout: str, stem: str, shows: str, request: pytest.FixtureRequest
) -> None:
    """An output and a constant are altered at once: both are caught, and every other cell passes."""
    altered: Copy = request.getfixturevalue(checkout)
    altered.alter_output(stem, shows)
    altered.alter_constant()
    code = [c for c in read(altered.notebook(stem))["cells"] if c["cell_type"] == "code"]
    by_output = {i for i, c in enumerate(code) if c["id"] == ALTERED}
    by_constant = {i for i, c in enumerate(code) if checked(c) and re.search(shows, output(c))}
    failed, report = altered.failures(stem)
    assert failed == by_output | by_constant, report
    assert (len(by_output), len(by_constant) > 0) == (1, True)
    assert report.count("mismatch '") == len(failed)
