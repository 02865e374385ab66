"""The committed notebooks are complete and tidy, and their checked cells would catch a changed result."""

import ast
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
        ("papermill" in metadata, "names papermill"),
        ("injected-parameters" in metadata, "holds injected parameters"),
        (not any(checked(c) and any(texts(c)) for c in code), "has no checked cell with text output"),
    ]
    return [what for wrong, what in found if wrong] + [what for c in code for what in _untidy(source(c))]


def _length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _untidy(text: str) -> Iterator[str]:
    if (lines := sum(1 for line in text.splitlines() if line.strip())) > 30:
        yield f"has a cell of {lines} lines"
    python = TransformerManager().transform_cell(text)  # type: ignore[no-untyped-call]
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.FunctionDef) and (lines := _length(node)) > 8:
            yield f"defines {node.name} in {lines} lines"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_is_complete_and_tidy(path: Path) -> None:
    assert problems(read(path)) == []


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
        (1, {"metadata": {"papermill": {}}}, "names papermill"),
        (1, {"metadata": {"tags": ["injected-parameters"]}}, "holds injected parameters"),
        (2, {"outputs": []}, "has no checked cell with text output"),
        (2, {"source": "print(1)"}, "has no checked cell with text output"),
        (1, {"source": "x = 1\n\n" * 31}, "has a cell of 31 lines"),
        (1, {"source": LONG_FUNCTION}, "defines late in 9 lines"),
    ],
)
def test_each_problem_is_found(number: int, change: Json, problem: str) -> None:
    notebook = sample()
    assert problems(notebook) == []
    notebook["cells"][number] |= change
    assert problems(notebook) == [problem]


@dataclass(frozen=True)
class Copy:
    """A checkout of its own in which notebooks and library can be altered."""

    root: Path

    def notebook(self, stem: str) -> Path:
        return self.root / "notebooks" / f"{stem}.ipynb"

    def verdict(self, *stems: str) -> tuple[int, str]:
        """Exit status and report of nbval: 0 if the stored outputs come out again, 1 if not."""
        options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=1200", "--color=no"]
        paths = [str(self.notebook(stem)) for stem in stems]
        environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "FLOWOE_FIGURES")}
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *paths],
            cwd=self.root,
            env=environment | {"PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        return result.returncode, result.stdout

    def alter_output(self, stem: str) -> None:
        """Change one digit of the first checked output that has one."""
        notebook = read(self.notebook(stem))
        outputs = (o for c in notebook["cells"] if c["cell_type"] == "code" and checked(c) for o in texts(c))
        holder, key = next((h, k) for h, k in outputs if re.search(r"\d", "".join(h[k])))
        holder[key] = re.sub(r"\d", lambda m: str((int(m[0]) + 1) % 10), "".join(holder[key]), count=1)
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
    shutil.copytree(ROOT / "flowoe_lib", root / "flowoe_lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return Copy(root)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A checkout in which the sample notebook has come out as stored."""
    copy = copy_checkout(tmp_path_factory.mktemp("tiny"))
    copy.notebook("sample").write_text(json.dumps(sample()))
    status, report = copy.verdict("sample")
    assert status == 0, report
    return copy


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A checkout in which the committed notebooks up to the proof's have come out as stored.

    Results that the original checkout has are taken over; a fresh one makes them here.
    """
    assert PROOF in {path.stem for path in NOTEBOOKS}, f"notebooks/{PROOF}.ipynb is not committed"
    copy = copy_checkout(tmp_path_factory.mktemp("committed"))
    needed = [path for path in NOTEBOOKS if path.stem <= PROOF]
    for path in needed:
        shutil.copy(path, copy.root / "notebooks")
    (ROOT / ".cache").mkdir(exist_ok=True)
    (copy.root / ".cache").symlink_to(ROOT / ".cache")
    if (stored := ROOT / "artifacts" / "full").is_dir():
        shutil.copytree(stored, copy.root / "artifacts" / "full", ignore=shutil.ignore_patterns(".*"))
    status, report = copy.verdict(*(path.stem for path in needed))
    assert status == 0, report
    return copy


@pytest.mark.parametrize(("checkout", "stem"), [("tiny", "sample"), ("committed", PROOF)])
def test_checked_cells_catch_a_changed_result(
    checkout: str, stem: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original: Copy = request.getfixturevalue(checkout)
    by_output = Copy(shutil.copytree(original.root, tmp_path / "output", symlinks=True))
    by_constant = Copy(shutil.copytree(original.root, tmp_path / "constant", symlinks=True))
    by_output.alter_output(stem)
    by_constant.alter_constant()
    for altered in (by_output, by_constant):
        status, report = altered.verdict(stem)
        assert status == 1, report
        assert "Notebook cell execution failed" in report
        assert "mismatch" in report
