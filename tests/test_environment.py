"""The three files that say what to install agree: pyproject.toml, constraints.txt, environment.yml."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
FIXED = {"jupyterlab", "torch", "numpy", "pandas", "matplotlib", "seaborn", "papermill", "nbval"}


def direct() -> list[Requirement]:
    """Every requirement of pyproject.toml, those of the extras included."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


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


def test_conda_asks_for_python_and_pip_only_and_leaves_the_rest_to_pyproject() -> None:
    specs = [MatchSpec(s) for s in ENVIRONMENT["dependencies"] if isinstance(s, str)]
    versions = {str(s.name.normalized): s.version for s in specs if s.name is not None}
    assert set(versions) == {"python", "pip"}
    assert SpecifierSet(str(versions["python"])) == SpecifierSet(PROJECT["requires-python"])
    assert ENVIRONMENT["dependencies"][-1] == {"pip": ["-c constraints.txt", "-e .[test]"]}
    assert (ENVIRONMENT["name"], ENVIRONMENT["channels"]) == ("flowoe", ["conda-forge"])


def test_makefile_refuses_the_pythons_that_pyproject_refuses() -> None:
    check = re.search(r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    assert check is not None
    assert SpecifierSet(f">={check[1]}.{check[2]}") == SpecifierSet(PROJECT["requires-python"])


def test_conda_runs_with_the_threads_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    exports = re.findall(r"^export (OMP_\w+|KMP_\w+) := (\S+)$", makefile, re.MULTILINE)
    assert ENVIRONMENT["variables"] == dict(exports)
    assert len(exports) == 3
