"""The three files with the dependencies agree: pyproject.toml, constraints.txt, environment.yml."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "flowoe_lib"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
FIXED = {"jupyterlab", "torch", "numpy", "pandas", "matplotlib", "seaborn", "papermill", "nbval"}


def direct() -> list[Requirement]:
    """Every requirement of pyproject.toml, those of the extras included."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    listed = (Requirement(text) for group in groups for text in group)
    return [requirement for requirement in listed if requirement.name != PROJECT["name"]]


def extras_with(name: str) -> set[str]:
    """The extras that an extra installs: itself and those it names."""
    listed = (Requirement(text) for text in PROJECT["optional-dependencies"][name])
    named = (r.extras for r in listed if r.name == PROJECT["name"])
    return {name}.union(*(extras_with(extra) for extras in named for extra in extras))


def pins(name: str) -> list[Requirement]:
    """The lines of the lock for one package."""
    locked = (Requirement(line) for line in LOCK)
    return [pin for pin in locked if canonicalize_name(pin.name) == canonicalize_name(name)]


@pytest.mark.parametrize("requirement", direct(), ids=lambda r: r.name)
def test_direct_dependency_has_one_pin_within_its_range(requirement: Requirement) -> None:
    versions = [str(pin.specifier).removeprefix("==") for pin in pins(requirement.name)]
    assert len(versions) == 1
    assert requirement.specifier.contains(versions[0])


@pytest.mark.parametrize("line", LOCK)
def test_lock_holds_exact_public_versions_once(line: str) -> None:
    match = re.fullmatch(r"[A-Za-z0-9._-]+==(\S+)", line)
    assert match is not None
    # A local label such as +cpu exists on some indexes only.
    assert Version(match[1]).local is None
    assert len(pins(Requirement(line).name)) == 1


def test_fixed_packages_are_direct_dependencies() -> None:
    assert {requirement.name for requirement in direct()} >= FIXED


def test_conda_installs_python_and_pip_and_pyproject_the_rest() -> None:
    python, pip, rest = ENVIRONMENT["dependencies"]
    # conda and pip write a package and its range alike.
    asked = Requirement(python)
    assert (asked.name, asked.specifier, pip) == ("python", SpecifierSet(PROJECT["requires-python"]), "pip")
    assert rest == {"pip": ["-c constraints.txt", "-e .[test]"]}
    assert (ENVIRONMENT["name"], ENVIRONMENT["channels"]) == ("flowoe", ["conda-forge"])


def test_make_and_conda_install_what_every_notebook_and_test_needs() -> None:
    assert extras_with("test") >= {"test", "notebooks", "rl", "cluster"}
    assert '-e ".[test]"' in (ROOT / "Makefile").read_text()


BEYOND_CORE = {
    "studies": {"notebooks", "rl"},
    "desk/explorer_page.py": {"notebooks"},
    "desk/commands.py": {"notebooks"},
    "training/reinforcement.py": {"rl"},
    "training/vector_environment.py": {"rl"},
}
"""Rooms and modules whose import needs extras; what functions import as they run is not counted."""


def imported(module: Path) -> set[str]:
    """The packages that a module imports as it is imported, by the name in the import."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    loaded = (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    names = (
        [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for node in loaded
    )
    return {name.split(".")[0] for group in names for name in group} - sys.stdlib_module_names


@pytest.mark.parametrize("room", ["", *sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py"))])
def test_rooms_import_what_the_core_or_their_extras_install(room: str) -> None:
    distributions = packages_distributions()
    for module in (LIBRARY / room).glob("*.py"):
        place = module.relative_to(LIBRARY).as_posix()
        extras = BEYOND_CORE.get(place, BEYOND_CORE.get(room, set()))
        lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
        allowed = {canonicalize_name(Requirement(text).name) for texts in lists for text in texts}
        for name in imported(module) - {"flowoe_lib"}:
            assert {canonicalize_name(d) for d in distributions[name]} & allowed, f"{place} imports {name}"


def test_makefile_refuses_the_pythons_that_pyproject_refuses() -> None:
    check = re.search(r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    assert check is not None
    assert SpecifierSet(f">={check[1]}.{check[2]}") == SpecifierSet(PROJECT["requires-python"])


def test_conda_runs_with_the_threads_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    exports = re.findall(r"^export (OMP_\w+|KMP_\w+) := (\S+)$", makefile, re.MULTILINE)
    assert ENVIRONMENT["variables"] == dict(exports)
    assert len(exports) == 3
